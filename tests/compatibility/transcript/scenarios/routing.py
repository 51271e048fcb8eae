"""Topic and headers exchanges: which bindings match which messages."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from harness import wire

from ..peer import Channel, Script
from ..registry import scenario

TOPIC_PATTERNS = [
    "#", "*", "*.*", "a", "a.b", "a.*", "*.b", "a.#", "#.b", "a.*.b", "a.#.b", "#.#", "*.#", "#.*", "*.*.*", "a.b.#",
    "#.a.#", "", ".", "*.", ".*", "a..b", "a.*.*.b", "A", "a*", "#a", "kern.*", "*.info",
]
TOPIC_KEYS = [
    "", "a", "b", "a.b", "a.c", "b.b", "a.x.b", "a.x.y.b", "a.b.c", "a.b.c.d", ".", "a.", ".b", "a..b", "..", "A", "a*",
    "*", "#", "a.#", "kern.info", "kern.critical", "kern.a.info", "x.a.y", "a.a.a",
]


def routed(ch: Channel, queues: List[str], exchange: str, key: str, props: Dict[str, Any]) -> List[str]:
    """Publishes one message and records which queues got it. Empties the queues."""
    connection = ch.connection
    connection.send(wire.publish(ch.number, exchange, key, b"x", props=props))
    got = []
    for queue in queues:
        unit = ch.need("queue.purge", queue=queue)
        assert unit.method.name == "queue.purge-ok", unit
        count = unit.method.args["message_count"]
        if count:
            got.append(queue if count == 1 else f"{queue} x{count}")
    return got


def plain_queues(ch: Channel, prefix: str, count: int) -> List[str]:
    """Declares queues for a matrix of routes without recording it."""
    names = [f"{prefix}{index}" for index in range(count)]
    for name in names:
        ch.ask("queue.declare", queue=name)
        ch.script.queues[name] = ch.connection
    return names


@scenario("routing-topic")
def topic(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="rt", type="topic")
    queues = plain_queues(ch, "rt-", len(TOPIC_PATTERNS))
    for queue, pattern in zip(queues, TOPIC_PATTERNS):
        ch.ask("queue.bind", queue=queue, exchange="rt", routing_key=pattern)
    for key in TOPIC_KEYS:
        got = routed(ch, queues, "rt", key, {})
        matched = [TOPIC_PATTERNS[queues.index(queue)] for queue in got]
        t.note(f"key {key!r} is taken by {matched}")
    t.note("two patterns that match to one queue: one copy")
    ch.call("queue.bind", queue="rt-0", exchange="rt", routing_key="a.*")
    t.note(f"{routed(ch, queues, 'rt', 'a.b', {})[0]}")
    t.note("unbind one of them, the other stays")
    ch.call("queue.unbind", queue="rt-0", exchange="rt", routing_key="#")
    for key in ("a.b", "b.b"):
        t.note(f"{key}: {'rt-0' in routed(ch, queues, 'rt', key, {})}")
    t.note("unbind the only one of its kind, others with the same beginning stay")
    ch.call("queue.unbind", queue="rt-9", exchange="rt", routing_key="a.*.b")
    t.note(f"a.x.b: {routed(ch, queues, 'rt', 'a.x.b', {})}")


@scenario("routing-direct-fanout")
def direct_fanout(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="rd", type="direct")
    ch.call("exchange.declare", exchange="rf", type="fanout")
    queues = plain_queues(ch, "rdf-", 3)
    for queue, keys in zip(queues, (["info"], ["info", "error"], [""])):
        for key in keys:
            ch.ask("queue.bind", queue=queue, exchange="rd", routing_key=key)
        ch.ask("queue.bind", queue=queue, exchange="rf", routing_key=keys[0])
    for key in ("info", "error", "", "INFO", "inf", "*", "#"):
        t.note(f"direct, key {key!r}: {routed(ch, queues, 'rd', key, {})}")
        t.note(f"fanout, key {key!r}: {routed(ch, queues, 'rf', key, {})}")


HEADER_BINDINGS: List[Tuple[str, Any]] = [
    ("no arguments", {}),
    ("x-match all alone", {"x-match": "all"}),
    ("x-match any alone", {"x-match": "any"}),
    ("a=1", {"a": 1}),
    ("all a=1 b=2", {"x-match": "all", "a": 1, "b": 2}),
    ("any a=1 b=2", {"x-match": "any", "a": 1, "b": 2}),
    ("all a=void", {"x-match": "all", "a": None}),
    ("any a=void b=2", {"x-match": "any", "a": None, "b": 2}),
    ("all a='1'", {"x-match": "all", "a": "1"}),
    ("all a=1 as a 64-bit number", {"x-match": "all", "a": wire.Field("l", 1)}),
    ("all a=1.0", {"x-match": "all", "a": 1.0}),
    ("all a=true", {"x-match": "all", "a": True}),
    ("all x-b=2", {"x-match": "all", "x-b": 2}),
    ("all a=1 x-b=3", {"x-match": "all", "a": 1, "x-b": 3}),
    ("any x-b=2", {"x-match": "any", "x-b": 2}),
    ("all-with-x x-b=2", {"x-match": "all-with-x", "x-b": 2}),
    ("any-with-x a=9 x-b=2", {"x-match": "any-with-x", "a": 9, "x-b": 2}),
    ("all-with-x a=1 x-b=2", {"x-match": "all-with-x", "a": 1, "x-b": 2}),
    ("all t={n=1}", {"x-match": "all", "t": {"n": 1}}),
    ("all l=[1,2]", {"x-match": "all", "l": [1, 2]}),
    ("all A=1", {"x-match": "all", "A": 1}),
    ("all empty=''", {"x-match": "all", "empty": ""}),
]
HEADER_MESSAGES: List[Tuple[str, Any]] = [
    ("no headers", None),
    ("empty headers", {}),
    ("a=1", {"a": 1}),
    ("a=2", {"a": 2}),
    ("a=1 b=2", {"a": 1, "b": 2}),
    ("b=2", {"b": 2}),
    ("a='1'", {"a": "1"}),
    ("a=1 as an octet", {"a": wire.Field("b", 1)}),
    ("a=1.0", {"a": 1.0}),
    ("a=1.0 as a float", {"a": wire.Field("f", 1.0)}),
    ("a=true", {"a": True}),
    ("a=void", {"a": None}),
    ("x-b=2", {"x-b": 2}),
    ("a=1 x-b=2", {"a": 1, "x-b": 2}),
    ("a=1 b=2 c=3 x-b=3", {"a": 1, "b": 2, "c": 3, "x-b": 3}),
    ("t={n=1}", {"t": {"n": 1}}),
    ("t={n=2}", {"t": {"n": 2}}),
    ("l=[1,2]", {"l": [1, 2]}),
    ("A=1", {"A": 1}),
    ("empty=''", {"empty": ""}),
    ("a=1 twice with a=2", [("a", 1), ("a", 2)]),
    ("x-match=all", {"x-match": "all"}),
]


@scenario("routing-headers")
def headers(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="rh", type="headers")
    queues = plain_queues(ch, "rh-", len(HEADER_BINDINGS))
    for queue, (_, arguments) in zip(queues, HEADER_BINDINGS):
        reply = ch.need("queue.bind", queue=queue, exchange="rh", arguments=arguments)
        assert reply.method.name == "queue.bind-ok", (arguments, reply)
    for what, table in HEADER_MESSAGES:
        got = routed(ch, queues, "rh", "ignored", {} if table is None else {"headers": table})
        t.note(f"message {what}")
        for queue in got:
            t.note(f"    taken by {HEADER_BINDINGS[queues.index(queue)][0]}")


@scenario("routing-headers-errors")
def headers_errors(t: Script) -> None:
    a = t.connect()
    a.once("queue.declare", queue="rhe")
    for value in ("nonsense", "", "ALL", 5, True, None, wire.Field("x", b"all")):
        a.once("queue.bind", queue="rhe", exchange="amq.headers", arguments={"x-match": value})
    t.note("other exchanges do not look at it")
    a.once("queue.bind", queue="rhe", exchange="amq.direct", routing_key="k", arguments={"x-match": "nonsense"})
    t.note("the routing key makes another binding, and no difference")
    ch = a.channel()
    ch.call("queue.bind", queue="rhe", exchange="amq.headers", routing_key="1", arguments={"rhe": 1})
    ch.call("queue.bind", queue="rhe", exchange="amq.headers", routing_key="2", arguments={"rhe": 1})
    ch.call("queue.unbind", queue="rhe", exchange="amq.headers", routing_key="1", arguments={"rhe": 1})
    t.note(f"still bound: {routed(ch, ['rhe'], 'amq.headers', '', {'headers': {'rhe': 1}})}")
    ch.call("queue.unbind", queue="rhe", exchange="amq.headers", routing_key="2", arguments={"rhe": 1})
    t.note(f"still bound: {routed(ch, ['rhe'], 'amq.headers', '', {'headers': {'rhe': 1}})}")


@scenario("routing-deleted-queue")
def deleted_queue(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="rdq")
    ch.call("queue.bind", queue="rdq", exchange="amq.fanout")
    ch.call("queue.bind", queue="rdq", exchange="amq.topic", routing_key="rdq.#")
    ch.call("queue.delete", queue="rdq")
    t.note("its bindings went with it")
    ch.call("queue.declare", queue="rdq")
    ch.publish("amq.fanout", "", "x", mandatory=True)
    ch.publish("amq.topic", "rdq.x", "x", mandatory=True)
    ch.expect(2)
