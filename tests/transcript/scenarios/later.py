"""Features that come later: recorded now, asked of Leveret when they are built."""

from __future__ import annotations

import time

from ..peer import Script
from ..registry import scenario


@scenario("later-message-ttl", later="message TTL comes with dead-lettering and policies")
def message_ttl(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="ttl", arguments={"x-message-ttl": 50})
    ch.publish("", "ttl", "1")
    time.sleep(0.3)
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
    time.sleep(0.3)
    ch.call("basic.get", queue="exp", no_ack=True)
    ch.publish("", "exp", "6", props={"expiration": "0"})
    ch.call("basic.get", queue="exp", no_ack=True)


@scenario("later-queue-expires", later="queue expiry comes with TTL")
def queue_expires(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="qexp", arguments={"x-expires": 100})
    time.sleep(0.5)
    ch.call("queue.declare", queue="qexp", passive=True)


@scenario("later-priority-queue", later="priority queues are a later issue")
def priority_queue(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pq", arguments={"x-max-priority": 5})
    for body, priority in [("a", 1), ("b", 5), ("c", None), ("d", 9), ("e", 1)]:
        ch.publish("", "pq", body, props={} if priority is None else {"priority": priority})
    for _ in range(5):
        ch.call("basic.get", queue="pq", no_ack=True)
