"""The environment of a flood: the broker's address, the end of the flood, its clients and threads, and their removal.

It also counts what proves the load: the broker's answers, the accepted bytes, and the clients that were still
connected at the end.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import re
import socket
import ssl
import struct
import subprocess
import termios
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

from harness import mqtt_raw, wire
from harness.brokers import Address
from harness.raw import Client, Closed, name_of
from harness.suite import patience

# All queues and exchanges of a flood have such a name with a number, so that they can be deleted by name.
QUEUES = [f"flood.{number}" for number in range(64)]
EXCHANGES = [f"flood.x{number}" for number in range(16)]
# The first bytes of basic.publish in a method frame. The bodies of floods do not contain them.
PUBLISH = b"\x00\x3c\x00\x28"


class Over(Exception):
    """Raised when the flood's time is up."""


class HandMadeTls:
    """A TLS connection over a socket, with access to its records."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        how = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        how.check_hostname, how.verify_mode = False, ssl.CERT_NONE
        self.received, self.to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = how.wrap_bio(self.received, self.to_send)
        self.repeat(self.session.do_handshake)

    def repeat(self, action: Callable[[], Any]) -> Any:
        """Calls `action` until it needs no more input."""
        while True:
            try:
                result = action()
                self.peer.sendall(self.to_send.read())
                return result
            except ssl.SSLWantReadError:
                self.peer.sendall(self.to_send.read())
                data = self.peer.recv(16_384)
                if not data:
                    raise Closed(None) from None
                self.received.write(data)

    def log_in(self) -> None:
        """Sends what opens a connection of AMQP and a channel, and reads the answers up to channel.open-ok."""
        start_ok = wire.method(0, "connection.start-ok", mechanism="PLAIN", response="\0guest\0guest", locale="en_US")
        tune_ok = wire.method(0, "connection.tune-ok", channel_max=10, frame_max=32_768, heartbeat=0)
        open_ = wire.method(0, "connection.open", virtual_host="/") + wire.method(1, "channel.open")
        self.session.write(wire.PROTOCOL_HEADER + start_ok + tune_ok + open_)
        answers, open_ok = b"", struct.pack(">HH", 20, 11)
        while open_ok not in answers:
            answers += self.repeat(lambda: self.session.read(4096))

    def send(self, data: bytes, sent_bytes: int) -> None:
        """Encrypts `data`, and sends only the first bytes of the records."""
        self.session.write(data)
        self.peer.sendall(self.to_send.read()[:sent_bytes])


class Site:
    """The connections and threads of one flood. They are closed at the end, and errors of the threads after that are
    ignored.
    """

    def __init__(self, address: Address, limits: Dict[str, int], seconds: float, mqtt_port: int = 0,
                 tls_address: Optional[Address] = None) -> None:
        self.address = address
        self.mqtt_port = mqtt_port
        self.tls_address = tls_address
        self.limits = limits
        self.ends = time.monotonic() + seconds
        self.stopping = threading.Event()
        self.sockets: List[socket.socket] = []
        self.threads: List[threading.Thread] = []
        self.codes: Dict[int, int] = {}
        self.counts: Dict[str, int] = {}
        self.accidents: List[str] = []
        # Removes what outlives the flood's connections, apart from its queues and exchanges.
        self.at_end: List[Callable[[], None]] = []
        self.lock = threading.Lock()
        # Bytes written to each socket, and the results of the clients.
        self.handed_over: Dict[socket.socket, int] = {}
        self.workers = self.cut_off = 0

    # -- called by floods

    def over(self) -> bool:
        """Returns whether the flood's time is up."""
        return self.stopping.is_set() or time.monotonic() >= self.ends

    def count(self, what: str, number: int = 1) -> None:
        """Counts an event. The counts are printed at the end."""
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def client(self, receive_buffer: Optional[int] = None, channels: int = 1, **options: Any) -> Client:
        """Returns a connection with open channels."""
        if self.over():
            raise Over
        client = Client(self.address, timeout=60.0, receive_buffer=receive_buffer, **options)
        self.sockets.append(client.socket)
        for channel in range(1, channels + 1):
            client.open(channel)
        return client

    def raw(self, host: str = "127.0.0.1", address: Optional[Address] = None) -> socket.socket:
        """Returns a socket that is connecting to the broker, optionally from the given loopback address."""
        if self.over():
            raise Over
        peer = socket.socket()
        peer.setblocking(False)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        peer.bind((host, 0))
        with contextlib.suppress(BlockingIOError):
            peer.connect(address or self.address)
        self.sockets.append(peer)
        return peer

    def secure(self) -> ssl.SSLSocket:
        """Returns a socket after its TLS handshake, without a check of the certificate."""
        if self.over():
            raise Over
        how = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        how.check_hostname, how.verify_mode = False, ssl.CERT_NONE
        peer = socket.create_connection(self.tls_address, timeout=patience(10.0))
        self.sockets.append(peer)
        secured = how.wrap_socket(peer)
        self.sockets[self.sockets.index(peer)] = secured
        return secured

    @contextlib.contextmanager
    def mqtt(self, client_id: str, is_kept: bool = False) -> Iterator[socket.socket]:
        """Returns an MQTT connection for a `with` block. A refused or lost connection raises `Closed`."""
        if self.over() and not self.stopping.is_set():
            raise Over
        try:
            peer, code = mqtt_raw.connect(self.mqtt_port, client_id, is_kept=is_kept)
            self.sockets.append(peer)
            with contextlib.closing(peer):
                if code:
                    raise Closed(None)
                yield peer
            self.sockets.remove(peer)
        except mqtt_raw.ConnectionEnded:
            raise Closed(None) from None

    def begin(self, run: Callable[["Site"], None]) -> None:
        """Begins a flood in a thread, which ends with the time."""
        thread = threading.Thread(target=self.is_cut_off, args=(lambda: run(self),), daemon=True)
        self.threads.append(thread)
        thread.start()

    def is_cut_off(self, work: Callable[[], None]) -> bool:
        """Runs `work`. Returns whether it ended because its client was refused or disconnected, or by an error of the flood,
        which is kept for the end."""
        try:
            work()
            return False
        except Over:
            return False
        except Closed as closed:
            self.refused(closed.method.args["reply_code"] if closed.method else 0)
        except OSError:
            self.refused(0)
        except Exception as accident:
            self.accidents.append(f"{type(accident).__name__}: {accident}")
        return True

    def secure_by_hand(self) -> "HandMadeTls":
        """Returns a TLS connection whose records the caller sends in pieces, after its handshake and its login."""
        if self.over():
            raise Over
        peer = socket.create_connection(self.tls_address, timeout=patience(10.0))
        self.sockets.append(peer)
        session = HandMadeTls(peer)
        session.log_in()
        return session

    def go(self, work: Callable[..., None], *args: Any) -> None:
        """Runs `work` in a thread. It ends when the client is refused or disconnected."""

        def run() -> None:
            if self.is_cut_off(lambda: work(*args)) and not self.over():
                with self.lock:
                    self.cut_off += 1

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        self.workers += 1
        thread.start()

    def again(self, visit: Callable[[], None]) -> None:
        """Repeats `visit`, also after the client was refused or disconnected."""
        while not self.over():
            try:
                visit()
            except Closed as closed:
                self.refused(closed.method.args["reply_code"] if closed.method else 0)

    def refused(self, code: int) -> None:
        """Counts a refusal of the broker with this reply code."""
        if not self.stopping.is_set():
            with self.lock:
                self.codes[code] = self.codes.get(code, 0) + 1

    def pour(self, client: Client, data: bytes, what: str = "sent") -> None:
        """Sends the same data repeatedly until the flood's time is up."""
        messages = data.count(PUBLISH)
        while not self.over():
            self.count("offered" if messages else what, messages or 1)
            client.send(data)
            self.handed_over[client.socket] = self.handed_over.get(client.socket, 0) + len(data)

    def listen(self, client: Client) -> None:
        """Reads and counts everything that arrives. Confirms count as the number of messages that they confirm."""
        confirmed = 0
        while not self.over():
            item = client.recv()
            if name_of(item) == "basic.ack":
                tag = item.args["delivery_tag"]
                self.count("confirmed", tag - confirmed if item.args["multiple"] else 1)
                confirmed = max(confirmed, tag)
                continue
            self.count(name_of(item))
            if name_of(item) == "channel.close":
                self.refused(item.args["reply_code"])
                client.send(wire.method(item_channel(item), "channel.close-ok"))

    def wait(self) -> None:
        """Waits until the flood's time is up."""
        while not self.over():
            time.sleep(0.05)

    # -- called by run.py

    def note_bytes_in(self) -> None:
        """Counts a lower bound of the bytes that the broker has read: the bytes written, minus what may wait in the
        buffers of both sockets. Only possible while the sockets are open."""
        waiting = array.array("i", [0])
        sizes = self.limits["socket_receive_buffer_bytes"] + self.limits["socket_send_buffer_bytes"]
        # The kernel doubles the sizes.
        other_side = 2 * max(sizes, 2 * self.limits["socket_local_buffer_bytes"])
        for peer, handed_over in self.handed_over.items():
            with contextlib.suppress(OSError):
                fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, waiting)
                self.count("bytes in", max(0, handed_over - waiting[0] - other_side))

    def prove(self, least: Dict[str, int], may_be_cut_off: str) -> None:
        """Checks that the flood reached its minimum counts, and that a client was still active at its end."""
        # Confirmed messages must be in the queues: no consumer runs beside publishers that count confirms.
        confirmed, drained = self.counts.get("confirmed", 0), self.counts.get("drained", 0)
        assert confirmed <= drained, f"{confirmed} messages were confirmed, and {drained} were drained ({self.story()})"
        for what, figure in least.items():
            found = self.counts.get(what, 0)
            assert found >= figure, f"it was no flood: {found} {what}, and {figure} is the least ({self.story()})"
        all_cut_off = self.workers > 0 and self.cut_off == self.workers
        assert may_be_cut_off or not all_cut_off, f"it was no flood: all {self.workers} were cut off ({self.story()})"

    def end(self) -> None:
        """Closes all connections and waits for the threads."""
        self.stopping.set()
        for peer in self.sockets:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(patience(20.0))
        for peer in self.sockets:
            # With a reset. Otherwise what the kernel has buffered would arrive for minutes, through a small window.
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        hanging = sum(thread.is_alive() for thread in self.threads)
        assert not hanging, f"{hanging} threads of the flood do not end"
        assert not self.accidents, f"errors in the flood itself: {self.accidents[:3]}"

    def story(self) -> str:
        """Returns a one-line summary."""
        parts = [f"{count} {what}" for what, count in sorted(self.counts.items())]
        parts += [f"{count} x {code or 'cut off'}" for code, count in sorted(self.codes.items())]
        return ", ".join(parts) or "nothing to tell"


def item_channel(_item: Any) -> int:
    """Returns the channel of an item. The codec's methods do not contain it; floods that may be refused use channel 1.
    """
    return 1


def limits_of(binary: str, config: str) -> Dict[str, int]:
    """Returns the limits that result from a configuration, and the kernel memory allowed for its sockets."""
    said = subprocess.run([binary, "check", "--config", config], capture_output=True, text=True, check=True).stdout
    found = {}
    for key, number, unit in re.findall(r'^(\w+) = "?(\d+)(KiB|MiB|KB|MB|B|)"?(?:  #.*)?$', said, re.MULTILINE):
        found[key] = int(number) * {"KiB": 1 << 10, "MiB": 1 << 20, "KB": 1000, "MB": 1_000_000}.get(unit, 1)
    kernel = re.search(r"socket buffers: at most ([\d.]+) MB", said)
    assert kernel, f"no line about kernel memory:\n{said}"
    found["kernel_bytes"] = int(float(kernel.group(1)) * 1_000_000)
    return found
