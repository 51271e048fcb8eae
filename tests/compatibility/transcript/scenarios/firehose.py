"""The firehose: copies of published and delivered messages for bindings of amq.rabbitmq.trace."""

from __future__ import annotations

import time

from ..peer import Channel, Script
from ..registry import Own, scenario

OWN = Own("", "")


def told(t: Script, *words: str) -> None:
    """Runs a command and waits until the channels have seen the change."""
    t.broker.ctl(*words)
    time.sleep(0.5)
    t.note(" ".join(words))


def drain(t: Script, ch: Channel, queue: str) -> None:
    """Gets messages until the queue is empty."""
    t.settle()
    while True:
        reply = ch.call("basic.get", queue=queue, no_ack=True)
        if reply is None or reply.name != "basic.get-ok":
            return


@scenario("firehose", own=OWN)
def firehose(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    b = t.connect("B")
    other = b.channel(7)
    ch.call("queue.declare", queue="copies")
    ch.call("queue.bind", queue="copies", exchange="amq.rabbitmq.trace", routing_key="#")
    ch.call("queue.declare", queue="work", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    ch.call("queue.declare", queue="dead")
    ch.call("queue.bind", queue="work", exchange="amq.topic", routing_key="a.*")
    ch.call("queue.bind", queue="dead", exchange="amq.topic", routing_key="a.b")
    t.note("off")
    other.publish("", "work", "0")
    drain(t, other, "work")
    drain(t, ch, "copies")
    told(t, "trace_on")
    t.note("published, and got")
    props = {"content_type": "text/plain", "headers": {"z": 1, "a": "x"}, "delivery_mode": 2, "priority": 3,
             "correlation_id": "c", "reply_to": "r", "expiration": "60000", "message_id": "m", "timestamp": 5,
             "type": "t", "user_id": "guest", "app_id": "app"}
    other.publish("", "work", "1", props=props)
    drain(t, ch, "copies")
    reply = other.call("basic.get", queue="work")
    drain(t, ch, "copies")
    t.note("come back, and redelivered")
    other.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=True)
    t.settle()
    reply = other.call("basic.get", queue="work")
    drain(t, ch, "copies")
    t.note("a dead letter is no publishing, but its delivery is one")
    other.send("basic.reject", delivery_tag=reply.args["delivery_tag"], requeue=False)
    drain(t, other, "dead")
    drain(t, ch, "copies")
    t.note("several queues, several keys")
    other.publish("amq.topic", "a.b", "2", props={"headers": {"CC": ["a.c"], "BCC": ["a.d"]}})
    drain(t, ch, "copies")
    t.note("nowhere")
    other.publish("amq.topic", "b", "3")
    other.publish("amq.topic", "b", "4", mandatory=True)
    t.settle()
    other.expect(1)
    drain(t, ch, "copies")
    t.note("consumed")
    other.call("queue.purge", queue="work")
    other.call("basic.consume", queue="work", consumer_tag="c", no_ack=True)
    other.publish("", "work", "5")
    t.settle()
    other.expect(1)
    other.call("basic.cancel", consumer_tag="c")
    drain(t, ch, "copies")
    t.note("a transaction is told when it is published, not when it is committed")
    other.call("tx.select")
    other.publish("", "work", "6")
    drain(t, ch, "copies")
    other.call("tx.commit")
    drain(t, ch, "copies")
    t.note("what is published to the firehose itself is not told")
    other.publish("amq.rabbitmq.trace", "mine", "7")
    drain(t, ch, "copies")
    other.call("tx.commit")
    drain(t, ch, "copies")
    told(t, "trace_off")
    ch.publish("", "dead", "8")
    drain(t, ch, "dead")
    drain(t, ch, "copies")
