"""get, ack, nack, reject, recover: tags, order, and the redelivered flag."""

from __future__ import annotations

from ..peer import Channel, Script
from ..registry import scenario


def filled(t: Script, queue: str, bodies: str, connection: str = "A") -> Channel:
    """Returns a channel and a queue with a message for each character."""
    a = t.connections.get(connection)
    if a is None or a.dead:
        a = t.connect(connection)
    ch = a.channel()
    ch.call("queue.declare", queue=queue)
    ch.call("queue.purge", queue=queue)
    for body in bodies:
        ch.publish("", queue, body)
    return ch


def get(ch: Channel, queue: str, times: int = 1, **args: object) -> None:
    """Calls basic.get several times."""
    for _ in range(times):
        ch.call("basic.get", queue=queue, **args)


@scenario("get")
def get_(t: Script) -> None:
    ch = filled(t, "g", "123")
    get(ch, "g", 2)
    get(ch, "g", no_ack=True)
    t.note("empty")
    get(ch, "g")
    t.note("tags are counted together with deliveries; no_ack ones count too")
    ch.publish("", "g", "4")
    ch.call("basic.consume", queue="g", consumer_tag="c")
    ch.expect(1)
    ch.send("basic.ack", delivery_tag=1)
    ch.send("basic.ack", delivery_tag=2)
    ch.send("basic.ack", delivery_tag=4)
    ch.call("queue.declare", queue="g", passive=True)
    t.note("a no_ack one cannot be acknowledged")
    ch.send("basic.ack", delivery_tag=3)
    ch.expect_close()
    t.note("a missing queue")
    t.connections["A"].once("basic.get", queue="missing")


@scenario("ack")
def ack(t: Script) -> None:
    ch = filled(t, "ack", "12345678")
    get(ch, "ack", 8)
    t.note("out of order")
    ch.send("basic.ack", delivery_tag=3)
    ch.send("basic.ack", delivery_tag=1)
    t.note("multiple: everything up to the tag, with gaps")
    ch.send("basic.ack", delivery_tag=5, multiple=True)
    t.note("the rest comes back when the channel closes, in its order")
    ch.close()
    ch = ch.reopen()
    get(ch, "ack", 4)
    t.note("tag 0 with multiple: all so far")
    ch.send("basic.ack", delivery_tag=0, multiple=True)
    ch.call("basic.qos")
    t.note("tag 0 with multiple and nothing to acknowledge")
    ch.send("basic.ack", delivery_tag=0, multiple=True)
    ch.call("basic.qos")
    ch.call("queue.declare", queue="ack", passive=True)


@scenario("ack-errors")
def ack_errors(t: Script) -> None:
    for what, method, args in [
        ("an unknown tag", "basic.ack", {"delivery_tag": 99}),
        ("an unknown tag, multiple", "basic.ack", {"delivery_tag": 99, "multiple": True}),
        ("tag 0", "basic.ack", {"delivery_tag": 0}),
        ("the highest tag there is", "basic.ack", {"delivery_tag": 2**64 - 1}),
        ("nack, an unknown tag", "basic.nack", {"delivery_tag": 99, "requeue": True}),
        ("nack, an unknown tag, multiple", "basic.nack", {"delivery_tag": 99, "multiple": True}),
        ("nack, tag 0", "basic.nack", {"delivery_tag": 0}),
        ("reject, an unknown tag", "basic.reject", {"delivery_tag": 99}),
        ("reject, tag 0", "basic.reject", {"delivery_tag": 0, "requeue": True}),
    ]:
        t.note(what)
        ch = filled(t, "acke", "12")
        get(ch, "acke")
        ch.send(method, **args)
        ch.expect_close()
    for method in ("basic.ack", "basic.nack", "basic.reject"):
        t.note(f"twice: {method}")
        ch = filled(t, "acke", "12")
        get(ch, "acke", 2)
        ch.send(method, delivery_tag=1)
        ch.send(method, delivery_tag=1)
        ch.expect_close()
    t.note("multiple twice")
    ch = filled(t, "acke", "12")
    get(ch, "acke", 2)
    ch.send("basic.ack", delivery_tag=2, multiple=True)
    ch.send("basic.ack", delivery_tag=2, multiple=True)
    ch.expect_close()
    t.note("multiple up to a tag that is already settled, with older ones open")
    ch = filled(t, "acke", "123")
    get(ch, "acke", 3)
    ch.send("basic.ack", delivery_tag=2)
    ch.send("basic.ack", delivery_tag=2, multiple=True)
    ch.expect_close()
    t.note("a tag of another channel")
    ch = filled(t, "acke", "12")
    get(ch, "acke")
    other = t.connections["A"].channel(2)
    other.send("basic.ack", delivery_tag=1)
    other.expect_close()
    t.note("nothing was delivered on the channel: multiple with a tag")
    other = t.connections["A"].channel(2)
    other.send("basic.ack", delivery_tag=1, multiple=True)
    other.expect_close()
    t.note("what the failed channel held came back")
    ch = filled(t, "acke", "12")
    get(ch, "acke")
    ch.send("basic.ack", delivery_tag=77)
    ch.expect_close()
    ch = ch.reopen()
    get(ch, "acke", 2)


@scenario("nack-requeue")
def nack_requeue(t: Script) -> None:
    t.note("back to its old place, redelivered")
    ch = filled(t, "nr", "12345")
    get(ch, "nr", 3)
    ch.send("basic.nack", delivery_tag=2, requeue=True)
    get(ch, "nr")
    t.note("reject with requeue")
    ch.send("basic.reject", delivery_tag=1, requeue=True)
    get(ch, "nr", 2)
    t.note("multiple: all up to the tag, in their order")
    ch.send("basic.nack", delivery_tag=6, multiple=True, requeue=True)
    get(ch, "nr", 6)
    t.note("tag 0 with multiple")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=True)
    get(ch, "nr", 2)
    t.note("one by one, the last first")
    ch.send("basic.nack", delivery_tag=13, requeue=True)
    ch.send("basic.nack", delivery_tag=12, requeue=True)
    get(ch, "nr", 5)
    t.note("without requeue they are gone")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=False)
    get(ch, "nr")
    ch.call("queue.declare", queue="nr", passive=True)
    t.note("nack of nothing with tag 0 and multiple")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=True)
    ch.call("basic.qos")


@scenario("requeue-to-consumers")
def requeue_to_consumers(t: Script) -> None:
    t.note("a consumer's channel closes: its deliveries go to the next, redelivered, in order")
    first = filled(t, "rtc", "1234")
    a = t.connections["A"]
    first.call("basic.consume", queue="rtc", consumer_tag="first")
    first.expect(4)
    second = a.channel(2)
    second.call("basic.consume", queue="rtc", consumer_tag="second")
    first.send("basic.ack", delivery_tag=2)
    first.close()
    second.expect(3)
    t.note("a connection that goes away without a word")
    b = t.connect("B")
    third = b.channel()
    second.close()
    third.call("basic.consume", queue="rtc", consumer_tag="third")
    third.expect(3)
    fourth = a.channel(4)
    fourth.call("basic.consume", queue="rtc", consumer_tag="fourth")
    b.drop()
    fourth.expect(3)
    t.note("cancel does not requeue")
    fourth.call("basic.cancel", consumer_tag="fourth")
    a.once("queue.declare", queue="rtc", passive=True)
    t.note("a message requeued by one consumer goes to any that is ready")
    fourth.send("basic.nack", delivery_tag=0, multiple=True, requeue=True)
    fourth.call("basic.consume", queue="rtc", consumer_tag="again")
    fourth.expect(3)


@scenario("recover")
def recover(t: Script) -> None:
    ch = filled(t, "rec", "123")
    get(ch, "rec", 2)
    t.note("with requeue: all unacknowledged ones of the channel go back")
    ch.call("basic.recover", requeue=True)
    get(ch, "rec", 3)
    t.note("the asynchronous form has no reply")
    ch.send("basic.recover-async", requeue=True)
    ch.call("basic.qos")
    get(ch, "rec", 3)
    t.note("to a consumer: delivered again")
    ch.call("basic.recover", requeue=True)
    ch.call("basic.consume", queue="rec", consumer_tag="c")
    ch.expect(3)
    ch.call("basic.recover", requeue=True)
    ch.expect(3)
    t.note("nothing to recover")
    ch.send("basic.ack", delivery_tag=0, multiple=True)
    ch.call("basic.recover", requeue=True)
    t.note("without requeue")
    ch.call("basic.recover", requeue=False)
    ch = t.connections["A"].channel(3)
    ch.send("basic.recover-async", requeue=False)
    ch.expect_close()
