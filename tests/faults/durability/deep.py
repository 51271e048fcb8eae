"""Backlogs that exceed the memory: their messages are stored in the log, delivered in order, and memory stays bounded.
"""

from __future__ import annotations

from typing import Dict

from harness import backlog, wire

from support import (
    MIB, PERSISTENT, QUICK, Leveret, Publisher, client, count, declare, fill, lives, number_in, numbers_of,
    take_all, until,
)

# Maximum number of bytes read per byte of message: records, their positions in the footers, and neighbouring messages
# that are not needed yet.
READ_MOST = 2.0
MEMORY_KIB = 64_000_000 // 1024
BOARD = ["--board", "pi-zero-w"]
# The sync budget of the board profile would make this test too slow. TCP segments over loopback exceed the buffers of
# this board, so that the kernel repeatedly waits for timers of 40 and 200 ms.
CONFIG = """
[limits]
socket_receive_buffer_bytes = "64KiB"
socket_send_buffer_bytes = "64KiB"
[store]
syncs_per_second = 0
disk_limit = "600MB"
"""


def within_memory(broker: Leveret) -> None:
    """Checks the peak resident memory of the broker."""
    peak = broker.peak_kib()
    print(f"# peak {peak} KiB, limit {MEMORY_KIB} KiB")
    assert peak < MEMORY_KIB, f"the peak was {peak} KiB"


def deep_backlog() -> None:
    """A queue holds twice the memory limit. After a kill, a consumer with acknowledgements drains it in order."""
    total, size = (12_000, 2_000) if QUICK else (70_000, 2_000)
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            declare(peer, "deep")
        with Publisher(series.broker, "deep", size, window=1000, last=total) as publisher:
            publisher.wait_confirmed(total, patience_s=60.0)
        within_memory(series.broker)
        broker = series.again("kill")
        with client(broker, timeout=30.0) as peer:
            assert count(peer, "deep") == total
            drain_in_order(peer, {"deep": total})
            assert count(peer, "deep") == 0
        within_memory(broker)
        series.again("stop")
        with client(series.broker) as peer:
            assert take_all(peer, "deep") == [], "acknowledged messages were delivered again after a clean stop"


def drain_in_order(peer, totals: Dict[str, int], at_once: int = 50) -> None:  # type: ignore[no-untyped-def]
    """Consumes these queues to their ends at the same time, checks the order of each, and acknowledges in groups."""
    peer.call(1, "basic.qos", prefetch_count=4 * at_once)
    for queue in totals:
        peer.call(1, "basic.consume", queue=queue, consumer_tag=queue)
    following = dict.fromkeys(totals, 0)
    for received in range(1, sum(totals.values()) + 1):
        item = peer.expect("basic.deliver")
        queue = item.method.args["consumer_tag"].decode()
        number = number_in(item.body, queue)
        assert number == following[queue], f"{queue}: {number} instead of {following[queue]}"
        following[queue] += 1
        if received % at_once == 0:
            peer.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"], multiple=True))
    peer.send(wire.method(1, "basic.ack", delivery_tag=0, multiple=True))
    assert following == totals


def deep_queues_interleaved() -> None:
    """A hundred queues that exceed the memory are filled in turn and drained at the same time."""
    each = 60 if QUICK else 400
    names = [f"q{number}" for number in range(100)]
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            for name in names:
                declare(peer, name)
            for start in range(0, each, 20):
                for name in names:
                    fill(peer, name, range(start, start + 20), 1_500, window=500)
        within_memory(series.broker)
        for how in ("kill", None):
            if how:
                series.again(how)
            with client(series.broker, timeout=30.0) as peer:
                half = names[:50] if how else names[50:]
                drain_in_order(peer, dict.fromkeys(half, each))
        within_memory(series.broker)


def deep_and_small() -> None:
    """Messages of 256 B, more than there are slots, in one queue and in more than 800: they keep their order through a
    kill, memory stays within its limit, and few bytes are read twice."""
    total, size = (20_000, 256) if QUICK else (200_000, 256)
    for queues in ([f"s{number}" for number in range(count)] for count in (1, 800)):
        with lives(CONFIG, args=BOARD) as series:
            with client(series.start(), timeout=60.0) as peer:
                for queue in queues:
                    declare(peer, queue)
                backlog.fill(peer, queues, total, size)
            within_memory(series.broker)
            broker = series.again("kill")
            before = backlog.file_bytes_read(broker)
            # This board does not allow a connection that many consumers.
            for some in (queues[::2], queues[1::2]) if len(queues) > 1 else (queues,):
                with client(broker, timeout=60.0) as peer:
                    backlog.drain(peer, some, total * len(some) // len(queues), size, max(20, 2_000 // len(some)))
            read = (backlog.file_bytes_read(broker) - before) / (total * size)
            print(f"# {len(queues)} queues: {read:.2f} bytes read for each byte of message")
            assert read < READ_MOST, f"{read:.2f} bytes were read for each byte of message"
            within_memory(broker)


def deep_and_large() -> None:
    """Large bodies exceed the memory many times over, and each fills a large part of it."""
    total = 12 if QUICK else 60
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            declare(peer, "large")
            fill(peer, "large", range(total), 2 * MIB, window=2)
        within_memory(series.broker)
        series.again("kill")
        with client(series.broker, timeout=30.0) as peer:
            drain_in_order(peer, {"large": total}, at_once=1)
        within_memory(series.broker)


def requeued_from_the_deep() -> None:
    """Messages that were read from the log and are requeued return to their positions."""
    total = 3_000 if QUICK else 20_000
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            declare(peer, "r")
            fill(peer, "r", range(total), 3_000, window=500)
        series.again("kill")
        # The memory for requeued messages is full of the same messages, so another read of the log has to wait.
        for _ in range(3 if QUICK else 30):
            with client(series.broker, timeout=30.0) as peer:
                peer.call(1, "basic.consume", queue="r", consumer_tag="c")
                got = [peer.expect("basic.deliver") for _ in range(total // 4)]
                assert numbers_of(got, "r") == list(range(total // 4))
                last = got[-1].method.args["delivery_tag"]
                peer.call(1, "basic.cancel", consumer_tag="c")
                peer.send(wire.method(1, "basic.nack", delivery_tag=last, multiple=True, requeue=True))
                peer.call(1, "basic.recover", requeue=True)
                assert count(peer, "r") == total
        within_memory(series.broker)
        with client(series.broker, timeout=30.0) as peer:
            drain_in_order(peer, {"r": total})
        within_memory(series.broker)


def taken_and_not_settled() -> None:
    """A consumer without prefetch takes more messages than fit into memory and settles none. Other clients are served,
    and requeued messages keep their order."""
    total, size = 8_000, 4_000
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            declare(peer, "slow")
            declare(peer, "beside", durable=False)
            fill(peer, "slow", range(total), size, window=500)
            with client(series.broker, timeout=30.0) as taker:
                taker.call(1, "basic.consume", queue="slow", consumer_tag="t")
                first = [taker.expect("basic.deliver") for _ in range(total)]
                assert numbers_of(first, "slow") == list(range(total))
                fill(peer, "beside", range(500), 10_000, props=lambda _: {})
                assert len(take_all(peer, "beside")) == 500
                # One half is requeued by a nack, the other half by closing the channel.
                middle = first[total // 2 - 1].method.args["delivery_tag"]
                taker.call(1, "basic.cancel", consumer_tag="t")
                taker.send(wire.method(1, "basic.nack", delivery_tag=middle, multiple=True, requeue=True))
            until(lambda: count(peer, "slow") == total, "not all messages were requeued")
            within_memory(series.broker)
            again = take_all(peer, "slow", ahead=1, patience_s=30.0)
            assert numbers_of(again, "slow") == list(range(total))
            assert all(message.method.args["redelivered"] for message in again)
        within_memory(series.broker)


def transient_among_deep() -> None:
    """Transient messages stay in memory while persistent ones in the same queue are evicted. All keep their order, and
    the transient ones are gone after a restart."""
    total = 12_000 if QUICK else 40_000
    with lives(CONFIG, args=BOARD) as series:
        with client(series.start()) as peer:
            declare(peer, "mixed")
            for _ in range(2):
                fill(peer, "mixed", range(total), 1_000, props=few_transient, window=500)
                assert count(peer, "mixed") == total
                within_memory(series.broker)
                with client(series.broker, timeout=30.0) as consumer:
                    drain_in_order(consumer, {"mixed": total})
            fill(peer, "mixed", range(total), 1_000, props=few_transient, window=500)
        within_memory(series.broker)
        with client(series.again("kill"), timeout=30.0) as peer:
            got = numbers_of(take_all(peer, "mixed"), "mixed")
            persistent = [number for number in range(total) if number % 30]
            assert got == persistent, f"{len(got)} of {len(persistent)}"
        within_memory(series.broker)


def few_transient(number: int) -> Dict[str, int]:
    """Returns the properties of message `number`: most are persistent, a few are transient."""
    return PERSISTENT if number % 30 else {}


CASES = [deep_backlog, deep_queues_interleaved, deep_and_small, deep_and_large, requeued_from_the_deep,
         taken_and_not_settled, transient_among_deep]
QUICK_CASES = CASES
