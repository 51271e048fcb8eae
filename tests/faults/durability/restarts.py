"""What survives a restart, and what does not."""

from __future__ import annotations

import struct
import time
from typing import Any, Dict, List

from clients.run import Bench
from harness import environment, wire
from harness.raw import Client, Closed, name_of
from harness.suite import patience

from support import (
    HERE, MIB, PERSISTENT, SMALL_SEGMENTS, Lives, Publisher, all_written, client, confirmed_through, count, declare, ext4, fill,
    lives, numbers_of, refused, system, take_all, until,
)

ENDS = ["stop", "kill"]
# Maximum number of messages that are marked as delivered ahead of their delivery. The test uses more messages than
# that.
MARKED_AHEAD_MAX = 300
LAST = 1000
QUICKLY = '[store]\ncommit_window = "20ms"\nsettle_window = "20ms"\n'


# ---- the program of the tutorial ----------------------------------------------------------


def tutorial_durability() -> None:
    """A durable queue and persistent tasks survive a stop and a kill, with the unchanged programs of the tutorial."""
    python = environment.pika_python(environment.PIKA_NEW)
    with lives(QUICKLY) as series:
        series.start()
        for how in ENDS:
            bench = Bench(series.broker.address, python, HERE.parents[1] / "compatibility" / "clients" / "pika_1_4")
            for number in range(3):
                bench.run("new_task", f"task {number}")
            with client(series.broker) as peer:
                peer.publish(1, "", "task_queue", b"transient")
                assert count(peer, "task_queue") == 4
                until(lambda: all_written(series), "the messages were not written")
            series.again(how)
            bench = Bench(series.broker.address, python, HERE.parents[1] / "compatibility" / "clients" / "pika_1_4")
            try:
                worker = bench.start("worker")
                worker.wait("Done", times=3)
                # Tasks that were not delivered may be marked as redelivered if others before them were delivered.
                got = [line.split(" redelivered")[0] for line in worker.lines if "Received" in line]
                assert got == [f" [x] Received 'task {number}'" for number in range(3)], got
                if how == ENDS[0]:
                    assert worker.count("redelivered=False") == 3, worker.lines
                bench.run("new_task", "new")
                worker.wait("Received 'new' redelivered=False")
                worker.wait("Done", times=4)
                time.sleep(patience(0.3))  # the worker prints Done before it acknowledges
            finally:
                bench.end()
            with client(series.broker) as peer:
                assert count(peer, "task_queue") == 0, "an acknowledged task is in the queue again"
                until(lambda: all_written(series), "the acknowledgements were not written")


# ---- definitions --------------------------------------------------------------------------


def exists(series: Lives, kind: str, name: str) -> bool:
    """Returns whether the exchange or queue exists."""
    with client(series.broker) as peer:
        try:
            peer.call(1, f"{kind}.declare", passive=True, **{kind: name})
        except Closed as answer:
            assert answer.method and answer.method.args["reply_code"] == 404, answer
            return False
        return True


def reaches(series: Lives, exchange: str, key: str, headers: Dict[str, Any]) -> List[str]:
    """Returns the queues of this suite that a message is routed to."""
    with client(series.broker) as peer:
        peer.publish(1, exchange, key, b"probe", props={"headers": headers})
        return [queue for queue in ("q1", "q2") if take_all(peer, queue, ahead=2)]


def make_definitions(series: Lives) -> None:
    """Declares durable, transient and deleted exchanges, queues and bindings."""
    with client(series.broker) as peer:
        for name, kind in (("d", "direct"), ("f", "fanout"), ("t", "topic"), ("h", "headers"), ("gone", "fanout")):
            peer.call(1, "exchange.declare", exchange=name, type=kind, durable=True)
        peer.call(1, "exchange.declare", exchange="passing", type="fanout")
        declare(peer, "q1", arguments={"x-max-length": 1000, "x-overflow": "reject-publish"})
        declare(peer, "q2", auto_delete=True)
        declare(peer, "q3")
        declare(peer, "mine", exclusive=True)
        declare(peer, "passing", durable=False)
        for queue, exchange, key in (("q1", "d", "a"), ("q2", "d", "a"), ("q2", "d", "b"), ("q1", "t", "*.x.#"),
                                     ("q1", "gone", ""), ("q1", "passing", ""), ("q3", "d", "a")):
            peer.call(1, "queue.bind", queue=queue, exchange=exchange, routing_key=key)
        match = {"x-match": "all", "colour": "blue", "size": 5}
        peer.call(1, "queue.bind", queue="q2", exchange="h", arguments=match)
        peer.call(1, "exchange.bind", destination="d", source="f")
        peer.call(1, "exchange.bind", destination="d", source="t", routing_key="through")
        peer.call(1, "queue.unbind", queue="q2", exchange="d", routing_key="a")
        peer.call(1, "exchange.unbind", destination="d", source="t", routing_key="through")
        peer.call(1, "exchange.delete", exchange="gone")
        peer.call(1, "queue.delete", queue="q3")


def definitions() -> None:
    """Durable exchanges, queues and bindings are recovered, and deleted ones are not."""
    for how in ENDS:
        with lives() as series:
            series.start()
            make_definitions(series)
            for _ in range(3):  # recovered definitions must be written in the same way again
                series.again(how)
                assert [exists(series, "exchange", name) for name in "dfth"] == [True] * 4
                assert not exists(series, "exchange", "gone") and not exists(series, "exchange", "passing")
                assert exists(series, "queue", "q1") and exists(series, "queue", "q2")
                assert not any(exists(series, "queue", name) for name in ("q3", "mine", "passing"))
                assert reaches(series, "d", "a", {}) == ["q1"]
                assert reaches(series, "d", "b", {}) == ["q2"]
                assert reaches(series, "f", "b", {}) == ["q2"]
                assert reaches(series, "t", "y.x.z", {}) == ["q1"]
                assert reaches(series, "t", "through", {}) == []
                assert reaches(series, "h", "", {"colour": "blue", "size": 5}) == ["q2"]
                assert reaches(series, "h", "", {"colour": "blue"}) == []
            same_arguments(series)


def same_arguments(series: Lives) -> None:
    """Redeclaring with the same arguments succeeds, and with other arguments it is refused."""
    with client(series.broker) as peer:
        declare(peer, "q1", arguments={"x-max-length": 1000, "x-overflow": "reject-publish"})
        peer.call(1, "exchange.declare", exchange="t", type="topic", durable=True)
        for wrong in ({"durable": False}, {"arguments": {"x-max-length": 999}}, {"auto_delete": True}):
            with client(series.broker) as other:
                try:
                    declare(other, "q1", **wrong)
                except Closed as answer:
                    assert answer.method and answer.method.args["reply_code"] == 406, answer
                else:
                    raise AssertionError(f"q1 was declared with {wrong}")


def deleted_with_messages() -> None:
    """A deleted or purged queue is not recovered with its old messages under the same name."""
    for how in ENDS:
        with lives() as series:
            series.start()
            with client(series.broker) as peer:
                for queue in ("a", "b"):
                    declare(peer, queue)
                    fill(peer, queue, range(500))
                peer.call(1, "queue.delete", queue="a")
                declare(peer, "a")
                assert peer.call(1, "queue.purge", queue="b").args["message_count"] == 500
                fill(peer, "a", range(1000, 1010))
                fill(peer, "b", range(1000, 1010))
            for _ in range(2):
                series.again(how)
                with client(series.broker) as peer:
                    assert count(peer, "a") == 10, count(peer, "a")
                    assert count(peer, "b") == 10, count(peer, "b")
            with client(series.broker) as peer:
                for queue in ("a", "b"):
                    assert numbers_of(take_all(peer, queue), queue) == list(range(1000, 1010))


# ---- messages -----------------------------------------------------------------------------


def persistent_and_transient() -> None:
    """Persistent messages are recovered in order, and transient ones are not, in classic and quorum queues."""
    for how in ENDS:
        with lives() as series:
            series.start()
            with client(series.broker) as peer:
                declare(peer, "keep")
                declare(peer, "passing", durable=False)
                for start in range(0, 1000, 100):
                    fill(peer, "keep", range(start, start + 50))
                    fill(peer, "keep", range(start + 50, start + 100), props=lambda _: {})
                    fill(peer, "passing", range(start, start + 10))
            want = [number for number in range(1000) if number % 100 < 50]
            for _ in range(2):
                series.again(how)
                assert not exists(series, "queue", "passing")
                with client(series.broker) as peer:
                    assert count(peer, "keep") == len(want)
            with client(series.broker) as peer:
                got = take_all(peer, "keep")
                assert numbers_of(got, "keep") == want
                assert not any(message.method.args["redelivered"] for message in got)
                assert take_all(peer, "keep") == []
            series.again("stop")
            with client(series.broker) as peer:
                assert take_all(peer, "keep") == [], "messages taken before a clean stop are in the queue again"


def redelivered() -> None:
    """Messages that may have been delivered before are marked as redelivered, others are not, and acknowledged ones are
    gone."""
    for how in ENDS:
        with lives(QUICKLY) as series:
            series.start()
            with client(series.broker) as peer:
                declare(peer, "r")
                fill(peer, "r", range(LAST))
                peer.call(1, "basic.qos", prefetch_count=20)
                peer.call(1, "basic.consume", queue="r", consumer_tag="c")
                got = [peer.expect("basic.deliver") for _ in range(20)]
                assert numbers_of(got, "r") == list(range(20))
                for item in got[:10]:
                    peer.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))
                got += [peer.expect("basic.deliver") for _ in range(10)]
                peer.call(1, "basic.cancel", consumer_tag="c")
                all_written(series)
                series.broker.kill() if how == "kill" else series.broker.stop()
                peer.drop()
            series.start()
            with client(series.broker) as peer:
                got = take_all(peer, "r")
                numbers = numbers_of(got, "r")
                flags = {number: item.method.args["redelivered"] for number, item in zip(numbers, got)}
                assert numbers[10 - LAST :] == list(range(10, LAST)), numbers
                assert how == "kill" or len(numbers) == LAST - 10, f"{numbers[:10]} were acknowledged before a clean stop"
                assert all(flags[number] for number in numbers if number < 30), (
                    "a delivered message is not marked as redelivered")
                # Deliveries are recorded ahead in steps, to save syncs. After a kill, some messages that were not
                # delivered are also marked as redelivered. A clean stop corrects that.
                surely = range(30 + (MARKED_AHEAD_MAX if how == "kill" else 0), LAST)
                assert not any(flags[number] for number in surely), (
                    "a message that was not delivered is marked as redelivered")


def delivery_counts() -> None:
    """The delivery count of a message in a quorum queue survives a stop and a kill, so that the message reaches its
    delivery limit.
    """
    for how in ENDS:
        with lives(QUICKLY) as series:
            series.start()
            with client(series.broker) as peer:
                peer.call(1, "queue.declare", queue="dead", durable=True)
                limits = {"x-queue-type": "quorum", "x-delivery-limit": 7, "x-dead-letter-exchange": "",
                          "x-dead-letter-routing-key": "dead"}
                peer.call(1, "queue.declare", queue="q", durable=True, arguments=limits)
                fill(peer, "q", range(3))
            counts = []
            for _ in range(2):
                with client(series.broker) as peer:
                    for _ in range(3):
                        got = peer.call(1, "basic.get", queue="q")
                        counts.append(dict(got.header.props.get("headers", [])).get(b"x-delivery-count"))
                        tag = got.method.args["delivery_tag"]
                        peer.send(wire.method(1, "basic.nack", delivery_tag=tag, requeue=True))
                    assert numbers_of([got], "q") == [0], "the message is not the first of the queue"
                    all_written(series)
                series.again(how)
                with client(series.broker) as peer:
                    peer.call(1, "queue.declare", queue="q", durable=True, arguments=limits)
            said = [field and field.value for field in counts]
            assert said == [0, 1, 2, 3, 4, 5], said
            with client(series.broker) as peer:
                for number in (6, 7):
                    got = peer.call(1, "basic.get", queue="q")
                    said = dict(got.header.props["headers"])[b"x-delivery-count"].value
                    assert said == number, f"delivery count {said} instead of {number}"
                    tag = got.method.args["delivery_tag"]
                    peer.send(wire.method(1, "basic.nack", delivery_tag=tag, requeue=True))
                until(lambda: count(peer, "dead") == 1, "the message over its delivery limit is not dropped")
                assert numbers_of(take_all(peer, "dead"), "q") == [0]
                assert numbers_of(take_all(peer, "q"), "q") == [1, 2]


def delivery_counts_in_bulk() -> None:
    """A consumer takes a prefetch of 100 messages and fails, three times. All 100 delivery counts survive a stop and a
    kill, and the first message reaches its delivery limit."""
    total = 100
    for how in ENDS:
        with lives(QUICKLY) as series:
            series.start()
            limits = {"x-queue-type": "quorum", "x-delivery-limit": 4}
            with client(series.broker) as peer:
                peer.call(1, "queue.declare", queue="q", durable=True, arguments=limits)
                fill(peer, "q", range(total))
                for _ in range(3):
                    last = take_all_unacknowledged(peer, "q", total)[-1]
                    tag = last.method.args["delivery_tag"]
                    peer.send(wire.method(1, "basic.nack", delivery_tag=tag, multiple=True, requeue=True))
                    until(lambda: count(peer, "q") == total, "not all messages were requeued")
                all_written(series)
            series.again(how)
            with client(series.broker) as peer:
                for number in (3, 4):
                    got = take_all_unacknowledged(peer, "q", total)
                    said = [dict(one.header.props["headers"])[b"x-delivery-count"].value for one in got]
                    assert said == [number] * total, said
                    tag = got[-1].method.args["delivery_tag"]
                    peer.send(wire.method(1, "basic.nack", delivery_tag=tag, multiple=True, requeue=True))
                    until(lambda: count(peer, "q") == (total if number == 3 else 0),
                          "the messages were neither requeued nor dropped at the limit")


def take_all_unacknowledged(peer: Client, queue: str, total: int) -> List[Any]:
    """Gets `total` messages of a queue without acknowledging them."""
    return [peer.call(1, "basic.get", queue=queue) for _ in range(total)]


PROPERTIES: Dict[str, Any] = {
    "content_type": "application/octet-stream",
    "content_encoding": "identity",
    "headers": [
        ("text", wire.Field("S", "grün".encode())), ("bytes", wire.Field("x", b"\x00\xff")),
        ("small", wire.Field("b", -3)), ("short", wire.Field("s", -300)), ("long", wire.Field("l", 1 << 40)),
        ("float", wire.Field("d", 0.1)), ("yes", wire.Field("t", True)), ("nothing", wire.Field("V", None)),
        ("time", wire.Field("T", 1_700_000_000)), ("decimal", wire.Field("D", (2, 314))),
        ("list", wire.Field("A", [wire.Field("I", 1), wire.Field("S", b"two")])),
        ("table", wire.Field("F", [("inner", wire.Field("I", 7))])),
    ],
    "delivery_mode": 2, "priority": 7, "correlation_id": "c-1", "reply_to": "somewhere", "expiration": "86400000",
    "message_id": "m-1", "timestamp": 1_700_000_000, "type": "kind", "user_id": "guest", "app_id": "tests",
    "cluster_id": "",
}


def properties() -> None:
    """All fourteen properties, nested headers and the routing key are unchanged after a restart."""
    for how in ENDS:
        with lives() as series:
            series.start()
            with client(series.broker) as peer:
                declare(peer, "p")
                peer.call(1, "exchange.declare", exchange="ex", type="topic", durable=True)
                peer.call(1, "queue.bind", queue="p", exchange="ex", routing_key="#")
                peer.call(1, "confirm.select")
                peer.publish(1, "ex", "a.key", b"with all", props=PROPERTIES)
                peer.publish(1, "", "p", b"", props=PERSISTENT)
                peer.publish(1, "ex", "k" * 255, b"x", props={"delivery_mode": 2, "headers": {"h": "v" * 10_000}})
                confirmed_through(peer, 3)
            series.again(how)
            with client(series.broker) as peer:
                full, empty, long = take_all(peer, "p")
                sent = wire.decode_header(wire.encode_header(8, PROPERTIES))
                assert (full.header.props, full.body) == (sent.props, b"with all"), full.header
                told = (full.method.args["exchange"], full.method.args["routing_key"])
                assert told == (b"ex", b"a.key"), told
                assert (empty.header.props, empty.body) == (PERSISTENT, b""), empty
                assert long.method.args["routing_key"] == b"k" * 255
                assert dict(long.header.props["headers"])[b"h"].value == b"v" * 10_000


def large_bodies() -> None:
    """Bodies of 1 B to 5 MB, around every chunk size, are unchanged after a restart."""
    sizes = [17, 4096, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 128 * 1024, MIB, MIB + 1, 5 * MIB, 100]
    for how in ENDS:
        with lives() as series:
            series.start()
            with client(series.broker) as peer:
                declare(peer, "big")
                for number, size in enumerate(sizes):
                    fill(peer, "big", range(number, number + 1), size)
            series.again(how)
            with client(series.broker) as peer:
                got = take_all(peer, "big", ahead=4)
                assert numbers_of(got, "big") == list(range(len(sizes)))
                assert [len(message.body) for message in got] == sizes


def persist_all() -> None:
    """`persist = "all"` stores messages that are not marked as persistent, except in queues that are not durable."""
    for how in ENDS:
        with lives('[store]\npersist = "all"\n') as series:
            series.start()
            with client(series.broker) as peer:
                declare(peer, "all")
                declare(peer, "passing", durable=False)
                fill(peer, "all", range(100), props=lambda _: {})
                fill(peer, "all", range(100, 200), props=lambda _: {"delivery_mode": 1})
                fill(peer, "passing", range(10))
            series.again(how)
            with client(series.broker) as peer:
                assert numbers_of(take_all(peer, "all"), "all") == list(range(200))
            assert not exists(series, "queue", "passing")


# ---- directories --------------------------------------------------------------------------


def disk_limit_changed() -> None:
    """A new `disk_limit` below the stored size loses nothing and blocks publishers until the store is drained. A larger
    limit unblocks them."""

    def limited(mib: int) -> str:
        return SMALL_SEGMENTS + f'[store]\ndisk_limit = "{mib}MiB"\n'

    with lives(limited(24)) as series:
        with client(series.start()) as peer:
            declare(peer, "l")
            fill(peer, "l", range(200), 64 * 1000)
        series.config = limited(6)
        broker = series.again("kill")
        with Publisher(broker, "l", size=64 * 1000, first=200) as publisher:
            publisher.wait_blocked()
            # Its messages need space, but the limit must not be reached again when the reader has gone.
            publisher.stopping.set()
            with client(broker) as reader:
                got = numbers_of(take_all(reader, "l"), "l")
            assert got[:200] == list(range(200)), f"{len(got)} of 200"
            publisher.stop()
        series.config = limited(24)
        broker = series.again("stop")
        with client(broker) as peer:
            got += numbers_of(take_all(peer, "l"), "l")
            assert got == list(range(publisher.sent)), f"{len(got)} of {publisher.sent}"
            fill(peer, "l", range(1000, 1200), 64 * 1000)
            assert numbers_of(take_all(peer, "l"), "l") == list(range(1000, 1200))


def two_brokers() -> None:
    """The second broker on a data directory is refused with an error message. The first one is not affected."""
    with lives() as series:
        first = series.start()
        with client(first) as peer:
            declare(peer, "q")
            fill(peer, "q", range(10))
            print("#", refused(Lives(series.data_dir), str(series.data_dir), "another"))
            fill(peer, "q", range(10, 20))
        series.again("kill")
        with client(series.broker) as peer:
            assert numbers_of(take_all(peer, "q"), "q") == list(range(20))


def crc32c(data: bytes) -> int:
    """Returns the checksum of segment headers."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def newer_format() -> None:
    """A data directory of a newer version is refused with an error message and left unchanged."""
    with lives() as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, "q")
        broker.stop()
        segment = sorted(series.data_dir.glob("*.seg"))[0]
        data = bytearray(segment.read_bytes())
        assert data[:8] == b"LEVERET2", data[:8]
        data[7:8] = b"3"
        (length,) = struct.unpack_from("<I", data, 12)
        struct.pack_into("<I", data, 8, crc32c(data[:8] + data[12:length]))
        segment.write_bytes(data)
        print("#", refused(series, str(series.data_dir), "version"))
        assert segment.read_bytes() == data, "it was written to"


def read_only() -> None:
    """On a read-only file system transient messages work and stored messages are served, but nothing new becomes
    durable."""
    with ext4(48) as mount, lives(data_dir=mount / "data") as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, "q")
            fill(peer, "q", range(100))
            fill(peer, "q", range(100, 102), MIB)
        broker.stop()
        series.end()
        system("mount", "-o", "remount,ro", str(mount))
        degraded(series, stored=102)
        series.end()
        system("mount", "-o", "remount,rw", str(mount))
        with client(series.start()) as peer:
            got = numbers_of(take_all(peer, "q"), "q")
            assert got == list(range(102)), f"{len(got)} of 102 messages are served"


def nothing_to_read() -> None:
    """If the data directory cannot be created, the broker runs for the operator and reports that. `logins` tests the
    clients."""
    with ext4(8) as mount, lives(data_dir=mount / "data") as series:
        system("mount", "-o", "remount,ro", str(mount))
        broker = series.start()
        assert "cannot be used" in broker.log() and "ERROR" in broker.log(), broker.log()
        broker.stop()


def degraded(series: Lives, stored: int) -> None:
    """Checks a broker whose store cannot be written."""
    broker = series.start()
    assert "cannot be" in broker.log() and "ERROR" in broker.log(), broker.log()
    with client(broker) as peer:
        declare(peer, "passing", durable=False)
        peer.call(1, "confirm.select")
        peer.publish(1, "", "passing", b"transient", props=PERSISTENT)
        confirmed_through(peer, 1)
        assert len(take_all(peer, "passing")) == 1
        if stored:
            assert numbers_of(take_all(peer, "q"), "q") == list(range(stored))
    with client(broker) as peer:
        try:
            declare(peer, "new")
        except Closed as answer:
            assert answer.method and answer.method.args["reply_code"] == 506, answer
        else:
            raise AssertionError("a durable queue was declared")
    if stored:
        waits(broker)
    broker.stop()


def waits(broker: Any) -> None:
    """Checks that a persistent publish blocks without a confirm, and that a transient one to the same queue is
    confirmed.
    """
    peer = Client(broker.address)
    peer.open()
    peer.call(1, "confirm.select")
    peer.publish(1, "", "q", b"transient")
    confirmed_through(peer, 1)
    peer.publish(1, "", "q", b"persistent", props=PERSISTENT)
    peer.expect("connection.blocked")
    try:
        item = peer.recv(0.5)
    except TimeoutError:
        return
    finally:
        peer.drop()
    raise AssertionError(f"{name_of(item)} for a message that cannot be made durable")


CASES = [
    tutorial_durability, definitions, deleted_with_messages, persistent_and_transient, redelivered, delivery_counts,
    delivery_counts_in_bulk, properties,
    large_bodies, persist_all, disk_limit_changed, two_brokers, newer_format, read_only, nothing_to_read,
]
QUICK_CASES = CASES
