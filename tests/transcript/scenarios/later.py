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
