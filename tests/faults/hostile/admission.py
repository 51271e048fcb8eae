"""Logins while many other connections are silent, slow or send wrong passwords, plain and over TLS.

Connections come from addresses of their own (127.0.0.20 and so on), as they would on a network.
"""

from __future__ import annotations

import contextlib
import multiprocessing
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
CROWD = [f"127.0.0.{last}" for last in range(20, 100)]
OTHER = "127.0.0.9"
LOGIN_S = 5.0
HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"

WRONG = wire.method(0, "connection.start-ok", client_properties={}, mechanism="PLAIN", response="\0guest\0wr0ng",
                    locale="en_US")


class Server:
    """A broker with the profile of a board, and listeners for plain connections and TLS."""

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
        """Returns a connected socket that has sent nothing."""
        peer = socket.socket()
        peer.settimeout(patience(20))
        peer.bind((source, 0))
        peer.connect(("127.0.0.1", self.ports[kind]))
        return peer

    def client(self, kind: str, source: str, user: str = "guest", password: str = "guest") -> Client:
        """Returns a client that has logged in."""
        peer = self.dial(kind, source)
        try:
            if kind == "tls":
                peer = self.context.wrap_socket(peer)
            return Client(self.broker.address, connected=peer, user=user, password=password)
        except BaseException:
            peer.close()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()


def paper(folder: Path) -> Tuple[Path, Path]:
    """Creates a certificate and its key."""
    certificate, key = folder / "server.pem", folder / "server.key"
    if not key.exists():
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext",
             "basicConstraints=critical,CA:TRUE", "-keyout", str(key), "-out", str(certificate)],
            capture_output=True, check=False)
        if made.returncode != 0:
            raise Skip("openssl cannot create a certificate")
    return certificate, key


def first_flight() -> bytes:
    """Returns the first TLS record of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


class Crowd:
    """One silent connection from each of these addresses, which connects again as soon as it is closed. Each sends a
    byte of `words` a second."""

    def __init__(self, server: Server, kind: str, sources: List[str], words: bytes = b"") -> None:
        self.server, self.kind, self.sources, self.words = server, kind, sources, words
        self.stopping = threading.Event()
        self.made = 0
        self.thread = threading.Thread(target=self._keep, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + patience(20)
        while self.made < len(sources) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.made >= len(sources), f"only {self.made} connected"
        time.sleep(0.5)

    def _keep(self) -> None:
        members: List[Optional[Tuple[socket.socket, int]]] = [None] * len(self.sources)
        tick = 0
        while not self.stopping.is_set():
            for at, source in enumerate(self.sources):
                if members[at] is None:
                    with contextlib.suppress(OSError):
                        peer = self.server.dial(self.kind, source)
                        peer.setblocking(False)
                        members[at] = (peer, 0)
                        self.made += 1
                    continue
                peer, sent = members[at]
                with contextlib.suppress(OSError):
                    if tick % 20 == at % 20 and sent < len(self.words):
                        peer.send(self.words[sent:sent + 1])
                        members[at] = (peer, sent + 1)
                if is_gone(peer):
                    peer.close()
                    members[at] = None
            tick += 1
            self.stopping.wait(0.05)
        for member in members:
            if member is not None:
                member[0].close()

    def end(self) -> None:
        """Close all connections."""
        self.stopping.set()
        self.thread.join(patience(20))


def is_gone(peer: socket.socket) -> bool:
    """Returns whether the peer has closed the connection."""
    try:
        return not peer.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def server_of(board: str) -> Iterator[Server]:
    """Provides a broker with the profile of this board. It must still run at the end."""
    with tempfile.TemporaryDirectory(prefix="leveret-admission-") as folder, Server(board, Path(folder)) as server:
        try:
            yield server
            assert server.broker.alive(), "the broker ended"
        except BaseException:
            print(server.broker.log()[-2000:])
            raise


def login_time(server: Server, kind: str, source: str, patience: float, user: str = "guest", password: str = "guest") -> float:
    """Returns the duration of a login in seconds. A client that is disconnected connects again."""
    began = time.monotonic()
    while True:
        try:
            client = server.client(kind, source, user, password)
        except (Closed, OSError, ssl.SSLError) as why:
            assert time.monotonic() - began < patience, (
                f"{source} could not log in over {kind} within {patience} s: {why!r}")
            time.sleep(0.02)
            continue
        took = time.monotonic() - began
        client.drop()
        assert took < patience, f"{source} logged in over {kind} only after {took:.1f} s"
        return took


def silent_addresses(board: str) -> None:
    """Eighty addresses connect and stay silent at the plain or the TLS listener. Another client logs in within 5 s at
    either."""
    for crowded in ("plain", "tls"):
        with server_of(board) as server:
            crowd = Crowd(server, crowded, CROWD)
            try:
                slowest = max(login_time(server, kind, OTHER, LOGIN_S) for _ in range(3) for kind in ("plain", "tls"))
            finally:
                crowd.end()
            print(f"# {board}, {crowded}: {crowd.made} connections, the slowest login took {slowest * 1000:.0f} ms")


def byte_a_second() -> None:
    """Five hundred connections send one byte a second. Connected clients lose no message and no heartbeat, and a login
    takes at most 5 s."""
    for crowded, words in (("plain", wire.PROTOCOL_HEADER), ("tls", first_flight())):
        with server_of("generic") as server:
            publisher, consumer = server.client("plain", OTHER), server.client("plain", OTHER)
            for client in (publisher, consumer):
                client.open()
            publisher.call(1, "queue.declare", queue="q")
            consumer.call(1, "basic.consume", queue="q", no_ack=True)
            beating = Client(server.broker.address, heartbeat=2)
            crowd = Crowd(server, crowded, CROWD[:1] * 250 + CROWD[1:51] * 5, words)
            try:
                slowest = 0.0
                for number in range(10):
                    publisher.publish(1, "", "q", b"%d" % number)
                    assert consumer.expect("basic.deliver").body == b"%d" % number
                    beating.send(HEARTBEAT)
                    slowest = max(slowest, *(login_time(server, kind, OTHER, LOGIN_S) for kind in ("plain", "tls")))
                    time.sleep(0.5)
                    beating.send(HEARTBEAT)
                assert not closed(beating), "a client was closed although it sent heartbeats"
            finally:
                crowd.end()
            print(f"# {crowded}: {crowd.made} connections, the slowest login took {slowest * 1000:.0f} ms")


def closed(client: Client) -> bool:
    """Whether the broker has closed this connection."""
    client.socket.setblocking(False)
    try:
        while client.socket.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False


def ends_with_fin() -> None:
    """Clients that connect, or log in, and close their socket without connection.close do not slow the logins of
    others."""

    def logins(server: Server) -> int:
        count, until = 0, time.monotonic() + 2.0
        while time.monotonic() < until:
            server.client("plain", OTHER).close()
            count += 1
        return count

    for logs_in in (False, True):
        with server_of("generic") as server:
            alone = logins(server)
            ended = multiprocessing.Value("i", 0)

            def come() -> None:
                while True:
                    with contextlib.suppress(OSError, Closed):
                        if logs_in:
                            server.client("plain", CROWD[0]).drop()
                        else:
                            server.dial("plain", CROWD[0]).close()
                        ended.value += 1

            # In another process, so that both clients do not share one interpreter.
            other = multiprocessing.get_context("fork").Process(target=come, daemon=True)
            other.start()
            try:
                beside = logins(server)
            finally:
                other.kill()
                other.join()
            print(f"# {alone} logins in 2 s alone, {beside} beside {ended.value} that ended with FIN")
            assert beside * 5 > alone, f"{beside} logins in 2 s, and {alone} alone"


def silent_control_clients() -> None:
    """Silent connections to the control socket are closed in favour of `leveretctl`."""
    with server_of("generic") as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(server.broker.data_dir / "ctl.sock"))
        began = time.monotonic()
        server.broker.ctl("status")
        assert time.monotonic() - began < LOGIN_S, f"leveretctl took {time.monotonic() - began:.1f} s"


def slow_hello() -> None:
    """Many slow devices reconnect at once over TLS. A device needs 0.3 s before its first message and 1 s for each
    further step, and retries 2 s after it was closed. All log in."""
    with server_of("pi-zero-w") as server:
        clients: List[Client] = []

        def come(source: str) -> None:
            until = time.monotonic() + patience(30)
            while time.monotonic() < until:
                try:
                    peer = server.dial("tls", source)
                    time.sleep(0.3)
                    slow = server.context.wrap_socket(peer)
                    time.sleep(1.0)
                    clients.append(Client(server.broker.address, connected=slow))
                    return
                except (OSError, ssl.SSLError, Closed):
                    time.sleep(2.0)

        threads = [threading.Thread(target=come, args=(source,), daemon=True) for source in CROWD[:30]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience(60))
        for client in clients:
            client.drop()
        assert len(clients) == len(threads), f"{len(clients)} logged in"


def many_behind_one_address(board: str) -> None:
    """Two hundred clients behind one address reconnect at once, as many as there are connections. All log in, and none
    is disconnected."""
    limits = {"router-64": (50, 6), "router-128": (110, 12), "pi-zero-w": (200, 24), "generic": (200, 48)}
    for kind, count in zip(("plain", "tls"), limits[board]):
        with server_of(board) as server:
            barrier = threading.Barrier(count)
            clients: List[Client] = []
            accidents: List[BaseException] = []

            def come() -> None:
                try:
                    barrier.wait()
                    clients.append(server.client(kind, OTHER))
                except BaseException as accident:
                    accidents.append(accident)

            threads = [threading.Thread(target=come, daemon=True) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(patience(60))
            status = server.broker.ctl("status")
            for client in clients:
                client.drop()
            assert len(clients) == count, f"{len(clients)} of {count} logged in over {kind}: {accidents[:3]}"
            assert "Handshakes evicted: 0" in status, status


def slow_handshake_in_time() -> None:
    """While connections are free, a client that needs 2 s for each step of the handshake is not disconnected."""
    with server_of("router-64") as server:
        peers = [server.dial("plain", source) for source in CROWD[:3]]
        for peer in peers:
            peer.sendall(wire.PROTOCOL_HEADER)
        slow = server.dial("plain", OTHER)
        time.sleep(2.0)
        slow.sendall(wire.PROTOCOL_HEADER[:4])
        time.sleep(2.0)
        slow.sendall(wire.PROTOCOL_HEADER[4:])
        login_time(server, "plain", CROWD[3], LOGIN_S)
        time.sleep(2.5)
        Client.__init__(SlowClient.__new__(SlowClient), server.broker.address, connected=slow)
        for peer in [*peers, slow]:
            peer.close()


class SlowClient(Client):
    """A client that sends each step of the handshake with a delay. Its protocol header was already sent."""

    def send(self, data: bytes) -> None:
        if data != wire.PROTOCOL_HEADER:
            time.sleep(1.0)
            super().send(data)


class Sprayer:
    """A program that sends wrong passwords on several sockets, as fast as possible."""

    def __init__(self, server: Server, source: str, response: Callable[[int], str], sockets: int = 20) -> None:
        self.server, self.source, self.response = server, source, response
        self.stopping = threading.Event()
        self.sent = 0
        self.threads = [threading.Thread(target=self._work, args=(at, sockets), daemon=True) for at in range(sockets)]
        for thread in self.threads:
            thread.start()
        time.sleep(1.5)

    def _work(self, number: int, step: int) -> None:
        while not self.stopping.is_set():
            try:
                peer = self.server.dial("plain", self.source)
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
        """Stops the program."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(patience(30))


SPRAYS: Dict[str, Callable[[int], str]] = {
    "the same again and again": lambda number: "\0meter\0old-password",
    "passwords of one user": lambda number: f"\0guest\0guess-{number}",
    "passwords of the honest user": lambda number: f"\0honest\0guess-{number}",
    "names": lambda number: f"\0user-{number}\0guest",
}


def wrong_passwords_same_address(board: str) -> None:
    """Another program at the same address sends wrong passwords without end. All of 40 right logins succeed over either
    listener, also the first login of a user."""
    for spray, response in SPRAYS.items():
        with server_of(board) as server:
            for user in ("known", "honest"):
                server.broker.ctl("add_user", user, "right")
                server.broker.ctl("set_permissions", user, ".*", ".*", ".*")
            server.client("plain", OTHER, "known", "right").close()
            sprayer = Sprayer(server, OTHER, response)
            try:
                with ThreadPoolExecutor(4) as pool:
                    ask = [pool.submit(login_time, server, ("plain", "tls")[number % 2], OTHER, LOGIN_S, "known", "right")
                           for number in range(40)]
                    plain, tls = (max(asked.result() for asked in ask[at::2]) for at in range(2))
                first = login_time(server, "tls", OTHER, LOGIN_S, "honest", "right")
                other = login_time(server, "plain", "127.0.0.10", LOGIN_S)
            finally:
                sprayer.end()
            print(f"# {board}, {spray}: {sprayer.sent} wrong logins; 40 right ones took at most {plain * 1000:.0f} ms "
                  f"and {tls * 1000:.0f} ms over TLS, the first of another user {first * 1000:.0f} ms, one from "
                  f"another address {other * 1000:.0f} ms")
            assert sprayer.sent >= 5, f"only {sprayer.sent} wrong passwords were sent"


def cases() -> Dict[str, Callable[[], None]]:
    """Returns the cases by name."""
    made: Dict[str, Callable[[], None]] = {
        "slow-handshake-in-time": slow_handshake_in_time,
        "slow-hello": slow_hello,
        "byte-a-second": byte_a_second,
        "ends-with-fin": ends_with_fin,
        "silent-control-clients": silent_control_clients,
    }
    for board in BOARDS:
        made[f"silent-addresses-{board}"] = lambda board=board: silent_addresses(board)
    for board in ("router-64", "router-128", "pi-zero-w", "generic"):
        made[f"many-behind-one-address-{board}"] = lambda board=board: many_behind_one_address(board)
    for board in ("router-64", "generic"):
        made[f"wrong-passwords-same-address-{board}"] = lambda board=board: wrong_passwords_same_address(board)
    return made
