"""The expensive commands: for each the required state, and what a client then sends.

A case is a generator. The part before its `yield` prepares the state and is not counted; the part after it is. It ends
when its client has the answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional
from urllib.parse import quote

from harness import brokers, raw, wire
from harness.suite import patience

# More memory than on a board, so that it does not bound a turn of the event loop; the profile is the generic one.
CONFIG = """
management = ["127.0.0.1:0"]
memory_limit = "{memory}"
"""
# Size of headers that fill one frame.
HEADERS_BYTES = 125_000
FAN = 2_000
Steps = Iterator[None]


class Case(NamedTuple):
    """A heavy command by name."""

    name: str
    run: Callable[["Stage"], Steps]
    memory: str

    def config(self) -> str:
        """The broker's configuration."""
        return CONFIG.format(memory=self.memory)

    def steps(self, stage: "Stage") -> Steps:
        """Returns the generator of the case on a stage."""
        return self.run(stage)


CASES: List[Case] = []


def case(memory: str = "512MB") -> Callable[[Callable[["Stage"], Steps]], Callable[["Stage"], Steps]]:
    """Creates a case from a generator function and its name."""
    def add(run: Callable[["Stage"], Steps]) -> Callable[["Stage"], Steps]:
        CASES.append(Case(run.__name__.replace("_", "-"), run, memory))
        return run

    return add


class Stage:
    """A broker and its clients."""

    def __init__(self, broker: brokers.Leveret) -> None:
        self.broker = broker
        self.client = self.another()

    def another(self, **options: Any) -> raw.Client:
        """Connects one more client, with channel 1 open."""
        client = raw.Client(self.broker.address, timeout=300.0, **options)
        client.open(1)
        return client

    def many(self, methods: Iterator[bytes], client: Optional[raw.Client] = None) -> None:
        """Sends all of these in one write, and waits for an answer to a request behind them."""
        client = client or self.client
        client.send(b"".join(methods))
        done(client)

    def queues(self, count: int, name: str = "q", **options: Any) -> None:
        """Declares `count` queues."""
        self.many(wire.method(1, "queue.declare", queue=f"{name}{n}", nowait=True, **options) for n in range(count))

    def bind(self, count: int, exchange: str = "amq.fanout", key: str = "", name: str = "q",
             arguments: Callable[[int], Any] = lambda _: {}) -> None:
        """Declares and binds `count` queues."""
        self.many(wire.method(1, "queue.bind", queue=f"{name}{n}", exchange=exchange, routing_key=key.format(n=n),
                              nowait=True, arguments=arguments(n)) for n in range(count))

    def exchange(self, name: str, kind: str = "fanout", **options: Any) -> None:
        """Declares an exchange."""
        self.client.call(1, "exchange.declare", exchange=name, type=kind, **options)

    def queue(self, name: str = "q", **arguments: Any) -> None:
        """Declares a queue; `x_message_ttl` is its argument x-message-ttl."""
        table = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.client.call(1, "queue.declare", queue=name, arguments=table)

    def fill(self, count: int, queue: str = "q", body: bytes = b"", **props: Any) -> None:
        """Publishes `count` messages to a queue."""
        batch = wire.publish(1, "", queue, body, props=props) * 1000
        for _ in range(count // 1000):
            self.client.send(batch)
        got = self.client.call(1, "queue.declare", queue=queue, passive=True).args["message_count"]
        assert got == count, f"{got} messages in {queue}, not {count}"

    def take(self, count: int, queue: str = "q") -> raw.Client:
        """Connects a client that holds `count` unacknowledged deliveries."""
        client = self.another()
        client.call(1, "basic.consume", queue=queue, consumer_tag="c")
        for _ in range(count):
            client.expect("basic.deliver")
        return client

    def api(self, method: str, path: str, body: Any = None, timeout: float = 300.0) -> Any:
        """Returns the answer of the management API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.broker.port_of("management API"),
                                                timeout=patience(timeout))
        login = base64.b64encode(b"guest:guest").decode()
        try:
            connection.request(method, f"/api/{path}", json.dumps(body) if body is not None else None,
                               {"Authorization": f"Basic {login}", "Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]!r}"
        return json.loads(text) if text else None

    def user(self, name: str, configure: str = ".*", write: str = ".*", read: str = ".*", vhost: str = "/") -> None:
        """Creates a user with permissions by these patterns."""
        self.api("PUT", f"users/{name}", {"password": "secret", "tags": ""})
        self.api("PUT", f"permissions/{quote(vhost, '')}/{name}", {"configure": configure, "write": write, "read": read})

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Stops the broker with SIGSTOP for a `with` block, so that it then receives everything at once."""
        os.kill(self.broker.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.broker.process.pid, signal.SIGCONT)


def fit(make: Callable[[int], Any]) -> List[Any]:
    """Returns as many values as fit into the headers of a message."""
    found, left = [], HEADERS_BYTES
    while left > 0:
        found.append(make(len(found)))
        left -= len(wire.field(found[-1]))
    return found


def done(client: raw.Client, channel: int = 1) -> None:
    """Waits until everything that the channel sent before is done."""
    client.call(channel, "basic.qos", prefetch_count=0)


def routed(client: raw.Client) -> None:
    """The same for messages that are refused because their routing is too expensive."""
    with contextlib.suppress(raw.Closed):
        done(client)


def until_it_has(stage: Stage, queue: str, count: int) -> None:
    """Waits until a queue has `count` messages."""
    client = stage.another()
    while client.call(1, "queue.declare", queue=queue, passive=True).args["message_count"] != count:
        time.sleep(0.2)


# ---- dead letters


def made_up_deaths() -> List[Any]:
    """Returns as many entries of x-death, each with another queue, as fit into the headers. None names a queue of the
    fan, because that queue would then be left out."""
    return fit(lambda n: {"queue": f"d{n}", "reason": "expired", "count": 1, "exchange": "", "routing-keys": ["k"]})


def dead_fan(stage: Stage, **arguments: Any) -> bytes:
    """Declares a queue whose dead letters go to 2,000 queues. Returns forty messages for it with invented deaths."""
    stage.exchange("fan")
    stage.queues(FAN)
    stage.bind(FAN, "fan")
    stage.queue("short", x_dead_letter_exchange="fan", **arguments)
    return wire.publish(1, "", "short", b"x", props={"headers": {"x-death": made_up_deaths()}}) * 40


@case()
def deaths_expired(stage: Stage) -> Steps:
    """Forty messages expire at once and are dead-lettered to 2,000 queues. This was the first expensive command that
    was found."""
    octets = dead_fan(stage, x_message_ttl=0)
    yield
    stage.client.send(octets)
    until_it_has(stage, f"q{FAN - 1}", 40)


@case()
def deaths_rejected(stage: Stage) -> Steps:
    """The forty messages are rejected by one method."""
    stage.client.send(dead_fan(stage))
    client = stage.take(40, "short")
    yield
    client.send(wire.method(1, "basic.nack", delivery_tag=0, multiple=True, requeue=False))
    until_it_has(stage, f"q{FAN - 1}", 40)


@case()
def deaths_too_many(stage: Stage) -> Steps:
    """The queue holds at most one message, so the others are dead-lettered."""
    octets = dead_fan(stage, x_max_length=1)
    yield
    stage.client.send(octets)
    until_it_has(stage, f"q{FAN - 1}", 39)


@case()
def empty_deaths(stage: Stage) -> Steps:
    """The entries of x-death are empty tables, so that the largest number fits."""
    dead_fan(stage, x_message_ttl=0)
    deaths = fit(lambda _: {})
    octets = wire.publish(1, "", "short", b"x", props={"headers": {"x-death": deaths}}) * 40
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def dead_letter_chain(stage: Stage) -> Steps:
    """A hundred queues, each of which dead-letters every message to the next at once."""
    for n in range(100):
        stage.queue(f"q{n}", x_message_ttl=0, x_dead_letter_exchange="", x_dead_letter_routing_key=f"q{n + 1}")
    stage.queue("q100")
    octets = wire.publish(1, "", "q0", b"x", props={"headers": {"a": "b" * 10_000}}) * 200
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def dead_letter_cycle(stage: Stage) -> Steps:
    """A queue dead-letters rejected messages to itself."""
    stage.queue("q", x_dead_letter_exchange="", x_dead_letter_routing_key="q")
    stage.fill(10_000)
    client = stage.take(10_000)
    client.call(1, "basic.cancel", consumer_tag="c")
    yield
    client.send(wire.method(1, "basic.nack", delivery_tag=0, multiple=True, requeue=False))
    done(client)


@case()
def expires_at_once(stage: Stage) -> Steps:
    """100,000 messages expire at the same moment."""
    stage.queue("to")
    stage.queue("q", x_message_ttl=30_000, x_dead_letter_exchange="", x_dead_letter_routing_key="to")
    began = time.monotonic()
    stage.fill(100_000)
    assert time.monotonic() - began < 30, "the machine is too slow for this case"
    yield
    with stage.asleep():
        time.sleep(max(0.0, began + 62 - time.monotonic()))
    until_it_has(stage, "to", 100_000)


@case()
def delayed_at_once(stage: Stage) -> Steps:
    """Delayed messages are all due at the same moment."""
    stage.exchange("later", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    stage.queue("q")
    stage.client.call(1, "queue.bind", queue="q", exchange="later")
    octets = wire.publish(1, "later", "", b"x", props={"headers": {"x-delay": 30_000}}) * 1000
    for _ in range(20):
        stage.client.send(octets)
    done(stage.client)
    began = time.monotonic()
    yield
    with stage.asleep():
        time.sleep(max(0.0, began + 32 - time.monotonic()))
    until_it_has(stage, "q", 20_000)


# ---- headers and keys


@case()
def copies_by_key(stage: Stage) -> Steps:
    """CC has as many keys as fit into the headers, each the name of an existing queue."""
    stage.queues(FAN)
    keys = fit(lambda n: f"q{n % FAN}")
    octets = wire.publish(1, "", "q0", b"x", props={"headers": {"CC": keys}}) * 40
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def copies_by_topic(stage: Stage) -> Steps:
    """BCC has many keys, each of which is matched against patterns that match all of them."""
    stage.queues(1_000)
    stage.bind(1_000, "amq.topic", "#.{n}.#")
    keys = fit(lambda n: f"{n}.1.2")
    octets = wire.publish(1, "amq.topic", "0", b"x", props={"headers": {"BCC": keys}}) * 20
    yield
    stage.client.send(octets)
    routed(stage.client)


@case()
def copies_of_keys_of_255(stage: Stage) -> Steps:
    """CC has long keys, sent to an exchange with long binding keys."""
    stage.queues(1_000)
    stage.bind(1_000, "amq.direct", "k" * 240 + "{n}")
    keys = fit(lambda n: "k" * 240 + str(n))
    octets = wire.publish(1, "amq.direct", "0", b"x", props={"headers": {"CC": keys}}) * 40
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def headers_exchange(stage: Stage) -> Steps:
    """A headers exchange with thousands of bindings receives messages with thousands of headers."""
    stage.queues(3_000)
    stage.bind(3_000, "amq.headers", arguments=lambda n: {
        "x-match": "any" if n % 2 else "all", f"h{n}": n, f"h{n + 1}": n + 1, "z": "z"})
    headers = {f"h{n}": n for n in range(HEADERS_BYTES // 12)}
    octets = wire.publish(1, "amq.headers", "", b"x", props={"headers": headers}) * 20
    yield
    stage.client.send(octets)
    routed(stage.client)


@case()
def headers_of_one_name(stage: Stage) -> Steps:
    """A header table repeats one name, and bindings match on that name."""
    stage.queues(3_000)
    stage.bind(3_000, "amq.headers", arguments=lambda n: {"x-match": "all", "h": n, "i": "x" * 200})
    octets = wire.publish(1, "amq.headers", "", b"x", props={"headers": [("h", n) for n in range(HEADERS_BYTES // 7)]})
    yield
    stage.client.send(octets * 20)
    routed(stage.client)


@case()
def deep_tables(stage: Stage) -> Steps:
    """Tables and lists are nested as deep as a frame allows; some are refused."""
    def nested(kind: bytes, each: bytes) -> wire.Field:
        octets = b"V"
        while len(octets) < 60_000:
            octets = kind + (len(octets) + len(each)).to_bytes(4, "big") + each + octets
        return wire.Field("raw", octets)

    clients = [stage.another() for _ in range(20)]
    # Encoded before counting begins, because encoding byte by byte copies each header.
    octets = [wire.publish(1, "amq.fanout", "", b"x", props={"headers": {"t": each}}) * 20
              for each in (nested(b"A", b""), nested(b"F", b"\x01n"))]
    yield
    for n, client in enumerate(clients):
        with contextlib.suppress(OSError, raw.Closed):
            client.send(octets[n % 2])
            done(client)


@case()
def topics_of_many_words(stage: Stage) -> Steps:
    """Keys of 127 words are matched against thousands of patterns of # and *."""
    stage.queue("q")
    patterns = [".".join(["#", "a"] * 8 + ["*"] * (n % 40) + ["#", str(n)]) for n in range(3_000)]
    stage.many(wire.method(1, "queue.bind", queue="q", exchange="amq.topic", routing_key=pattern, nowait=True)
               for pattern in patterns)
    octets = wire.publish(1, "amq.topic", ".".join(["a"] * 127), b"x") * 200
    yield
    stage.client.send(octets)
    routed(stage.client)


@case()
def topics_of_no_words(stage: Stage) -> Steps:
    """Keys of 256 empty words are matched against patterns of # only."""
    stage.queue("q")
    stage.many(wire.method(1, "queue.bind", queue="q", exchange="amq.topic", nowait=True,
                           routing_key=".".join(["#"] * (1 + n % 100) + [""] * (n // 100) + ["x"])) for n in range(3_000))
    octets = wire.publish(1, "amq.topic", "." * 255, b"x") * 4
    yield
    stage.client.send(octets)
    routed(stage.client)


# ---- exchanges


@case()
def fan_out(stage: Stage) -> Steps:
    """Messages are routed one after the other to 2,000 queues."""
    stage.queues(FAN)
    stage.bind(FAN)
    octets = wire.publish(1, "amq.fanout", "", b"x" * 500) * 100
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def fan_out_mandatory_dropped(stage: Stage) -> Steps:
    """Mandatory messages are routed one after the other to 2,000 queues that refuse all of them."""
    stage.queues(FAN, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    stage.bind(FAN)
    stage.client.call(1, "confirm.select")
    octets = wire.publish(1, "amq.fanout", "", b"x" * 500, mandatory=True) * 100
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def ring_of_exchanges(stage: Stage) -> Steps:
    """300 exchanges in a ring, each bound to the next twelve."""
    for n in range(300):
        stage.exchange(f"e{n}")
    stage.queues(100)
    stage.bind(100, "e299")
    stage.many(wire.method(1, "exchange.bind", source=f"e{n}", destination=f"e{(n + by) % 300}", nowait=True)
               for n in range(300) for by in range(1, 13))
    octets = wire.publish(1, "e0", "", b"x") * 200
    yield
    stage.client.send(octets)
    routed(stage.client)


@case()
def chain_of_exchanges(stage: Stage) -> Steps:
    """A chain of 900 topic exchanges, linked by bindings and alternate exchanges, with a queue at its end."""
    for n in range(900):
        stage.exchange(f"e{n}", "topic", arguments={"alternate-exchange": f"e{n + 1}"})
    stage.queue("q")
    stage.client.call(1, "queue.bind", queue="q", exchange="e899", routing_key="#")
    stage.many(wire.method(1, "exchange.bind", source=f"e{n}", destination=f"e{n + 1}", routing_key="#.a.#", nowait=True)
               for n in range(0, 899, 2))
    octets = wire.publish(1, "e0", ".".join(["a"] * 120), b"x") * 20
    yield
    stage.client.send(octets)
    routed(stage.client)


@case()
def exchange_deleted(stage: Stage) -> Steps:
    """An exchange with 6,000 bindings is deleted, about the number that one connection may create."""
    stage.exchange("e", "direct")
    stage.queues(100)
    for n in range(60):
        stage.bind(100, "e", f"{n}.{{n}}")
    yield
    stage.client.call(1, "exchange.delete", exchange="e")


@case()
def unbound_by_arguments(stage: Stage) -> Steps:
    """1,000 bindings are removed out of 6,000 that differ only in their arguments."""
    stage.queue("q0")
    for n in range(60):
        stage.many(wire.method(1, "queue.bind", queue="q0", exchange="amq.headers", routing_key="k", nowait=True,
                               arguments={"a": n * 100 + m, "b": "c" * 100}) for m in range(100))
    octets = b"".join(wire.method(1, "queue.unbind", queue="q0", exchange="amq.headers", routing_key="k",
                                  arguments={"a": 9_999 - n, "b": "c" * 100}) for n in range(1_000))
    yield
    stage.client.send(octets)
    for _ in range(1_000):
        stage.client.expect("queue.unbind-ok")


# ---- queues


@case()
def declared_bound_unbound(stage: Stage) -> Steps:
    """1,000 queues are declared, bound, unbound and deleted in one write."""
    names = [f"q{n}" for n in range(1_000)]
    octets = b"".join(
        [wire.method(1, "queue.declare", queue=name, nowait=True) for name in names]
        + [wire.method(1, "queue.bind", queue=name, exchange="amq.topic", routing_key=f"a.{name}.#", nowait=True)
           for name in names]
        + [wire.method(1, "queue.unbind", queue=name, exchange="amq.topic", routing_key=f"a.{name}.#") for name in names]
        + [wire.method(1, "queue.delete", queue=name, nowait=True) for name in names])
    yield
    stage.many(iter([octets]))


@case()
def declared_durable(stage: Stage) -> Steps:
    """The same with durable objects, which are written to the disk."""
    names = [f"q{n}" for n in range(1_000)]
    octets = b"".join(
        [wire.method(1, "queue.declare", queue=name, durable=True, nowait=True) for name in names]
        + [wire.method(1, "queue.bind", queue=name, exchange="amq.fanout", nowait=True) for name in names]
        + [wire.method(1, "queue.delete", queue=name, nowait=True) for name in names])
    yield
    stage.many(iter([octets]))


@case()
def exclusive_lost(stage: Stage) -> Steps:
    """A connection with 3,500 exclusive queues, named by the server, is lost."""
    client = stage.another()
    client.send(wire.method(1, "queue.declare", exclusive=True) * 3_500)
    for _ in range(3_500):
        client.expect("queue.declare-ok")
    yield
    client.drop()
    until = stage.another()
    done(until)


@case(memory="2GB")
def purged(stage: Stage) -> Steps:
    """A queue with 1,000,000 messages is purged."""
    stage.queue("q")
    stage.fill(1_000_000)
    yield
    stage.client.call(1, "queue.purge", queue="q")


@case()
def queue_deleted(stage: Stage) -> Steps:
    """A queue with 200,000 messages with bodies is deleted."""
    stage.queue("q")
    stage.fill(200_000, body=b"x" * 300)
    yield
    stage.client.call(1, "queue.delete", queue="q")


@case()
def dropped_by_length(stage: Stage) -> Steps:
    """A policy reduces a queue from 200,000 messages to one; the others are dead-lettered."""
    stage.queue("to")
    stage.queue("q", x_dead_letter_exchange="", x_dead_letter_routing_key="to")
    stage.fill(200_000)
    yield
    stage.api("PUT", "policies/%2f/short", {"pattern": "^q$", "definition": {"max-length": 1}, "apply-to": "queues"})
    done(stage.client)


@case()
def dropped_by_bytes(stage: Stage) -> Steps:
    """One large message makes a length limit in bytes drop 20,000 small ones."""
    stage.queue("q", x_max_length_bytes=1_000_000)
    stage.fill(20_000, body=b"x" * 50)
    octets = wire.publish(1, "", "q", bytes(1_000_000))
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def priorities_fetched(stage: Stage) -> Steps:
    """A queue with 255 priorities has messages of each, which are fetched one by one in one write."""
    stage.queue("q", x_max_priority=255)
    for _ in range(60):
        stage.client.send(b"".join(wire.publish(1, "", "q", b"x", props={"priority": n}) for n in range(256)))
    done(stage.client)
    yield
    with stage.asleep():
        stage.client.send(wire.method(1, "basic.get", queue="q", no_ack=True) * 15_360)
    for _ in range(15_360):
        stage.client.expect("basic.get-ok")


@case()
def priorities_full_queue(stage: Stage) -> Steps:
    """A full queue with 255 priorities drops its first message for each new one; a second one has a consumer."""
    stage.queue("q", x_max_priority=255, x_max_length=300)
    stage.queue("taken", x_max_priority=255)
    stage.client.call(1, "basic.consume", queue="taken", consumer_tag="c", no_ack=True)
    octets = b"".join(wire.publish(1, "", queue, b"x", props={"priority": n % 256})
                      for queue in ("q", "taken") for n in range(4_000))
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def priorities_requeued(stage: Stage) -> Steps:
    """10,000 messages of 255 priorities are requeued one by one in one write, and delivered again."""
    stage.queue("q", x_max_priority=255)
    for _ in range(40):
        stage.client.send(b"".join(wire.publish(1, "", "q", b"x", props={"priority": n}) for n in range(256)))
    done(stage.client)
    client = stage.take(10_000)
    yield
    client.send(b"".join(wire.method(1, "basic.reject", delivery_tag=tag, requeue=True)
                         for tag in range(1, 10_001)))
    done(stage.client)


@case()
def fetched_one_by_one(stage: Stage) -> Steps:
    """20,000 messages are fetched from a long queue in one write."""
    stage.queue("q")
    stage.fill(100_000, body=b"x" * 100)
    octets = wire.method(1, "basic.get", queue="q") * 20_000
    yield
    with stage.asleep():
        stage.client.send(octets)
    for _ in range(20_000):
        stage.client.expect("basic.get-ok")


# ---- unacknowledged messages


def holder(stage: Stage, count: int = 10_000) -> raw.Client:
    """Connects a client that holds `count` unacknowledged messages."""
    stage.queue("q")
    stage.fill(count)
    return stage.take(count)


@case()
def acknowledged_together(stage: Stage) -> Steps:
    """10,000 deliveries are acknowledged by one method."""
    client = holder(stage)
    yield
    client.send(wire.method(1, "basic.ack", delivery_tag=0, multiple=True))
    done(client)


@case()
def requeued_together(stage: Stage) -> Steps:
    """10,000 deliveries are requeued by one method, and delivered again."""
    client = holder(stage)
    yield
    client.send(wire.method(1, "basic.nack", delivery_tag=0, multiple=True, requeue=True))
    for _ in range(10_000):
        client.expect("basic.deliver")


@case()
def rejected_last_first(stage: Stage) -> Steps:
    """10,000 deliveries are rejected one by one in one write, the last first."""
    client = holder(stage)
    client.call(1, "basic.cancel", consumer_tag="c")
    octets = b"".join(wire.method(1, "basic.reject", delivery_tag=n, requeue=True) for n in range(10_000, 0, -1))
    yield
    client.send(octets)
    done(client)


@case()
def recovered(stage: Stage) -> Steps:
    """10,000 deliveries are requeued by basic.recover."""
    client = holder(stage)
    yield
    client.call(1, "basic.recover", requeue=True)
    for _ in range(10_000):
        client.expect("basic.deliver")


@case()
def channel_closed(stage: Stage) -> Steps:
    """A channel with 10,000 unacknowledged messages is closed."""
    client = holder(stage)
    yield
    client.call(1, "channel.close", reply_code=200)


@case()
def connection_lost(stage: Stage) -> Steps:
    """A connection of 100 channels with 100,000 unacknowledged messages is lost."""
    stage.queue("q")
    stage.fill(100_000)
    client = stage.another()
    for channel in range(2, 102):
        client.open(channel)
        client.call(channel, "basic.qos", prefetch_count=1_000)
        client.call(channel, "basic.consume", queue="q", consumer_tag="c")
    for _ in range(100_000):
        client.expect("basic.deliver")
    yield
    client.drop()
    until_it_has(stage, "q", 100_000)


@case()
def consumers_of_one_queue(stage: Stage) -> Steps:
    """2,000 consumers on one queue get messages, and are all cancelled in one write."""
    stage.queue("q")
    client = stage.another()
    client.call(1, "basic.qos", prefetch_count=5)
    tags = [f"c{n}" for n in range(2_000)]
    stage.many((wire.method(1, "basic.consume", queue="q", consumer_tag=tag, nowait=True) for tag in tags), client)
    octets = wire.publish(1, "", "q", b"x") * 9_000
    yield
    stage.client.send(octets)
    done(stage.client)
    for _ in range(9_000):
        client.expect("basic.deliver")
    stage.many((wire.method(1, "basic.cancel", consumer_tag=tag, nowait=True) for tag in tags), client)


@case()
def consumers_of_many_queues(stage: Stage) -> Steps:
    """2,000 queues with one consumer each get a message at once, and are then deleted."""
    stage.queues(FAN)
    stage.bind(FAN)
    client = stage.another()
    stage.many((wire.method(1, "basic.consume", queue=f"q{n}", consumer_tag=f"c{n}", nowait=True) for n in range(FAN)),
               client)
    octets = wire.publish(1, "amq.fanout", "", b"x") * 5
    yield
    stage.client.send(octets)
    for _ in range(5 * FAN):
        client.expect("basic.deliver")
    stage.many(wire.method(1, "queue.delete", queue=f"q{n}", nowait=True) for n in range(FAN))


@case()
def transaction(stage: Stage) -> Steps:
    """A transaction of 5,000 messages to ten queues each, and of 10,000 acknowledgements, is committed."""
    client = holder(stage)
    stage.queues(10, "to")
    stage.bind(10, name="to")
    client.call(1, "tx.select")
    client.send(wire.publish(1, "amq.fanout", "", b"x" * 50) * 5_000)
    client.send(b"".join(wire.method(1, "basic.ack", delivery_tag=n + 1) for n in range(10_000)))
    done(client)
    yield
    client.call(1, "tx.commit")


@case()
def transaction_rolled_back(stage: Stage) -> Steps:
    """The same transaction is rolled back."""
    client = holder(stage)
    client.call(1, "tx.select")
    client.send(wire.publish(1, "", "q", b"x" * 50) * 10_000)
    client.send(b"".join(wire.method(1, "basic.ack", delivery_tag=n + 1) for n in range(10_000)))
    done(client)
    yield
    client.call(1, "tx.rollback")


# ---- operators, and users with few permissions


@case()
def policy(stage: Stage) -> Steps:
    """A policy is set for 3,500 queues."""
    stage.queues(3_500)
    yield
    stage.api("PUT", "policies/%2f/all", {"pattern": ".*q.*", "apply-to": "all", "definition": {
        "max-length": 10, "message-ttl": 60_000, "dead-letter-exchange": "amq.fanout", "expires": 600_000}})
    stage.api("DELETE", "policies/%2f/all")


@case()
def policies_of_hostile_patterns(stage: Stage) -> Steps:
    """Sets the maximum number of policies whose patterns need backtracking, and then declares queues with long names.
    """
    with contextlib.suppress(AssertionError):
        for n in range(256):
            stage.api("PUT", f"policies/%2f/p{n}", {"pattern": f"^(a|aa|a*)*(a?){{60}}{n}$", "priority": n,
                                                    "definition": {"max-length": 10}, "apply-to": "queues"})
    octets = b"".join(wire.method(1, "queue.declare", queue="a" * 240 + str(n), nowait=True) for n in range(12))
    yield
    stage.many(iter([octets]))


@case()
def virtual_host_deleted(stage: Stage) -> Steps:
    """A virtual host with 1,000 queues with bindings, messages and a consumer each is deleted."""
    stage.api("PUT", "vhosts/full")
    stage.api("PUT", "permissions/full/guest", {"configure": ".*", "write": ".*", "read": ".*"})
    client = stage.another(vhost="full")
    for method in ("queue.declare", "queue.bind", "basic.consume"):
        more: Dict[str, Any] = {"exchange": "amq.fanout"} if method == "queue.bind" else {}
        stage.many((wire.method(1, method, queue=f"q{n}", nowait=True, **more) for n in range(1_000)), client)
    client.send(wire.publish(1, "amq.fanout", "", b"x") * 10)
    for _ in range(10_000):
        client.expect("basic.deliver")
    yield
    stage.api("DELETE", "vhosts/full")


@case()
def user_of_many_virtual_hosts(stage: Stage) -> Steps:
    """A user with permissions and topic permissions in 300 virtual hosts is listed, then deleted."""
    stage.user("many")
    for begin in range(0, 300, 100):
        hosts = range(begin, begin + 100)
        stage.api("POST", "definitions", {
            "vhosts": [{"name": f"v{n}"} for n in hosts],
            "permissions": [{"user": "many", "vhost": f"v{n}", "configure": f"a{n}", "write": f"b{n}", "read": f"c{n}"}
                            for n in hosts],
            "topic_permissions": [{"user": "many", "vhost": f"v{n}", "exchange": "amq.topic", "write": "x", "read": "y"}
                                  for n in hosts]})
    yield
    for path in ("users/many/permissions", "permissions", "topic-permissions", "vhosts"):
        stage.api("GET", path)
    stage.api("DELETE", "users/many")


@case()
def import_of_definitions(stage: Stage) -> Steps:
    """5,000 objects are imported from one file, imported again, and then exported."""
    file = stage.broker.home / "definitions.json"
    file.write_text(json.dumps({
        "queues": [{"name": f"q{n}", "vhost": "/", "durable": True} for n in range(2_000)],
        "exchanges": [{"name": f"e{n}", "vhost": "/", "type": "topic", "durable": True} for n in range(500)],
        "bindings": [{"source": f"e{n % 500}", "vhost": "/", "destination": f"q{n % 2000}",
                      "destination_type": "queue", "routing_key": f"a.{n}.#"} for n in range(2_500)]}))
    yield
    stage.broker.ctl("import_definitions", str(file))
    stage.broker.ctl("import_definitions", str(file))
    stage.api("GET", "definitions")


@case()
def lists(stage: Stage) -> Steps:
    """3,500 queues are listed: sorted, filtered by a pattern, completely and in pages."""
    stage.queues(3_500)
    stage.bind(3_500)
    yield
    stage.api("GET", "queues")
    stage.api("GET", "queues?page=2&page_size=500&sort=messages&sort_reverse=true&use_regex=true&name="
              + quote("^(q|qq|q*)*[0-9]{1,4}$"))
    stage.api("GET", "queues?page=1&page_size=100&sort=name")
    stage.api("GET", "bindings")
    stage.api("GET", "overview")


@case()
def permissions_of_hostile_patterns(stage: Stage) -> Steps:
    """Patterns that need backtracking are checked for each of 60 queues of one write."""
    stage.user("little", configure="^(a|aa|a*)*(a?){100}[0-9]*$", write="(a*)*(b|a){1,100}", read="(.*a){20}")
    client = stage.another(user="little", password="secret")
    octets = b"".join(wire.method(1, "queue.declare", queue="a" * 250 + str(n), nowait=True) for n in range(60))
    yield
    client.send(octets)
    done(client)


@case()
def permissions_of_long_patterns(stage: Stage) -> Steps:
    """A permission pattern of maximum length with many alternatives is matched for each of 1,000 queues of one write.
    """
    names = "|".join("x" * 200 + f"-{n}.*" for n in range(4))
    stage.user("little", configure=f"^({names}|q.*)$")
    client = stage.another(user="little", password="secret")
    octets = b"".join(wire.method(1, "queue.declare", queue="x" * 200 + f"-3{n}", nowait=True) for n in range(1_000))
    yield
    client.send(octets)
    done(client)


@case()
def permissions_for_topics(stage: Stage) -> Steps:
    """A topic permission that needs backtracking is matched for every message."""
    stage.user("little")
    stage.api("PUT", "topic-permissions/%2f/little", {
        "exchange": "amq.topic", "write": "^(a|aa|a*)*(a?\\.?){100}.*$", "read": ".*"})
    client = stage.another(user="little", password="secret")
    octets = b"".join(wire.publish(1, "amq.topic", ".".join(["a"] * (100 + n % 27)), b"x") for n in range(60))
    yield
    client.send(octets)
    done(client)


@case()
def pattern_compiled(stage: Stage) -> Steps:
    """Patterns that are large when compiled are set; some are refused."""
    patterns = ["(((a{20}){20}){20}){20}", "((((.?){30}){30}){30})", "[^a]{1000}" * 10, "(" * 500 + ")" * 500,
                "|".join(f"n{n}[a-z]*" for n in range(90)), "\\w{500}", "(?i)" + "\u00e9" * 500,
                "((((((((((a|){30}){30}|)b|){30})c|){30}))))", "(?i)[\\w--\\d]{300}|[[:alpha:]]{300}"]
    yield
    for n, pattern in enumerate(patterns):
        with contextlib.suppress(AssertionError):
            stage.api("PUT", f"policies/%2f/p{n}", {"pattern": pattern, "definition": {"max-length": 1}})
        with contextlib.suppress(AssertionError):
            stage.api("GET", "queues?page=1&use_regex=true&name=" + quote(pattern[:3_000]))


@case()
def logins(stage: Stage) -> Steps:
    """100 clients log in at once with a wrong password each, and 100 disconnect."""
    import socket
    hello = wire.PROTOCOL_HEADER + wire.method(
        0, "connection.start-ok", client_properties={"x" * 200: "y" * 3_000}, mechanism="PLAIN",
        response=raw.credentials("PLAIN", "guest", "wrong" * 20), locale="en_US")
    yield
    with stage.asleep():
        sockets = [socket.create_connection(stage.broker.address) for _ in range(200)]
        for one in sockets:
            one.sendall(hello)
        for one in sockets[100:]:
            one.close()
    done(stage.another())
    for one in sockets[:100]:
        one.close()


# ---- frames


@case()
def bodies_of_one_octet(stage: Stage) -> Steps:
    """A message of 65,535 octets is sent in as many frames."""
    stage.queue("q")
    octets = wire.publish(1, "", "q", bytes(65_535), pieces=[1] * 65_535)
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def empty_bodies(stage: Stage) -> Steps:
    """Publishes 50,000 empty messages in one write, which are returned as unroutable."""
    octets = wire.publish(1, "amq.fanout", "k" * 255, b"", mandatory=True) * 50_000
    reader = stage.another()
    yield
    reader.send(octets[:len(octets) // 50])
    done(reader)
    reader.send(wire.publish(1, "amq.fanout", "", b"") * 50_000)
    done(reader)


@case()
def heartbeats(stage: Stage) -> Steps:
    """200,000 heartbeats are sent."""
    octets = wire.frame(wire.FRAME_HEARTBEAT, 0, b"") * 200_000
    yield
    stage.client.send(octets)
    done(stage.client)


@case()
def channels_opened_and_closed(stage: Stage) -> Steps:
    """Channels are opened and closed 20,000 times, and 2,000 errors close one channel each."""
    octets = b"".join(wire.method(2, "channel.open") + wire.method(2, "channel.close", reply_code=200)
                      for _ in range(2_000))
    faults = b"".join(wire.method(3, "channel.open") + wire.method(3, "basic.ack", delivery_tag=77)
                      + wire.method(3, "channel.close-ok") for _ in range(2_000))
    yield
    for _ in range(10):
        stage.client.send(octets)
        for _ in range(4_000):
            stage.client.expect("channel.open-ok", "channel.close-ok")
    stage.client.send(faults)
    refused = 0
    while refused < 2_000:
        refused += stage.client._recv().name == "channel.close"
    done(stage.client)


@case()
def refused_methods(stage: Stage) -> Steps:
    """A hundred clients at once send methods that close their connection, large ones among them."""
    clients = [stage.another() for _ in range(100)]
    hostile = [
        wire.frame(wire.FRAME_METHOD, 1, b"\x00\x63\x00\x63" + bytes(120_000)),
        wire.frame(wire.FRAME_METHOD, 1, b"\x00\x32\x00\x0a" + b"\xff" * 120_000),
        wire.method(1, "queue.declare", queue="q", arguments={f"x-{n}": n for n in range(10_000)}),
        wire.method(1, "queue.bind", queue="nobody", exchange="amq.headers", arguments={
            f"h{n}": "v" for n in range(9_000)}),
        wire.method(1, "basic.publish", exchange="none") + wire.frame(wire.FRAME_HEADER, 1, b"\x00\x3c" + b"\xff" * 100_000),
    ]
    yield
    with stage.asleep():
        for n, client in enumerate(clients):
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.socket.send(hostile[n % len(hostile)])
            client.socket.settimeout(300)
    done(stage.client)


@case()
def arguments_of_thousands(stage: Stage) -> Steps:
    """Consumers, bindings and queues with thousands of arguments are created repeatedly."""
    arguments = {f"h{n}": "v" * (n % 5) for n in range(8_000)}
    octets = b"".join(
        wire.method(1, "queue.declare", queue=f"q{n}", arguments=arguments, nowait=True)
        + wire.method(1, "queue.bind", queue=f"q{n}", exchange="amq.headers", arguments=arguments, nowait=True)
        + wire.method(1, "basic.consume", queue=f"q{n}", consumer_tag=f"c{n}", arguments=arguments, nowait=True)
        for n in range(40))
    yield
    stage.many(iter([octets]))
