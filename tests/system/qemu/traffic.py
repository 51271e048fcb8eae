"""Clients on this machine during power cuts: they publish, settle and change users, and record the answers.

Each client records what the board confirmed and what it did not, and compares the board with that after the next boot.
Something counts as confirmed only when the confirm was read. An operation without an answer may have happened or not, but
a transaction only as a whole.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from harness import raw, suite, wire  # noqa: E402
from harness.brokers import Address  # noqa: E402

USER, PASSWORD = "edge", "over the edge"
PERSISTENT = {"delivery_mode": 2}
# A cut closes a connection at once, but a busy machine may take long to answer.
PATIENCE_S = suite.patience(60.0)
# Number of outstanding confirms at which publishers wait, as programs with limited memory do.
WINDOW = 24
BODY_BYTES_MAX = 3000
TRANSACTION = 10
CHECKED_AT_ONCE = 500
# Errors of a broken connection, in contrast to errors of the test.
BROKEN = (OSError, raw.Closed)


def connect(address: Address) -> raw.Client:
    """Returns a connection with a channel."""
    client = raw.Client(address, timeout=PATIENCE_S, user=USER, password=PASSWORD)
    client.open()
    return client


def body(queue: str, number: int) -> bytes:
    """Returns the body of a message: queue and number repeated, so that any part of it identifies the message."""
    name = f"{queue} {number:07} ".encode()
    return name * (1 + random.Random(number).randrange(BODY_BYTES_MAX) // len(name))


def number_of(queue: str, content: bytes) -> int:
    """Returns the number of a message. Fails if it was altered."""
    number = int(content.split()[1])
    assert content == body(queue, number), f"message {number} of {queue} was altered: {content[:60]!r}"
    return number


class Verdict(NamedTuple):
    """The result of a check: lost messages and other errors."""

    lost: List[int]
    wrong: List[str]


class Publisher:
    """Publishes numbered messages to a queue and reads the confirms."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.next = 0
        self.confirmed: Set[int] = set()
        self.unsure: Set[int] = set()
        # The number of all confirmed messages. The sets contain only those that are still checked.
        self.total = 0

    def __call__(self, address: Address, stop: threading.Event) -> None:
        """Runs until the connection breaks or the thread is stopped."""
        client = connect(address)
        client.call(1, "queue.declare", queue=self.queue, durable=True)
        client.call(1, "confirm.select")
        outstanding: Dict[int, int] = {}
        tag = 0
        while outstanding or not stop.is_set():
            while len(outstanding) < WINDOW and not stop.is_set():
                number, tag = self.next, tag + 1
                self.next += 1
                self.unsure.add(number)
                outstanding[tag] = number
                client.publish(1, "", self.queue, body(self.queue, number), props=PERSISTENT)
            ack = client.expect("basic.ack").args
            last = ack["delivery_tag"]
            tags = [one for one in outstanding if one == last or ack["multiple"] and one < last]
            numbers = {outstanding.pop(one) for one in tags}
            self.unsure -= numbers
            self.confirmed |= numbers
            self.total += len(numbers)
        client.close()


class Kept:
    """A queue whose messages stay on the board until they are settled in transactions."""

    name = "kept"

    def __init__(self) -> None:
        self.publisher = Publisher(self.name)
        self.settled: Set[int] = set()
        self.committing: Set[int] = set()
        self.back = 0

    def settle(self, address: Address, stop: threading.Event) -> None:
        """Takes the oldest messages in groups, while others are published."""
        client = connect(address)
        client.call(1, "queue.declare", queue=self.name, durable=True)
        client.call(1, "tx.select")
        while not stop.is_set():
            tag, taken = 0, set()
            while len(taken) < TRANSACTION and not stop.is_set():
                got = client.call(1, "basic.get", queue=self.name)
                if isinstance(got, raw.Content):
                    taken.add(number_of(self.name, got.body))
                    tag = got.method.args["delivery_tag"]
                else:
                    stop.wait(0.01)
            if taken:
                self.commit(client, tag, taken)
        client.close()

    def commit(self, client: raw.Client, tag: int, numbers: Set[int]) -> None:
        """Acknowledges these messages in one transaction."""
        self.committing = numbers
        client.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))
        client.call(1, "tx.commit")
        self.committing = set()
        self.settled |= numbers
        self.publisher.confirmed -= numbers

    def check(self, address: Address, keep: int = 40, may_come_back: bool = False) -> Verdict:
        """Compares the board with the records, and settles all but the newest. After damage, settled messages may be
        delivered again."""
        client = connect(address)
        client.call(1, "tx.select")
        count = client.call(1, "queue.declare", queue=self.name, durable=True).args["message_count"]
        # Small boards deliver this many messages at once, and more after some are acknowledged.
        client.call(1, "basic.qos", prefetch_count=CHECKED_AT_ONCE)
        client.send(wire.method(1, "basic.consume", queue=self.name))
        client.expect("basic.consume-ok")
        numbers: List[int] = []
        settled = 0
        while len(numbers) < count:
            try:
                content = client.expect("basic.deliver")
            except TimeoutError:
                # The queue counts lost messages until it tries to read them.
                break
            numbers.append(number_of(self.name, content.body))
            if len(numbers) == count - keep or len(numbers) - settled == CHECKED_AT_ONCE:
                last = content.method.args["delivery_tag"]
                client.send(wire.method(1, "basic.ack", delivery_tag=last, multiple=True))
                client.call(1, "tx.commit")
                settled = len(numbers)
        more = [client.call(1, "basic.get", queue=self.name), *client.held]
        client.close()
        verdict = self.judge(numbers, may_come_back)
        if len(numbers) < count:
            verdict.wrong.append(f"it counts {count} messages and gives {len(numbers)}")
        if any(isinstance(item, raw.Content) for item in more):
            verdict.wrong.append("it gives more messages than it counts")
        self.settled |= set(numbers[:settled])
        self.publisher.confirmed = set(numbers[settled:])
        self.publisher.unsure = set()
        self.committing = set()
        return verdict

    def judge(self, numbers: List[int], may_come_back: bool) -> Verdict:
        """Compares the messages with the expected ones."""
        present = set(numbers)
        wrong = []
        if present & self.settled:
            self.back += len(present & self.settled)
            self.settled -= present
            if not may_come_back:
                wrong.append("settled messages came back")
        if len(present) != len(numbers):
            wrong.append("messages are there twice")
        if not may_come_back and numbers != sorted(numbers):
            wrong.append("their order is not that of their publishing")
        if self.committing & present not in (set(), self.committing) and not may_come_back:
            wrong.append(f"half a transaction: {len(self.committing & present)} of {len(self.committing)}")
        if strange := present - self.publisher.confirmed - self.publisher.unsure:
            if not may_come_back:
                wrong.append(f"messages that nobody published: {sorted(strange)[:5]}")
        return Verdict(sorted(self.publisher.confirmed - self.committing - present), wrong)


class Access:
    """Users, their permissions and queues, changed through the management API."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.state: Dict[str, Any] = {}
        self.under_way: Optional[Dict[str, Any]] = None
        self.changes = 0

    def __call__(self, address: Address, stop: threading.Event) -> None:
        """Sends one change after the other."""
        while not stop.is_set():
            after = dict(self.state)
            method, path, value = self.change(after)
            self.under_way = after
            ask(address, method, path, value)
            self.state, self.under_way = after, None
            self.changes += 1
            stop.wait(0.02)

    def change(self, state: Dict[str, Any]) -> tuple:
        """Applies the next change to `state`. Returns the request for it."""
        name = f"u{self.chance.randrange(8)}"
        queue = f"q{self.chance.randrange(8)}"
        kind = self.chance.randrange(5)
        if kind == 0 and f"user {name}" in state:
            state.pop(f"user {name}")
            state.pop(f"permission {name}", None)
            return "DELETE", f"/api/users/{name}", None
        if kind == 1 and f"queue {queue}" in state:
            state.pop(f"queue {queue}")
            return "DELETE", f"/api/queues/%2F/{queue}", None
        if kind == 2 and f"queue {queue}" not in state:
            state[f"queue {queue}"] = True
            return "PUT", f"/api/queues/%2F/{queue}", {"durable": True}
        if kind == 3 and f"user {name}" in state:
            rule = f"^{self.chance.randrange(1000)}$"
            state[f"permission {name}"] = rule
            return "PUT", f"/api/permissions/%2F/{name}", {"configure": "", "write": rule, "read": ".*"}
        tag = self.chance.choice(["monitoring", "management", "policymaker"])
        state[f"user {name}"] = tag
        return "PUT", f"/api/users/{name}", {"password": f"p{self.changes}", "tags": tag}

    def check(self, address: Address) -> Verdict:
        """Checks that answered requests had their effect, and that others had it completely or not at all."""
        found: Dict[str, Any] = {}
        for user in ask(address, "GET", "/api/users"):
            tags = user["tags"]
            found[f"user {user['name']}"] = ",".join(tags) if isinstance(tags, list) else tags
        for permission in ask(address, "GET", "/api/permissions"):
            found[f"permission {permission['user']}"] = permission["write"]
        for queue in ask(address, "GET", "/api/queues"):
            if queue["name"].startswith("q"):
                found[f"queue {queue['name']}"] = True
        found.pop(f"user {USER}", None)
        found.pop(f"permission {USER}", None)
        allowed = [self.state] + ([self.under_way] if self.under_way is not None else [])
        wrong = [] if found in allowed else [f"access and queues are {difference(found, self.state)}"]
        self.state, self.under_way = found, None
        return Verdict([], wrong)


def difference(found: Dict[str, Any], expected: Dict[str, Any]) -> str:
    """Returns the differences between two states."""
    names = sorted(set(found) | set(expected))
    parts = [f"{name}: {found.get(name)} instead of {expected.get(name)}" for name in names
             if found.get(name) != expected.get(name)]
    return "; ".join(parts)


def ask(address: Address, method: str, path: str, value: Any = None) -> Any:
    """Sends one request to the management API. Raises OSError if the failure is that of a broken connection."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    try:
        connection.request(method, path, json.dumps(value) if value is not None else None,
                           {"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        text = answer.read()
    except http.client.HTTPException as broken:
        raise ConnectionError(str(broken)) from broken
    finally:
        connection.close()
    assert answer.status < 300, f"{method} {path}: {answer.status} {text[:200]!r}"
    return json.loads(text) if text else None


class Centre:
    """The queue of readings upstream, and its consumer."""

    queue = "telemetry"

    def __init__(self, address: Address) -> None:
        self.publisher = Publisher(self.queue)
        self.ids: Dict[int, bytes] = {}
        self.repeats = 0
        self.last = -1
        self.wrong: List[str] = []
        self.client = raw.Client(address, timeout=20.0)
        self.client.open()
        self.client.call(1, "queue.declare", queue=self.queue, durable=True)
        self.client.send(wire.method(1, "basic.consume", queue=self.queue))
        self.client.expect("basic.consume-ok")
        self.stopping = False
        self.thread = threading.Thread(target=self.take, daemon=True)
        self.thread.start()

    def take(self) -> None:
        """Takes everything that arrives."""
        while not self.stopping:
            try:
                content = self.client.recv(0.5)
            except TimeoutError:
                continue
            except BROKEN:
                break
            if not isinstance(content, raw.Content):
                continue
            self.note(content)
            self.client.send(wire.method(1, "basic.ack", delivery_tag=content.method.args["delivery_tag"]))

    def note(self, content: raw.Content) -> None:
        """Records one reading: in order the first time; a repetition must be marked and have the same id."""
        headers = {name: field.value for name, field in content.header.props.get("headers", [])}
        number, own_id = number_of(self.queue, content.body), headers[b"x-bridge-id"]
        if number in self.ids:
            self.repeats += 1
            if headers.get(b"x-bridge-repeat") is not True or self.ids[number] != own_id:
                self.wrong.append(f"reading {number} came twice without a mark, or with another id")
            return
        if number < self.last:
            self.wrong.append(f"reading {number} came behind {self.last}")
        self.last, self.ids[number] = number, own_id

    def missing(self) -> List[int]:
        """Returns confirmed readings that have not arrived yet."""
        return sorted(self.publisher.confirmed - set(self.ids))

    def close(self) -> None:
        """Closes the connection before the upstream is stopped."""
        self.stopping = True
        self.thread.join(10.0)
        self.client.close()


def run_together(parts: List[Callable[[Address, threading.Event], None]], addresses: List[Address],
                 stop: threading.Event) -> tuple:
    """Runs each part in a thread until its connection breaks. Returns the threads and a list of their errors."""
    mistakes: List[str] = []

    def guarded(part: Callable[[Address, threading.Event], None], address: Address) -> None:
        try:
            part(address, stop)
        except raw.Closed as closed:
            if closed.method:
                mistakes.append(f"the broker closed a connection: {closed}")
        except OSError:
            pass
        except Exception as mistake:  # the check reports any error
            mistakes.append(f"{type(mistake).__name__}: {mistake}")

    threads = [threading.Thread(target=guarded, args=pair, daemon=True) for pair in zip(parts, addresses)]
    for thread in threads:
        thread.start()
    return threads, mistakes
