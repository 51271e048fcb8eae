"""Hostile peers against Leveret.

Each case starts a broker of its own, breaks one rule, and checks three things: the hostile peer gets an error, a normal
client is served, and the broker's memory is within its limits.

Suite lines: `PASS hostile/NAME` and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import resource
import select
import socket
import struct
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from harness import brokers, wire  # noqa: E402
from harness.raw import Client, Closed, name_of  # noqa: E402
from harness.suite import Suite, patience  # noqa: E402

import accepting  # noqa: E402
import admission  # noqa: E402

MIB = 1 << 20
MEMORY_LIMIT_KIB = 128_000_000 // 1024
# Reply codes that name an error of the client. Each case states the one that is expected.
PRECONDITION_FAILED, FRAME_ERROR, SYNTAX_ERROR, CHANNEL_ERROR = 406, 501, 502, 504
UNEXPECTED_FRAME, RESOURCE_ERROR, NOT_ALLOWED = 505, 506, 530
CONNECTION_FORCED = 320

Broker = brokers.Leveret


class Witness:
    """A well-behaved client that keeps using the broker in a thread."""

    def __init__(self, broker: Broker, name: str = "witness") -> None:
        self.client = Client(broker.address)
        self.client.open()
        self.queue = name
        self.client.call(1, "queue.declare", queue=name)
        self.client.call(1, "basic.consume", queue=name, consumer_tag="w", no_ack=True)
        self.slowest = 0.0
        self.rounds = 0
        self.accident: Optional[BaseException] = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                self.client.publish(1, "", self.queue, b"%d" % self.rounds)
                item = self.client.expect("basic.deliver")
                assert item.body == b"%d" % self.rounds, item
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.rounds += 1
                self.stopping.wait(0.005)
        except BaseException as accident:  # reported by verdict()
            self.accident = accident

    def verdict(self, slowest_s: float = 1.0) -> None:
        """Stops, and fails if the client was not served in time."""
        self.stopping.set()
        self.thread.join(patience(30.0))
        assert self.accident is None, f"the witness was not served: {self.accident!r}"
        assert not self.thread.is_alive(), "the witness hangs"
        assert self.rounds > 0, "the witness did not finish a single round"
        assert self.slowest < slowest_s, f"the slowest round of the witness took {self.slowest:.2f} s"
        self.client.close()


@contextlib.contextmanager
def broker_with(config: str = "") -> Iterator[Broker]:
    """Provides a Leveret with this configuration. At the end it must run and have kept its memory limit."""
    with brokers.leveret(config='memory_limit = "128MB"\n' + config) as broker:
        try:
            yield broker
            assert broker.alive(), "the broker ended"
            peak = broker.peak_kib()
            assert peak < MEMORY_LIMIT_KIB, f"the peak memory of the broker was {peak} KiB"
            with Client(broker.address) as client:
                client.open()
        except BaseException:
            print(broker.log()[-5000:])
            raise


def newcomer(crowd: contextlib.ExitStack, address: Tuple[str, int], words: bytes, waits: bool = True) -> socket.socket:
    """Opens another connection of a crowd without waiting for the connect. It sends `words` and reads nothing."""
    peer = crowd.enter_context(socket.socket())
    peer.settimeout(20 if waits else 0)
    with contextlib.suppress(BlockingIOError):
        peer.connect(address)
    peer.setblocking(False)
    with contextlib.suppress(OSError):
        peer.send(words)
    return peer


def refusal(client: Client, timeout: float = 10.0) -> int:
    """Returns the reply code with which the broker closes the channel or the connection; 0 if it only closes the
    socket."""
    timeout = patience(timeout)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            item = client.recv(timeout)
        except Closed as closed:
            return closed.method.args["reply_code"] if closed.method else 0
        if name_of(item) == "channel.close":
            return item.args["reply_code"]
    raise AssertionError("the broker did not refuse it")


def blamed(client: Client, code: int, timeout: float = 10.0) -> None:
    """Checks that the broker refuses with exactly this reply code."""
    found = refusal(client, timeout)
    assert found == code, f"refused with {found}, not {code}"


# ---- cases --------------------------------------------------------------------------------


def silent_connects() -> None:
    """10,000 connections send nothing, or half a handshake, while a normal client works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(10_000, hard - 500)
    if count < 10_000:
        print(f"# only {count} connections: the system allows {hard} open files")
    with broker_with('[limits]\nhandshake_timeout = "3s"\n') as broker:
        witness = Witness(broker)
        before = broker.rss_kib()
        with contextlib.ExitStack() as crowd:
            peers: List[socket.socket] = []
            for number in range(count):
                peers.append(newcomer(crowd, broker.address, b"", waits=False))
                if number % 500 == 0:
                    time.sleep(0.01)
            half_hello = [b"", b"AMQ", wire.PROTOCOL_HEADER, wire.PROTOCOL_HEADER + b"\x01\x00\x00"]
            for number, peer in enumerate(peers):
                with contextlib.suppress(OSError):
                    peer.send(half_hello[number % len(half_hello)])
            time.sleep(5.0)
            grown = broker.rss_kib() - before
            assert grown < 16 * 1024, f"the silent connections used {grown} KiB"
            # The first connections made room for others; none came after the last 100. The kernel may have let these in
            # seconds later: it drops the first SYN of a connection when the listener's queue is full.
            deadline = time.monotonic() + patience(15.0)
            while (hung_up := sum(closed_by_peer(peer) for peer in peers[-100:])) <= 90 and time.monotonic() < deadline:
                time.sleep(0.5)
            assert hung_up > 90, f"only {hung_up} of the last 100 were closed after the handshake timeout"
        witness.verdict()
        late = Client(broker.address, timeout=60.0)
        late.close()


def closed_by_peer(peer: socket.socket) -> bool:
    """Returns whether the peer has closed the connection."""
    try:
        while True:
            if not peer.recv(65536):
                return True
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.EPIPE)


def nested_tables() -> None:
    """Tables are nested as deep as a frame can hold."""

    def deep(octets: int, kind: bytes = b"F") -> wire.Field:
        inner = b""
        while len(inner) + 7 <= octets:
            value = kind + struct.pack(">I", len(inner)) + inner
            inner = b"\x01a" + value if kind == b"F" else value
        return wire.Field("raw", b"F" + struct.pack(">I", len(inner)) + inner) if kind == b"F" else wire.Field(
            "raw", value)

    with broker_with() as broker:
        witness = Witness(broker)
        for kind in (b"F", b"A"):
            bomb = {"x": deep(30_000, kind)}
            # in start-ok
            peer = socket.create_connection(broker.address, 10)
            peer.sendall(wire.PROTOCOL_HEADER + wire.method(
                0, "connection.start-ok", client_properties=bomb, mechanism="PLAIN", response="\0guest\0guest",
                locale="en_US"))
            until_end(peer)
            # in a declare, a bind, a consume
            for name, args in [("queue.declare", {"queue": "bomb"}),
                               ("exchange.declare", {"exchange": "bomb", "type": "direct"}),
                               ("queue.bind", {"queue": "witness", "exchange": "amq.headers"}),
                               ("basic.consume", {"queue": "witness"})]:
                client = Client(broker.address)
                client.open()
                client.send(wire.method(1, name, arguments=bomb, **args))
                blamed(client, FRAME_ERROR)
                client.drop()
            # In the headers of a message: they may be stored unchanged, but must not break the broker.
            client = Client(broker.address)
            client.open()
            client.call(1, "queue.declare", queue="kept")
            client.call(1, "queue.bind", queue="kept", exchange="amq.headers", arguments={"x": 1, "x-match": "any"})
            for exchange in ("", "amq.headers"):
                client.send(wire.publish(1, exchange, "kept", b"x", props={"headers": bomb}))
            with contextlib.suppress(Closed):
                client.call(1, "basic.get", queue="kept", no_ack=True)
            client.drop()
        witness.verdict()


def until_end(peer: socket.socket, seconds: float = 15.0) -> bytes:
    """Returns everything that a peer sends until it closes the connection."""
    data = b""
    deadline = time.monotonic() + patience(seconds)
    while time.monotonic() < deadline:
        peer.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            piece = peer.recv(65536)
        except socket.timeout:
            break
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece
    raise AssertionError("the broker did not close the connection")


def huge_sizes() -> None:
    """Length fields state far more bytes than are sent."""
    most = struct.pack(">I", 0xFFFFFFFF)
    publish = wire.method(1, "basic.publish", routing_key="witness")
    lies: Dict[str, Tuple[int, bytes]] = {
        "a frame of 4 GiB": (FRAME_ERROR, struct.pack(">BHI", 1, 1, 0xFFFFFFFF)),
        "a frame above frame_max": (UNEXPECTED_FRAME, struct.pack(">BHI", 3, 1, 131072)),
        "a table of 4 GiB": (
            FRAME_ERROR, wire.frame(1, 1, wire.encode_method("queue.declare", queue="q")[:-4] + most)),
        "a long string of 4 GiB in a table": (FRAME_ERROR, wire.method(
            1, "queue.declare", queue="q", arguments={"a": wire.Field("raw", b"S" + most)})),
        "an array of 4 GiB in a table": (FRAME_ERROR, wire.method(
            1, "queue.declare", queue="q", arguments={"a": wire.Field("raw", b"A" + most)})),
        "a table of 2 GiB in a table": (FRAME_ERROR, wire.method(
            1, "queue.declare", queue="q", arguments={"a": wire.Field("raw", b"F\x7f\xff\xff\xff")})),
        "a short string beyond its frame": (FRAME_ERROR, wire.frame(1, 1, b"\x00\x32\x00\x0a\x00\x00\xffabc")),
        "a body of 2^64-1 octets": (
            PRECONDITION_FAILED, publish + wire.frame(2, 1, wire.encode_header(2**64 - 1, {}))),
        "a body of 2^63 octets": (PRECONDITION_FAILED, publish + wire.frame(2, 1, wire.encode_header(2**63, {}))),
        "a body of 4 GiB": (PRECONDITION_FAILED, publish + wire.frame(2, 1, wire.encode_header(2**32, {}))),
        "a body one octet above the maximum": (
            PRECONDITION_FAILED, publish + wire.frame(2, 1, wire.encode_header(16 * MIB + 1, {}))),
        "headers of 4 GiB": (
            SYNTAX_ERROR, publish + wire.frame(2, 1, struct.pack(">HHQHI", 60, 0, 0, 0x2000, 0xFFFFFFFF))),
    }
    with broker_with() as broker:
        witness = Witness(broker)
        before = broker.rss_kib()
        for what, (code, lie) in lies.items():
            client = Client(broker.address)
            client.open()
            client.send(lie)
            try:
                blamed(client, code)
            except AssertionError as why:
                raise AssertionError(f"{what}: {why}") from why
            client.drop()
        grown = broker.rss_kib() - before
        assert grown < 4096, f"the false lengths used {grown} KiB"
        witness.verdict()


def channel_floods() -> None:
    """All channel numbers are opened and more, on one connection and on several."""
    with broker_with() as broker:
        witness = Witness(broker)
        greedy = [Client(broker.address) for _ in range(3)]
        greedy[0].send(b"".join(wire.method(number, "channel.open") for number in range(1, 2048)))
        for _ in range(2047):
            greedy[0].expect("channel.open-ok")
        greedy[0].send(wire.method(2048, "channel.open"))
        blamed(greedy[0], NOT_ALLOWED)
        greedy[0].drop()
        # All three together exceed the channels of the broker. Each may open as many as are left.
        refused = 0
        more = Client(broker.address)
        for client in [*greedy[1:], more]:
            client.send(b"".join(wire.method(number, "channel.open") for number in range(1, 2048)))
            try:
                for _ in range(2047):
                    client.expect("channel.open-ok")
            except Closed as closed:
                assert closed.method and closed.method.args["reply_code"] == RESOURCE_ERROR, closed
                refused += 1
        assert refused == 2, f"{refused} of 3 clients were refused a channel"
        for client in [*greedy[1:], more]:
            client.drop()
        # Methods on 60,000 channel numbers that are not open.
        client = Client(broker.address)
        client.send(b"".join(wire.method(number, "basic.qos") for number in range(1, 60_000)))
        blamed(client, CHANNEL_ERROR)
        with Client(broker.address) as fresh:
            fresh.open()
            fresh.open(2047)
        witness.verdict()


def never_reads() -> None:
    """A consumer never reads while 20 MiB of deliveries wait for it."""
    with broker_with() as broker:
        witness = Witness(broker)
        deaf = Client(broker.address, receive_buffer=4096)
        deaf.open()
        deaf.call(1, "queue.declare", queue="pile")
        deaf.send(wire.method(1, "basic.consume", queue="pile", consumer_tag="deaf"))
        publisher = Client(broker.address, timeout=60.0)
        publisher.open()
        publisher.call(1, "confirm.select")
        body = b"p" * 10_240
        for _ in range(2000):
            publisher.publish(1, "", "pile", body)
        confirmed = 0
        while confirmed < 2000:
            confirmed = max(confirmed, publisher.expect("basic.ack").args["delivery_tag"])
        publisher.call(1, "queue.declare", queue="pile", passive=True)
        witness.verdict()
        deaf.drop()
        deadline = time.monotonic() + patience(20)
        while True:
            state = publisher.call(1, "queue.declare", queue="pile", passive=True).args
            if (state["message_count"], state["consumer_count"]) == (2000, 0):
                break
            assert time.monotonic() < deadline, f"after the consumer was closed: {state}"
            time.sleep(0.1)
        publisher.close()


def stalled_consumer() -> None:
    """A consumer whose socket accepts nothing while deliveries wait is closed after `consumer_stall_timeout`, and its
    messages are requeued. A slow consumer that reads now and then is not closed."""
    with broker_with('[limits]\nconsumer_stall_timeout = "1500ms"\n') as broker:
        witness = Witness(broker)
        deaf = Client(broker.address, receive_buffer=4096)
        slow = Client(broker.address, receive_buffer=4096)
        for client, queue in ((deaf, "deaf"), (slow, "slow")):
            client.open()
            client.call(1, "queue.declare", queue=queue)
            client.send(wire.method(1, "basic.consume", queue=queue, consumer_tag="c"))
        with Client(broker.address, timeout=60.0) as publisher:
            publisher.open()
            for queue in ("deaf", "slow"):
                publisher.send(wire.publish(1, "", queue, b"s" * 10_240) * 1000)
            publisher.call(1, "queue.declare", queue="slow", passive=True)
        deadline = time.monotonic() + patience(30)
        with Client(broker.address) as client:
            client.open()
            while True:
                assert slow.socket.recv(30_000), "the slow consumer was closed"
                state = client.call(1, "queue.declare", queue="deaf", passive=True).args
                if (state["message_count"], state["consumer_count"]) == (1000, 0):
                    break
                assert time.monotonic() < deadline, f"the messages of the stalled consumer were not requeued: {state}"
                time.sleep(0.3)
            assert client.call(1, "queue.declare", queue="slow", passive=True).args["consumer_count"] == 1
        assert "raise consumer_stall_timeout" in broker.log(), "the log does not name consumer_stall_timeout"
        witness.verdict()
        deaf.drop()
        slow.drop()


def blocked_in_send() -> None:
    """One thread publishes 20 MiB on one socket without reading the deliveries."""
    with broker_with() as broker:
        witness = Witness(broker)
        client = Client(broker.address, timeout=60.0, receive_buffer=8192)
        client.open()
        client.call(1, "queue.declare", queue="echo")
        client.call(1, "basic.consume", queue="echo", consumer_tag="e", no_ack=True)
        body = bytes(1000)
        for number in range(20_000):
            client.publish(1, "", "echo", struct.pack(">I", number) + body)
        for number in range(20_000):
            item = client.expect("basic.deliver")
            assert struct.unpack(">I", item.body[:4])[0] == number, f"{item.method} in place of {number}"
        client.close()
        witness.verdict()


def half_bodies() -> None:
    """500 connections begin a message of 100,000 octets and never finish it."""
    with broker_with('[limits]\ncontent_timeout = "2s"\n') as broker:
        witness = Witness(broker)
        start = wire.method(1, "basic.publish", routing_key="witness") + wire.frame(
            2, 1, wire.encode_header(100_000, {})) + wire.frame(3, 1, b"h" * 50_000)
        peers = []
        for _ in range(500):
            peer = Client(broker.address, timeout=60.0)
            peer.open()
            peers.append(peer)
        for peer in peers:
            peer.send(start)
        deadline = time.monotonic() + patience(60)
        left = list(peers)
        while left and time.monotonic() < deadline:
            ready, _, _ = select.select([peer.socket for peer in left if peer.socket.fileno() < 1024], [], [], 1.0)
            for peer in [peer for peer in left if peer.socket in ready]:
                try:
                    blamed(peer, RESOURCE_ERROR, 5.0)
                except socket.timeout:
                    continue
                left.remove(peer)
                peer.drop()
        assert not left, f"{len(left)} of 500 were not closed within a minute"
        witness.verdict(slowest_s=5.0)
        with Client(broker.address, timeout=30.0) as client:
            client.open()
            client.call(1, "queue.declare", queue="large")
            client.publish(1, "", "large", b"L" * (10 * MIB))
            assert len(client.call(1, "basic.get", queue="large", no_ack=True).body) == 10 * MIB


def half_frame() -> None:
    """A client sends half a frame and then nothing."""
    with broker_with('[limits]\ncontent_timeout = "1s"\n') as broker:
        witness = Witness(broker)
        whole = wire.method(1, "queue.declare", queue="x" * 200)
        for cut in (1, 6, 7, 50, len(whole) - 1):
            client = Client(broker.address)
            client.open()
            client.send(whole[:cut])
            blamed(client, RESOURCE_ERROR)
            client.drop()
        witness.verdict()


def pipelined_declares() -> None:
    """10,000 declares are sent before the first reply is read, and then more declares than the limit of queues."""
    with broker_with("[limits]\nqueues_max = 1000\n") as broker:
        witness = Witness(broker)
        client = Client(broker.address, timeout=60.0, receive_buffer=4096)
        client.open()
        data = b"".join(wire.method(1, "queue.declare", queue=f"q{number % 500}") for number in range(10_000))
        sender = threading.Thread(target=client.send, args=(data,), daemon=True)
        sender.start()
        time.sleep(1.0)
        for number in range(10_000):
            name = client.expect("queue.declare-ok").args["queue"].decode()
            assert name == f"q{number % 500}", f"{name} in place of q{number % 500}"
        sender.join(10.0)
        assert not sender.is_alive()
        client.send(b"".join(wire.method(1, "queue.declare", queue=f"more{number}") for number in range(1000)))
        blamed(client, RESOURCE_ERROR)
        client.close()
        witness.verdict()


def large_fan_out() -> None:
    """One message of 16 MiB is routed to 100 consumers that do not read. It is held once."""
    with broker_with() as broker:
        witness = Witness(broker)
        body = bytes(index & 0xFF for index in range(256)) * (16 * MIB // 256)
        consumers = []
        for number in range(100):
            client = Client(broker.address, timeout=60.0, receive_buffer=4096)
            client.open()
            client.call(1, "queue.declare", queue=f"fan{number}")
            client.call(1, "queue.bind", queue=f"fan{number}", exchange="amq.fanout")
            client.call(1, "basic.consume", queue=f"fan{number}", consumer_tag="c", no_ack=True)
            consumers.append(client)
        before = broker.rss_kib()
        publisher = Client(broker.address, timeout=60.0)
        publisher.open()
        publisher.call(1, "confirm.select")
        publisher.publish(1, "amq.fanout", "", body)
        publisher.expect("basic.ack")
        time.sleep(1.0)
        grown = broker.rss_kib() - before
        assert grown < (16 + 4) * 1024, f"a body of 16 MiB for 100 consumers took {grown} KiB"
        for client in consumers[:5]:
            assert zlib.crc32(client.expect("basic.deliver").body) == zlib.crc32(body)
        for client in consumers:
            client.drop()
        publisher.close()
        witness.verdict()


def memory_of_a_burst() -> None:
    """Memory used for a burst of messages is returned to the system after it."""
    with broker_with() as broker:
        client = Client(broker.address, timeout=60.0)
        client.open()
        client.call(1, "queue.declare", queue="burst")
        before = broker.rss_kib()
        for size, count in ((16 * MIB, 1), (4000, 4000)):
            for _ in range(count):
                client.publish(1, "", "burst", b"b" * size)
            reply = client.call(1, "queue.purge", queue="burst")
            assert reply.args["message_count"] == count
            deadline = time.monotonic() + patience(5)
            while broker.rss_kib() - before > 6 * 1024:
                kept = broker.rss_kib() - before
                assert time.monotonic() < deadline, f"{kept} KiB of {count} messages of {size} octets were kept"
                time.sleep(0.1)
        client.close()


SMALL_POOL = """
memory_limit = "18MB"
[limits]
message_size_max = "64KiB"
"""


def worker_with_full_pool() -> None:
    """The message memory is full. A worker that publishes its result before it acknowledges still proceeds."""
    count, size = 2000, 4000
    with broker_with(SMALL_POOL) as broker:
        worker, publisher, reader = (Client(broker.address, timeout=60.0) for _ in range(3))
        for client in (worker, publisher, reader):
            client.open()
        worker.call(1, "queue.declare", queue="in")
        worker.call(1, "queue.declare", queue="out")
        publisher.call(1, "confirm.select")
        accidents: List[BaseException] = []
        publisher_told: List[str] = []

        def publish_all() -> None:
            for number in range(count):
                publisher.publish(1, "", "in", struct.pack(">I", number) + b"t" * size)

        def confirm_all() -> None:
            confirmed = 0
            while confirmed < count:
                item = publisher.recv()
                publisher_told.append(name_of(item))
                if name_of(item) == "basic.ack":
                    confirmed = max(confirmed, item.args["delivery_tag"])

        def work() -> None:
            worker.call(1, "basic.qos", prefetch_count=10)
            worker.call(1, "basic.consume", queue="in", consumer_tag="w")
            for _ in range(count):
                item = worker.expect("basic.deliver")
                worker.publish(1, "", "out", item.body)
                worker.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))

        def read() -> None:
            reader.call(1, "basic.consume", queue="out", consumer_tag="r")
            for number in range(count):
                item = reader.expect("basic.deliver")
                assert struct.unpack(">I", item.body[:4])[0] == number, "out of order"
                reader.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))

        def guarded(run: Callable[[], None]) -> Callable[[], None]:
            def body() -> None:
                try:
                    run()
                except BaseException as accident:
                    accidents.append(accident)

            return body

        def started(run: Callable[[], None]) -> threading.Thread:
            thread = threading.Thread(target=guarded(run), daemon=True, name=run.__name__)
            thread.start()
            return thread

        threads = [started(publish_all), started(confirm_all)]
        time.sleep(patience(2.0))  # now the memory is full and the publisher is blocked
        assert threads[0].is_alive() or "connection.blocked" in publisher_told, "the memory was never full"
        threads += [started(work)]
        time.sleep(0.5)
        threads += [started(read)]
        deadline = time.monotonic() + patience(60)
        for thread in threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        assert not accidents, accidents
        while publisher_told.count("connection.unblocked") < publisher_told.count("connection.blocked"):
            publisher_told.append(name_of(publisher.recv()))  # connection.unblocked may come a moment later
        hanging = [thread.name for thread in threads if thread.is_alive()]
        assert not hanging, f"these clients do not end: {hanging}"
        assert "connection.blocked" in publisher_told and "connection.unblocked" in publisher_told, set(publisher_told)
        for client in (worker, publisher, reader):
            client.close()


def others_while_blocked() -> None:
    """While publishers are blocked, other clients consume, acknowledge, declare and delete."""
    with broker_with(SMALL_POOL) as broker:
        publisher = Client(broker.address, timeout=60.0)
        publisher.open()
        publisher.call(1, "queue.declare", queue="full")

        def fill() -> None:
            with contextlib.suppress(OSError):
                for _ in range(2000):
                    publisher.publish(1, "", "full", b"f" * 4000)

        filler = threading.Thread(target=fill, daemon=True)
        filler.start()
        time.sleep(patience(2.0))
        with Client(broker.address) as other:
            other.open()
            other.call(1, "queue.declare", queue="another")
            other.call(1, "queue.bind", queue="another", exchange="amq.direct", routing_key="k")
            item = other.call(1, "basic.get", queue="full")
            assert name_of(item) == "basic.get-ok"
            other.send(wire.method(1, "basic.ack", delivery_tag=1))
            other.call(1, "queue.purge", queue="full")
            other.call(1, "queue.delete", queue="another")
            deadline = time.monotonic() + patience(30)
            while filler.is_alive() and time.monotonic() < deadline:
                other.call(1, "queue.purge", queue="full")
                time.sleep(0.01)
        assert not filler.is_alive(), "the publisher was not unblocked"
        publisher.close()


def hang_up_after_publish() -> None:
    """A client sends complete messages and is gone before they are read. All of them are accepted."""
    with broker_with() as broker:
        with Client(broker.address) as client:
            client.open()
            client.call(1, "queue.declare", queue="last-words")
        for reset in (False, True):
            for _ in range(50):
                peer = Client(broker.address)
                peer.open()
                peer.send(wire.publish(1, "", "last-words", b"w" * 100) * 20)
                if reset:  # an RST does not discard what was received before it, but may discard the rest
                    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.drop()
            if not reset:
                with Client(broker.address) as client:
                    client.open()
                    deadline = time.monotonic() + patience(10)
                    while True:
                        state = client.call(1, "queue.declare", queue="last-words", passive=True)
                        if state.args["message_count"] == 1000:
                            break
                        assert time.monotonic() < deadline, state
                        time.sleep(0.05)


def reset_without_reading() -> None:
    """A client requests more than it reads, so that its answers are blocked, and resets the connection. Its messages
    are requeued at once."""
    with broker_with() as broker:
        witness = Witness(broker)
        with Client(broker.address) as client:
            client.open()
            client.call(1, "queue.declare", queue="pile")
            for _ in range(40):
                client.publish(1, "", "pile", b"p" * 1000)
            client.call(1, "queue.declare", queue="pile", passive=True)
            deaf = Client(broker.address, receive_buffer=4096)
            deaf.open()
            ask = b"".join(wire.method(1, "basic.get", queue="pile") for _ in range(40))
            declare = wire.method(1, "queue.declare", queue="pile", passive=True)
            deaf.socket.settimeout(2.0)
            with contextlib.suppress(socket.timeout):
                # Until the broker reads no more: it waits until its answers are read.
                deaf.send(ask + declare * 1_000_000)
                raise AssertionError("the broker never stopped reading")
            assert client.call(1, "queue.declare", queue="pile", passive=True).args["message_count"] == 0
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            deaf.drop()
            deadline = time.monotonic() + patience(10)
            while client.call(1, "queue.declare", queue="pile", passive=True).args["message_count"] < 40:
                assert time.monotonic() < deadline, "the client's messages were not requeued"
                time.sleep(0.05)
        witness.verdict()


def shutdown_with_a_deaf_client() -> None:
    """After SIGTERM every client receives reply code 320, and the process ends within a second although some clients do
    not read."""
    with brokers.leveret() as broker:
        deaf = Client(broker.address, receive_buffer=4096)
        deaf.open()
        deaf.call(1, "queue.declare", queue="d")
        deaf.send(wire.method(1, "basic.consume", queue="d", consumer_tag="d", no_ack=True))
        clients = [Client(broker.address) for _ in range(3)]
        clients[0].open()
        for _ in range(500):
            clients[0].publish(1, "", "d", b"d" * 10_000)
        clients[0].call(1, "queue.declare", queue="d", passive=True)
        silent = socket.create_connection(broker.address)
        began = time.monotonic()
        broker.process.terminate()
        for client in clients:
            blamed(client, CONNECTION_FORCED, 5.0)
        status = broker.process.wait(patience(5.0))
        seconds = time.monotonic() - began
        assert status == 0, f"the broker ended with status {status}:\n{broker.log()}"
        assert seconds < 1.2, f"the stop took {seconds:.1f} s"
        for client in [deaf, *clients]:
            client.drop()
        silent.close()


def wrong_logins() -> None:
    """One address sends 1,000 wrong passwords a second, while other clients work and log in."""
    login = wire.PROTOCOL_HEADER + wire.method(
        0, "connection.start-ok", client_properties={}, mechanism="PLAIN", response="\0guest\0wr0ng", locale="en_US")
    count = 4000
    with broker_with() as broker:
        witness = Witness(broker)
        began = time.monotonic()
        with contextlib.ExitStack() as crowd:
            peers: List[socket.socket] = []
            for number in range(count):
                peers.append(newcomer(crowd, broker.address, login))
                if len(peers) > 300:
                    peers.pop(0).close()
                if number % 400 == 399:
                    # A user whose password was right once logs in without waiting for the others.
                    Client(broker.address).close()
                time.sleep(max(0.0, began + number / 1000 - time.monotonic()))
        seconds = time.monotonic() - began
        print(f"# {count / seconds:.0f} wrong logins a second; the other client's slowest round of {witness.rounds}: "
              f"{witness.slowest * 1000:.1f} ms")
        assert "wr0ng" not in broker.log(), "a password is in the log"
        witness.verdict()


def scrapers() -> None:
    """The metrics listener receives incomplete heads, endless heads, nested requests, and clients that do not read."""
    whole = b"GET /metrics/per-object HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lies = [
        b"GET /metrics HTTP/1.1\r\nHost: localh",
        b"GET /metrics HTTP/1.1\r\nx: " + b"a" * 100_000,
        b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + whole,
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + whole,
        b"GET /metrics/../api/definitions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 500, b"AMQP\0\0\x09\x01", b"\0" * 5_000,
    ]
    with broker_with('metrics = ["127.0.0.1:0"]\n') as broker:
        port = broker.port_of("metrics without a login")
        with Client(broker.address) as client:
            client.open(1)
            for number in range(500):
                client.call(1, "queue.declare", queue=f"scraped-{number}")
        witness = Witness(broker)
        with contextlib.ExitStack() as crowd:
            for number in range(120):
                newcomer(crowd, ("127.0.0.1", port), lies[number % len(lies)] if number % 2 else whole * 400)
            for _ in range(3):
                # A client with another address is refused at most for the duration of one answer.
                with socket.socket() as honest:
                    honest.settimeout(patience(30))
                    honest.bind(("127.0.0.9", 0))
                    honest.connect(("127.0.0.1", port))
                    honest.sendall(whole.replace(b"Host:", b"Connection: close\r\nHost:"))
                    text = until_end(honest, 30)
                    assert text.startswith(b"HTTP/1.1 200") and text.count(b'"scraped-') >= 500, text[:300]
        witness.verdict()


CASES: List[Callable[[], None]] = [
    silent_connects, nested_tables, huge_sizes, channel_floods, never_reads, stalled_consumer, blocked_in_send,
    half_bodies, half_frame,
    pipelined_declares, large_fan_out, memory_of_a_burst, worker_with_full_pool,
    others_while_blocked, hang_up_after_publish, reset_without_reading, shutdown_with_a_deaf_client,
    wrong_logins, scrapers,
]


def main() -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    suite = Suite("hostile", args.case)
    for case in CASES:
        suite.case(case.__name__.replace("_", "-"), case)
    for name, case in {**accepting.cases(), **admission.cases()}.items():
        suite.case(name, case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
