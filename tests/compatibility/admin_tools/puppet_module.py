"""Puppet with its module `rabbitmq` as Debian has it: a second run changes nothing.

`puppet.py` has the commands of the module's newest release, which Debian does not have yet. The first run on a machine
installs puppet with apt.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from harness.environment import have_puppet
from harness.suite import Skip, patience
from sides import Side, write_program

MODULES = Path("/usr/share/puppet/modules")
LOGIN = {"user": "guest", "password": "guest"}
SHOVEL = {"src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "a", "dest-protocol": "amqp091",
          "dest-uri": "amqp://127.0.0.1:1", "dest-queue": "b", "reconnect-delay": "3600"}
# Types, titles and attributes, in an order in which one needs the other. The types of policies and parameters demand
# texts, and make numbers of them.
RESOURCES: List[Tuple[str, str, Dict[str, Any]]] = [
    ("vhost", "pv", {}),
    ("user", "pat", {"password": "secret", "tags": ["monitoring", "policymaker"]}),
    ("user", "root", {"password": "secret", "admin": True}),
    ("user_permissions", "guest@pv", {"configure_permission": ".*", "write_permission": ".*", "read_permission": ".*"}),
    ("user_permissions", "pat@pv", {"configure_permission": "^a\\.", "write_permission": ".*", "read_permission": ".*"}),
    ("policy", "short@pv", {"pattern": "^q\\.", "applyto": "queues", "priority": 3, "definition": {"max-length": "9"}}),
    ("policy", "long@pv", {"pattern": ".*", "definition": {"dead-letter-exchange": "x", "message-ttl": "1000"}}),
    ("parameter", "s@pv", {"component_name": "shovel", "value": SHOVEL}),
    ("exchange", "x@pv", {**LOGIN, "type": "topic", "durable": True, "internal": False, "auto_delete": False,
                          "arguments": {"alternate-exchange": "other"}}),
    ("queue", "q@pv", {**LOGIN, "durable": True, "auto_delete": False,
                       "arguments": {"x-max-length": 5, "x-overflow": "drop-head"}}),
    ("binding", "b", {**LOGIN, "source": "x", "destination": "q", "vhost": "pv", "destination_type": "queue",
                      "routing_key": "a.#", "arguments": {}}),
    ("exchange", "y@pv", {**LOGIN, "type": "fanout"}),
    ("queue", "lonely@pv", {**LOGIN, "durable": True}),
]
# Those that are removed at the end. The module makes a resource wait for what it needs, also when both are removed: then
# what it needs is gone first, and its own removal fails. So these do not need each other.
REMOVED = ["root", "pat@pv", "short@pv", "s@pv", "b", "y@pv", "lonely@pv"]
# The exit codes of puppet, with `--detailed-exitcodes`.
SAME, CHANGED = 0, 2


def manifest(state: str) -> str:
    """Returns a manifest with all resources, each after the one before it, or with the removed ones."""
    blocks = []
    for kind, title, attributes in RESOURCES:
        if state == "absent" and title not in REMOVED:
            continue
        lines = [f"{name} => {notation(value)}," for name, value in {"ensure": state, **attributes}.items()]
        blocks.append(f"rabbitmq_{kind} {{ '{title}':\n  " + "\n  ".join(lines) + "\n}")
    return ("\n-> " if state == "present" else "\n").join(blocks) + "\n"


def notation(value: Any) -> str:
    """Returns a value in puppet's notation."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{notation(key)} => {notation(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(notation, value)) + "]"
    if isinstance(value, str) and value not in ("present", "absent"):
        return "'" + value.replace("\\", "\\\\") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def copy_of_module(home: Path, side: Side) -> None:
    """Copies the module, and lets it start this side's `rabbitmqadmin`.

    The module has an absolute path, and a configuration file in /etc. The program in its place leaves the option out and
    names the port.
    """
    admin = shutil.which("rabbitmqadmin")
    if admin is None:
        raise Skip("rabbitmqadmin is not installed")
    program = side.programs / "rabbitmqadmin"
    write_program(program, "for word in \"$@\"; do shift",
                  'case "$word" in -c|/etc/rabbitmq/rabbitmqadmin.conf) ;; *) set -- "$@" "$word" ;; esac', "done",
                  f'exec {sys.executable} {shlex.quote(admin)} -H 127.0.0.1 -P {side.port} "$@"')
    copied = home / "modules" / "rabbitmq"
    shutil.copytree(MODULES / "rabbitmq", copied)
    base = copied / "lib" / "puppet" / "provider" / "rabbitmq_cli.rb"
    before = base.read_text()
    after = before.replace("'/usr/bin/rabbitmqadmin'", f"'{program}'")
    assert after != before, "the module has another path of rabbitmqadmin"
    base.write_text(after)


def apply(side: Side, home: Path, text: str) -> Tuple[int, str]:
    """Returns exit code and output of puppet for a manifest."""
    (home / "site.pp").write_text(text)
    command = ["puppet", "apply", "--detailed-exitcodes", "--color=false", "--modulepath",
               f"{home / 'modules'}:{MODULES}", "--confdir", str(home), "--vardir", str(home / "var"),
               "--rundir", str(home), "--logdir", str(home), str(home / "site.pp")]
    done = subprocess.run(command, env=side.environment(HOME=str(home)), stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=patience(600), check=False, cwd=home)
    return done.returncode, done.stdout + done.stderr


def check(side: Side) -> None:
    """Creates all resources and removes some, each twice. The second run changes nothing."""
    have_puppet()
    name = "RabbitMQ" if side.is_rabbitmq else "Leveret"
    with tempfile.TemporaryDirectory(prefix="leveret-puppet-") as folder:
        home = Path(folder)
        copy_of_module(home, side)
        for state in ("present", "absent"):
            for wanted in (CHANGED, SAME):
                status, output = apply(side, home, manifest(state))
                assert status == wanted, f"{name}, {state}: status {status}, expected is {wanted}\n{output}"
            if state == "present":
                check_objects(side)


def check_objects(side: Side) -> None:
    """Checks that puppet has created what the manifest says."""
    assert side.ask("GET", "queues/pv/q")["arguments"]["x-max-length"] == 5
    assert side.ask("GET", "exchanges/pv/x")["arguments"] == {"alternate-exchange": "other"}
    assert [one["routing_key"] for one in side.ask("GET", "bindings/pv/e/x/q/q")] == ["a.#"]
    assert side.ask("GET", "permissions/pv/pat")["configure"] == "^a\\."
    assert side.ask("GET", "policies/pv/short")["definition"] == {"max-length": 9}
    assert side.ask("GET", "parameters/shovel/pv/s")["value"]["src-queue"] == "a"
    assert side.ask("GET", "users/root")["tags"] == ["administrator"]
