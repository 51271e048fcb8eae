"""The rabbitmqadmin that is written in Rust: every command has the same exit code and output as with RabbitMQ."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from harness.environment import rabbitmqadmin
from sides import Side, listed

HERE = Path(__file__).resolve().parent
COMMANDS = HERE / "admin_commands.txt"
DIFFERENCES = HERE / "admin_differences.txt"
# Passwords with salts, and times of JSON Web Tokens and the like.
SALTED = re.compile(r"[A-Za-z0-9+/]{40,}=*")


def cells(line: str) -> List[str]:
    """Returns the cells of a row of a table in the style `markdown`."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def normalised(side: Side, text: str, only_first: bool) -> List[str]:
    """Returns the sorted lines of an output without what belongs to the broker: its node, its ports, salts, and widths
    of columns.
    """
    node = side.ask("GET", "nodes")[0]["name"]
    for found, name in ((node, "NODE"), (node.replace("@", "%40"), "NODE"), (f":{side.port}", ":PORT"),
                        (str(side.amqp_port), "PORT")):
        text = text.replace(found, name)
    if text.startswith("{"):
        return definitions(json.loads(text))
    lines = []
    for line in SALTED.sub("HASH", text).splitlines():
        if line.startswith("|"):
            row = cells(line)
            if set("".join(row)) <= set("-:"):
                continue
            line = row[0] if only_first else " | ".join(row)
        # The exchange exists in older releases. Leveret has it too but logs nothing into it.
        if "amq.rabbitmq.log" not in line and "amq.rabbitmq.trace" not in line:
            lines.append(line.rstrip())
    return sorted(line for line in lines if line)


def definitions(found: Dict[str, Any]) -> List[str]:
    """Returns the objects of exported definitions, one a line."""
    return sorted(f"{kind}: {json.dumps(row, sort_keys=True)}" for kind, rows in found.items() if isinstance(rows, list)
                  for row in rows)


def answers(side: Side) -> Dict[str, Tuple[int, List[str]]]:
    """Returns exit code and output of every command. A command that occurs twice has a number."""
    program = str(rabbitmqadmin())
    found: Dict[str, Tuple[int, List[str]]] = {}
    node = side.ask("GET", "nodes")[0]["name"]
    with tempfile.TemporaryDirectory(prefix="leveret-admin-") as home:
        for line in listed(COMMANDS):
            words = [word.replace("NODE", node).replace("PORT", str(side.amqp_port)).replace("FILE", f"{home}/file.json")
                     for word in shlex.split(line.removeprefix("~"))]
            options = ["-H", "127.0.0.1", "-P", str(side.port)]
            if "-u" not in words:
                options += ["-u", "guest", "-p", "guest"]
            if "--non-interactive" not in words:
                options += ["--table-style", "markdown"]
            done = side.run([program, *options, *words], folder=Path(home), HOME=home)
            output = normalised(side, done.stdout.replace(home, "HOME") + done.stderr.replace(home, "HOME"),
                                line.startswith("~"))
            name = line
            while name in found:
                name += " (again)"
            found[name] = done.returncode, output
    return found


def differing(theirs: Tuple[int, List[str]], ours: Tuple[int, List[str]]) -> List[str]:
    """Returns what differs: exit codes, lines of RabbitMQ (-) and of Leveret (+)."""
    found = [] if theirs[0] == ours[0] else [f"status {theirs[0]}, Leveret {ours[0]}"]
    rest = list(ours[1])
    for line in theirs[1]:
        if line in rest:
            rest.remove(line)
        else:
            found.append(f"- {line}")
    return found + [f"+ {line}" for line in rest]


def read_differences() -> Dict[str, List[str]]:
    """Reads the listed differences: commands after `==`, and the lines that differ. A reason stands above them."""
    found: Dict[str, List[str]] = {}
    commands: List[str] = []
    lines: List[str] = []
    for line in listed(DIFFERENCES):
        if line.startswith("== "):
            # Commands one after the other have the same difference.
            commands = [*([] if lines else commands), line[3:]]
            lines = []
        else:
            lines.append(line)
        found.update(dict.fromkeys(commands, lines))
    return found


def compare(theirs: Dict[str, Tuple[int, List[str]]], ours: Dict[str, Tuple[int, List[str]]]) -> None:
    """Every command has the same exit code and output, except for the listed differences, which all have to occur."""
    meant = read_differences()
    wrong = [f"listed, but no such command: {command}" for command in meant if command not in theirs]
    worked = sum(answer[0] == 0 for answer in theirs.values())
    # Otherwise two brokers could agree on refusing all.
    assert worked > len(theirs) / 2, f"only {worked} commands succeed with RabbitMQ"
    same = 0
    for command, answer in theirs.items():
        found = differing(answer, ours[command])
        same += not found
        if found != meant.get(command, []):
            gone = [] if found else [f"listed, but no longer different: {command}"]
            wrong.append("\n".join(gone or [f"== {command}", *found]))
    print(f"# {same} of {len(theirs)} commands are the same, {len(meant)} differences are listed")
    assert not wrong, "\n".join(wrong)
