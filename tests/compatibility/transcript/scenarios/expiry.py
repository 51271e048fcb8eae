"""Messages and queues that expire. The times are far apart, so that the order of events is certain."""

from __future__ import annotations

import time

from harness.suite import patience

from ..peer import Channel, Script
from ..registry import scenario
from .dead_letters import drain, to


def pass_over(t: Script) -> None:
    """Waits until all short times have expired. The long ones have not."""
    t.settle()
    time.sleep(patience(0.5))


@scenario("message-ttl")
def message_ttl(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="ttl", arguments={"x-message-ttl": 50})
    ch.publish("", "ttl", "1")
    pass_over(t)
    ch.call("basic.get", queue="ttl")
    t.note("a TTL of 0: only for a consumer that is ready")
    ch.call("queue.declare", queue="ttl0", arguments={"x-message-ttl": 0})
    ch.publish("", "ttl0", "2")
    ch.call("basic.get", queue="ttl0")
    ch.call("basic.consume", queue="ttl0", consumer_tag="c", no_ack=True)
    ch.publish("", "ttl0", "3")
    ch.expect(1)
    t.note("expiration of a message")
    ch.call("queue.declare", queue="exp")
    ch.publish("", "exp", "4", props={"expiration": "50"})
    ch.publish("", "exp", "5")
    pass_over(t)
    ch.call("basic.get", queue="exp", no_ack=True)
    ch.publish("", "exp", "6", props={"expiration": "0"})
    ch.call("basic.get", queue="exp", no_ack=True)


@scenario("message-ttl-lower")
def lower(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    for queue, ttl in (("low-short", 50), ("low-long", 600000)):
        ch.call("queue.declare", queue=queue, arguments={"x-message-ttl": ttl})
        ch.publish("", queue, "short", props={"expiration": "50"})
        ch.publish("", queue, "long", props={"expiration": "600000"})
        ch.publish("", queue, "none")
    pass_over(t)
    for queue in ("low-short", "low-long"):
        ch.call("queue.declare", queue=queue, passive=True)
        drain(t, ch, queue)
    t.note("what stands behind one that stays has to wait")
    ch.call("queue.declare", queue="behind", arguments=to("", "behind-dead"))
    ch.call("queue.declare", queue="behind-dead")
    ch.publish("", "behind", "first")
    ch.publish("", "behind", "second", props={"expiration": "50"})
    ch.publish("", "behind", "third")
    pass_over(t)
    ch.call("queue.declare", queue="behind", passive=True)
    ch.call("basic.get", queue="behind", no_ack=True)
    drain(t, ch, "behind-dead")
    ch.call("basic.get", queue="behind", no_ack=True)
    drain(t, ch, "behind-dead")


@scenario("message-ttl-dead-letters")
def dead(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="ttl-dead")
    ch.call("queue.declare", queue="ttl-dl", arguments=to("", "ttl-dead", message_ttl=50))
    t.note("its own expiration goes, and is kept in the death")
    ch.publish("", "ttl-dl", "1", props={"headers": {"mine": 1}, "expiration": "60000", "message_id": "x"})
    ch.publish("", "ttl-dl", "2")
    ch.publish("", "ttl-dl", "3", props={"expiration": "40"})
    pass_over(t)
    drain(t, ch, "ttl-dl")
    drain(t, ch, "ttl-dead")
    t.note("at once, for nobody waits")
    ch.call("queue.declare", queue="ttl-own", arguments=to("", "ttl-dead"))
    ch.publish("", "ttl-own", "4", props={"expiration": "0"})
    t.settle()
    ch.call("queue.declare", queue="ttl-own", passive=True)
    drain(t, ch, "ttl-dead")
    t.note("through two queues, back by a rejection, and again")
    ch.call("queue.declare", queue="retry", arguments=to("", "work", message_ttl=50))
    ch.call("queue.declare", queue="work", arguments=to("", "retry"))
    ch.publish("", "work", "5")
    for _ in range(3):
        reply = ch.call("basic.get", queue="work")
        ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=False)
        pass_over(t)
    drain(t, ch, "work")
    t.note("a circle that nobody closes by hand ends")
    ch.call("queue.declare", queue="circle", arguments=to("", "circle", message_ttl=50))
    ch.publish("", "circle", "6")
    pass_over(t)
    drain(t, ch, "circle")
    ch.call("queue.declare", queue="circle-1", arguments=to("", "circle-2", message_ttl=50))
    ch.call("queue.declare", queue="circle-2", arguments=to("", "circle-1", message_ttl=50))
    ch.publish("", "circle-1", "7")
    pass_over(t)
    drain(t, ch, "circle-1")
    drain(t, ch, "circle-2")


@scenario("message-ttl-requeued")
def requeued(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="rq-dead")
    ch.call("queue.declare", queue="rq", arguments=to("", "rq-dead", message_ttl=50))
    ch.publish("", "rq", "1")
    reply = ch.call("basic.get", queue="rq")
    pass_over(t)
    t.note("what somebody has does not expire; when it comes back it does")
    drain(t, ch, "rq-dead")
    ch.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=True)
    pass_over(t)
    drain(t, ch, "rq")
    drain(t, ch, "rq-dead")
    t.note("as many as its consumer may have, of a TTL of 0")
    ch.call("queue.declare", queue="rq0", arguments={"x-message-ttl": 0})
    ch.call("basic.qos", prefetch_count=2)
    ch.call("basic.consume", queue="rq0", consumer_tag="c")
    for body in "234":
        ch.publish("", "rq0", body)
    units = ch.expect(2)
    ch.call("queue.declare", queue="rq0", passive=True)
    t.note("what comes back has expired, whoever waits for it")
    for unit in units:
        ch.send("basic.nack", delivery_tag=unit.method.args["delivery_tag"], requeue=True)
    ch.expect(0)
    ch.call("queue.declare", queue="rq1")
    others = [a.channel(number) for number in (2, 3)]
    for other in others:
        other.call("basic.consume", queue="rq1", consumer_tag="c")
    ch.publish("", "rq1", "5", props={"expiration": "0"})
    unit = others[0].expect(1)[0]
    others[0].send("basic.reject", delivery_tag=unit.method.args["delivery_tag"], requeue=True)
    for other in others:
        other.expect(0)


def is_there(ch: Channel, queue: str) -> None:
    ch.call("queue.declare", queue=queue, passive=True)


@scenario("queue-expires")
def queue_expires(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qexp", arguments={"x-expires": 100})
    pass_over(t)
    is_there(ch, "qexp")


@scenario("queue-expires-by-use")
def queue_expires_by_use(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    t.note("a consumer is a use, messages are none")
    ch.call("queue.declare", queue="used", arguments={"x-expires": 300})
    ch.call("basic.consume", queue="used", consumer_tag="c", no_ack=True)
    pass_over(t)
    pass_over(t)
    is_there(ch, "used")
    ch.call("basic.cancel", consumer_tag="c")
    ch.publish("", "used", "1")
    pass_over(t)
    is_there(ch, "used")
    t.note("so are declarations and gets")
    ch = a.channel()
    expires = {"x-expires": 1500}
    for use in ("declare", "passive", "get"):
        ch.call("queue.declare", queue="use-" + use, arguments=expires)
    for _ in range(4):
        time.sleep(0.7)
        ch.call("queue.declare", queue="use-declare", arguments=expires)
        is_there(ch, "use-passive")
        ch.call("basic.get", queue="use-get")
    time.sleep(patience(2.5))
    for use in ("declare", "passive", "get"):
        is_there(a.channel(), "use-" + use)
