"""Dead-lettered messages: their causes, routes and headers."""

from __future__ import annotations

from typing import Any, Dict

from ..peer import Channel, Script
from ..registry import scenario


def drain(t: Script, ch: Channel, queue: str) -> None:
    """Gets messages until the queue is empty."""
    t.settle()
    while True:
        reply = ch.call("basic.get", queue=queue, no_ack=True)
        if reply is None or reply.name != "basic.get-ok":
            return


def to(exchange: str, key: str = "", **more: Any) -> Dict[str, Any]:
    """Returns the arguments of a queue with a dead-letter exchange."""
    arguments: Dict[str, Any] = {"x-dead-letter-exchange": exchange}
    if key:
        arguments["x-dead-letter-routing-key"] = key
    arguments.update({"x-" + name.replace("_", "-"): value for name, value in more.items()})
    return arguments


def reject(ch: Channel, queue: str) -> None:
    """Gets one message and rejects it without requeue."""
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
    t.note("old ones have no counts, and one for each death")
    mine = {"reason": "rejected", "queue": "dlc-1", "time": 1}
    other = {"reason": "expired", "queue": "before", "time": 2}
    for deaths in ([mine], [other], [mine, mine], [mine, other, mine], [other, other], [other, dict(other, count=5)],
                   [dict(other, count=5), other]):
        ch.publish("", "dlc-1", "3", props={"headers": {"x-death": deaths}})
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


@scenario("dead-letter-header-order")
def header_order(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="dlo-dead")
    ch.call("queue.declare", queue="dlo", arguments=to("", "dlo-dead"))
    death = {"count": 1, "reason": "expired", "queue": "before", "time": 1, "exchange": "", "routing-keys": ["k"]}
    for title, headers in (
        ("sorted by their names", {"zulu": 1, "alpha": 2, "x-e": 3, "x-first-death-queue": "before", "x-z": 4}),
        ("a further death", {"zulu": 1, "x-death": [death], "alpha": 2}),
        ("with what CC leaves", {"zulu": 1, "CC": ["nowhere"], "alpha": 2}),
        ("deaths that are none", {"zulu": 1, "x-death": "text", "x-first-death-reason": "mine", "alpha": 2}),
        ("deaths that are empty", {"zulu": 1, "x-death": [], "alpha": 2}),
    ):
        t.note(title)
        ch.publish("", "dlo", "1", props={"headers": headers})
        reject(ch, "dlo")
        drain(t, ch, "dlo-dead")


@scenario("dead-letter-bcc")
def blind_copies(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="dlb-x", type="direct")
    for queue in ("dlb-own", "dlb-copy", "dlb-blind"):
        ch.call("queue.declare", queue=queue)
        ch.call("queue.bind", queue=queue, exchange="dlb-x", routing_key=queue[4:])
    ch.call("exchange.declare", exchange="dlb-in", type="fanout")
    ch.call("queue.declare", queue="dlb", arguments=to("dlb-x"))
    ch.call("queue.bind", queue="dlb", exchange="dlb-in")
    keys = {"headers": {"a": 1, "BCC": ["blind", "nowhere"], "CC": ["copy"], "z": 2}}
    t.note("without a key of its own: blind copies as well, and nobody is told of them")
    ch.publish("dlb-in", "own", "1", props=keys)
    t.settle()
    reject(ch, "dlb")
    for queue in ("dlb-own", "dlb-copy", "dlb-blind"):
        drain(t, ch, queue)
    t.note("what comes back is as it was")
    ch.publish("dlb-in", "own", "2", props=keys)
    reply = ch.call("basic.get", queue="dlb")
    ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=True)
    t.settle()
    reject(ch, "dlb")
    for queue in ("dlb-own", "dlb-copy", "dlb-blind"):
        drain(t, ch, queue)
    t.note("with one: that alone")
    ch.call("queue.declare", queue="dlb2", arguments=to("dlb-x", "own"))
    ch.call("queue.bind", queue="dlb2", exchange="dlb-in")
    ch.call("queue.unbind", queue="dlb", exchange="dlb-in")
    ch.publish("dlb-in", "own", "3", props=keys)
    reject(ch, "dlb2")
    for queue in ("dlb-own", "dlb-copy", "dlb-blind"):
        drain(t, ch, queue)


@scenario("tx-blind-copies")
def blind_copies_in_transactions(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("exchange.declare", exchange="txb-x", type="direct")
    for queue in ("txb-own", "txb-copy", "txb-blind"):
        ch.call("queue.declare", queue=queue)
        ch.call("queue.bind", queue=queue, exchange="txb-x", routing_key=queue[4:])
    ch.call("tx.select")
    ch.publish("txb-x", "own", "1", props={"headers": {"BCC": ["blind"], "CC": ["copy"]}})
    ch.call("tx.commit")
    for queue in ("txb-own", "txb-copy", "txb-blind"):
        drain(t, ch, queue)


@scenario("dead-letter-refused")
def refused(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    full = dict(max_length=1, overflow="reject-publish-dlx")
    ch.call("queue.declare", queue="dlr-last")
    ch.call("queue.declare", queue="dlr-2", arguments=to("", "dlr-last", **full))
    ch.call("queue.declare", queue="dlr-1", arguments=to("", "dlr-2", **full))
    ch.call("queue.declare", queue="dlr", arguments=to("", "dlr-1"))
    t.note("dead letters that one refuses go on, and on")
    for body in "1234":
        ch.publish("", "dlr", body)
        reject(ch, "dlr")
        t.settle()
    for queue in ("dlr-1", "dlr-2", "dlr-last"):
        drain(t, ch, queue)
    t.note("two that are full and have each other for their dead letters")
    ch.call("queue.declare", queue="dlr-a", arguments=to("", "dlr-b", **full))
    ch.call("queue.declare", queue="dlr-b", arguments=to("", "dlr-a", **full))
    ch.publish("", "dlr-a", "5")
    ch.publish("", "dlr-b", "6")
    ch.publish("", "dlr-a", "7")
    drain(t, ch, "dlr-a")
    drain(t, ch, "dlr-b")


@scenario("quorum-delivery-count")
def delivery_count(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qdc-dead")
    ch.call("queue.declare", queue="qdc", durable=True,
            arguments=to("", "qdc-dead", queue_type="quorum", delivery_limit=3))

    def again() -> None:
        reply = ch.call("basic.get", queue="qdc")
        ch.send("basic.nack", delivery_tag=reply.args["delivery_tag"], requeue=True)
        t.settle()

    t.note("counted from the first return on")
    ch.publish("", "qdc", "1", props={"headers": {"zulu": 1, "alpha": 2}, "priority": 1, "correlation_id": "c"})
    t.settle()
    for _ in range(3):
        again()
    reply = ch.call("basic.get", queue="qdc")
    ch.send("basic.ack", delivery_tag=reply.args["delivery_tag"])
    t.note("without headers, and what the sender says of it")
    ch.publish("", "qdc", "2")
    ch.publish("", "qdc", "3", props={"headers": {"x-delivery-count": "many", "x-z": 1}})
    t.settle()
    for _ in range(2):
        ch.call("basic.get", queue="qdc")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=True)
    t.settle()
    for _ in range(2):
        reply = ch.call("basic.get", queue="qdc")
        ch.send("basic.ack", delivery_tag=reply.args["delivery_tag"])
    t.note("delivered, and given up")
    ch.publish("", "qdc", "4", props={"headers": {"zulu": 1}})
    t.settle()
    for _ in range(4):
        again()
    drain(t, ch, "qdc-dead")
    t.note("rejected on its second way")
    ch.publish("", "qdc", "5")
    t.settle()
    again()
    reject(ch, "qdc")
    drain(t, ch, "qdc-dead")
    t.note("consumed: from the second time on")
    ch.publish("", "qdc", "6")
    ch.call("basic.consume", queue="qdc", consumer_tag="c")
    for _ in range(3):
        unit = ch.expect(1)[0]
        ch.send("basic.nack", delivery_tag=unit.method.args["delivery_tag"], requeue=True)
    ch.expect(1)
    ch.call("basic.cancel", consumer_tag="c")
    ch.send("basic.ack", delivery_tag=0, multiple=True)
    t.note("no count in other queues")
    ch.call("queue.declare", queue="qdc-classic", durable=True)
    ch.publish("", "qdc-classic", "6")
    reply = ch.call("basic.get", queue="qdc-classic")
    ch.send("basic.nack", delivery_tag=reply.args["delivery_tag"], requeue=True)
    drain(t, ch, "qdc-classic")
