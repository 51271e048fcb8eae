"""Hundreds of handshakes, and handshakes that never end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Callable, Dict, List

from harness.raw import Client, Closed
from harness.suite import patience

from office import Office
from reloading import Traffic
from support import Broker, context, hello, raw_client


def slow_handshakes(folder: Path) -> None:
    """More clients than there are connections send one octet a second. After the handshake timeout other clients are
    accepted."""
    office = Office(folder)
    limits = 'handshake_timeout = "2s"'
    with Broker(office.server(), limits=limits) as broker:
        words = hello(context(office))
        slow: List[socket.socket] = []
        stopping = threading.Event()

        def dribble() -> None:
            sent = 0
            while not stopping.wait(1.0):
                for peer in slow:
                    try:
                        peer.send(words[sent:sent + 1])
                    except OSError:
                        pass
                sent += 1

        thread = threading.Thread(target=dribble, daemon=True)
        for _ in range(48):
            slow.append(socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20)))
        thread.start()
        try:
            # Clients without TLS are not delayed, and clients with TLS are accepted after the slow ones.
            Client(broker.address).close()
            for _ in range(3):
                raw_client(broker, context(office)).close()
        finally:
            stopping.set()
            thread.join()
            for peer in slow:
                peer.close()


def tiny_records(folder: Path) -> None:
    """A client hello in records of one octet is refused after a bounded number of records, sent singly or at once. A
    hello in a hundred records is accepted."""
    office = Office(folder)
    with Broker(office.server()) as broker:
        large = b"\x01" + (15000).to_bytes(3, "big") + b"\x03\x03" + bytes(15000)
        tiny = b"".join(b"\x16\x03\x01\x00\x01" + large[at:at + 1] for at in range(len(large)))
        for piece, times in ((6, 2), (len(tiny), 20)):
            for _ in range(times):
                with socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20)) as peer:
                    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    try:
                        for at in range(0, len(tiny), piece):
                            peer.sendall(tiny[at:at + piece])
                        while peer.recv(100):
                            pass
                    except ConnectionError:
                        pass
        broker.logged("the TLS handshake failed: the handshake is not complete after 128 records")
        words = hello(context(office))[5:]
        with socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20)) as peer:
            each = -(-len(words) // 100)
            for at in range(0, len(words), each):
                part = words[at:at + each]
                peer.sendall(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part)
            assert peer.recv(1)[0] == 0x16, "the answer is no TLS handshake"


def broken_off(folder: Path) -> None:
    """Hundreds of handshakes that are broken off leave nothing behind."""
    office = Office(folder)
    with Broker(office.server()) as broker:
        how = context(office)
        for round_ in range(300):
            words = hello(how)
            with socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20)) as peer:
                peer.sendall(words[:1 + (round_ * 7) % len(words)])
                if round_ % 3 == 0:
                    peer.sendall(words[1 + (round_ * 7) % len(words):])
        clients = [raw_client(broker, how) for _ in range(4)]
        for client in clients:
            client.close()


def all_clients_at_once(folder: Path) -> None:
    """Two hundred clients connect at once, and each needs a signature with a large key. All are accepted, and the
    messages of a connected client continue."""
    office = Office(folder)
    with Broker(office.server(kind="rsa:4096"), top='memory_limit = "160MB"') as broker:
        how = context(office)
        traffic = Traffic(broker, how)
        traffic.more()
        accidents: List[BaseException] = []
        counts: List[int] = []
        crowd: List[Client] = []

        def come() -> None:
            try:
                client = raw_client(broker, how)
                counts.append(traffic.count)
                crowd.append(client)
            except BaseException as accident:
                accidents.append(accident)

        threads = [threading.Thread(target=come, daemon=True) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience(120))
        assert not accidents and len(crowd) == 200, f"{len(crowd)} of 200 were accepted: {accidents[:3]}"
        assert counts[-1] - counts[0] >= 50, (
            f"only {counts[-1] - counts[0]} messages of the other client while they connected")
        traffic.more()
        traffic.stop()
        for client in crowd:
            client.close()


def at_the_cap(folder: Path) -> None:
    """A client beyond the limit of connections is refused over TLS, too, and accepted when one is closed."""
    office = Office(folder)
    with Broker(office.server(), limits="connections_max = 3") as broker:
        how = context(office)
        clients = [raw_client(broker, how) for _ in range(3)]
        try:
            raw_client(broker, how)
            raise AssertionError("the fourth client was not refused")
        except Closed as refused:
            text = str(refused.args[0])
            assert "node connection limit (3) is reached" in text, text
        clients.pop().close()
        raw_client(broker, how).close()


CASES: Dict[str, Callable[[Path], None]] = {
    "slow-handshakes": slow_handshakes,
    "tiny-records": tiny_records,
    "broken-off": broken_off,
    "all-clients-at-once": all_clients_at_once,
    "at-the-cap": at_the_cap,
}
