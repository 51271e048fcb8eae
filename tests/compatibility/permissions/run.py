"""Records the answers to users with limited permissions, or compares a broker with the recording.

Suite lines: `PASS permissions/NAME`, `FAIL permissions/NAME: why`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Union

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "support")]

from harness import brokers  # noqa: E402
from harness.raw import Client, Closed  # noqa: E402
from harness.suite import Suite  # noqa: E402
from permissions import table  # noqa: E402

Broker = Union[brokers.Leveret, brokers.RabbitMq]
RECORDED = HERE / "recorded.txt"


def kept(password: str) -> Dict[str, str]:
    """Returns a password in the form in which RabbitMQ stores it."""
    salt = b"salt"
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {"password_hash": base64.b64encode(salt + digest).decode(),
            "hashing_algorithm": "rabbit_password_hashing_sha256"}


def definitions() -> Dict[str, Any]:
    """Returns the users (also guest), virtual hosts and permissions of the table in RabbitMQ's export format."""
    everybody = [{"name": "guest", **kept("guest"), "tags": ["administrator"]}]
    everybody += [{"name": user, **kept(table.PASSWORD), "tags": table.TAGS.get(user, [])}
                  for user in table.USERS]
    permissions = [("guest", "/", ".*", ".*", ".*"), *table.PERMISSIONS]
    return {
        "users": everybody,
        "vhosts": [{"name": vhost} for vhost in table.VHOSTS],
        "permissions": [{"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
                        for user, vhost, configure, write, read in permissions],
        "topic_permissions": [{"user": user, "vhost": vhost, "exchange": exchange, "write": write, "read": read}
                              for user, vhost, exchange, write, read in table.TOPICS],
        "parameters": [{"vhost": vhost, "component": "vhost-limits", "name": "limits", "value": limits}
                       for vhost, limits in table.LIMITS.items()],
    }


def answers(broker: Broker) -> List[str]:
    """Returns the lines of one broker."""
    return table.run(broker.address)


def start_rabbitmq() -> brokers.RabbitMq:
    """Starts a RabbitMQ with all users."""
    broker = brokers.RabbitMq()
    try:
        path = broker.home / "definitions.json"
        path.write_text(json.dumps(definitions()))
        broker.ctl("import_definitions", str(path))
    except BaseException:
        broker.close()
        raise
    return broker


def start_leveret() -> brokers.Leveret:
    """Starts a Leveret with all users."""
    broker = brokers.Leveret(brokers.leveret_binary(), [])
    try:
        path = broker.home / "definitions.json"
        path.write_text(json.dumps(definitions()))
        broker.ctl("import_definitions", str(path))
        return broker
    except BaseException:
        print(broker.log())
        broker.close()
        raise


def folded(lines: List[str]) -> List[str]:
    """Returns the recorded form: for each operation every different answer once, with the users that got it."""
    text: List[str] = []
    for title, group in itertools.groupby(lines, lambda line: line.split(" | ")[0]):
        of_title = list(group)
        said: Dict[str, List[str]] = {}
        for _, user, answer in (line.split(" | ", 2) for line in of_title if len(of_title) == len(table.RIGHTS)):
            said.setdefault(answer.replace(f"'{user}'", "'{user}'"), []).append(user)
        text += [title, *(f" {' '.join(users)} | {answer}" for answer, users in said.items())] if said else of_title
    return text


def unfolded(text: List[str]) -> List[str]:
    """Returns the answers, one line each."""
    lines: List[str] = []
    title, said = "", {}
    for line in text:
        if line.startswith(" "):
            users, answer = line[1:].split(" | ", 1)
            said.update((user, answer.replace("'{user}'", f"'{user}'")) for user in users.split())
            if len(said) == len(table.RIGHTS):
                lines += [f"{title} | {user} | {said[user]}" for user in table.RIGHTS]
        elif " | " in line:
            lines.append(line)
        else:
            title, said = line, {}
    return lines


def compare(got: List[str], wanted: List[str]) -> None:
    """Compares both line by line."""
    differing = [(mine, theirs) for mine, theirs in zip(got, wanted) if mine != theirs]
    for mine, theirs in differing:
        print(f"  recorded: {theirs}\n  answered: {mine}")
    assert len(got) == len(wanted), f"{len(got)} answers, and {len(wanted)} are recorded"
    assert not differing, f"{len(differing)} of {len(wanted)} answers differ"


def deleted_user(broker: Broker) -> None:
    """The connection of a deleted user is closed with the reason."""
    broker.ctl("add_user", "gone", "pw")
    broker.ctl("set_permissions", "-p", "/", "gone", ".*", ".*", ".*")
    client = Client(broker.address, user="gone", password="pw")
    broker.ctl("delete_user", "gone")
    try:
        client.recv()
    except Closed as closed:
        told = table.shown(closed)
    assert told == "connection.close 320 CONNECTION_FORCED - user 'gone' is deleted (0.0)", told
    assert table.enter(broker.address, "gone", "pw") != "ok"


def survives() -> None:
    """Users, virtual hosts and permissions survive a kill. A deleted guest stays deleted."""
    home = Path(tempfile.mkdtemp(prefix="leveret-permissions-"))
    try:
        with brokers.Leveret(brokers.leveret_binary(), [], data_dir=home / "data") as broker:
            for command in (["add_user", "keeper", "pw"], ["add_vhost", "kept"], ["delete_user", "guest"],
                            ["set_permissions", "-p", "kept", "keeper", "^mine", "", ".*"]):
                broker.ctl(*command)
            broker.kill()
        with brokers.Leveret(brokers.leveret_binary(), [], data_dir=home / "data") as broker:
            address = broker.address
            assert table.enter(address, "keeper", "pw", "kept") == "ok"
            assert "refused" in table.enter(address, "keeper", "pw", "/")
            assert "refused" in table.enter(address, "guest", "guest", "/")
            for queue, answer in (("mine", "ok queue.declare-ok"), ("other", "channel.close 403")):
                operation = table.op("", "queue.declare", queue=queue)
                got = table.attempt(address, "keeper", "kept", operation, password="pw")
                assert got.startswith(answer), got
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    """Parses the arguments and runs the suite."""
    parser = argparse.ArgumentParser(prog="tests/compatibility/permissions/run")
    parser.add_argument("--rabbitmq", action="store_true", help="test a live RabbitMQ, not Leveret")
    parser.add_argument("--record", action="store_true", help="record the answers (RabbitMQ only)")
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    timer = brokers.watchdog(600)
    suite = Suite("permissions/rabbitmq" if args.rabbitmq else "permissions", args.case)
    broker: Broker = start_rabbitmq() if args.rabbitmq else start_leveret()
    began = time.monotonic()
    try:
        def everybody() -> None:
            got = answers(broker)
            if args.record and args.rabbitmq:
                assert unfolded(folded(got)) == got, "the recorded form does not represent these answers"
                RECORDED.write_text("\n".join(folded(got)) + "\n")
            print(f"# {len(got)} answers in {time.monotonic() - began:.1f} s")
            compare(got, unfolded(RECORDED.read_text().splitlines()))

        suite.case("table", everybody, broker.log)
        suite.case("deleted-user", lambda: deleted_user(broker), broker.log)
        if not args.rabbitmq:
            suite.case("survives-a-kill", survives)
    finally:
        timer.cancel()
        broker.close()
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
