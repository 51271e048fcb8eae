"""Clients without a login that send much data do not delay other clients."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Callable, Dict, List

from harness import wire
from harness.raw import Client
from harness.suite import patience

from office import Office
from reloading import Traffic
from support import Broker, context, dial, raw_client

# Data sent behind the login: as much as the input buffer of a small board holds.
BEHIND = wire.publish(1, "", "nowhere", bytes(64 << 10), frame_max=4096)


def wrong_login() -> bytes:
    """Returns a start-ok with a wrong password."""
    return wire.method(0, "connection.start-ok", client_properties={}, mechanism="PLAIN",
                       response="\0guest\0wrong", locale="en_US")


def pour(peer: socket.socket, data: bytes, patience_s: float = 0.2) -> int:
    """Sends what the socket accepts at once and shortly after. Returns the number of bytes."""
    peer.setblocking(False)
    sent, deadline = 0, time.monotonic() + patience_s
    while sent < len(data) and time.monotonic() < deadline:
        try:
            sent += peer.send(data[sent:sent + 16384])
        except OSError:
            time.sleep(0.005)
    return sent


def attack(broker: Broker, count: int, connect: Callable[[], socket.socket]) -> List[socket.socket]:
    """Opens connections, each with a wrong login and 64 KB behind it."""
    peers = []
    data = wire.PROTOCOL_HEADER + wrong_login() + BEHIND
    taken = 0
    for _ in range(count):
        peer = connect()
        taken += pour(peer, data)
        peers.append(peer)
    assert taken > 4 * count * 1024, f"the clients sent only {taken} bytes, which is no attack"
    return peers


def freeze(folder: Path, board: str, count: int, over_tls: bool) -> None:
    """A single client over TLS publishes and consumes, without other events that could wake the event loop."""
    office = Office(folder)
    how = context(office)
    with Broker(office.server(), extra=["--board", board]) as broker:
        traffic = Traffic(broker, how)
        traffic.more()
        connect = (lambda: dial(broker, how)) if over_tls else (lambda: socket.create_connection(broker.address))
        for _ in range(2):
            peers = attack(broker, count, connect)
            traffic.more(200)
            for peer in peers:
                peer.close()
            traffic.more(200)
        raw_client(broker, how).close()
        traffic.stop()
        broker.stop()


def waiting_publishers(folder: Path) -> None:
    """Publishers that wait for memory fill the shared input backlog. A client over TLS that consumes the messages has a
    buffer of its own, and unblocks them."""
    office = Office(folder)
    with Broker(office.server(), extra=["--board", "router-128"]) as broker:
        setup = Client(broker.address)
        setup.open()
        setup.call(1, "queue.declare", queue="full")
        message = wire.publish(1, "", "full", bytes(8000), frame_max=4096)
        publishers = [Client(broker.address, frame_max=4096) for _ in range(8)]
        for client in publishers:
            client.open()
        counts = [0] * len(publishers)
        idle = 0
        while idle < 3:
            # Until no client can send more.
            before = sum(counts)
            for at, client in enumerate(publishers):
                begun = counts[at] % len(message)
                counts[at] += pour(client.socket, message[begun:] + message * 40, 0.03)
            idle = 0 if sum(counts) > before else idle + 1
        assert sum(counts) > 8 << 20, f"{sum(counts)} bytes are too few for a flood"
        consumer = raw_client(broker, context(office))
        consumer.open()
        consumer.call(1, "basic.qos", prefetch_count=10)
        consumer.call(1, "basic.consume", queue="full", consumer_tag="t")
        for _ in range(200):
            got = consumer.expect("basic.deliver")
            consumer.send(wire.method(1, "basic.ack", delivery_tag=got.method.args["delivery_tag"]))
        before = sum(counts)
        for at, client in enumerate(publishers):
            begun = counts[at] % len(message)
            counts[at] += pour(client.socket, message[begun:] + message * 40)
        assert sum(counts) > before, "no publisher continues"
        consumer.close()
        for client in (*publishers, setup):
            client.socket.close()


def large_start_ok(folder: Path) -> None:
    """A login larger than the frame size before tuning is refused with a log line, with and without TLS."""
    office = Office(folder)
    with Broker(office.server()) as broker:
        login = wire.method(0, "connection.start-ok", client_properties={"x": "y" * 5000}, mechanism="PLAIN",
                            response="\0guest\0guest", locale="en_US")
        for connected in (None, dial(broker, context(office))):
            peer = connected or socket.create_connection(broker.address, timeout=patience(20))
            peer.sendall(wire.PROTOCOL_HEADER + login)
            while peer.recv(4096):
                pass
            peer.close()
        broker.logged(r"refused during the handshake: a frame of \d+ bytes where at most 4096 .*(?:\n.*)+"
                      r"refused during the handshake: a frame of \d+ bytes where at most 4096")


def in_pieces(folder: Path) -> None:
    """A login that is sent one octet at a time, over TLS in records of one octet, succeeds. So does one that is sent in
    one write with everything that may follow it."""
    office = Office(folder)
    login = wire.method(0, "connection.start-ok", client_properties={"x": "y" * 3500}, mechanism="PLAIN",
                        response="\0guest\0guest", locale="en_US")
    rest = (wire.method(0, "connection.tune-ok", channel_max=100, frame_max=4096, heartbeat=0)
            + wire.method(0, "connection.open", virtual_host="/") + wire.method(1, "channel.open")
            + wire.method(1, "queue.declare", queue="blind")
            + b"".join(wire.publish(1, "", "blind", bytes(1000), frame_max=4096) for _ in range(12)))
    with Broker(office.server(), extra=["--board", "router-128"]) as broker:
        for round_, connected in enumerate((None, dial(broker, context(office)))):
            peer = connected or socket.create_connection(broker.address, timeout=patience(20))
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(login) - 1):
                peer.sendall((wire.PROTOCOL_HEADER + login)[at:at + 1])
            peer.sendall((wire.PROTOCOL_HEADER + login)[len(login) - 1:] + rest)
            heard = bytearray()
            while b"blind" not in heard:
                data = peer.recv(4096)
                assert data, f"closed after {bytes(heard)!r}: {broker.log()}"
                heard += data
            with_them = Client(broker.address)
            with_them.open()
            deadline = time.monotonic() + patience(20)
            count = 0
            while count < 12:
                got = with_them.call(1, "basic.get", queue="blind", no_ack=True)
                count += hasattr(got, "body")
                assert time.monotonic() < deadline, f"{count} of 12 messages arrived in round {round_}"
            with_them.close()
            peer.close()


CASES: Dict[str, Callable[[Path], None]] = {
    f"unauthenticated-{board}-{'tls' if over_tls else 'plain'}":
        (lambda folder, board=board, count=count, over_tls=over_tls: freeze(folder, board, count, over_tls))
    for board, count in (("pi-zero-w", 28), ("router-128", 13)) for over_tls in (False, True)
}
CASES["waiting-publishers"] = waiting_publishers
CASES["large-start-ok"] = large_start_ok
CASES["login-in-pieces"] = in_pieces
