"""Priorities of persistent messages in a backlog that exceeds the memory, and their removal with the queue."""

from __future__ import annotations

from typing import Any, Dict, List

from harness import wire
from harness.raw import Content

from deep import BOARD, CONFIG, within_memory
from support import PERSISTENT, QUICK, client, count, declare, fill, lives, number_in, numbers_of, system, take_all

QUEUE = "p"
HIGHEST = 9


def level(number: int) -> int:
    """Returns the priority of a message number, limited to the queue's maximum."""
    return min(number % 12, HIGHEST)


def props(number: int) -> Dict[str, Any]:
    """Returns the properties of a message: every twelfth has no priority, and some exceed the maximum of the queue."""
    return {**PERSISTENT, **({"priority": number % 12} if number % 12 else {})}


def by_priority(numbers: range) -> List[int]:
    """Returns the numbers in the order of delivery."""
    return sorted(numbers, key=lambda number: (-level(number), number))


def numbers(messages: List[Content]) -> List[int]:
    """Returns the numbers of the messages, and checks that each has the priority with which it was sent."""
    found = [number_in(item.body, QUEUE) for item in messages]
    for number, item in zip(found, messages):
        assert item.header.props.get("priority", 0) == number % 12, f"{number} came with {item.header.props}"
    return found


def priorities_outlive() -> None:
    """A backlog of all priorities, twice the memory of this board, is killed when full and when half drained. Delivered
    messages return to their positions and are marked as redelivered; all keep the order of priorities."""
    total, size = (4_000, 2_000) if QUICK else (60_000, 2_000)
    expected = by_priority(range(total))
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start(), timeout=60.0) as peer:
            declare(peer, QUEUE, arguments={"x-max-priority": HIGHEST})
            fill(peer, QUEUE, range(total), size, props, window=1_000)
        within_memory(series.broker)
        broker = series.again("kill")
        half, ahead = total // 2, 200
        with client(broker, timeout=60.0) as peer:
            assert count(peer, QUEUE) == total
            peer.call(1, "basic.qos", prefetch_count=ahead)
            peer.call(1, "basic.consume", queue=QUEUE, consumer_tag="c")
            got: List[Content] = []
            while len(got) < half:
                got.append(peer.expect("basic.deliver"))
                if len(got) % 100 == 0:
                    tag = got[-1].method.args["delivery_tag"]
                    peer.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))
            assert numbers(got) == expected[:half]
            settled = half - half % 100
            peer.call(1, "queue.declare", queue=QUEUE, passive=True)
            # New messages are delivered before old ones of lower priority, and after those that were delivered before.
            fill(peer, QUEUE, range(total, total + 12), size, props)
        broker = series.again("kill")
        within_memory(broker)
        left = sorted({*expected[settled:], *range(total, total + 12)}, key=lambda number: (-level(number), number))
        with client(broker, timeout=60.0) as peer:
            taken = take_all(peer, QUEUE)
            # Only acknowledgements that were not durable at the kill may be lost.
            again = numbers(taken)
            assert again[-len(left):] == left, "messages are missing or in another order"
            delivered = [item.method.args["redelivered"] for item in taken]
            assert delivered[:ahead // 2].count(True) > 0, "messages that were delivered are not marked as redelivered"
            assert delivered[-1] is False, "a message that was never delivered is marked as redelivered"
        series.again("stop")
        with client(series.broker) as peer:
            assert take_all(peer, QUEUE) == [], "acknowledged messages were delivered again after a clean stop"


def priorities_go_with_their_queue() -> None:
    """Messages of a deleted queue are not recovered with any priority, and a new queue of the same name is empty."""
    with lives(CONFIG, args=BOARD) as series:
        broker = series.start()
        for way in ("delete", "purge"):
            with client(broker) as peer:
                declare(peer, QUEUE, arguments={"x-max-priority": HIGHEST})
                fill(peer, QUEUE, range(120), 100, props)
                peer.call(1, f"queue.{way}", queue=QUEUE)
            # A purge settles every message. A kill may undo it like any acknowledgement.
            broker = series.again("kill" if way == "delete" else "stop")
            assert "orphans: " not in broker.ctl("list_alarms")
            with client(broker) as peer:
                declare(peer, QUEUE, arguments={"x-max-priority": HIGHEST})
                assert count(peer, QUEUE) == 0, f"messages were recovered after {way}"
                fill(peer, QUEUE, range(24), 100, props)
            broker = series.again("kill")
            with client(broker) as peer:
                assert numbers_of(take_all(peer, QUEUE), QUEUE) == by_priority(range(24))
                peer.call(1, "queue.delete", queue=QUEUE)


def priorities_are_inspected() -> None:
    """`inspect` lists one queue with its priorities, and no lost messages."""
    with lives(CONFIG, args=BOARD) as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, QUEUE, arguments={"x-max-priority": HIGHEST})
            fill(peer, QUEUE, range(24), 100, props)
        broker.stop()
        told = system(str(broker.binary), "inspect", str(series.data_dir))
        assert "orphan" not in told, told
        assert "queues     1 with 24 messages" in told, told
        for priority in range(1, HIGHEST + 1):
            assert f'"{QUEUE}" in "/", priority {priority}\n' in told, told


CASES = [priorities_outlive, priorities_go_with_their_queue, priorities_are_inspected]
QUICK_CASES = CASES
