"""Definitions in RabbitMQ's format: RabbitMQ's export imported here, Leveret's export imported there, and errors in
files."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from harness import brokers, environment
from harness.brokers import Leveret, leveret, rabbitmq
from harness.suite import patience
from hostile import talk
from support import ctl, good, program, rows

WORDS = [
    ["add_vhost", "plant"],
    ["add_user", "bob", "secret"],
    ["set_user_tags", "bob", "management", "monitoring"],
    ["set_permissions", "-p", "plant", "bob", "^a", "^b", ".*"],
    ["set_topic_permissions", "-p", "plant", "bob", "amq.topic", "^x", "^y"],
    ["set_vhost_limits", "-p", "plant", '{"max-queues":100}'],
    ["set_user_limits", "bob", '{"max-channels":700,"max-connections":9}'],
]
THINGS: Dict[str, List[Dict[str, Any]]] = {
    "exchanges": [
        {"name": "ex", "vhost": "plant", "type": "topic", "durable": True, "auto_delete": False, "arguments": {}},
        {"name": "alt", "vhost": "plant", "type": "fanout", "durable": True, "auto_delete": False,
         "internal": False, "arguments": {"alternate-exchange": "ex"}},
    ],
    "queues": [
        {"name": "é\t\"q\"", "vhost": "plant", "durable": True, "auto_delete": False,
         "arguments": {"x-max-length": 10, "x-overflow": "reject-publish"}},
        {"name": "transient", "vhost": "/", "durable": False, "auto_delete": False, "arguments": {}},
    ],
    "bindings": [
        {"source": "ex", "vhost": "plant", "destination": "é\t\"q\"", "destination_type": "queue",
         "routing_key": "a.#", "arguments": {"k": "v", "n": 1}},
        {"source": "alt", "vhost": "plant", "destination": "ex", "destination_type": "exchange",
         "routing_key": "", "arguments": {}},
    ],
}
KEPT = ["vhosts", "users", "permissions", "topic_permissions", "exchanges", "queues", "bindings"]


def there_and_back() -> None:
    """Definitions exported by RabbitMQ 3.10.8 are imported here, exported, and imported by another RabbitMQ."""
    environment.have_rabbitmq()
    with tempfile.TemporaryDirectory(prefix="leveret-defined-") as home:
        go_there_and_back(Path(home))


def go_there_and_back(home: Path) -> None:
    """Runs the case with files in this folder."""
    things, exported, ours, back = (home / name for name in ("things", "rabbit.json", "ours.json", "back.json"))
    things.write_text(json.dumps(THINGS))
    with rabbitmq() as oracle:
        for words in [*WORDS, ["import_definitions", str(things)], ["export_definitions", str(exported)]]:
            done = oracle.rabbitmqctl(words)
            assert done.returncode == 0, done
    with leveret() as broker:
        for _ in range(2):
            done = ctl(broker, "import_definitions", str(exported))
            assert done.status == 0 and not done.err, done
        good(broker, "export_definitions", str(ours))
        # The user logs in with the password whose hash RabbitMQ exported.
        assert good(broker, "authenticate_user", "bob", "secret").endswith("Success\n")
        assert rows(broker, "list_vhost_limits", "-p", "plant") == [['{"max-queues":100}']]
        assert rows(broker, "list_user_limits", "--user", "bob") == [['{"max-channels":700,"max-connections":9}']]
    with rabbitmq() as oracle:
        for words in (["import_definitions", str(ours)], ["authenticate_user", "bob", "secret"],
                      ["export_definitions", str(back)]):
            done = oracle.rabbitmqctl(words)
            assert done.returncode == 0, done
    first, second, third = (shape(json.loads(path.read_text())) for path in (exported, ours, back))
    for section in KEPT:
        assert first[section] == second[section], (section, first[section], second[section])
        assert first[section] == third[section], (section, first[section], third[section])


def shape(definitions: Dict[str, Any]) -> Dict[str, List[str]]:
    """Returns the sorted lists, with the fields that both brokers have."""
    left_out = {"metadata", "limits", "type", "internal", "password_hash", "hashing_algorithm"}
    found = {}
    for section in KEPT:
        things = [
            {key: value for key, value in thing.items() if key not in left_out or (section, key) in (("exchanges", "type"), ("users", "limits"))}
            for thing in definitions[section]
        ]
        found[section] = sorted(json.dumps(thing, sort_keys=True) for thing in things)
    return found


def at_a_start() -> None:
    """`load_definitions` creates the objects of the file. A second start changes nothing and does not write to the
    disk."""
    with tempfile.TemporaryDirectory(prefix="leveret-load-") as home:
        file = Path(home) / "definitions.json"
        things = dict(THINGS, vhosts=[{"name": "plant"}], users=[
            {"name": "bob", "tags": ["management"], "hashing_algorithm": "rabbit_password_hashing_sha256",
             "password_hash": "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"}], permissions=[
            {"user": "bob", "vhost": "plant", "configure": ".*", "write": ".*", "read": ".*"}])
        file.write_text(json.dumps(things))
        config = f'load_definitions = "{file}"\n'
        data_dir = Path(home) / "data"
        for run in range(3):
            with Leveret(brokers.leveret_binary(), [], config, data_dir) as broker:
                assert ["bob", "[management]"] in rows(broker, "list_users")
                assert good(broker, "authenticate_user", "bob", "test12").endswith("Success\n")
                assert len(rows(broker, "list_bindings", "-p", "plant", "source_name")) == 3
                if run == 1:
                    good(broker, "delete_queue", "-p", "plant", 'é\t"q"')


def errors_in_definitions_are_reported() -> None:
    """Errors in definitions are reported with their place: unsupported objects, invalid values, and invalid files."""
    wrong = {
        "vhosts": [{"name": "v"}],
        "policies": [{"name": "ha", "vhost": "v", "pattern": ".*", "definition": {}}],
        "parameters": [{"component": "shovel", "name": "s", "vhost": "v", "value": {}},
                       {"component": "federation-upstream", "name": "f", "vhost": "v", "value": {}}],
        "queues": [
            {"name": "good", "vhost": "v", "durable": True, "auto_delete": False, "arguments": {}},
            {"name": "lost", "vhost": "nowhere", "durable": True, "auto_delete": False, "arguments": {}},
            {"name": "bad", "vhost": "v", "durable": True, "auto_delete": False, "arguments": {"x-max-length": "x"}},
        ],
        "permissions": [{"user": "nobody", "vhost": "v", "configure": "", "write": "", "read": ""}],
    }
    with leveret() as broker:
        file = broker.home / "wrong.json"
        file.write_text(json.dumps(wrong))
        done = ctl(broker, "import_definitions", str(file))
        assert done.status == 69, done
        for place in ("policies[0]", "parameters[0]", "parameters[1]", "queues[1]", "queues[2]", "permissions[0]"):
            assert place + ":" in done.err, (place, done.err)
        assert rows(broker, "list_queues", "-p", "v", "name") == [["good"]]
        good(broker, "delete_queue", "-p", "v", "good")
        for text, why in (('{"users":[{"name":"q"}', "at line 1 column 22"), ("[]", "an object"),
                          ("[" * 100_000, "an object")):
            file.write_text(text)
            done = ctl(broker, "import_definitions", str(file))
            assert done.status == 65 and why in done.err, (text[:20], done)
        assert ctl(broker, "import_definitions", str(broker.home)).status == 65
        assert ctl(broker, "import_definitions", "/dev/zero").status == 65
        fifo = broker.home / "fifo"
        os.mkfifo(fifo)
        assert ctl(broker, "import_definitions", str(fifo)).status == 65
        for path in ("/dev/zero", str(fifo), str(broker.home), str(broker.home / "nosuch")):
            with Leveret(brokers.leveret_binary(), [], f'load_definitions = "{path}"\n') as without:
                assert f"load_definitions: {path}: " in without.log(), without.log()
                done = ctl(without, "check_alarms")
                assert done.status == 69 and "definitions: " in done.err, done


def passwords_in_clear() -> None:
    """A file with a plain-text password, as written by hand, works at a start and with `import_definitions`."""
    people = [{"name": "v", "password": "vpass", "tags": "administrator"}, {"name": "bare", "tags": ""}]
    with tempfile.TemporaryDirectory(prefix="leveret-clear-") as home:
        file = Path(home) / "definitions.json"
        file.write_text(json.dumps({"users": people}))
        config, data_dir = f'load_definitions = "{file}"\n', Path(home) / "data"
        written = []
        for _ in range(2):
            with Leveret(brokers.leveret_binary(), [], config, data_dir) as broker:
                assert good(broker, "authenticate_user", "v", "vpass").endswith("Success\n")
                exported = json.loads(good(broker, "-q", "export_definitions", "-"))
                written.append({user["name"]: user["password_hash"] for user in exported["users"]})
                log = broker.log()
        # An unchanged password is not written again with another salt.
        assert written[0] == written[1], written
        assert written[0]["bare"] == "" and "vpass" not in log, (written, log)
    with leveret() as broker:
        file = broker.home / "clear.json"

        def imported(*users: Dict[str, Any]) -> Any:
            file.write_text(json.dumps({"users": users}))
            return ctl(broker, "import_definitions", str(file))

        good(broker, "add_user", "v", "old")
        done = imported(people[0])
        assert done.status == 0 and not done.err, done
        assert good(broker, "authenticate_user", "v", "vpass").endswith("Success\n")
        assert ctl(broker, "authenticate_user", "v", "old").status == 65
        # RabbitMQ accepts a user without a password, and so does Leveret, but with a warning.
        done = imported({"name": "v", "tags": ""}, {"name": "bare", "tags": ""})
        assert done.status == 0 and "users[0]: the user has no password" in done.err, done
        assert "users[1]: the user has no password" in done.err, done
        assert ctl(broker, "authenticate_user", "v", "vpass").status == 65
        assert not imported({"name": "v", "tags": ""}).err
        # An invalid password is refused and changes nothing.
        good(broker, "change_password", "v", "kept")
        for wrong, why in (({"password": "x", "password_hash": "AAAA"}, "both"), ({"password": 12}, "a text"),
                           ({"password": "x" * 513}, "512")):
            done = imported({"name": "v", "tags": "", **wrong})
            assert done.status == 69 and "users[0]: " in done.err and why in done.err, (wrong, done)
            assert good(broker, "authenticate_user", "v", "kept").endswith("Success\n")
        # An unknown field causes a warning, and the user is created nevertheless.
        done = imported({"name": "v", "tags": "", "password": "vpass", "pasword_hash": ""})
        assert done.status == 0 and "users[0]: unknown field `pasword_hash`" in done.err, done
        assert good(broker, "authenticate_user", "v", "vpass").endswith("Success\n")
        many = [{"name": f"u{number}", "password": f"p{number}", "tags": ""} for number in range(60)]
        done = imported(*many)
        assert done.status == 0, done
        assert good(broker, "authenticate_user", "u59", "p59").endswith("Success\n")


def every_refused_definition_is_reported() -> None:
    """A file has more queues than the memory allows. The refusals are reported together."""
    with tempfile.TemporaryDirectory(prefix="leveret-defined-") as home, \
            leveret(config='memory_limit = "18MB"\n') as broker:
        total = 3_000
        name = "q" * 150
        queues = [{"name": f"{name}{number}", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
                  for number in range(total)]
        file = Path(home) / "many.json"
        file.write_text(json.dumps({"queues": queues}))
        done = ctl(broker, "import_definitions", str(file))
        made = len(rows(broker, "list_queues", "name"))
        assert 100 < made < total, made
        refused = [line for line in done.err.splitlines() if "raise memory_limit" in line]
        more = f"… and {total - made - len(refused):,} like it"
        assert len(refused) == 3 and more in done.err.splitlines(), (made, done.err[-600:])
        assert f"Error: {total - made} objects were not imported" in done.err, done.err[-300:]


def policies_for_kinds_of_queues() -> None:
    """Policies for one queue type, as in RabbitMQ 3.12 and later, apply to that type, and are exported unchanged."""
    policies = [
        {"vhost": "/", "name": name, "pattern": "^e3", "definition": definition, "priority": priority,
         "apply-to": apply_to}
        for name, definition, priority, apply_to in (
            ("pc", {"max-length": 6}, 1, "classic_queues"), ("pq", {"max-length": 7}, 2, "quorum_queues"),
            ("ps", {"max-age": "1h"}, 3, "streams"))]
    queues = [{"name": name, "vhost": "/", "durable": True, "auto_delete": False, "arguments": arguments}
              for name, arguments in (("e3c", {}), ("e3q", {"x-queue-type": "quorum"}))]
    with tempfile.TemporaryDirectory(prefix="leveret-defined-") as home, leveret() as broker:
        file, back = Path(home) / "kinds.json", Path(home) / "back.json"
        file.write_text(json.dumps({"policies": policies, "queues": queues}))
        good(broker, "import_definitions", str(file))
        shown = sorted(rows(broker, "list_queues", "name", "policy"))
        assert shown == [["e3c", "pc"], ["e3q", "pq"]], shown
        good(broker, "export_definitions", str(back))
        kept = sorted(json.loads(back.read_text())["policies"], key=lambda policy: policy["name"])
        assert kept == policies, kept


def checked(home: Path, data: Path, config: str, is_in_use: bool = False) -> List[str]:
    """Returns the warnings of `leveret check` about this data directory, and checks that it is unchanged."""
    def files() -> Dict[str, bytes]:
        return {path.name: path.read_bytes() for path in data.glob("*") if path.is_file() and not is_in_use}

    (home / "check.toml").write_text(config)
    command = [str(brokers.leveret_binary()), "check", "--config", str(home / "check.toml"), "--data-dir", str(data)]
    before = files()
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done
    assert files() == before, "check has written to the store"
    return [line for line in done.stdout.splitlines() if line.startswith("# warning: this store ")]


def store_exceeds_new_limits() -> None:
    """A start with less memory raises an alarm that a part of the store is not served. `leveret check` warns of it
    before. With the old memory everything is served again."""
    small = 'memory_limit = "18MB"\n'
    with tempfile.TemporaryDirectory(prefix="leveret-defined-") as home:
        file, data = Path(home) / "many.json", Path(home) / "data"
        assert checked(Path(home), data, small) == []
        file.write_text(json.dumps({
            "queues": [{"name": f"q{number}", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
                       for number in range(4_000)],
            "exchanges": [{"name": f"e{number}", "vhost": "/", "type": "fanout", "durable": True,
                           "auto_delete": False, "arguments": {}} for number in range(9)],
            "bindings": [{"source": "e0", "vhost": "/", "destination": f"q{number}", "destination_type": "queue",
                          "routing_key": "", "arguments": {}} for number in range(17)]}))
        binary = brokers.leveret_binary()
        with Leveret(binary, [], None, data) as broker:
            good(broker, "import_definitions", str(file))
            good(broker, "add_vhost", "v2")
            for name in ("u2", "u3"):
                good(broker, "add_user", name, "p")
            assert "limits:" not in good(broker, "list_alarms")
        told = checked(Path(home), data, small)
        assert len(told) == 1 and "has 4,000 queues, 9 exchanges, 17 bindings, 3 users" in told[0], told
        assert checked(Path(home), data, "") == []
        with Leveret(binary, [], small, data) as broker:
            assert 100 < len(rows(broker, "list_queues", "name")) < 3_900
            assert "limits: the store has more definitions or messages than" in good(broker, "list_alarms")
        with Leveret(binary, [], None, data) as broker:
            assert len(rows(broker, "list_queues", "name")) == 4_000
            assert "limits:" not in good(broker, "list_alarms")
            program("publish", broker, "q0", "9000")
        full = 'frame_max = "16KiB"\n[limits]\nsegment_bytes = "512KiB"\ncommit_bytes_max = "160KiB"\n'
        told = checked(Path(home), data, full + '[store]\ndisk_limit = "4MiB"\n')
        assert len(told) == 1 and "MB of messages, disk_limit is 4.2 MB" in told[0], told
        for segment in data.glob("*.seg"):
            segment.write_bytes(b"\x55" * segment.stat().st_size)
        assert checked(Path(home), data, small) == []


def virtual_host_metadata() -> None:
    """Metadata and limits of virtual hosts are stored, listed, exported and imported, and have their effect."""
    described = {
        "vhosts": [{"limits": [], "metadata": {"default_queue_type": "quorum", "description": "a", "tags": ["t1"],
                                               "protected_from_deletion": True},
                    "name": "dqt", "default_queue_type": "quorum"}],
        "permissions": [{"user": "guest", "vhost": "dqt", "configure": ".*", "write": ".*", "read": ".*"}],
        "queues": [{"name": "tq", "vhost": "dqt", "durable": True, "auto_delete": False}],
    }
    columns = ["name", "description", "tags", "default_queue_type", "protected_from_deletion"]
    refusal = b"Refusing to delete virtual host 'dqt' because it is protected from deletion"
    with leveret() as broker:
        file, ours = broker.home / "described.json", broker.home / "ours.json"
        file.write_text(json.dumps(described))
        good(broker, "import_definitions", str(file))
        good(broker, "set_vhost_limits", "-p", "dqt", '{"max-queues":9}')
        good(broker, "export_definitions", str(ours))
        exported = ours.read_text()
        shown = rows(broker, "list_vhosts", "name", "description", "tags", "default_queue_type")
        assert ["dqt", "a", "[t1]", "quorum"] in shown, shown
    with leveret() as broker:
        good(broker, "import_definitions", "-", stdin=exported)
        assert ["dqt", "a", "[t1]", "quorum", "true"] in rows(broker, "list_vhosts", *columns)
        assert rows(broker, "list_vhost_limits", "-p", "dqt") == [['{"max-queues":9}']]
        assert "quorum" in rows(broker, "list_queues", "-p", "dqt", "name", "arguments")[0][1]
        answer = talk(broker, b"GET /api/vhosts HTTP/1.1\r\n\r\n")
        metadata = b'"metadata":{"description":"a","tags":["t1"],"default_queue_type":"quorum",'
        assert metadata + b'"protected_from_deletion":true}' in answer, answer
        answer = talk(broker, b"DELETE /api/vhosts/dqt HTTP/1.1\r\n\r\n")
        assert b" 412 " in answer and b"precondition_failed" in answer and refusal in answer, answer
        done = ctl(broker, "delete_vhost", "dqt")
        assert done.status == 65 and "it is protected from deletion" in done.err, done
        good(broker, "disable_vhost_protection_from_deletion", "dqt")
        good(broker, "delete_vhost", "dqt")
        good(broker, "add_vhost", "v", "--description", "D", "--tags", "a, b", "--default-queue-type", "classic")
        good(broker, "add_vhost", "v")
        assert ["v", "D", "[a, b]", "classic", "false"] in rows(broker, "list_vhosts", *columns)
        good(broker, "enable_vhost_protection_from_deletion", "v")
        assert ctl(broker, "delete_vhost", "v").status == 65
        body = b'{"description":"E","protected_from_deletion":false}'
        put = b"PUT /api/vhosts/v HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        assert b" 204 " in talk(broker, put)
        assert ["v", "E", "[a, b]", "classic", "false"] in rows(broker, "list_vhosts", *columns)
        good(broker, "update_vhost_metadata", "v", "--tags", "c,d")
        assert ["v", "E", "[c, d]", "classic", "false"] in rows(broker, "list_vhosts", *columns)
        good(broker, "update_vhost_metadata", "v", "--description", "F", "--default-queue-type", "quorum")
        assert ["v", "F", "[c, d]", "quorum", "false"] in rows(broker, "list_vhosts", *columns)
        assert ctl(broker, "update_vhost_metadata", "none", "--tags", "c").err.endswith(
            "Virtual host 'none' does not exist\n")
        for words in ([], ["--default-queue-type", "fast"]):
            done = ctl(broker, "update_vhost_metadata", "v", *words)
            assert done.status == 64 and "argument validation" in done.err, done
        for words in (["--description", "d" * 1025], ["--default-queue-type", "fast"]):
            assert ctl(broker, "add_vhost", "w", *words).status == 69
        assert rows(broker, "list_vhosts", "name") == [["/"], ["v"]]


def shovels_can_be_forbidden() -> None:
    """With `shovels = false` no shovel can be defined, and the refusal names the key."""
    shovel = json.dumps({"src-uri": "amqp://", "src-queue": "a", "dest-uri": "amqp://192.0.2.1", "dest-queue": "b"})
    with leveret(config="shovels = false\n") as broker:
        done = ctl(broker, "set_parameter", "shovel", "s", shovel)
        assert done.status != 0 and "shovels = false" in done.err, done
    with leveret() as broker:
        good(broker, "set_parameter", "shovel", "s", shovel)


CASES = [at_a_start, shovels_can_be_forbidden, errors_in_definitions_are_reported, every_refused_definition_is_reported, virtual_host_metadata,
         policies_for_kinds_of_queues, store_exceeds_new_limits, passwords_in_clear, there_and_back]
