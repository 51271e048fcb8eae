"""Crowds at the door: silent sockets, half handshakes and wrong passwords, on every board, plain and over TLS.

Peers come from addresses of their own (127.0.0.2 and so on), as they would on a network.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from harness import brokers, wire
from harness.raw import Client, Closed
from harness.suite import Skip, patience

BOARDS = ["router-64", "router-128", "pi-zero-w", "pi-3", "pi-4", "pi-5", "generic"]
ATTACKERS = [f"127.0.0.{last}" for last in (2, 3, 4, 5)]
HONEST = "127.0.0.9"
PER_ADDRESS = 40
IN_TIME_S = 2.0

WRONG = wire.method(0, "connection.start-ok", client_properties={}, mechanism="PLAIN", response="\0guest\0wr0ng",
                    locale="en_US")


class Door:
    """A broker of one board, with a plain port and one for TLS."""

    def __init__(self, board: str, folder: Path) -> None:
        certificate, key = paper(folder)
        config = (f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
        self.broker = brokers.Leveret(
            brokers.leveret_binary(), ["--board", board, "--listen-tls", "127.0.0.1:0"], config)
        self.ports = {"plain": self.broker.address.port, "tls": self.broker.port_of("listening with TLS")}
        self.context = ssl.create_default_context(cafile=str(certificate))
        self.context.check_hostname = False
        self.hello = first_flight()

    def dial(self, kind: str, source: str) -> socket.socket:
        """A connected socket that has said nothing."""
        peer = socket.socket()
        peer.settimeout(patience(20))
        peer.bind((source, 0))
        peer.connect(("127.0.0.1", self.ports[kind]))
        return peer

    def client(self, kind: str, source: str, user: str = "guest", password: str = "guest") -> Client:
        """One that logs in."""
        peer = self.dial(kind, source)
        try:
            if kind == "tls":
                peer = self.context.wrap_socket(peer)
            return Client(self.broker.address, connected=peer, user=user, password=password)
        except BaseException:
            peer.close()
            raise

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()


def paper(folder: Path) -> Tuple[Path, Path]:
    """A certificate and its key."""
    certificate, key = folder / "server.pem", folder / "server.key"
    if not key.exists():
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext",
             "basicConstraints=critical,CA:TRUE", "-keyout", str(key), "-out", str(certificate)],
            capture_output=True, check=False)
        if made.returncode != 0:
            raise Skip("openssl makes no certificate")
    return certificate, key


def first_flight() -> bytes:
    """The first record of a client of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


def stall_after_tls(door: Door, source: str) -> socket.socket:
    """A peer whose handshake of TLS is over, and that then sends the header of AMQP and nothing more."""
    peer = door.dial("tls", source)
    peer.settimeout(1.0)
    secure = door.context.wrap_socket(peer)
    secure.sendall(wire.PROTOCOL_HEADER)
    return secure


# What a peer of a crowd does once it is connected: which port, and what it says.
WAYS: Dict[str, Tuple[str, Callable[[Door], bytes]]] = {
    "silent": ("plain", lambda door: b""),
    "header": ("plain", lambda door: wire.PROTOCOL_HEADER),
    "wrong": ("plain", lambda door: wire.PROTOCOL_HEADER + WRONG),
    "tls-silent": ("tls", lambda door: b""),
    "tls-hello": ("tls", lambda door: door.hello),
    "tls-stall": ("tls", lambda door: b""),
}


class Crowd:
    """So many sockets per address, each of which comes again as soon as it is hung up on."""

    def __init__(self, door: Door, way: str, sources: List[str], count: int = PER_ADDRESS) -> None:
        self.door, self.way = door, way
        self.stopping = threading.Event()
        self.came = 0
        self.threads = [threading.Thread(target=self._keep, args=(source, count), daemon=True) for source in sources]
        for thread in self.threads:
            thread.start()
        deadline = time.monotonic() + patience(10)
        while self.came < count * len(sources) and time.monotonic() < deadline and way != "tls-stall":
            time.sleep(0.01)
        # Whatever they do to each other has happened.
        time.sleep(1.0)

    def _one(self, source: str) -> Optional[socket.socket]:
        kind, words = WAYS[self.way]
        try:
            if self.way == "tls-stall":
                peer = stall_after_tls(self.door, source)
            else:
                peer = self.door.dial(kind, source)
                peer.sendall(words(self.door))
        except (OSError, ssl.SSLError):
            return None
        self.came += 1
        peer.setblocking(False)
        return peer

    def _keep(self, source: str, count: int) -> None:
        peers: List[socket.socket] = []
        try:
            while not self.stopping.is_set():
                while len(peers) < count and not self.stopping.is_set():
                    peer = self._one(source)
                    if peer is None:
                        break
                    peers.append(peer)
                self.stopping.wait(0.05)
                gone = [peer for peer in peers if is_gone(peer)]
                for peer in gone:
                    peer.close()
                peers = [peer for peer in peers if peer not in gone]
        finally:
            for peer in peers:
                peer.close()

    def end(self) -> None:
        """Everybody leaves."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(patience(20))


def is_gone(peer: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return not peer.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def door_of(board: str) -> Iterator[Door]:
    """A broker of this board, that must be alive at the end."""
    with tempfile.TemporaryDirectory(prefix="leveret-door-") as folder, Door(board, Path(folder)) as door:
        try:
            yield door
            assert door.broker.alive(), "the broker ended"
        except BaseException:
            print(door.broker.log()[-2000:])
            raise


def served(door: Door, kind: str, source: str, patience: float, user: str = "guest", password: str = "guest") -> float:
    """How long it takes a client to come in; it comes again when it is hung up on, as clients do."""
    began = time.monotonic()
    while True:
        try:
            client = door.client(kind, source, user, password)
        except (Closed, OSError, ssl.SSLError) as why:
            assert time.monotonic() - began < patience, f"{source} did not get in over {kind} in {patience} s: {why!r}"
            time.sleep(0.02)
            continue
        took = time.monotonic() - began
        client.drop()
        assert took < patience, f"{source} got in over {kind} after {took:.1f} s"
        return took


def crowds_on(board: str) -> None:
    """Forty sockets from each of four addresses, in every way to be in the way: an honest client is in within two
    seconds, plain and over TLS."""
    for way in WAYS:
        with door_of(board) as door:
            crowd = Crowd(door, way, ATTACKERS)
            try:
                slowest = max(served(door, kind, HONEST, IN_TIME_S) for _ in range(3) for kind in ("plain", "tls"))
            finally:
                crowd.end()
            print(f"# {board}, {way}: {crowd.came} came, the honest one was in after {slowest * 1000:.0f} ms at most")
            # Over TLS they have to be let in first, so there are hardly more at once than places.
            least = 8 if way == "tls-stall" else PER_ADDRESS * len(ATTACKERS)
            assert crowd.came >= least, f"{crowd.came} came, which is no crowd"


def thousand_before_one() -> None:
    """A thousand sockets that said the header are in front of an honest client when it comes."""
    with door_of("router-64") as door:
        with contextlib.ExitStack() as crowd:
            for number in range(1000):
                peer = crowd.enter_context(door.dial("plain", ATTACKERS[number % 4]))
                with contextlib.suppress(OSError):
                    peer.sendall(wire.PROTOCOL_HEADER)
            print(f"# in after {served(door, 'plain', HONEST, IN_TIME_S) * 1000:.0f} ms")


def many_behind_one(board: str) -> None:
    """Two hundred honest devices behind one address come back at once, as many as there are connections: all get
    in, and none is hung up on."""
    limits = {"router-64": (50, 6), "router-128": (110, 12), "pi-zero-w": (200, 24), "generic": (200, 48)}
    for kind, count in zip(("plain", "tls"), limits[board]):
        with door_of(board) as door:
            barrier = threading.Barrier(count)
            clients: List[Client] = []
            accidents: List[BaseException] = []

            def come() -> None:
                try:
                    barrier.wait()
                    clients.append(door.client(kind, HONEST))
                except BaseException as accident:
                    accidents.append(accident)

            threads = [threading.Thread(target=come, daemon=True) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(patience(60))
            status = door.broker.ctl("status")
            for client in clients:
                client.drop()
            assert len(clients) == count, f"{len(clients)} of {count} got in over {kind}: {accidents[:3]}"
            assert "Handshakes evicted: 0\nNewcomers dropped: 0" in status, status


def slow_but_honest() -> None:
    """While there are places, one that takes two seconds for each step keeps its time."""
    with door_of("router-64") as door:
        peers = [door.dial("plain", source) for source in ATTACKERS[:3]]
        for peer in peers:
            peer.sendall(wire.PROTOCOL_HEADER)
        slow = door.dial("plain", HONEST)
        time.sleep(2.0)
        slow.sendall(wire.PROTOCOL_HEADER[:4])
        time.sleep(2.0)
        slow.sendall(wire.PROTOCOL_HEADER[4:])
        served(door, "plain", ATTACKERS[3], IN_TIME_S)
        time.sleep(2.5)
        Client.__init__(SlowClient.__new__(SlowClient), door.broker.address, connected=slow)
        for peer in [*peers, slow]:
            peer.close()


class SlowClient(Client):
    """One whose header is on its way already."""

    def send(self, data: bytes) -> None:
        if data != wire.PROTOCOL_HEADER:
            time.sleep(1.0)
            super().send(data)


class Sprayer:
    """A program that sends wrong passwords as fast as it can, on several sockets."""

    def __init__(self, door: Door, source: str, response: Callable[[int], str], sockets: int = 20) -> None:
        self.door, self.source, self.response = door, source, response
        self.stopping = threading.Event()
        self.sent = 0
        self.threads = [threading.Thread(target=self._work, args=(at, sockets), daemon=True) for at in range(sockets)]
        for thread in self.threads:
            thread.start()
        time.sleep(1.5)

    def _work(self, number: int, step: int) -> None:
        while not self.stopping.is_set():
            try:
                peer = self.door.dial("plain", self.source)
            except OSError:
                continue
            with peer, contextlib.suppress(OSError):
                peer.sendall(wire.PROTOCOL_HEADER + wire.method(
                    0, "connection.start-ok", client_properties={}, mechanism="PLAIN", response=self.response(number),
                    locale="en_US"))
                self.sent += 1
                number += step
                while not self.stopping.is_set() and peer.recv(65536):
                    pass

    def end(self) -> None:
        """It stops."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(patience(30))


class Dripper:
    """Sockets of one address that log in with a wrong password, a byte of it each tick, and come again."""

    TICK_S = 0.02

    def __init__(self, door: Door, kind: str, source: str, sockets: int) -> None:
        self.door, self.kind, self.source, self.sockets = door, kind, source, sockets
        self.stopping = threading.Event()
        self.came = self.refused = 0
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        time.sleep(2.0)

    def _come(self) -> socket.socket:
        self.came += 1
        peer = self.door.dial(self.kind, self.source)
        peer.setblocking(False)
        return peer

    def _step(self, peer: socket.socket, words: bytes) -> bytes:
        """What is left to be said."""
        if isinstance(peer, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.do_handshake()
                peer.send(words[:1])
                return words[1:]
            return words
        peer.send(words[:1])
        return words[1:]

    def _work(self) -> None:
        login = wire.PROTOCOL_HEADER + WRONG
        peers: List[Tuple[socket.socket, bytes]] = []
        while not self.stopping.wait(self.TICK_S):
            kept: List[Tuple[socket.socket, bytes]] = []
            for peer, words in peers:
                with contextlib.suppress(OSError):
                    words = self._step(peer, words) if words else words
                if is_gone(peer):
                    self.refused += 1
                    peer.close()
                else:
                    kept.append((peer, words))
            peers = kept
            with contextlib.suppress(OSError):
                while len(peers) < self.sockets:
                    peer = self._come()
                    if self.kind == "tls":
                        peer = self.door.context.wrap_socket(peer, do_handshake_on_connect=False)
                    peers.append((peer, login))
        for peer, _ in peers:
            peer.close()

    def end(self) -> None:
        """It stops."""
        self.stopping.set()
        self.thread.join(patience(30))


def crowd_at_the_other_door(board: str) -> None:
    """One address fills one door with slow wrong logins: its neighbours, behind the same address, get in at the
    other one, and at that one too, whether they have been there before or not."""
    for crowded in ("plain", "tls"):
        with door_of(board) as door:
            for user in ("known", "first", "second"):
                door.broker.ctl("add_user", user, "right")
                door.broker.ctl("set_permissions", user, ".*", ".*", ".*")
            door.client("plain", HONEST, "known", "right").close()
            dripper = Dripper(door, crowded, HONEST, 60)
            other = "tls" if crowded == "plain" else "plain"
            try:
                times = [served(door, other, HONEST, 15.0, user, "right") for user in ("known", "first", "known")]
                away = served(door, other, "127.0.0.10", IN_TIME_S)
            finally:
                dripper.end()
            print(f"# {board}, {crowded} crowded ({dripper.came} came, {dripper.refused} refused): over {other} "
                  f"{', '.join(f'{took:.1f} s' for took in times)}, from elsewhere {away:.1f} s")
            assert dripper.came > 60, "nobody of the crowd was refused"


SPRAYS: Dict[str, Callable[[int], str]] = {
    "the same again and again": lambda number: "\0meter\0old-password",
    "passwords of one user": lambda number: f"\0guest\0guess-{number}",
    "passwords of the honest user": lambda number: f"\0honest\0guess-{number}",
    "names": lambda number: f"\0user-{number}\0guest",
}


def wrong_passwords_next_door(board: str) -> None:
    """Forty right logins of forty, by either door, while another program at the same address sends wrong passwords
    without end: of one that never logged in before, too."""
    for spray, response in SPRAYS.items():
        with door_of(board) as door:
            for user in ("known", "honest"):
                door.broker.ctl("add_user", user, "right")
                door.broker.ctl("set_permissions", user, ".*", ".*", ".*")
            door.client("plain", HONEST, "known", "right").close()
            sprayer = Sprayer(door, HONEST, response)
            try:
                with ThreadPoolExecutor(4) as pool:
                    ask = [pool.submit(served, door, ("plain", "tls")[number % 2], HONEST, 15.0, "known", "right")
                           for number in range(40)]
                    plain, tls = (max(asked.result() for asked in ask[at::2]) for at in range(2))
                first = served(door, "tls", HONEST, 15.0, "honest", "right")
                other = served(door, "plain", "127.0.0.10", IN_TIME_S)
            finally:
                sprayer.end()
            print(f"# {board}, {spray}: {sprayer.sent} wrong ones; 40 right ones took {plain * 1000:.0f} ms at most "
                  f"and {tls * 1000:.0f} ms over TLS, the first of another user {first * 1000:.0f} ms, one from "
                  f"elsewhere {other * 1000:.0f} ms")
            assert sprayer.sent >= 5, "nobody sprayed"


def cases() -> Dict[str, Callable[[], None]]:
    """By name."""
    made: Dict[str, Callable[[], None]] = {
        "thousand-before-one": thousand_before_one,
        "slow-but-honest": slow_but_honest,
    }
    for board in BOARDS:
        made[f"crowds-{board}"] = lambda board=board: crowds_on(board)
    for board in ("router-64", "router-128", "pi-zero-w", "generic"):
        made[f"many-behind-one-{board}"] = lambda board=board: many_behind_one(board)
    for board in ("router-64", "pi-zero-w"):
        made[f"crowd-at-the-other-door-{board}"] = lambda board=board: crowd_at_the_other_door(board)
    for board in ("router-64", "generic"):
        made[f"wrong-passwords-next-door-{board}"] = lambda board=board: wrong_passwords_next_door(board)
    return made
