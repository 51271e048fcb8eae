"""Ansible's collection community.rabbitmq: a playbook that creates objects, is repeated, and removes them again.

Left out are `rabbitmq_plugin`, because Leveret has no plug-ins that could be enabled or disabled, and
`rabbitmq_upgrade`, because it drains and revives nodes of a cluster with `rabbitmq-upgrade`. A Leveret is one node.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from harness.environment import ansible_python
from harness.suite import patience
from sides import Side

# The states of the runs, in order. Each state is requested twice.
RUNS = ["present", "present", "absent", "absent"]
# What a run reports about a task: `changed`, `same`, `failed` or, if the module has no such state, `-`.
IDEAL = ["changed", "same", "changed", "same"]


class Task(NamedTuple):
    """A task of the playbook. With `API` in its name it uses the management API, otherwise `rabbitmqctl`."""

    name: str
    module: str
    arguments: Dict[str, Any]
    has_states: bool = True


ALL = {"configure_priv": ".*", "write_priv": ".*", "read_priv": ".*"}
SHOVEL = {"src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "a", "dest-protocol": "amqp091",
          "dest-uri": "amqp://127.0.0.1:1", "dest-queue": "b", "reconnect-delay": 3600}
TASKS = [
    Task("vhost", "vhost", {"name": "/ctl"}),
    Task("vhost with tracing", "vhost", {"name": "traced", "tracing": True}),
    Task("vhost API", "vhost", {"name": "/api"}),
    Task("vhost API with tracing", "vhost", {"name": "traced-api", "tracing": True}),
    Task("user", "user", {"user": "plain", "password": "one"}),
    Task("user with tags", "user", {"user": "tagged", "password": "one", "tags": "monitoring,management"}),
    Task("user with privileges", "user", {"user": "private", "password": "one", "vhost": "/ctl", **ALL}),
    Task("user with permissions", "user", {"user": "permitted", "password": "one", "update_password": "always",
                                           "permissions": [{"vhost": "/", **ALL},
                                                           {"vhost": "/ctl", **ALL, "configure_priv": "^a-"}]}),
    Task("user with topic permissions", "user",
         {"user": "topical", "password": "one", "permissions": [{"vhost": "/", **ALL}],
          "topic_permissions": [{"vhost": "/", "exchange": "amq.topic", "read_priv": ".*",
                                 "write_priv": "prod\\.logging\\..*"}]}),
    Task("user without password", "user", {"user": "silent"}),
    Task("user with a forced password", "user", {"user": "forced", "password": "one", "force": True}),
    Task("user API", "user", {"user": "plain-api", "password": "one"}),
    Task("user API with all", "user",
         {"user": "all-api", "password": "one", "tags": "administrator", "update_password": "always",
          "permissions": [{"vhost": "/", **ALL}, {"vhost": "/api", **ALL}],
          "topic_permissions": [{"vhost": "/", "exchange": "amq.topic", "read_priv": ".*", "write_priv": "^a"}]}),
    Task("policy", "policy", {"name": "short", "pattern": "^q", "tags": {"max-length": 9}, "apply_to": "queues"}),
    Task("policy with priority", "policy", {"name": "dead letters", "pattern": ".*", "priority": "3", "vhost": "/ctl",
                                            "tags": {"dead-letter-exchange": "x", "message-ttl": 1000}}),
    Task("policy for exchanges", "policy", {"name": "alternate", "pattern": "^x\\.", "apply_to": "exchanges",
                                            "tags": {"alternate-exchange": "other"}}),
    Task("policy API", "policy", {"name": "short-api", "pattern": "^api", "tags": {"expires": 99}, "priority": "2"}),
    Task("parameter", "parameter", {"component": "shovel", "name": "s", "value": json.dumps(SHOVEL)}),
    Task("global parameter", "global_parameter", {"name": "object", "value": '{"b": [1, true], "a": "x"}'}),
    Task("global parameter of text", "global_parameter", {"name": "text", "value": '"words and more"'}),
    Task("vhost limits", "vhost_limits", {"vhost": "/ctl", "max_connections": 20, "max_queues": 30}),
    Task("vhost limits of one kind", "vhost_limits", {"vhost": "traced", "max_queues": 30}),
    Task("user limits", "user_limits", {"user": "plain", "max_connections": 4, "max_channels": 5}),
    Task("user limits of one kind", "user_limits", {"user": "tagged", "max_channels": 5}),
    Task("feature flag", "feature_flag", {"name": "quorum_queue"}, has_states=False),
    Task("queue API", "queue", {"name": "q"}),
    Task("queue API with arguments", "queue",
         {"name": "q/full", "vhost": "/api", "message_ttl": 60000, "auto_expires": 600000, "max_length": 10,
          "dead_letter_exchange": "x", "dead_letter_routing_key": "k", "max_priority": 5,
          "arguments": {"x-overflow": "reject-publish"}}),
    Task("queue API of type quorum", "queue", {"name": "quorum", "arguments": {"x-queue-type": "quorum"}}),
    Task("queue API that is deleted", "queue", {"name": "fleeting", "durable": False, "auto_delete": True}),
    Task("exchange API", "exchange", {"name": "x", "type": "topic"}),
    Task("exchange API internal", "exchange",
         {"name": "hidden", "type": "fanout", "internal": True, "arguments": {"alternate-exchange": "x"}}),
    Task("exchange API headers", "exchange", {"name": "by headers", "type": "headers", "durable": False}),
    Task("binding API", "binding", {"name": "x", "destination": "q", "destination_type": "queue",
                                    "routing_key": "a.#"}),
    Task("binding API with arguments", "binding",
         {"name": "by headers", "destination": "q", "destination_type": "queue", "routing_key": "",
          "arguments": {"x-match": "all", "a": "b"}}),
    Task("binding API of exchanges", "binding", {"name": "x", "destination": "hidden", "destination_type": "exchange",
                                                 "routing_key": "*.info"}),
    Task("publish to a queue", "publish", {"queue": "q", "durable": True, "body": "hello", "headers": {"a": "b"}},
         has_states=False),
    Task("publish to an exchange", "publish", {"exchange": "x", "routing_key": "a.b", "body": "hello"},
         has_states=False),
]
GONE_VHOST = "the virtual host has been removed, too, and its policies and limits are asked for"
GONE_USER = "the user has been removed, too, and its limits are asked for"
# Tasks that are not ideal with RabbitMQ 3.10.8 either: the reports of the runs, and the reason.
NOT_IDEAL = {
    "user with a forced password": ("changed changed changed same", "`force` deletes the user and creates it again"),
    "policy with priority": ("changed same changed failed", GONE_VHOST),
    "vhost limits": ("changed same changed failed", GONE_VHOST),
    "vhost limits of one kind": ("changed same changed failed", GONE_VHOST),
    "user limits": ("changed same changed failed", GONE_USER),
    "user limits of one kind": ("changed changed changed failed",
                                GONE_USER + ", and a limit that is not set differs from the default of the module"),
    "feature flag": ("same same - -", "it is enabled from the beginning"),
    "publish to a queue": ("changed changed - -", "each run publishes"),
    "publish to an exchange": ("changed changed - -", "each run publishes"),
}
# Those that differ with Leveret from RabbitMQ: Leveret's reports, and the reason.
DIFFERENT: Dict[str, Tuple[str, str]] = {}


def play(side: Side, state: str) -> List[Dict[str, Any]]:
    """Returns the playbook of a state. Objects are removed in the opposite order, because some contain others."""
    login = {"login_host": "127.0.0.1", "login_port": str(side.port), "login_user": "guest",
             "login_password": "guest"}
    tasks = []
    for task in TASKS if state == "present" else TASKS[::-1]:
        arguments = dict(task.arguments)
        if "API" in task.name:
            arguments.update(login)
        elif task.module == "publish":
            arguments["url"] = f"amqp://guest:guest@127.0.0.1:{side.amqp_port}/%2F"
        else:
            arguments["node"] = side.node
        if task.has_states:
            arguments["state"] = state
        elif state == "absent":
            continue
        tasks.append({"name": task.name, "ignore_errors": True, "community.rabbitmq.rabbitmq_" + task.module: arguments})
    return [{"hosts": "all", "gather_facts": False, "tasks": tasks}]


def reports(side: Side, state: str) -> Dict[str, str]:
    """Runs the playbook. Returns what it reports about each task; a failure with its message."""
    python = ansible_python()
    with tempfile.TemporaryDirectory(prefix="leveret-ansible-") as home:
        book, config = Path(home) / "playbook.json", Path(home) / "ansible.cfg"
        config.write_text("")
        book.write_text(json.dumps(play(side, state)))
        command = [str(python.parent / "ansible-playbook"), "-i", "localhost,", "-c", "local",
                   "-e", f"ansible_python_interpreter={python}", str(book)]
        more = {"ANSIBLE_HOME": home, "ANSIBLE_LOCAL_TEMP": home, "ANSIBLE_REMOTE_TEMP": home,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_DEPRECATION_WARNINGS": "0",
                "ANSIBLE_CONFIG": str(config), "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=side.environment(**more), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=patience(900), check=False, cwd=home)
        assert done.stdout[:1] == "{", f"ansible-playbook: status {done.returncode}\n{done.stdout}{done.stderr}"
    found = {}
    for task in json.loads(done.stdout)["plays"][0]["tasks"]:
        result = task["hosts"]["localhost"]
        if result.get("failed"):
            found[task["task"]["name"]] = f"failed: {result.get('msg')} {result.get('details', '')}"
        else:
            found[task["task"]["name"]] = "changed" if result["changed"] else "same"
    return found


def defined(side: Side) -> Dict[str, Any]:
    """Returns the definitions that the playbook made. Hashes of passwords have random salts, so they are left out."""
    found = side.ask("GET", "definitions")
    kept: Dict[str, Any] = {}
    for kind in ("users", "vhosts", "permissions", "topic_permissions", "parameters", "policies", "queues", "exchanges",
                 "bindings"):
        rows = [{key: value for key, value in row.items() if not key.startswith(("password_hash", "hashing_"))}
                for row in found[kind]]
        if kind == "vhosts":
            # Their metadata is in definitions only since RabbitMQ 3.12.
            rows = [{"name": row["name"]} for row in rows]
        # Virtual hosts' limits are compared by the tasks. A shovel of Leveret declares its source although its
        # destination does not answer, and has a queue of its own for messages that the destination refuses.
        rows = [row for row in rows if row.get("component") != "vhost-limits"
                and row.get("name") not in ("a", "shovel.s.parked")]
        kept[kind] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    kept["traced"] = sorted(vhost["name"] for vhost in side.ask("GET", "vhosts") if vhost["tracing"])
    kept["messages"] = [(one["payload"], one["properties"].get("headers"), one["properties"].get("content_type"))
                        for one in side.ask("POST", "queues/%2F/q/get", {"count": 9, "ackmode": "ack_requeue_true",
                                                                          "encoding": "auto"})]
    return kept


def outcome(side: Side) -> Dict[str, Any]:
    """Returns what each run reports about each task, and the definitions while the objects exist."""
    rows: Dict[str, List[str]] = {task.name: [] for task in TASKS}
    definitions: Dict[str, Any] = {}
    for number, state in enumerate(RUNS):
        found = reports(side, state)
        for name, row in rows.items():
            row.append(found.get(name, "-"))
        if number == 1:
            definitions = defined(side)
    return {"rows": rows, "definitions": definitions, "left": defined_names(side)}


def defined_names(side: Side) -> Dict[str, List[str]]:
    """Returns the names of the objects that are left at the end."""
    return {kind: sorted(str(row["name"]) for row in side.ask("GET", kind) if row["name"] != "a")
            for kind in ("users", "vhosts", "policies", "parameters", "queues")}


def short(row: List[str]) -> List[str]:
    """Returns the reports without the messages of failures."""
    return [report.split(":")[0] for report in row]


def compare(theirs: Dict[str, Any], ours: Dict[str, Any]) -> None:
    """Each task is idempotent except for the listed ones, and both brokers have the same objects."""
    wrong = []
    for task in TASKS:
        ideal = IDEAL if task.has_states else [*IDEAL[:2], "-", "-"]
        expected = NOT_IDEAL[task.name][0].split() if task.name in NOT_IDEAL else ideal
        expected_ours = DIFFERENT[task.name][0].split() if task.name in DIFFERENT else expected
        for name, row, wanted in (("RabbitMQ", theirs, expected), ("Leveret", ours, expected_ours)):
            if short(row["rows"][task.name]) != wanted:
                wrong.append(f"{task.name}: {name} has {row['rows'][task.name]}, expected is {wanted}")
    for kind, rows in theirs["definitions"].items():
        if rows != ours["definitions"][kind]:
            wrong.append(f"{kind}:\n  only RabbitMQ: {[one for one in rows if one not in ours['definitions'][kind]]}\n"
                         f"  only Leveret: {[one for one in ours['definitions'][kind] if one not in rows]}")
    if theirs["left"] != ours["left"]:
        wrong.append(f"left at the end: RabbitMQ {theirs['left']}, Leveret {ours['left']}")
    assert not wrong, "\n".join(wrong)
