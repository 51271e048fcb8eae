#!/usr/bin/env python3
"""Makes the manual pages of the leveret binaries, and the files with their completions.

    systemd/packages/manual.py BINARY FOLDER

The pages are made from boards/generic.toml and the output of `leveret --help`, `leveretctl help` and `leveret-bench --help`
(of the one beside BINARY); the completions are those that `leveret completions` prints. The same binary gives the same
bytes.
"""

from __future__ import annotations

import calendar
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build as static  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHANGELOG = HERE.parent / "CHANGELOG.md"
KEY = re.compile(r"^(?:# )?([a-z_]+ = (?:\[.*\]|\".*\"|[^ ]+))$")
PIECE = re.compile(r"^# --- (.*?) -+$")
SECTION = re.compile(r"^\[([a-z]+)\]$")
CALL = re.compile(r"^ {1,8}leveret(?:-bench)? ")
OPTION = re.compile(r"^ {2}(?=\S)")


# The examples of leveret(1) and leveret.toml(5).
LEVERET_EXAMPLES = """\
A broker for this machine, with the web page at http://localhost:15672:
    leveret

A broker for other machines, with the limits for a Pi Zero:
    leveret --board pi-zero-w --listen 0.0.0.0:5672

What a configuration means, and how much memory it takes:
    leveret check --config /etc/leveret/leveret.toml

What a data directory contains, and what in it is damaged:
    leveret inspect /var/lib/leveret
"""
TOML_EXAMPLE = """\
board = "auto"
listen = ["0.0.0.0:5672"]
management = ["127.0.0.1:15672"]

[store]
disk_limit = "2GB"

[[bridge]]
name = "plant"
upstream = ["amqps://edge:secret@rabbit.example.com/%2f"]
[[bridge.forward]]
queue = "telemetry"
to_queue = "telemetry"
"""


class Option(NamedTuple):
    """An option of a command line."""

    names: List[str]
    value: str
    about: str


class Command(NamedTuple):
    """A command of leveretctl."""

    name: str
    usage: str
    about: str
    example: str


class Said(NamedTuple):
    """Everything that the binary prints about itself."""

    version: str
    help: str
    bench: str
    inspect: str
    sections: List[Tuple[str, List[Command]]]
    ctl_options: str


def ask(binary: Path) -> Said:
    """Runs the binary and returns everything that it prints about itself."""
    with tempfile.TemporaryDirectory() as folder:
        ctl = Path(folder) / "leveretctl"
        ctl.symlink_to(binary.resolve())

        def say(program: Path, *words: str) -> str:
            return subprocess.run([str(program), *words], check=True, capture_output=True, text=True).stdout

        sections: List[Tuple[str, List[Command]]] = []
        for line in say(ctl, "help").split("Available commands:", 1)[1].splitlines():
            if re.match(r"^\S.*:$", line):
                sections.append((line[:-1], []))
            elif re.match(r"^ {3}\S", line):
                name = line.split()[0]
                parts = re.split(r"\n\n", say(ctl, "help", name).lstrip("\n"), maxsplit=5)
                usage, about, example = parts[1].removeprefix("leveretctl "), parts[2].strip(), parts[4]
                sections[-1][1].append(Command(name, usage, " ".join(about.split()), example))
        options = say(ctl, "help", "help").split("General Options\n\n", 1)[1]
        return Said(version_of(binary), say(binary, "--help"), say(static.bench(binary), "--help"),
                    say(binary, "inspect", "--help"), sections, options)


# --- roff --------------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Escapes text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace('"', "\\(dq")
    text = text.replace("'", "\\(aq")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    text = text.replace("×", "\\(mu").replace("…", "...")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def filled(text: str) -> str:
    """Returns a paragraph in short lines, escaped for roff."""
    return roff("\n".join(textwrap.wrap(text, 76, break_on_hyphens=False, break_long_words=False)))


def release() -> Tuple[str, str]:
    """Returns the newest version in the changelog, and its date."""
    found = re.search(r"^## \[(\S+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("CHANGELOG.md has no line such as: ## [0.1.0] - 2026-11-22")
    return found[1], found[2]


def package_version() -> str:
    """Returns the version in Cargo.toml: that of the newest release, or of the next one."""
    found = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("Cargo.toml has no line such as: version = \"0.2.0\"")
    return found[1]


def version_of(binary: Path) -> str:
    """Returns the version that a binary prints. A development build has one such as 0.2.0~dev7+g0123abcd."""
    return subprocess.run([str(binary), "--version"], check=True, capture_output=True, text=True).stdout.split()[1]


def date(version: str) -> int:
    """Returns the date of a version in seconds since 1970: of a development build that of its commit, otherwise that of
    the release. apt ignores a list that is older than the one it has, so the date of each build must be known.
    """
    commit = re.search(r"~dev\d+\+g([0-9a-f]+)$", version)
    if commit:
        if os.environ.get("SOURCE_DATE_EPOCH"):
            return int(os.environ["SOURCE_DATE_EPOCH"])
        try:
            said = subprocess.run(["git", "-C", str(ROOT), "show", "--no-patch", "--format=%ct", commit[1]], check=True,
                                  capture_output=True, text=True).stdout
            return int(said.split()[-1])
        except (OSError, subprocess.CalledProcessError) as why:
            raise ValueError(f"the commit of {version} is not in this checkout: set SOURCE_DATE_EPOCH to its date") from why
    return calendar.timegm(time.strptime(release()[1], "%Y-%m-%d"))


def heading(kind: str, text: str) -> str:
    """Returns a heading."""
    return f'.{kind} "{roff(text)}"\n'


def item(heads: List[str], about: str) -> str:
    """Returns an item with its bold heads."""
    lines = [f".TP\n.B {roff(heads[0])}\n"]
    lines += [f".TQ\n.B {roff(head)}\n" for head in heads[1:]]
    return "".join(lines) + filled(about) + "\n"


def shown(text: str) -> str:
    """Returns lines that are printed unchanged."""
    return ".nf\n" + roff(text) + ".fi\n"


def page(name: str, section: int, version: str, about: str, body: str) -> str:
    """Returns a complete page."""
    day = time.strftime("%Y-%m-%d", time.gmtime(date(version)))
    title = f'.TH {roff(name.upper())} {section} "{day}" "Leveret {roff(version)}" "Leveret"\n'
    # A heading begins a paragraph by itself.
    body = re.sub(r"(?<=\"\n)\.PP\n(?!\.nf)", "", body)
    return f'{title}{heading("SH", "NAME")}{roff(name)} \\- {roff(about)}\n{body}'


def read_options(lines: List[str]) -> List[Option]:
    """Reads the options in the indented lines of a help text, with their descriptions."""
    options: List[Option] = []
    for line in lines:
        if OPTION.match(line) or not line.startswith(" "):
            left, _, about = line.strip().partition("  ")
            words = re.split(r",? (?=-)|(?<=[a-z]) (?=[A-Z<\[])|(?<=[a-z])(?=\[)", left, maxsplit=0)
            names = [word for word in words if word.startswith("-")]
            value = " ".join(word for word in words if not word.startswith("-"))
            options.append(Option(names, value, about.strip()))
        else:
            last = options[-1]
            options[-1] = last._replace(about=f"{last.about} {line.strip()}".strip())
    return options


def options_to_roff(options: List[Option]) -> str:
    """Returns options as roff items."""
    return "".join(item([" ".join(filter(None, [", ".join(one.names), one.value]))], one.about) for one in options)


def usages(block: str) -> List[Tuple[str, str]]:
    """Returns the text behind `Usage:` in a help text: each form of the command line, and its effect."""
    found: List[Tuple[str, str]] = []
    for line in block.removeprefix("Usage:").splitlines():
        call, _, about = line.strip().partition("  ")
        if CALL.match(line):
            found.append((call, about.strip()))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}".strip())
    return found


def help_to_roff(text: str, sub: bool) -> str:
    """Converts a help text to roff, section by section."""
    out = ""
    for block in text.strip("\n").split("\n\n"):
        first, *rest = block.splitlines()
        if first.startswith("Usage:"):
            out += "" if sub else heading("SH", "COMMANDS")
            out += "".join(item([call], about) for call, about in usages(block))
        elif first.endswith(":") and rest and rest[0].startswith("  "):
            out += heading("SS" if sub else "SH", first[:-1] if sub else first[:-1].upper())
            out += options_to_roff(read_options(rest))
        else:
            out += ".PP\n" + filled(block) + "\n"
    return out


def leveret_page(said: Said) -> str:
    """Returns leveret(1)."""
    about, _, rest = said.help.partition("\n\n")
    calls = "\n.br\n".join(roff(call) for call, _ in usages(rest.split("\n\n")[0]))
    body = heading("SH", "SYNOPSIS") + calls + "\n" + help_to_roff(rest, sub=False)
    body += heading("SH", "LEVERET INSPECT") + help_to_roff(said.inspect, sub=True)
    body += heading("SH", "EXAMPLES") + shown(LEVERET_EXAMPLES)
    body += heading("SH", "FILES")
    body += item(["/etc/leveret/leveret.toml"], "the configuration of the package's service")
    body += item(["/var/lib/leveret"], "its data")
    body += heading("SH", "SEE ALSO") + ".BR leveretctl (1),\n.BR leveret\\-bench (1),\n.BR leveret.toml (5)\n"
    return page("leveret", 1, said.version, about.split(": ", 1)[1].rstrip("."), body)


def leveretctl_page(said: Said) -> str:
    """Returns leveretctl(1)."""
    body = heading("SH", "SYNOPSIS") + ".B leveretctl\n" + roff("[OPTIONS] COMMAND [ARGUMENTS]") + "\n"
    body += heading("SH", "DESCRIPTION")
    body += roff(dict(usages(said.help.split("\n\n")[1]))["leveret ctl COMMAND"].capitalize()) + ".\n"
    body += heading("SH", "OPTIONS") + options_to_roff(read_options(said.ctl_options.splitlines()))
    body += heading("SH", "COMMANDS")
    for title, some in said.sections:
        body += heading("SS", title)
        for command in some:
            body += item([command.usage], command.about)
            # An example that is only the name of the command says nothing.
            if command.example != f"leveretctl {command.name}":
                body += f".IP\n.nf\n{roff(command.example)}\n.fi\n"
    body += heading("SH", "SEE ALSO") + ".BR leveret (1),\n.BR leveret.toml (5)\n"
    return page("leveretctl", 1, said.version, "query and control a running Leveret broker", body)


def bench_page(said: Said) -> str:
    """Returns leveret-bench(1)."""
    about, calls, rest = said.bench.split("\n\n", 2)
    body = heading("SH", "SYNOPSIS") + "\n.br\n".join(roff(call) for call, _ in usages(calls)) + "\n"
    body += heading("SH", "DESCRIPTION") + help_to_roff(f"{about}\n\n{calls}", sub=True)
    body += heading("SH", "OPTIONS") + help_to_roff(rest, sub=True)
    body += heading("SH", "SEE ALSO") + ".BR leveret (1)\n"
    return page("leveret-bench", 1, said.version, "measure an AMQP broker", body)


class Reference:
    """Converts boards/generic.toml to leveret.toml(5)."""

    def __init__(self) -> None:
        self.out = heading("SH", "DESCRIPTION")
        self.prose: List[str] = []
        self.keys: List[str] = []
        self.shown: List[str] = []

    def end_item(self) -> None:
        """Prints the keys read so far with their description, or a description without keys."""
        if self.keys:
            self.out += item(self.keys, "\n".join(self.prose))
        elif self.prose:
            self.out += ".PP\n" + filled("\n".join(self.prose)) + "\n"
        self.prose, self.keys = [], []

    def end_example(self) -> None:
        """Prints the lines of an example unchanged."""
        if self.shown:
            self.end_item()
            self.out += ".PP\n.nf\n" + roff("\n".join(self.shown)) + "\n.fi\n"
        self.shown = []

    def line(self, line: str) -> None:
        """Reads one line of the file."""
        if line.startswith("#     "):
            self.shown.append(line.removeprefix("#     "))
            return
        self.end_example()
        if found := KEY.match(line):
            self.keys.append(found[1])
        elif found := SECTION.match(line) or PIECE.match(line):
            self.end_item()
            self.out += heading("SH" if line.startswith("[") else "SS", found[0] if line.startswith("[") else found[1])
        elif line in ("", "#"):
            self.end_item()
        elif line.startswith("# "):
            if self.keys:
                self.end_item()
            self.prose.append(line.removeprefix("# "))
        else:
            raise ValueError(f"boards/generic.toml: {line!r} is not a key, a section or a comment")


def reference_page(said: Said, generic: str) -> str:
    """Returns leveret.toml(5)."""
    reference = Reference()
    for line in generic.splitlines():
        reference.line(line)
    reference.end_example()
    reference.end_item()
    body = reference.out + heading("SH", "EXAMPLE") + shown(TOML_EXAMPLE)
    body += heading("SH", "SEE ALSO") + ".BR leveret (1),\n.BR leveretctl (1)\n"
    return page("leveret.toml", 5, said.version, "configuration of the Leveret broker", body)


def make(binary: Path) -> Dict[str, str]:
    """Returns every file by its path below /usr/share."""
    said = ask(binary)
    generic = (ROOT / "boards" / "generic.toml").read_text()
    shells = {shell: subprocess.run([str(binary), "completions", shell], check=True, capture_output=True, text=True).stdout
              for shell in ("bash", "zsh", "fish")}
    return {
        "man/man1/leveret.1": leveret_page(said),
        "man/man1/leveretctl.1": leveretctl_page(said),
        "man/man1/leveret-bench.1": bench_page(said),
        "man/man5/leveret.toml.5": reference_page(said, generic),
        "bash-completion/completions/leveret": shells["bash"],
        "bash-completion/completions/leveretctl": shells["bash"],
        "zsh/vendor-completions/_leveret": shells["zsh"],
        "fish/vendor_completions.d/leveret.fish": shells["fish"],
        "fish/vendor_completions.d/leveretctl.fish": shells["fish"],
    }


def main() -> int:
    """Runs the command line."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    for place, text in make(Path(sys.argv[1])).items():
        target = Path(sys.argv[2]) / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
