"""Queues with a length limit: which messages are dropped, which are refused, and what publishers receive."""

from __future__ import annotations

from harness import wire
from harness.suite import patience

from ..peer import Channel, Script
from ..registry import Own, scenario


def drain(ch: Channel, queue: str) -> None:
    """Gets messages until the queue is empty."""
    while True:
        reply = ch.call("basic.get", queue=queue, no_ack=True)
        if reply is None or reply.name != "basic.get-ok":
            return


@scenario("max-length-drop-head")
def drop_head(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="mld", arguments={"x-max-length": 2})
    ch.call("confirm.select")
    for body in "12345":
        ch.publish("", "mld", body, mandatory=True)
    t.note("all confirmed, the oldest dropped")
    ch.expect_confirms(5)
    drain(ch, "mld")
    t.note("unacknowledged ones do not count")
    for body in "12":
        ch.publish("", "mld", body)
    ch.expect_confirms(2)
    ch.call("basic.get", queue="mld")
    ch.call("basic.get", queue="mld")
    for body in "345":
        ch.publish("", "mld", body)
    ch.expect_confirms(3)
    ch.call("queue.declare", queue="mld", passive=True)
    t.note("requeueing beyond the limit drops from the head")
    ch.send("basic.nack", delivery_tag=0, multiple=True, requeue=True)
    ch.expect(0)
    drain(ch, "mld")
    t.note("by octets of body")
    ch.call("queue.declare", queue="mldb", arguments={"x-max-length-bytes": 10})
    for body in ("12345", "67890", "x", "1234567890", "12345678901", ""):
        ch.publish("", "mldb", body)
        ch.call("queue.declare", queue="mldb", passive=True)
    drain(ch, "mldb")
    t.note("both limits")
    ch.call("queue.declare", queue="mlb", arguments={"x-max-length": 3, "x-max-length-bytes": 10})
    for body in ("1", "2", "3", "4", "1234567"):
        ch.publish("", "mlb", body)
    drain(ch, "mlb")
    t.note("a limit of nothing")
    ch.call("queue.declare", queue="mlz", arguments={"x-max-length": 0})
    ch.publish("", "mlz", "x", mandatory=True)
    ch.call("basic.get", queue="mlz")
    ch.call("basic.consume", queue="mlz", consumer_tag="c", no_ack=True)
    ch.publish("", "mlz", "y")
    units = ch.inbox
    ch.connection.wait(lambda: any(unit.method.name == "basic.deliver" for unit in units), patience(1.0))
    t.note(f"a consumer gets it: {any(unit.method.name == 'basic.deliver' for unit in units)}")


@scenario("max-length-reject-publish")
def reject_publish(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="mlr", arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    ch.call("confirm.select")
    for body in "12345":
        ch.publish("", "mlr", body)
        ch.expect_confirms(1)
    drain(ch, "mlr")
    t.note("room again")
    ch.publish("", "mlr", "6")
    ch.expect_confirms(1)
    t.note("one of two queues full: refused, but the other has it")
    ch.call("queue.declare", queue="mlr-free")
    ch.call("exchange.declare", exchange="mlr-x", type="fanout")
    ch.call("queue.bind", queue="mlr", exchange="mlr-x")
    ch.call("queue.bind", queue="mlr-free", exchange="mlr-x")
    for body in "789":
        ch.publish("mlr-x", "", body)
        ch.expect_confirms(1)
    drain(ch, "mlr")
    drain(ch, "mlr-free")
    t.note("without confirms it vanishes")
    plain = a.channel(2)
    for body in "123":
        plain.publish("", "mlr", body, mandatory=True)
    plain.expect(0)
    drain(ch, "mlr")
    t.note("by octets")
    ch.call("queue.declare", queue="mlrb", arguments={"x-max-length-bytes": 10, "x-overflow": "reject-publish"})
    for body in ("12345678", "90", "x", ""):
        ch.publish("", "mlrb", body)
        ch.expect_confirms(1)
    drain(ch, "mlrb")


@scenario("max-message-size")
def max_message_size(t: Script) -> None:
    t.note("a header that announces more than 128 MiB")
    a = t.connect()
    ch = a.channel()
    size = 134217729
    ch.line(">", f"basic.publish and a header of size {size}")
    a.send(wire.method(1, "basic.publish", routing_key="nobody") + wire.frame(2, 1, wire.encode_header(size, {})))
    a.wait(lambda: bool(ch.replies) or bool(a.events), 1.0)
    if ch.replies or a.events:
        ch.expect_close()
    else:
        ch.line("<", "(nothing until the body is complete)")


SMALL_MESSAGES = Own(rabbitmq="{max_message_size, 65536}", leveret="[limits]\nmessage_size_max = \"64KiB\"\n")


@scenario("max-message-size-set", own=SMALL_MESSAGES)
def max_message_size_set(t: Script) -> None:
    t.note("the largest there may be")
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="mms", exclusive=True)
    ch.call("confirm.select")
    ch.publish("", "mms", "x" * 65536)
    ch.expect_confirms(1)
    t.note("one octet more")
    a.send(wire.publish(1, "", "mms", b"x" * 65537, frame_max=a.frame_max))
    ch.line(">", "basic.publish of 65537 octets")
    a.wait(lambda: bool(ch.replies) or bool(a.events))
    ch.expect_close()
    t.note("the connection works, and nothing of it is in the queue")
    a.channel(2).call("queue.declare", queue="mms", passive=True)


@scenario("shutdown", own=Own(rabbitmq="", leveret=""))
def shutdown(t: Script) -> None:
    t.note("SIGTERM: to one with a channel, to one that consumes, to one without a channel")
    peers = [t.connect(name) for name in "ABC"]
    peers[0].channel()
    consumer = peers[1].channel()
    consumer.call("queue.declare", queue="sd", exclusive=True)
    consumer.call("basic.consume", queue="sd", consumer_tag="c")
    t.broker.terminate()
    for peer in peers:
        peer.hear()
    t.queues.clear()
