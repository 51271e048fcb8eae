"""Queues with priorities: the order of delivery, and which message is dropped at a length limit.

A body states its own priority: `5a` was sent with priority 5.
"""

from __future__ import annotations

from typing import Any

from ..peer import Channel, Script
from ..registry import scenario
from .dead_letters import drain, to
from .expiry import pass_over


def send(ch: Channel, queue: str, *bodies: str, **props: Any) -> None:
    """Publishes each body with the priority of its first character; `-` means none."""
    for body in bodies:
        own = {} if body[0] == "-" else {"priority": int(body[0])}
        ch.publish("", queue, body, props={**own, **props})


def priorities(ch: Channel, queue: str, **more: Any) -> None:
    """Declares a queue with priorities up to 5."""
    ch.call("queue.declare", queue=queue, arguments={"x-max-priority": 5, **more})


@scenario("priority-order")
def order(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    priorities(ch, "pq")
    send(ch, "pq", "1a", "5a", "-a", "9a", "1b", "0a", "5b", "-b")
    ch.call("queue.declare", queue="pq", passive=True)
    drain(t, ch, "pq")
    t.note("a priority of 255, above any; a maximum of 0: one level")
    ch.publish("", "pq", "255", props={"priority": 255})
    send(ch, "pq", "5a")
    drain(t, ch, "pq")
    ch.call("queue.declare", queue="pq0", arguments={"x-max-priority": 0})
    send(ch, "pq0", "1a", "9a", "-a")
    drain(t, ch, "pq0")
    t.note("a consumer is given what waits in that order, then what comes")
    send(ch, "pq", "1a", "4a", "-a", "4b")
    t.settle()
    two = a.channel(2)
    two.call("basic.qos", prefetch_count=2)
    two.call("basic.consume", queue="pq", consumer_tag="c")
    two.expect(2)
    t.note("what comes now goes before what waits, not before what was delivered")
    send(ch, "pq", "3a", "5a")
    t.settle()
    two.send("basic.ack", delivery_tag=2, multiple=True)
    two.expect(2)
    two.send("basic.ack", delivery_tag=4, multiple=True)
    two.expect(2)
    two.send("basic.ack", delivery_tag=6, multiple=True)
    two.call("basic.cancel", consumer_tag="c")
    t.note("counts, purge and if-empty are those of all levels")
    send(ch, "pq", "1x", "2x", "3x")
    t.settle()
    ch.call("queue.delete", queue="pq", if_empty=True)
    ch.call("queue.purge", queue="pq")
    ch.call("queue.delete", queue="pq", if_empty=True)


@scenario("priority-requeue")
def requeue(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    priorities(ch, "pqr")
    send(ch, "pqr", "1a", "1b", "3a", "3b", "-a", "-b")
    for _ in range(5):
        ch.call("basic.get", queue="pqr")
    t.note("1a comes back before 1b, and both behind 3b")
    ch.send("basic.nack", delivery_tag=3, requeue=True)
    ch.send("basic.nack", delivery_tag=2, requeue=True)
    send(ch, "pqr", "3c", "1c")
    t.settle()
    ch.call("basic.get", queue="pqr")
    ch.call("basic.get", queue="pqr")
    t.note("all together")
    ch.call("basic.recover", requeue=True)
    t.settle()
    drain(t, ch, "pqr")


@scenario("priority-max-length")
def max_length(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pql-dead")
    t.note("what would be delivered next goes: the highest priority, and of that the oldest")
    priorities(ch, "pql", **to("", "pql-dead"), **{"x-max-length": 3})
    send(ch, "pql", "1a", "1b", "5a", "3a", "5b", "5c", "5d")
    drain(t, ch, "pql")
    drain(t, ch, "pql-dead")
    t.note("one of a lower priority comes into a full queue, and stays")
    send(ch, "pql", "4a", "4b", "4c", "2a", "-a")
    drain(t, ch, "pql")
    drain(t, ch, "pql-dead")
    t.note("one of a higher priority comes, and goes at once")
    send(ch, "pql", "1a", "1b", "1c", "5a")
    drain(t, ch, "pql")
    drain(t, ch, "pql-dead")
    t.note("by octets")
    priorities(ch, "pqo", **{"x-max-length-bytes": 5})
    send(ch, "pqo", "5a", "1a", "3a", "3b")
    drain(t, ch, "pqo")
    t.note("requeueing beyond the limit")
    send(ch, "pql", "1a", "3a", "5a")
    for _ in range(3):
        ch.call("basic.get", queue="pql")
    send(ch, "pql", "2a", "2b", "2c")
    t.settle()
    ch.call("basic.recover", requeue=True)
    t.settle()
    drain(t, ch, "pql")
    drain(t, ch, "pql-dead")
    t.note("a full queue that refuses does so whatever the priority")
    priorities(ch, "pqf", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    two = a.channel(2)
    two.call("confirm.select")
    send(two, "pqf", "1a")
    two.expect_confirms(1)
    send(two, "pqf", "5a")
    two.expect_confirms(1)
    drain(t, ch, "pqf")


@scenario("priority-ttl")
def ttl(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pqt-dead")
    priorities(ch, "pqt", **to("", "pqt-dead"))
    t.note("one that expires, behind one of a higher priority that stays")
    send(ch, "pqt", "5a")
    send(ch, "pqt", "1a", expiration="50")
    send(ch, "pqt", "1b")
    pass_over(t)
    ch.call("queue.declare", queue="pqt", passive=True)
    drain(t, ch, "pqt-dead")
    drain(t, ch, "pqt")
    t.note("behind one of its own priority")
    send(ch, "pqt", "1a")
    send(ch, "pqt", "1b", expiration="50")
    send(ch, "pqt", "5a")
    pass_over(t)
    ch.call("queue.declare", queue="pqt", passive=True)
    drain(t, ch, "pqt-dead")
    drain(t, ch, "pqt")
    t.note("both stand first in their priority")
    send(ch, "pqt", "5a", "1a", expiration="50")
    send(ch, "pqt", "5b", "1b")
    pass_over(t)
    ch.call("queue.declare", queue="pqt", passive=True)
    drain(t, ch, "pqt-dead")
    drain(t, ch, "pqt")
    t.note("the higher one is gone, and nothing stands before the lower one")
    send(ch, "pqt", "5a", "1a", expiration="50")
    send(ch, "pqt", "1b")
    pass_over(t)
    ch.call("queue.declare", queue="pqt", passive=True)
    drain(t, ch, "pqt-dead")
    drain(t, ch, "pqt")
