"""The commands of puppet's module `rabbitmq`, and the regular expressions by which it reads their output.

The module starts `rabbitmqctl` and parses its tables. A line that does not match stops a run of puppet. Here the same
commands create objects on both brokers, and what the expressions find has to be these objects.

Left out is its type `rabbitmq_plugin`: Leveret has no `rabbitmq-plugins`, and the module takes a missing program for an
empty list. `puppet_module.py`, which runs puppet itself, tests the check of passwords (`rabbitmqctl eval`), and queues,
exchanges and bindings, which the module creates with the `rabbitmqadmin` written in Python.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, Tuple

from sides import Side

# The options with which the module lists, for RabbitMQ 3.7.9 and newer.
LIST = ["-q", "--no-table-headers"]
VERSION = re.compile(r"RabbitMQ.*?([\d.]+)")
CLUSTER_NAME = re.compile(r"^Cluster name: (\S+)$", re.MULTILINE)
NODE_NAME = re.compile(r"^Status of node '?([\w.-]+@[\w.-]+)'?", re.MULTILINE)
USER = re.compile(r"^(\S+)\s+\[(.*?)\]$")
VHOST = re.compile(r"^(\S+)$")
VHOST_3_11 = re.compile(r"^(\S+)\t+(.*?)\t+(undefined|quorum|classic|stream)?\t+\[(.*?)\]$", re.IGNORECASE)
PERMISSION = re.compile(r"^(\S+)\s+(\S*)\s+(\S*)\s+(\S*)$")
POLICY = re.compile(r"^(\S+)\s+(\S+)\s+(\S+)\s+(all|exchanges|(?:classic_|quorum_)?queues|streams)?\s+(\S+)\s+(\d+)$")
PARAMETER = re.compile(r"^(\S+)\s+(\S+)\s+(\S+)$")
SHOVEL = {"src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "a", "dest-protocol": "amqp091",
          "dest-uri": "amqp://127.0.0.1:1", "dest-queue": "b", "reconnect-delay": 3600}
# The commands of `create`, as the types of the module start them.
CREATE = [
    ["add_user", "pat", "secret"],
    ["set_user_tags", "pat", "monitoring", "policymaker"],
    ["add_user", "lee", "secret"],
    ["change_password", "lee", "other"],
    ["add_vhost", "pv"],
    ["set_permissions", "-p", "pv", "guest", ".*", ".*", ".*"],
    ["set_permissions", "-p", "pv", "pat", "^a", ".*", "''"],
    ["set_permissions", "-p", "/", "pat", "a\\.b", "", ".*"],
    ["set_policy", "-p", "pv", "--priority", "3", "--apply-to", "queues", "short", "^q\\.", '{"max-length":9}'],
    ["set_policy", "-p", "pv", "--priority", "0", "--apply-to", "all", "long", ".*", '{"message-ttl":1000,"expires":3600000}'],
    ["set_policy", "-p", "pv", "--priority", "0", "--apply-to", "exchanges", "other", ".*", '{"alternate-exchange":"x"}'],
    ["set_parameter", "-p", "pv", "shovel", "s", json.dumps(SHOVEL, separators=(",", ":"))],
    ["set_cluster_name", "plant@example"],
]
# The same with what RabbitMQ 3.10.8 lacks. The module does that from 3.11 on.
CREATE_3_11 = [
    ["add_vhost", "meta", "--description", "two words", "--default-queue-type", "classic", "--tags", "a,b"],
    ["update_vhost_metadata", "meta", "--description", "three more words", "--tags", "c,d"],
]
DESTROY = [
    ["clear_parameter", "-p", "pv", "shovel", "s"],
    ["clear_policy", "-p", "pv", "short"],
    ["clear_permissions", "-p", "pv", "pat"],
    ["delete_vhost", "pv"],
    ["delete_user", "pat"],
    ["delete_user", "lee"],
]
# What the module creates with rabbitmqadmin: path and body of the request.
REQUESTS: List[Tuple[str, str, Any]] = [
    ("PUT", "queues/pv/q.plain", {"durable": True}),
    ("PUT", "queues/pv/full", {"durable": True, "arguments": {"x-max-length": 5, "x-overflow": "drop-head",
                                                              "x-dead-letter-exchange": "x y"}}),
    ("PUT", "exchanges/pv/plain", {"type": "topic", "durable": True}),
    ("PUT", "exchanges/pv/more", {"type": "headers", "durable": False, "auto_delete": False, "internal": True,
                                  "arguments": {"alternate-exchange": "plain"}}),
    ("POST", "bindings/pv/e/plain/q/q.plain", {"routing_key": "a.#"}),
    ("POST", "bindings/pv/e/plain/e/more", {"routing_key": "k", "arguments": {"x-match": "all", "n": 1}}),
]


def output(side: Side, words: List[str]) -> str:
    """Returns the output of a command that must succeed. The module reads both streams for its facts."""
    done = side.run(["rabbitmqctl", *([] if not side.is_rabbitmq else ["-n", side.node]), *words])
    assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def lines(side: Side, what: str, *words: str) -> List[str]:
    """Returns the lines of a list."""
    return [line for line in output(side, ["list_" + what, *LIST, *words]).split("\n") if line]


def matched(pattern: "re.Pattern[str]", line: str) -> Tuple[Any, ...]:
    """Returns the groups of a line. A line that does not match stops a run of puppet."""
    found = pattern.match(line)
    assert found, f"{line!r} does not match {pattern.pattern}"
    return found.groups()


def arguments(text: str) -> Any:
    """Returns the table of arguments that `rabbitmqctl` prints. The module makes JSON of it with three replacements."""
    inner = re.sub(r"^\[|\]$", "", text, flags=re.MULTILINE)
    inner = re.sub(r'\{("(?:.|\\")*?"),', r"{\1:", inner)
    return json.loads(re.sub(r"\},\{", ",", inner) or "{}")


def is_version_3_11(side: Side) -> bool:
    """Returns whether the module expects metadata of virtual hosts."""
    version = matched(re.compile(r".*?" + VERSION.pattern, re.DOTALL), output(side, ["-q", "status"]))[0]
    return tuple(map(int, version.split(".")[:2])) >= (3, 11)


def facts(side: Side) -> Dict[str, Any]:
    """Reads the facts of a node."""
    version = VERSION.search(output(side, ["-q", "status"]))
    node = NODE_NAME.search(output(side, ["status"]))
    cluster = CLUSTER_NAME.search(output(side, ["-q", "cluster_status"]))
    overview = side.ask("GET", "overview")
    return {"version": version is not None and version[1] == overview["rabbitmq_version"],
            "node": node is not None and node[1] == overview["node"],
            "cluster": cluster and cluster[1]}


def users(side: Side) -> Any:
    """Reads users with their tags."""
    rows = [matched(USER, line) for line in lines(side, "users")]
    return sorted((name, sorted(re.split(r",\s*", tags))) for name, tags in rows)


def vhosts(side: Side) -> Any:
    """Reads the names of virtual hosts. Those of 3.11 and newer have more, which `metadata` reads."""
    return sorted(matched(VHOST, line)[0] for line in lines(side, "vhosts") if line != "meta")


def metadata(side: Side) -> Any:
    """Reads virtual hosts as the module does from 3.11 on: the columns are one word, and `-s` comes last."""
    rows = [matched(VHOST_3_11, line) for line in lines(side, "vhosts", "name,description,default_queue_type,tags", "-s")]
    return {name: (description, kind, re.split(r",\s*", tags)) for name, description, kind, tags in rows}["meta"]


def permissions(side: Side) -> Any:
    """Reads the permissions of a user, whose backslashes are doubled."""
    rows = [matched(PERMISSION, line.replace("\\\\", "\\")) for line in lines(side, "user_permissions", "pat")]
    return sorted(rows)


def policies(side: Side) -> Any:
    """Reads the policies of a virtual host."""
    rows = [matched(POLICY, line) for line in lines(side, "policies", "-p", "pv")]
    return sorted((name, pattern.replace("\\\\", "\\"), target, sorted(json.loads(definition).items()), priority)
                  for _, name, pattern, target, definition, priority in rows)


def parameters(side: Side) -> Any:
    """Reads the parameters of a virtual host."""
    rows = [matched(PARAMETER, line) for line in lines(side, "parameters", "-p", "pv")]
    return sorted((component, name, json.loads(value)) for component, name, value in rows)


def queues(side: Side) -> Any:
    """Reads queues."""
    rows = [line.split("\t") for line in lines(side, "queues", "-p", "pv", "name", "durable", "auto_delete", "arguments")]
    # A shovel of Leveret keeps messages that its destination refuses in a queue.
    return sorted((name, durable, auto_delete, arguments(more)) for name, durable, auto_delete, more in rows
                  if not name.startswith("shovel."))


def exchanges(side: Side) -> Any:
    """Reads exchanges without predefined ones. The name of the default exchange is an empty column."""
    rows = [line.split("\t") for line in
            lines(side, "exchanges", "-p", "pv", "name", "type", "internal", "durable", "auto_delete", "arguments")]
    assert any(row[:2] == ["", "direct"] for row in rows), rows
    return sorted((*row[:5], arguments(row[5])) for row in rows if not row[0].startswith("amq.") and row[0])


def bindings(side: Side) -> Any:
    """Reads bindings without those of the default exchange."""
    rows = [line.split("\t") for line in lines(side, "bindings", "-p", "pv", "source_name", "destination_name",
                                               "destination_kind", "routing_key", "arguments")]
    return sorted((*row[:4], arguments(row[4])) for row in rows if row[0])


# What each reader finds with both brokers.
EXPECTED: Dict[Callable[[Side], Any], Any] = {
    users: [("guest", ["administrator"]), ("lee", [""]), ("pat", ["monitoring", "policymaker"])],
    vhosts: ["/", "pv"],
    permissions: [("/", "a\\.b", "", ".*"), ("pv", "^a", ".*", "''")],
    policies: [("long", ".*", "all", [("expires", 3600000), ("message-ttl", 1000)], "0"),
               ("other", ".*", "exchanges", [("alternate-exchange", "x")], "0"),
               ("short", "^q\\.", "queues", [("max-length", 9)], "3")],
    parameters: [("shovel", "s", SHOVEL)],
    queues: [("full", "true", "false", {"x-max-length": 5, "x-overflow": "drop-head", "x-dead-letter-exchange": "x y"}),
             ("q.plain", "true", "false", {})],
    exchanges: [("more", "headers", "true", "false", "false", {"alternate-exchange": "plain"}),
                ("plain", "topic", "false", "true", "false", {})],
    bindings: [("plain", "more", "exchange", "k", {"x-match": "all", "n": 1}),
               ("plain", "q.plain", "queue", "a.#", {})],
}
FACTS = {"version": True, "node": True, "cluster": "plant@example"}


def check(side: Side) -> None:
    """Creates objects, reads them, and removes them. All that differs is reported at once."""
    wrong = []
    for words in CREATE:
        output(side, words)
    for method, path, body in REQUESTS:
        side.ask(method, path, body)
    for reader, wanted in EXPECTED.items():
        wrong += check_one(reader, side, wanted)
    wrong += check_one(facts, side, FACTS)
    if is_version_3_11(side):
        for words in CREATE_3_11:
            output(side, words)
        wrong += check_one(metadata, side, ("three more words", "classic", ["c", "d"]))
        output(side, ["delete_vhost", "meta"])
    else:
        assert side.is_rabbitmq, "Leveret announces a RabbitMQ older than 3.11"
    for words in DESTROY:
        output(side, words)
    wrong += check_one(users, side, [("guest", ["administrator"])]) + check_one(vhosts, side, ["/"])
    assert not wrong, "\n".join(wrong)


def check_one(reader: Callable[[Side], Any], side: Side, wanted: Any) -> List[str]:
    """Returns how the objects that a reader finds differ from what it has to find."""
    try:
        found = reader(side)
    except AssertionError as why:
        return [f"{reader.__name__}: {why}"]
    return [] if found == wanted else [f"{reader.__name__}: {found}, expected are {wanted}"]
