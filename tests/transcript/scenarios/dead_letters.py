"""What queues give up, where that goes, and what it carries then."""

from __future__ import annotations

from typing import Any, Dict

from ..peer import Channel, Script
from ..registry import scenario


def drain(t: Script, ch: Channel, queue: str) -> None:
    """Get until the queue is empty."""
    t.settle()
    while True:
        reply = ch.call("basic.get", queue=queue, no_ack=True)
        if reply is None or reply.name != "basic.get-ok":
            return


def to(exchange: str, key: str = "", **more: Any) -> Dict[str, Any]:
    """The arguments of a queue with dead letters."""
    arguments: Dict[str, Any] = {"x-dead-letter-exchange": exchange}
    if key:
        arguments["x-dead-letter-routing-key"] = key
    arguments.update({"x-" + name.replace("_", "-"): value for name, value in more.items()})
    return arguments


def reject(ch: Channel, queue: str) -> None:
    """Get one, and do not want it."""
    reply = ch.call("basic.get", queue=queue)
    ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=False)


@scenario("dead-letter-rejected")
def rejected(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dl-target")
    ch.call("queue.declare", queue="dl", arguments=to("", "dl-target"))
    t.note("reject and nack; what was there of headers stays, the expiration goes")
    ch.publish("", "dl", "1", props={"headers": {"mine": 1}, "expiration": "60000", "priority": 3})
    reject(ch, "dl")
    ch.publish("", "dl", "2")
    reply = ch.call("basic.get", queue="dl")
    ch.send("basic.nack", delivery_tag=reply.args["delivery_tag"], requeue=False)
    drain(t, ch, "dl-target")
    t.note("many at once")
    for body in "345":
        ch.publish("", "dl", body)
        ch.call("basic.get", queue="dl")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=False)
    drain(t, ch, "dl-target")
    t.note("what is acknowledged or requeued stays where it is")
    ch.publish("", "dl", "6")
    reply = ch.call("basic.get", queue="dl")
    ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=True)
    reply = ch.call("basic.get", queue="dl")
    ch.send("basic.ack", delivery_tag=reply.args["delivery_tag"])
    drain(t, ch, "dl")
    drain(t, ch, "dl-target")


@scenario("dead-letter-keys")
def keys(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="dlk-x", type="direct")
    for queue in ("dlk-own", "dlk-copy"):
        ch.call("queue.declare", queue=queue)
        ch.call("queue.bind", queue=queue, exchange="dlk-x", routing_key=queue[4:])
    t.note("without a key of its own: the keys that the message had")
    ch.call("queue.declare", queue="dlk", arguments=to("dlk-x"))
    ch.call("exchange.declare", exchange="dlk-in", type="fanout")
    ch.call("queue.bind", queue="dlk", exchange="dlk-in")
    ch.publish("dlk-in", "own", "1")
    reject(ch, "dlk")
    drain(t, ch, "dlk-own")
    ch.publish("dlk-in", "own", "2", props={"headers": {"CC": ["copy"]}})
    reject(ch, "dlk")
    drain(t, ch, "dlk-own")
    drain(t, ch, "dlk-copy")
    t.note("with one: that, and CC goes")
    ch.call("queue.declare", queue="dlk2", arguments=to("dlk-x", "own"))
    ch.call("queue.bind", queue="dlk2", exchange="dlk-in")
    ch.call("queue.unbind", queue="dlk", exchange="dlk-in")
    ch.publish("dlk-in", "own", "3", props={"headers": {"CC": ["copy"], "a": 1, "b": 2}})
    reject(ch, "dlk2")
    drain(t, ch, "dlk-own")
    drain(t, ch, "dlk-copy")
    t.note("nobody is bound, nobody is there")
    ch.call("queue.unbind", queue="dlk-own", exchange="dlk-x", routing_key="own")
    ch.publish("dlk-in", "own", "4")
    reject(ch, "dlk2")
    ch.call("exchange.delete", exchange="dlk-x")
    ch.publish("dlk-in", "own", "5")
    reject(ch, "dlk2")
    drain(t, ch, "dlk-own")
    drain(t, ch, "dlk2")


@scenario("dead-letter-counts")
def counts(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dlc-1", arguments=to("", "dlc-2"))
    ch.call("queue.declare", queue="dlc-2", arguments=to("", "dlc-1"))
    t.note("round and round, by rejections")
    ch.publish("", "dlc-1", "1")
    for _ in range(3):
        reject(ch, "dlc-1")
        t.settle()
        reject(ch, "dlc-2")
        t.settle()
    drain(t, ch, "dlc-1")
    t.note("deaths that a client made up count on")
    death = {"count": 7, "reason": "rejected", "queue": "dlc-1", "time": 1, "more": True}
    ch.publish("", "dlc-1", "2", props={"headers": {"x-death": [death], "x-first-death-queue": "before"}})
    reject(ch, "dlc-1")
    drain(t, ch, "dlc-2")


@scenario("dead-letter-max-length")
def max_length(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dlm-dead")
    ch.call("queue.declare", queue="dlm", arguments=to("", "dlm-dead", max_length=2))
    ch.call("confirm.select")
    for body in "1234":
        ch.publish("", "dlm", body)
    ch.expect_confirms(4)
    drain(t, ch, "dlm-dead")
    drain(t, ch, "dlm")
    t.note("by octets")
    ch.call("queue.declare", queue="dlmb", arguments=to("", "dlm-dead", max_length_bytes=3))
    for body in ("12", "345", "6"):
        ch.publish("", "dlmb", body)
    ch.expect_confirms(3)
    drain(t, ch, "dlm-dead")
    drain(t, ch, "dlmb")
    t.note("what is refused goes on too, or not")
    for overflow in ("reject-publish-dlx", "reject-publish"):
        ch.call("queue.declare", queue="dlm-" + overflow,
                arguments=to("", "dlm-dead", max_length=1, overflow=overflow))
        for body in "123":
            ch.publish("", "dlm-" + overflow, body)
            ch.expect_confirms(1)
        drain(t, ch, "dlm-dead")
        drain(t, ch, "dlm-" + overflow)


@scenario("dead-letter-cycles")
def cycles(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    t.note("to itself, for want of room: dropped")
    ch.call("queue.declare", queue="dly", arguments=to("", "dly", max_length=1))
    ch.publish("", "dly", "1")
    ch.publish("", "dly", "2")
    drain(t, ch, "dly")
    t.note("two that push each other")
    ch.call("queue.declare", queue="dly-1", arguments=to("", "dly-2", max_length=1))
    ch.call("queue.declare", queue="dly-2", arguments=to("", "dly-1", max_length=1))
    for body in "12345":
        ch.publish("", "dly-1", body)
        t.settle()
    drain(t, ch, "dly-1")
    drain(t, ch, "dly-2")
    t.note("to itself, by rejection: again and again")
    ch.publish("", "dly", "3")
    for _ in range(3):
        reject(ch, "dly")
        t.settle()
    drain(t, ch, "dly")


@scenario("dead-letter-delivery-limit")
def delivery_limit(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dll-dead")
    ch.call("queue.declare", queue="dll", durable=True,
            arguments=to("", "dll-dead", queue_type="quorum", delivery_limit=2))
    ch.publish("", "dll", "1")
    t.settle()
    for _ in range(3):
        unit = ch.need("basic.get", queue="dll")
        t.note(f"got {unit.body!r}, redelivered: {unit.method.args['redelivered']}")
        ch.send("basic.reject", delivery_tag=unit.method.args["delivery_tag"], requeue=True)
        t.settle()
    t.note("three times came back: given up")
    ch.call("basic.get", queue="dll")
    unit = ch.need("basic.get", queue="dll-dead", no_ack=True)
    names = sorted(name.decode() for name, _ in unit.props["headers"] if name != b"x-delivery-count")
    t.note(f"{unit.body!r}: {names}")
    for name, value in unit.props["headers"]:
        if name.startswith(b"x-first"):
            t.note(f"{name.decode()}: {value[1]!r}")


@scenario("dead-letter-transactions")
def transactions(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dlt-dead")
    ch.call("queue.declare", queue="dlt", arguments=to("", "dlt-dead"))
    ch.publish("", "dlt", "1")
    ch.call("tx.select")
    reply = ch.call("basic.get", queue="dlt")
    ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=False)
    t.settle()
    t.note("not before the commit")
    ch.call("queue.declare", queue="dlt-dead", passive=True)
    ch.call("tx.commit")
    drain(t, ch, "dlt-dead")
