"""Large bodies in both directions at once, and clients that do not read."""

from __future__ import annotations

import select
import ssl
import time
import zlib
from pathlib import Path
from typing import Callable, Dict, List

from harness import wire
from harness.raw import Client, name_of
from harness.suite import chance, patience

from office import Office
from support import PATIENCE, Broker, context, raw_client

MIB = 1 << 20
BODY = 16 * MIB


def pump(client: Client, out: bytes, enough: Callable[[List[wire.Frame]], bool]) -> List[wire.Frame]:
    """Writes and reads at the same time until everything is written and `enough` accepts the received frames."""
    secure = client.socket
    secure.setblocking(False)
    frames: List[wire.Frame] = []
    view, at = memoryview(out), 0
    deadline = time.monotonic() + patience(6 * PATIENCE)
    while at < len(view) or not enough(frames):
        assert time.monotonic() < deadline, f"{at} of {len(view)} bytes were written, {len(frames)} frames received"
        moved = False
        if at < len(view):
            try:
                at += secure.send(view[at:at + 65_536])
                moved = True
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
        try:
            data = secure.recv(262_144)
            assert data, "the broker closed the connection"
            client.buffer += data
            frames.extend(wire.split_frames(client.buffer))
            others = [wire.decode_method(f.payload) for f in frames[-1:] if f.kind == wire.FRAME_METHOD]
            assert all(method.name == "basic.deliver" for method in others), others
            moved = True
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        if not moved:
            select.select([secure], [secure] if at < len(view) else [], [], 1.0)
    secure.settimeout(patience(PATIENCE))
    return frames


def both_ways(folder: Path) -> None:
    """One connection sends and receives 16 MiB bodies at the same time, with TLS 1.2 and 1.3."""
    office = Office(folder)
    with Broker(office.server()) as broker:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = raw_client(broker, context(office, version=version))
            client.open()
            client.call(1, "queue.declare", queue="big", exclusive=True)
            client.call(1, "basic.consume", queue="big", consumer_tag="t", no_ack=True)
            bodies = [chance(f"body-{number}").randbytes(MIB) * (BODY // MIB) for number in range(2)]
            out = b"".join(wire.publish(1, "", "big", body, frame_max=client.frame_max) for body in bodies)
            total = sum(map(len, bodies))
            count = lambda frames: sum(len(f.payload) for f in frames if f.kind == wire.FRAME_BODY)  # noqa: E731
            frames = pump(client, out, lambda frames: count(frames) >= total)
            came = b"".join(f.payload for f in frames if f.kind == wire.FRAME_BODY)
            assert zlib.crc32(came) == zlib.crc32(b"".join(bodies)), "the bodies were altered"
            client.close()
        assert broker.peak_kib() <= 128_000_000 // 1024, f"{broker.peak_kib()} KiB resident"


def slow_readers(folder: Path) -> None:
    """Forty consumers of large messages stop reading. Each uses the memory of one TLS record."""
    office = Office(folder)
    with Broker(office.server(), limits='socket_send_buffer_bytes = "64KiB"') as broker:
        how = context(office)
        publisher = Client(broker.address)
        publisher.open()
        publisher.call(1, "exchange.declare", exchange="all", type="fanout")
        readers = [raw_client(broker, how, receive_buffer=8192) for _ in range(40)]
        for number, reader in enumerate(readers):
            reader.open()
            reader.call(1, "queue.declare", queue=f"slow-{number}", exclusive=True)
            reader.call(1, "queue.bind", queue=f"slow-{number}", exchange="all", routing_key="")
        publisher.call(1, "confirm.select")
        publisher.publish(1, "all", "", chance("slow-readers").randbytes(8 * MIB))
        publisher.expect("basic.ack")
        before = broker.rss_kib()
        for reader in readers:
            reader.call(1, "basic.consume", queue=f"slow-{readers.index(reader)}", consumer_tag="t", no_ack=False)
        time.sleep(0.5)
        # Other clients are served while the forty read nothing.
        for _ in range(20):
            publisher.publish(1, "", "slow-0", b"x")
            publisher.expect("basic.ack")
        grown = broker.rss_kib() - before
        assert grown <= len(readers) * 24 + 1024, f"{grown} KiB for {len(readers)} clients that do not read"
        got = readers[7].expect("basic.deliver")
        assert len(got.body) == 8 * MIB, "the body is incomplete after the client reads again"


def close_while_blocked(folder: Path) -> None:
    """A blocked publisher closes its connection, with and without TLS: it gets close-ok, other clients are served, and
    its accepted messages stay."""
    office = Office(folder)
    with Broker(office.server(), limits='message_size_max = "1MiB"', top='memory_limit = "20MB"') as broker:
        for connect in (lambda: raw_client(broker, context(office)), lambda: Client(broker.address)):
            client = connect()
            client.open()
            client.call(1, "queue.declare", queue="q")
            client.call(1, "confirm.select")
            sent, said = 0, "basic.ack"
            # Further messages behind the blocked one would keep the broker from reading the close.
            while said == "basic.ack":
                client.publish(1, "", "q", bytes(100_000))
                sent += 1
                assert sent < 10_000, "it is never blocked"
                said = name_of(client.expect("basic.ack", "connection.blocked", timeout=patience(PATIENCE)))
            behind = [wire.publish(1, "", "q", bytes(100)) for _ in range(3)]
            client.send(b"".join([*behind, wire.method(0, "connection.close", reply_code=200, reply_text="bye")]))
            client.expect("connection.close-ok", timeout=patience(3 * PATIENCE))
            other = Client(broker.address)
            other.open()
            count = other.call(1, "queue.purge", queue="q").args["message_count"]
            assert count == sent - 1, f"{count} of {sent} messages, one of which was blocked"
            other.close()


CASES: Dict[str, Callable[[Path], None]] = {
    "close-while-blocked": close_while_blocked,
    "full-duplex": both_ways,
    "slow-readers": slow_readers,
}
