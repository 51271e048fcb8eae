"""Features that come later: recorded now, asked of Leveret when they are built."""

from __future__ import annotations

from ..peer import Script
from ..registry import scenario


@scenario("later-priority-queue", later="priority queues are a later issue")
def priority_queue(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pq", arguments={"x-max-priority": 5})
    for body, priority in [("a", 1), ("b", 5), ("c", None), ("d", 9), ("e", 1)]:
        ch.publish("", "pq", body, props={} if priority is None else {"priority": priority})
    for _ in range(5):
        ch.call("basic.get", queue="pq", no_ack=True)


@scenario("later-single-active-consumer", later="single active consumer is a later issue")
def single_active_consumer(t: Script) -> None:
    a = t.connect()
    one, two = a.channel(1), a.channel(2)
    one.call("queue.declare", queue="sac", arguments={"x-single-active-consumer": True})
    one.call("basic.consume", queue="sac", consumer_tag="one", no_ack=True)
    two.call("basic.consume", queue="sac", consumer_tag="two", no_ack=True)
    for body in "abc":
        one.publish("", "sac", body)
    one.expect(3)
    two.expect(0)
    one.call("basic.cancel", consumer_tag="one")
    one.publish("", "sac", "d")
    two.expect(1)
    one.call("basic.consume", queue="sac", consumer_tag="x", exclusive=True)
