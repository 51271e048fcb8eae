"""Declaring, comparing, purging and deleting queues; exclusive and auto-delete queues."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from harness import wire

from ..peer import Script
from ..registry import scenario


@scenario("queue-declare")
def queue_declare(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qd")
    ch.call("queue.declare", queue="qd")
    t.note("counts: ready messages and consumers")
    ch.publish("", "qd", "1")
    ch.publish("", "qd", "2")
    ch.call("queue.declare", queue="qd")
    ch.call("basic.get", queue="qd")
    ch.call("queue.declare", queue="qd", passive=True)
    ch.call("basic.consume", queue="qd", consumer_tag="c")
    ch.expect(1)
    ch.call("queue.declare", queue="qd", passive=True)
    t.note("all flags")
    ch.call("queue.declare", queue="qd-all", durable=True, exclusive=True, auto_delete=True)
    ch.call("queue.declare", queue="qd-all", durable=True, exclusive=True, auto_delete=True)
    t.note("nowait: no reply, not even the second time")
    ch.send("queue.declare", queue="qd-nowait", nowait=True)
    ch.send("queue.declare", queue="qd-nowait", nowait=True)
    ch.call("queue.declare", queue="qd-nowait", passive=True)
    t.note("names")
    a.once("queue.declare", queue="n" * 255)
    a.once("queue.declare", queue="qd with spaces/and 'quotes'")
    a.once("queue.declare", queue="qd-cr\r\nlf")
    a.once("queue.declare", queue="qd-hasé")
    a.once("queue.declare", queue=b"qd-\xff\xfe")


@scenario("queue-server-named")
def queue_server_named(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    reply = ch.call("queue.declare")
    name = reply.args["queue"].decode()
    t.note("the last one declared on the channel is meant by an empty name")
    ch.call("queue.declare", passive=True)
    ch.publish("", name, "hello")
    ch.call("basic.get", no_ack=True)
    ch.call("queue.bind", exchange="amq.direct", routing_key="qsn")
    ch.call("queue.unbind", exchange="amq.direct", routing_key="qsn")
    ch.call("queue.purge")
    t.note("bind with queue and key empty: the key is the queue's name")
    ch.call("queue.bind", exchange="amq.direct")
    ch.publish("amq.direct", name, "by its name")
    ch.call("basic.get", no_ack=True)
    t.note("a second empty declare makes a second queue")
    ch.call("queue.declare", exclusive=True)
    t.note("a named declare changes what is meant")
    ch.call("queue.declare", queue="qsn-named")
    ch.call("basic.consume", consumer_tag="c", no_ack=True)
    ch.publish("", "qsn-named", "to the named one")
    ch.expect(1)
    ch.call("queue.declare", passive=True)
    ch.call("queue.delete")
    t.note("after a delete")
    ch.call("queue.declare", passive=True)
    t.note("on a channel that declared none")
    methods: List[Tuple[str, Dict[str, Any]]] = [
        ("basic.get", {}), ("basic.consume", {}), ("queue.purge", {}), ("queue.delete", {}),
        ("queue.bind", {"exchange": "amq.direct", "routing_key": "k"}),
        ("queue.unbind", {"exchange": "amq.direct", "routing_key": "k"}),
        ("queue.bind", {"exchange": "amq.direct"}),
        ("queue.declare", {"passive": True}),
    ]
    for name, args in methods:
        a.once(name, **args)
    t.note("a passive declare counts as the last one too")
    ch = a.channel(3)
    ch.call("queue.declare", queue="qsn-other")
    ch = a.channel(4)
    ch.call("queue.declare", queue="qsn-other", passive=True)
    ch.call("basic.get")


@scenario("queue-reserved")
def queue_reserved(t: Script) -> None:
    a = t.connect()
    a.once("queue.declare", queue="amq.mine")
    a.once("queue.declare", queue="amq.gen-mine")
    a.once("queue.declare", queue="amq.")
    a.once("queue.declare", queue="amq")
    a.once("queue.declare", queue="AMQ.upper")
    a.once("queue.declare", queue="amq.mine", passive=True)
    t.note("a server-named one may be declared again as it is")
    ch = a.channel()
    name = ch.call("queue.declare").args["queue"].decode()
    ch.call("queue.declare", queue=name)


@scenario("queue-passive")
def queue_passive(t: Script) -> None:
    a = t.connect()
    a.once("queue.declare", queue="qp", durable=True)
    t.note("flags and arguments do not matter")
    a.once("queue.declare", queue="qp", passive=True)
    a.once("queue.declare", queue="qp", passive=True, exclusive=True, auto_delete=True)
    a.once("queue.declare", queue="qp", passive=True, arguments={"x-expires": "nonsense"})
    t.note("a missing one")
    a.once("queue.declare", queue="qp-missing", passive=True)
    a.once("queue.declare", queue="qp 'quoted' missing", passive=True)
    t.note("nowait closes all the same")
    ch = a.channel()
    ch.send("queue.declare", queue="qp-missing", passive=True, nowait=True)
    ch.expect_close()


@scenario("queue-inequivalent")
def queue_inequivalent(t: Script) -> None:
    a = t.connect()
    a.once("queue.declare", queue="qi")
    a.once("queue.declare", queue="qi", durable=True)
    a.once("queue.declare", queue="qi", auto_delete=True)
    a.once("queue.declare", queue="qi", exclusive=True)
    a.once("queue.declare", queue="qi", durable=True, auto_delete=True, exclusive=True)
    a.once("queue.declare", queue="qi", durable=True, arguments={"x-expires": 1000})
    t.note("the other way round")
    a.once("queue.declare", queue="qi2", durable=True, auto_delete=True)
    a.once("queue.declare", queue="qi2", auto_delete=True)
    a.once("queue.declare", queue="qi2", durable=True)
    t.note("an exclusive one on its own connection")
    a.once("queue.declare", queue="qi3", exclusive=True)
    a.once("queue.declare", queue="qi3")
    a.once("queue.declare", queue="qi3", durable=True, exclusive=True)
    t.note("nowait does not hide it")
    ch = a.channel()
    ch.send("queue.declare", queue="qi", durable=True, nowait=True)
    ch.expect_close()


ARGUMENTS: List[Tuple[str, Any, Any]] = [
    ("x-expires", 60000, 70000),
    ("x-message-ttl", 60000, 70000),
    ("x-max-length", 10, 11),
    ("x-max-length-bytes", 1000, 1001),
    ("x-max-priority", 5, 6),
    ("x-overflow", "reject-publish", "drop-head"),
    ("x-dead-letter-exchange", "amq.direct", "amq.fanout"),
    ("x-queue-mode", "lazy", "default"),
    ("x-single-active-consumer", True, False),
    ("x-queue-type", "classic", "quorum"),
    ("x-queue-version", 2, 1),
    ("x-queue-master-locator", "min-masters", "client-local"),
    ("x-consumer-timeout", 1000, 2000),
    ("x-max-age", "1h", "2h"),
    ("x-delivery-limit", 3, 4),
    ("x-none", 1, 2),
]


@scenario("queue-arguments-compared")
def queue_arguments_compared(t: Script) -> None:
    """Each argument is redeclared with the same value, without it, and with another value; then added to a queue
    without it."""
    a = t.connect()
    for name, value, other in ARGUMENTS:
        t.note(name)
        queue = "qac-" + name
        reply = a.once("queue.declare", queue=queue, arguments={name: value})
        if reply.name != "queue.declare-ok":
            continue
        a.once("queue.declare", queue=queue, arguments={name: value})
        a.once("queue.declare", queue=queue)
        a.once("queue.declare", queue=queue, arguments={name: other})
    t.note("one where there was none")
    a.once("queue.declare", queue="qac-bare")
    for name, value, _ in ARGUMENTS:
        a.once("queue.declare", queue="qac-bare", arguments={name: value})


@scenario("queue-arguments-numbers")
def queue_arguments_numbers(t: Script) -> None:
    a = t.connect()
    t.note("all widths of the same number are equal")
    a.once("queue.declare", queue="qan", arguments={"x-max-length": 100})
    for kind in "bBsuIilL":
        a.once("queue.declare", queue="qan", arguments={"x-max-length": wire.Field(kind, 100)})
    t.note("a string is not")
    a.once("queue.declare", queue="qan", arguments={"x-max-length": "100"})
    a.once("queue.declare", queue="qan", arguments={"x-max-length": 100.0})
    t.note("declared with another width, the text names its type")
    for kind in "bBsuIilL":
        queue = f"qan-{'lower' if kind.islower() else 'upper'}-{kind}"
        a.once("queue.declare", queue=queue, arguments={"x-max-length": wire.Field(kind, 100)})
        a.once("queue.declare", queue=queue)
        a.once("queue.declare", queue=queue, arguments={"x-max-length": wire.Field(kind, 101)})
    t.note("several differences: which one is named")
    a.once("queue.declare", queue="qan-two", arguments={"x-max-length": 1, "x-message-ttl": 2, "x-expires": 3000})
    a.once("queue.declare", queue="qan-two", arguments={"x-max-length": 5, "x-message-ttl": 6, "x-expires": 7000})
    t.note("order does not matter")
    a.once("queue.declare", queue="qan-two", arguments={"x-expires": 3000, "x-message-ttl": 2, "x-max-length": 1})


@scenario("queue-arguments-invalid")
def queue_arguments_invalid(t: Script) -> None:
    a = t.connect()
    number: List[Any] = [-1, 0, "10", "", True, 1.5, None, [1], {"a": 1}, wire.Field("T", 5)]
    for name in ("x-expires", "x-message-ttl", "x-max-length", "x-max-length-bytes", "x-max-priority",
                 "x-delivery-limit", "x-queue-version", "x-consumer-timeout"):
        t.note(name)
        for value in number:
            a.once("queue.declare", queue="qav", arguments={name: value})
            a.barrier("queue.delete", queue="qav")
    t.note("upper ends")
    for name, value in [("x-expires", 4294967295), ("x-expires", 4294967296), ("x-expires", 2**62),
                        ("x-message-ttl", 4294967295), ("x-message-ttl", 4294967296), ("x-message-ttl", 2**62),
                        ("x-max-length", 2**62), ("x-max-priority", 255), ("x-max-priority", 256)]:
        a.once("queue.declare", queue="qav", arguments={name: value})
        a.barrier("queue.delete", queue="qav")
    choices: List[Tuple[str, List[Any]]] = [
        ("x-overflow", ["drop-head", "reject-publish", "reject-publish-dlx", "nonsense", "", 5, True]),
        ("x-queue-mode", ["default", "lazy", "nonsense", 5]),
        ("x-queue-type", ["classic", "nonsense", "", 5, True]),
        ("x-single-active-consumer", [True, False, "true", 1, None]),
        ("x-dead-letter-exchange", ["", "missing", 5, True, "with\r\nbreaks", wire.Field("x", b"amq.direct")]),
        ("x-dead-letter-routing-key", ["k", 5]),
        ("x-dead-letter-strategy", ["at-most-once", "nonsense"]),
        ("x-queue-leader-locator", ["client-local", "nonsense"]),
        ("x-queue-master-locator", ["client-local", "nonsense", 5]),
    ]
    for name, values in choices:
        t.note(name)
        for value in values:
            a.once("queue.declare", queue="qav", arguments={name: value})
            a.barrier("queue.delete", queue="qav")
    t.note("a dead-letter key needs an exchange")
    a.once("queue.declare", queue="qav", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "k"})
    a.barrier("queue.delete", queue="qav")
    a.once("queue.declare", queue="qav", arguments={"x-dead-letter-exchange": "e", "x-dead-letter-routing-key": 5})
    a.barrier("queue.delete", queue="qav")
    t.note("two wrong ones: which is named")
    a.once("queue.declare", queue="qav", arguments={"x-max-length": -1, "x-expires": 0})
    a.once("queue.declare", queue="qav", arguments={"x-expires": 0, "x-max-length": -1})
    a.once("queue.declare", queue="qav", arguments={"x-message-ttl": "a", "x-max-priority": -1, "x-overflow": "b"})
    t.note("an invalid argument for a queue that exists without it")
    a.once("queue.declare", queue="qav")
    a.once("queue.declare", queue="qav", arguments={"x-expires": 0})
    t.note("the same name twice in the table")
    a.once("queue.declare", queue="qav-twice", arguments=[("x-max-length", 1), ("x-max-length", 2)])
    a.once("queue.declare", queue="qav-twice")


@scenario("queue-arguments-quorum")
def queue_arguments_quorum(t: Script) -> None:
    """The arguments that a quorum queue accepts and refuses, and which of two wrong ones is named."""
    a = t.connect()
    quorum = {"x-queue-type": "quorum"}
    for name, value, _ in ARGUMENTS:
        if name != "x-queue-type":
            a.once("queue.declare", queue="qaq", durable=True, arguments={**quorum, name: value})
            a.barrier("queue.delete", queue="qaq")
    t.note("wrong in itself, too")
    for name, value in [("x-max-priority", -1), ("x-queue-mode", "nonsense"), ("x-queue-version", 9),
                        ("x-queue-master-locator", 5)]:
        a.once("queue.declare", queue="qaq", durable=True, arguments={**quorum, name: value})
        a.barrier("queue.delete", queue="qaq")
    t.note("two wrong ones, and a flag")
    a.once("queue.declare", queue="qaq", durable=True, arguments={**quorum, "x-max-priority": 5, "x-expires": 0})
    foreign = [("x-max-priority", 5), ("x-queue-mode", "lazy"), ("x-queue-version", 2), ("x-max-age", "1h"),
               ("x-queue-master-locator", "min-masters")]
    for order in (foreign, foreign[::-1], foreign[2:] + foreign[:2]):
        a.once("queue.declare", queue="qaq", durable=True, arguments=[("x-queue-type", "quorum"), *order])
    a.once("queue.declare", queue="qaq", arguments={**quorum, "x-max-priority": 5})
    a.once("queue.declare", queue="qaq", exclusive=True, durable=True, arguments={**quorum, "x-queue-mode": "lazy"})
    t.note("what a classic one does not take")
    foreign = [("x-delivery-limit", 3), ("x-max-age", "1h"), ("x-dead-letter-strategy", "at-most-once")]
    for order in (foreign, foreign[::-1], foreign[1:] + foreign[:1], [*foreign, ("x-expires", 0)]):
        a.once("queue.declare", queue="qaq", arguments=order)
    t.note("what it does not take, for one that is there")
    a.once("queue.declare", queue="qaq", durable=True, arguments=quorum)
    for name, value in [("x-max-priority", 5), ("x-queue-mode", "lazy"), ("x-max-age", "1h"), ("x-max-length", 1)]:
        a.once("queue.declare", queue="qaq", durable=True, arguments={**quorum, name: value})
    a.barrier("queue.delete", queue="qaq")


@scenario("queue-exclusive")
def queue_exclusive(t: Script) -> None:
    a = t.connect("A")
    b = t.connect("B")
    mine = a.channel()
    mine.call("queue.declare", queue="qx", exclusive=True)
    t.note("another connection may do nothing with it")
    methods: List[Tuple[str, Dict[str, Any]]] = [
        ("queue.declare", {}), ("queue.declare", {"exclusive": True}), ("queue.declare", {"passive": True}),
        ("queue.bind", {"exchange": "amq.direct", "routing_key": "k"}),
        ("queue.unbind", {"exchange": "amq.direct", "routing_key": "k"}),
        ("queue.purge", {}), ("queue.delete", {}), ("basic.get", {}), ("basic.consume", {}),
    ]
    for name, args in methods:
        b.once(name, queue="qx", **args)
    t.note("but publish to it")
    theirs = b.channel()
    theirs.publish("", "qx", "from B", mandatory=True)
    theirs.expect(0)
    mine.call("basic.get", queue="qx", no_ack=True)
    t.note("another channel of its connection may")
    a.once("queue.declare", queue="qx", exclusive=True)
    a.once("queue.purge", queue="qx")
    t.note("it goes with its connection")
    a.close()
    b.once("queue.declare", queue="qx", passive=True)
    t.note("also when the connection just goes away")
    a = t.connect("A")
    a.channel().call("queue.declare", queue="qx", exclusive=True, durable=True)
    a.drop()
    gone = False
    for _ in range(200):
        reply = b.channel(5).need("queue.declare", queue="qx", passive=True)
        b.channels.pop(5)
        if reply.method.name == "channel.close" and reply.method.args["reply_code"] == 404:
            gone = True
            break
    t.note(f"gone: {gone}")


@scenario("queue-auto-delete")
def queue_auto_delete(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qad", auto_delete=True)
    t.note("it never had a consumer: it stays")
    ch.publish("", "qad", "1")
    ch.call("basic.get", queue="qad", no_ack=True)
    t.note("it stays until the last of two goes")
    ch.call("basic.consume", queue="qad", consumer_tag="c1")
    ch.call("basic.consume", queue="qad", consumer_tag="c2")
    ch.call("basic.cancel", consumer_tag="c1")
    a.once("queue.declare", queue="qad", passive=True)
    ch.call("basic.cancel", consumer_tag="c2")
    a.once("queue.declare", queue="qad", passive=True)
    t.note("a consumer that goes with its channel")
    ch.call("queue.declare", queue="qad", auto_delete=True)
    other = a.channel(2)
    other.call("basic.consume", queue="qad", consumer_tag="c")
    other.close()
    a.once("queue.declare", queue="qad", passive=True)


@scenario("queue-purge")
def queue_purge(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qpu")
    ch.call("queue.purge", queue="qpu")
    for body in "123":
        ch.publish("", "qpu", body)
    t.note("ready messages only")
    ch.call("basic.get", queue="qpu")
    ch.call("queue.purge", queue="qpu")
    ch.send("basic.nack", delivery_tag=1, requeue=True)
    ch.call("queue.declare", queue="qpu", passive=True)
    t.note("nowait")
    ch.send("queue.purge", queue="qpu", nowait=True)
    ch.call("queue.declare", queue="qpu", passive=True)
    a.once("queue.purge", queue="missing")


@scenario("queue-delete")
def queue_delete(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qde")
    ch.publish("", "qde", "1")
    ch.publish("", "qde", "2")
    ch.call("basic.get", queue="qde")
    t.note("if-empty, if-unused")
    a.once("queue.delete", queue="qde", if_empty=True)
    other = a.channel(3)
    other.call("basic.consume", queue="qde", consumer_tag="c")
    other.expect(1)
    a.once("queue.delete", queue="qde", if_unused=True)
    a.once("queue.delete", queue="qde", if_unused=True, if_empty=True)
    t.note("if-empty with only unacknowledged ones")
    a.once("queue.delete", queue="qde", if_empty=True)
    t.note("deleted: the consumer was told or the queue is gone")
    other.expect(0)
    a.once("queue.declare", queue="qde", passive=True)
    t.note("acknowledging what belonged to it is no error")
    ch.send("basic.ack", delivery_tag=1)
    ch.call("basic.qos")
    t.note("the count is of ready messages")
    ch.call("queue.declare", queue="qde")
    for body in "123":
        ch.publish("", "qde", body)
    ch.call("basic.get", queue="qde")
    ch.call("queue.delete", queue="qde")
    t.note("again, never there, nowait")
    ch.call("queue.delete", queue="qde")
    ch.call("queue.delete", queue="never", if_unused=True, if_empty=True)
    ch.call("queue.declare", queue="qde")
    ch.send("queue.delete", queue="qde", nowait=True)
    a.once("queue.declare", queue="qde", passive=True)


@scenario("queue-types")
def queue_types(t: Script) -> None:
    t.note("what RabbitMQ says to quorum and stream queues with impossible flags")
    a = t.connect()
    a.once("queue.declare", queue="qt", arguments={"x-queue-type": "quorum"})
    a.once("queue.declare", queue="qt", durable=True, exclusive=True, arguments={"x-queue-type": "quorum"})
    a.once("queue.declare", queue="qt", durable=True, auto_delete=True, arguments={"x-queue-type": "quorum"})
    a.once("queue.declare", queue="qt", arguments={"x-queue-type": "stream"})
