"""Access rights of the management API: every request by every user, one line each, recorded from RabbitMQ 3.10.8 and
compared with Leveret.

All users except the outsiders have all permissions in the virtual host `mine` and none in `theirs`; `none` does not
exist. A cell is the status of an answer. After 200 it has a letter for each row of a list: m for `mine`, t for
`theirs`, and capitals for connections, channels and consumers of other users there.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple
from urllib.parse import quote

from harness import raw
from harness.brokers import Address
from harness.suite import patience, until

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "rights.txt"
DIFFERENCES = HERE / "rights_differences.txt"

# Each user with its tag, and whether it has all permissions in `mine`.
USERS: Dict[str, Tuple[str, bool]] = {
    "untagged": ("", True),
    "management": ("management", True),
    "policymaker": ("policymaker", True),
    "monitoring": ("monitoring", True),
    "administrator": ("administrator", True),
    "management-out": ("management", False),
    "monitoring-out": ("monitoring", False),
    "administrator-out": ("administrator", False),
}
VHOSTS = ("mine", "theirs", "none")
EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}
NOWHERE = "amqp://127.0.0.1:1"
POLICY = {"pattern": "^nothing$", "definition": {"max-length": 9}}
# Its address has no listener, so the shovel's state does not change.
SHOVEL = {"value": {"src-protocol": "amqp091", "src-uri": "amqp:///VHOST", "src-queue": "s",
                    "dest-protocol": "amqp091", "dest-uri": NOWHERE, "dest-queue": "d", "reconnect-delay": 3600}}

# Bodies of PUT requests, by the first segment of the path.
BODIES: Dict[str, Any] = {
    "queues": {"durable": True},
    "exchanges": {"type": "topic", "durable": True},
    "policies": POLICY,
    "operator-policies": POLICY,
    "parameters": SHOVEL,
    "global-parameters": {"value": 1},
    "permissions": EVERYTHING,
    "topic-permissions": {"exchange": "x", "write": ".*", "read": ".*"},
    "vhost-limits": {"value": 50},
    "user-limits": {"value": 500},
    "users": {"password": "x", "tags": ""},
    "vhosts": {},
}

# V stands for each virtual host in turn, NODE for the node's name, PORT for its port.
SHOWN = """whoami overview extensions cluster-name feature-flags nodes nodes/NODE nodes/NODE/memory nodes/rabbit@other
auth auth/attempts/NODE auth/attempts/NODE/source federation-links shovels
health/checks/alarms health/checks/local-alarms health/checks/virtual-hosts health/checks/node-is-quorum-critical
health/checks/node-is-mirror-sync-critical health/checks/certificate-expiration/1/months
health/checks/port-listener/PORT health/checks/protocol-listener/amqp091 healthchecks/node healthchecks/node/NODE
queues exchanges bindings consumers channels connections vhosts policies operator-policies
queues?page=1 exchanges?page=1&page_size=100 connections?page=1 channels?page=1
connections/own connections/other connections/none connections/own/channels connections/other/channels
connections/username/guest channels/own channels/other
parameters parameters/shovel parameters/policy global-parameters global-parameters/g global-parameters/none
users users/spare users/none users/without-permissions users/spare/permissions users/spare/topic-permissions
permissions topic-permissions vhost-limits user-limits user-limits/spare definitions
vhosts/V vhosts/V/permissions vhosts/V/topic-permissions vhosts/V/connections vhosts/V/channels
queues/V queues/V?page=1 queues/V/q queues/V/none queues/V/q/bindings queues/V/none/bindings
exchanges/V exchanges/V/x exchanges/V/none exchanges/V/x/bindings/source exchanges/V/y/bindings/destination
exchanges/V/none/bindings/source
bindings/V bindings/V/e/x/q/q bindings/V/e/x/q/q/k bindings/V/e/x/q/q/none bindings/V/e/x/e/y bindings/V/e/x/e/y/k
consumers/V policies/V policies/V/p policies/V/none operator-policies/V operator-policies/V/o
operator-policies/V/none aliveness-test/V vhost-limits/V permissions/V/spare topic-permissions/V/spare
definitions/V parameters/shovel/V parameters/shovel/V/s parameters/shovel/V/none shovels/V shovels/vhost/V/s
shovels/vhost/V/none federation-links/V""".split()

# Objects that each user in turn creates and deletes. The operator creates or deletes them beforehand as needed.
MADE = """users/gone vhosts/gone global-parameters/gone user-limits/spare/max-channels
queues/V/gone exchanges/V/gone policies/V/gone operator-policies/V/gone parameters/shovel/V/gone permissions/V/spare
topic-permissions/V/spare vhost-limits/V/max-queues""".split()

PUBLISHED = {"properties": {}, "routing_key": "k", "payload": "1", "payload_encoding": "string"}
GOT = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}
# Requests that change something and need no preparation.
DONE: List[Tuple[str, str, Any]] = [
    ("POST", "definitions", {}),
    ("POST", "users/bulk-delete", {"users": ["nobody"]}),
    ("PUT", "cluster-name", {"name": "NODE"}),
    ("POST", "rebalance/queues", {}),
    ("PUT", "feature-flags/quorum_queue/enable", {}),
    ("DELETE", "reset", None),
    ("DELETE", "auth/attempts/NODE", None),
    ("DELETE", "connections/none", None),
    ("DELETE", "connections/username/nobody", None),
    ("DELETE", "connections/victim", None),
    ("POST", "definitions/V", {}),
    ("POST", "bindings/V/e/x/q/q", {"routing_key": "k"}),
    ("POST", "bindings/V/e/x/e/y", {"routing_key": "k"}),
    ("DELETE", "bindings/V/e/x/q/q/none", None),
    ("POST", "exchanges/V/x/publish", PUBLISHED),
    ("POST", "exchanges/V/amq.default/publish", PUBLISHED),
    ("POST", "exchanges/V/none/publish", PUBLISHED),
    ("POST", "queues/V/q/get", GOT),
    ("POST", "queues/V/none/get", GOT),
    ("POST", "queues/V/q/actions", {"action": "sync"}),
    ("POST", "queues/V/q/actions", {"action": "dance"}),
    ("POST", "queues/V/none/actions", {"action": "sync"}),
    ("DELETE", "queues/V/q/contents", None),
    ("DELETE", "queues/V/none/contents", None),
    ("DELETE", "queues/V/none", None),
    ("DELETE", "exchanges/V/none", None),
    ("DELETE", "policies/V/none", None),
    ("DELETE", "operator-policies/V/none", None),
    ("DELETE", "parameters/shovel/V/none", None),
    ("DELETE", "shovels/vhost/V/none", None),
    ("DELETE", "shovels/vhost/V/none/restart", None),
    ("DELETE", "shovels/vhost/V/s/restart", None),
    ("DELETE", "shovels/vhost/V/gone", None),
    ("POST", "vhosts/V/start/NODE", {}),
]


class Asked:
    """An HTTP connection of one user to the management API."""

    def __init__(self, port: int, user: str, password: str) -> None:
        self.user = user
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.headers = {"Authorization": "Basic " + login, "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None) -> Tuple[int, Any]:
        """Returns status and JSON of an answer."""
        segments = path.split("/")
        vhost = next((vhost for vhost in VHOSTS if vhost in segments), "")
        text = None if body is None else json.dumps(body).replace("VHOST", vhost)
        for attempt in range(2):
            try:
                self.connection.request(method, "/api/" + path, text, self.headers)
                answer = self.connection.getresponse()
                said = answer.read()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # The broker may have closed a kept-alive connection in the meantime.
                self.connection.close()
                if attempt:
                    raise
        try:
            return answer.status, json.loads(said) if said else None
        except ValueError:
            return answer.status, None


def requests() -> List[Tuple[str, str, Any]]:
    """Returns every request, with the names of the virtual hosts filled in."""
    lines = [("GET", path, None) for path in SHOWN]
    for path in MADE:
        lines += [("PUT", path, BODIES[path.split("/")[0]]), ("DELETE", path, None)]
    each = []
    for method, path, body in lines + DONE:
        words = path.split("/")
        for vhost in VHOSTS if "V" in path.replace("?", "/").split("/") else [""]:
            at = "/".join(word.replace("V", vhost, 1) if word.split("?")[0] == "V" else word for word in words)
            each.append((method, at, body))
    return each


def seen(answer: Any, user: str) -> str:
    """Returns the letters for the rows of a list."""
    if isinstance(answer, dict) and isinstance(answer.get("items"), list):
        answer = answer["items"]
    if not isinstance(answer, list):
        return ""
    letters = set()
    for row in (row for row in answer if isinstance(row, dict)):
        vhost = row.get("vhost") or (row.get("queue") or {}).get("vhost") or row.get("name")
        if vhost in ("mine", "theirs"):
            owner = (row.get("channel_details") or row).get("user")
            is_others = owner not in (None, user) and "configure" not in row and "exchange" not in row
            letters.add(vhost[0].upper() if is_others else vhost[0])
    return "".join(sorted(letters, key=lambda letter: (letter.lower(), letter))) or "-"


class Stage:
    """A broker with all users and one object of each kind."""

    def __init__(self, amqp: Address, port: int, node: str) -> None:
        self.amqp, self.port, self.node = amqp, port, node
        self.operator = Asked(port, "guest", "guest")
        self.users = [Asked(port, user, "secret") for user in USERS]
        self.clients: List[raw.Client] = []
        self.names: Dict[str, str] = {}

    def put(self, method: str, path: str, body: Any) -> None:
        """Sends a request that must succeed."""
        status, answer = self.operator.ask(method, path, body)
        assert status in (200, 201, 204), (method, path, status, answer)

    def populate(self) -> None:
        """Creates virtual hosts, users, their objects, and connections."""
        for vhost in VHOSTS[:2]:
            self.put("PUT", f"vhosts/{vhost}", {})
            self.put("PUT", f"permissions/{vhost}/guest", EVERYTHING)
            for queue in "qsd":
                self.put("PUT", f"queues/{vhost}/{queue}", BODIES["queues"])
            for exchange in "xy":
                self.put("PUT", f"exchanges/{vhost}/{exchange}", BODIES["exchanges"])
            self.put("POST", f"bindings/{vhost}/e/x/q/q", {"routing_key": "k"})
            self.put("POST", f"bindings/{vhost}/e/x/e/y", {"routing_key": "k"})
            self.put("PUT", f"policies/{vhost}/p", POLICY)
            self.put("PUT", f"operator-policies/{vhost}/o", POLICY)
            self.put("PUT", f"parameters/shovel/{vhost}/s", SHOVEL)
            self.put("PUT", f"vhost-limits/{vhost}/max-queues", BODIES["vhost-limits"])
        self.put("PUT", "global-parameters/g", {"value": 1})
        self.put("PUT", "users/spare", BODIES["users"])
        self.put("PUT", "user-limits/spare/max-channels", BODIES["user-limits"])
        for vhost in VHOSTS[:2]:
            self.put("PUT", f"permissions/{vhost}/spare", EVERYTHING)
            self.put("PUT", f"topic-permissions/{vhost}/spare", BODIES["topic-permissions"])
        for user, (tag, is_in) in USERS.items():
            self.put("PUT", f"users/{user}", {"password": "secret", "tags": tag})
            if is_in:
                self.put("PUT", f"permissions/mine/{user}", EVERYTHING)
                self.names[user] = self.connect(user, "secret", "mine")
        self.names["guest"] = self.connect("guest", "guest", "theirs")
        self.connect("guest", "guest", "mine")

    def connect(self, user: str, password: str, vhost: str) -> str:
        """Opens a connection with a channel that consumes. Returns its name."""
        client = raw.Client(self.amqp, user=user, password=password, vhost=vhost)
        self.clients.append(client)
        client.open(1)
        client.call(1, "basic.consume", queue="d", consumer_tag=f"of {user}")
        (host, port), (peer, peer_port) = client.socket.getpeername(), client.socket.getsockname()
        name = quote(f"{peer}:{peer_port} -> {host}:{port}", safe="")
        until("the connection is listed", lambda: self.operator.ask("GET", f"connections/{name}")[0] == 200, 30)
        return name

    def prepare(self, method: str, path: str) -> None:
        """Creates or deletes the object as the operator, so that the request can succeed."""
        kind = path.split("/")[0]
        if path == "connections/victim":
            self.names["victim"] = self.connect("guest", "guest", "theirs")
        elif kind == "shovels" and path.endswith("gone"):
            # A shovel gets the changed parameter a moment later.
            path = path.replace("shovels/vhost", "parameters/shovel")
            if self.operator.ask("PUT", path, SHOVEL)[0] == 201:
                until("the shovel is listed", lambda: self.has_shovel(path.split("/")[2]), 30)
        elif path.endswith(("gone", "max-channels", "max-queues")) or path.split("/")[-1] == "spare":
            if method == "PUT":
                self.operator.ask("DELETE", path)
            elif method == "DELETE":
                self.operator.ask("PUT", path, BODIES[kind])

    def has_shovel(self, vhost: str) -> bool:
        """Returns whether the shovel that the request deletes exists."""
        rows = self.operator.ask("GET", "shovels")[1]
        return any((row["vhost"], row["name"]) == (vhost, "gone") for row in rows)

    def cell(self, who: Asked, method: str, path: str, body: Any) -> str:
        """Returns the answer for one user."""
        if method != "GET":
            self.prepare(method, path)
        own, other = self.names.get(who.user, "none"), self.names["guest"]
        words = {"own": own, "other": other, "victim": self.names.get("victim", ""), "NODE": self.node,
                 "PORT": str(self.amqp.port)}
        parts = path.split("/")
        if parts[0] == "channels" and len(parts) == 2:
            words.update(own=own + quote(" (1)"), other=other + quote(" (1)"))
        asked = "/".join(words.get(word, word) for word in parts)
        if body == {"name": "NODE"}:
            body = {"name": self.node}
        status, answer = who.ask(method, asked, body)
        return f"{status}{seen(answer, who.user) if method == 'GET' and status == 200 else ''}"

    def lines(self) -> List[str]:
        """Returns all lines of the table."""
        table = []
        for method, path, body in requests():
            cells = [self.cell(who, method, path, body) for who in self.users]
            title = f"{method} {path}" + (f" {body['action']}" if body and "action" in body else "")
            table.append(line_of(title, cells))
        return [line_of("# request", list(USERS)), *table]

    def close(self) -> None:
        """Closes all connections."""
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.socket.close()


def line_of(title: str, cells: List[str]) -> str:
    """Returns a line of the table."""
    return f"{title:<50} " + " ".join(f"{cell:<6}" for cell in cells).rstrip()


def read(path: Path) -> Dict[str, List[str]]:
    """Reads the requests and their cells from a recording."""
    rows: Dict[str, List[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            words = line.split()
            rows[" ".join(words[:-len(USERS)])] = words[-len(USERS):]
    return rows


@contextlib.contextmanager
def staged(amqp: Address, port: int, node: str) -> Iterator[Stage]:
    """Provides a broker with all objects."""
    stage = Stage(amqp, port, node)
    try:
        stage.populate()
        yield stage
    finally:
        stage.close()


def record(amqp: Address, port: int, node: str) -> None:
    """Records the answers of a RabbitMQ."""
    with staged(amqp, port, node) as stage:
        # RabbitMQ updates its statistics every five seconds, and lists queues and clients only after that.
        time.sleep(12)
        RECORDED.write_text("\n".join(stage.lines()) + "\n")


def is_looser(ours: str, theirs: str) -> bool:
    """Returns whether a cell allows more than RabbitMQ does."""
    shown, refused = set(ours[3:]) - {"-"}, ("401", "404", "405")
    return theirs.startswith("401") and ours not in refused or bool(shown - set(theirs[3:]))


def compare(amqp: Address, port: int, node: str) -> None:
    """Every user gets the answers of RabbitMQ, except for the listed differences."""
    theirs, meant = read(RECORDED), read(DIFFERENCES)
    with staged(amqp, port, node) as stage:
        lines = stage.lines()
    ours = {" ".join(line.split()[:-len(USERS)]): line.split()[-len(USERS):] for line in lines[1:]}
    assert ours.keys() == theirs.keys(), f"not recorded: {ours.keys() ^ theirs.keys()}"
    wrong = []
    for request, cells in ours.items():
        if cells != meant.get(request, theirs[request]):
            wrong += [line_of("RabbitMQ: " + request, theirs[request]), line_of("Leveret:  " + request, cells)]
    gone = [request for request, cells in meant.items() if theirs.get(request) in (cells, None)]
    differing = sum(cells != theirs[request] for request, cells in ours.items())
    print(f"# {len(ours)} requests by {len(USERS)} users, {differing} lines differ from RabbitMQ")
    print("\n".join(wrong))
    assert not wrong, f"{len(wrong) // 2} answers differ from RabbitMQ and are not listed"
    assert not gone, f"listed, but no longer different: {gone}"
    looser = [request for request, cells in meant.items() if any(map(is_looser, cells, theirs[request]))]
    assert not looser, f"listed, but more permissive than RabbitMQ: {looser}"
