"""One memory for one plant after another: a broker with the profile of a Pi Zero serves seven different
plants in one process. Each of them needs most of the memory for another kind of object.

After each plant, its clients and definitions are removed, and its memory has to be returned to the system.

A broker with the profile of a router serves 100 clients and has a backlog of 10 MB at once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import ssl
import struct
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from harness import brokers, wire
from harness.mqtt_raw import PUBACK, SUBACK, connect, packet, receive_packet, text
from harness.raw import Client
from harness.suite import patience, until

LIMIT = 64_000_000
ROUTER_LIMIT = 16_000_000
CONFIG = """board = "BOARD"
mqtt = ["127.0.0.1:MQTT"]
mqtt_tls = ["127.0.0.1:TLS"]
management = ["127.0.0.1:0"]
[store]
DISK
[tls]
"""
PI_ZERO = ("pi-zero-w", 'disk_limit = "100MB"\nsyncs_per_second = 0')
# With the sync budget of the profile. Its disk limit of 16 MB permits one queue about 9 MB.
ROUTER = ("router-64", 'disk_limit = "24MB"')
# Memory that may be left of a plant after its second run: extents with a few records, and the heap's gaps. After the first
# one, the store's buffers and the program's code are resident in addition.
LEFT_KIB = 3_000
# Time until the memory of a plant is returned: the broker waits a second for the next burst.
BACK_S = 2.0
# Packets or frames in flight: less than the sockets' buffers, so that no side waits for the other.
WINDOW = 40


class Host:
    """The broker, and how it is reached."""

    def __init__(self, broker: brokers.Leveret, tls: ssl.SSLContext, mqtt: int, mqtt_tls: int) -> None:
        self.broker = broker
        self.tls = tls
        self.mqtt, self.mqtt_tls = mqtt, mqtt_tls
        self.management = broker.port_of("management API")

    def api(self, method: str, path: str, body: Any) -> None:
        """Sends a request to the management API."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.management}/api/{path}", method=method,
                                         data=json.dumps(body).encode())
        login = base64.b64encode(b"guest:guest").decode()
        request.add_header("Authorization", f"Basic {login}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=patience(60)) as answer:
            answer.read()


@contextlib.contextmanager
def host(board: str, disk: str) -> Iterator[Host]:
    """Runs the broker with the profile of a board."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=127.0.0.1", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
                       check=True, capture_output=True)
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        mqtt, mqtt_tls = brokers.free_port(), brokers.free_port()
        config = CONFIG.replace("MQTT", str(mqtt)).replace("TLS", str(mqtt_tls)).replace("BOARD", board)
        config = config.replace("DISK", disk)
        with brokers.leveret(config=f'{config}certificate = "{certificate}"\nkey = "{key}"\n') as broker:
            yield Host(broker, tls, mqtt, mqtt_tls)


def password_hash(password: str) -> str:
    """Returns the hash of a password as in RabbitMQ's definitions."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


@contextlib.contextmanager
def sensors(it: Host) -> Iterator[None]:
    """500 MQTT clients over TLS, each with a user and a subscription of its own."""
    names = [f"sensor-{number}" for number in range(500)]
    users = [{"name": name, "password_hash": password_hash(name), "tags": "",
              "hashing_algorithm": "rabbit_password_hashing_sha256"} for name in names]
    rights = [{"user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"} for name in names]
    it.api("POST", "definitions", {"users": users, "permissions": rights})
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            peer, code = connect(it.mqtt_tls, name, it.tls, name, is_kept=False)
            stack.enter_context(contextlib.closing(peer))
            assert code == 0, (name, code)
            peer.sendall(packet(0x82, struct.pack(">H", 1) + text(f"commands/{name}") + b"\x01"))
            assert receive_packet(peer)[1][2:] == b"\x01", number
        yield
    it.api("POST", "users/bulk-delete", {"users": names})


@contextlib.contextmanager
def subscriber(it: Host) -> Iterator[None]:
    """One client with 10,000 subscriptions."""
    peer, code = connect(it.mqtt, "dashboard", is_kept=False)
    with contextlib.closing(peer):
        assert code == 0
        for first in range(0, 10_000, WINDOW):
            filters = [f"plant/line-{number % 100}/machine-{number}/state" for number in range(first, first + WINDOW)]
            peer.sendall(packet(0x82, struct.pack(">H", first + 1) + b"".join(text(name) + b"\x01" for name in filters)))
            kind, body = receive_packet(peer)
            assert kind == SUBACK and body[2:] == b"\x01" * len(filters), (first, body[2:])
        yield


@contextlib.contextmanager
def retained(it: Host) -> Iterator[None]:
    """5,000 retained messages of 1 KB."""
    def publish(payload: bytes) -> None:
        with contextlib.closing(connect(it.mqtt, "discovery", is_kept=False)[0]) as peer:
            for first in range(0, 5_000, WINDOW):
                numbers = range(first, min(first + WINDOW, 5_000))
                peer.sendall(b"".join(packet(0x33, text(f"discovery/{number}/config") + struct.pack(">H", number + 1)
                                             + payload) for number in numbers))
                assert [receive_packet(peer)[0] for _ in numbers] == [PUBACK] * len(numbers)
    publish(b"x" * 1000)
    count = it.broker.ctl("-s", "list_retained", "topic").count("discovery/")
    assert count == 5_000, count
    yield
    publish(b"")


def call_all(client: Client, frames: List[bytes], answer: str) -> None:
    """Sends methods on channel 1, and waits for their answers."""
    for first in range(0, len(frames), WINDOW):
        some = frames[first:first + WINDOW]
        client.send(b"".join(some))
        for _ in some:
            client.expect(answer)


def opened(it: Host) -> Client:
    """Returns a connection with one channel."""
    client = Client(it.broker.address)
    client.send(wire.method(1, "channel.open"))
    client.expect("channel.open-ok")
    return client


@contextlib.contextmanager
def queues(it: Host) -> Iterator[None]:
    """2,000 queues."""
    client, names = opened(it), [f"tasks.{number}" for number in range(2_000)]
    call_all(client, [wire.method(1, "queue.declare", queue=name, durable=True) for name in names], "queue.declare-ok")
    yield
    call_all(client, [wire.method(1, "queue.delete", queue=name) for name in names], "queue.delete-ok")
    client.socket.close()


@contextlib.contextmanager
def connections(it: Host) -> Iterator[None]:
    """2,000 AMQP connections with a channel each."""
    clients = [opened(it) for _ in range(2_000)]
    yield
    for client in clients:
        client.socket.close()


@contextlib.contextmanager
def bindings(it: Host) -> Iterator[None]:
    """20,000 bindings of 100 queues."""
    client = opened(it)
    names = [f"areas.{number}" for number in range(100)]
    call_all(client, [wire.method(1, "queue.declare", queue=name, durable=False) for name in names], "queue.declare-ok")
    call_all(client, [wire.method(1, "queue.bind", queue=names[number % 100], exchange="amq.topic",
                                  routing_key=f"area-{number % 100}.sensor-{number}.*") for number in range(20_000)],
             "queue.bind-ok")
    yield
    call_all(client, [wire.method(1, "queue.delete", queue=name) for name in names], "queue.delete-ok")
    client.socket.close()


@contextlib.contextmanager
def backlog(it: Host) -> Iterator[None]:
    """One queue of transient messages up to its share of the memory."""
    client, other = opened(it), opened(it)
    call_all(client, [wire.method(1, "queue.declare", queue="backlog", durable=False)], "queue.declare-ok")
    client.socket.settimeout(patience(2))
    message, sent = wire.publish(1, "", "backlog", bytes(1_000)) * 20, 0
    with contextlib.suppress(TimeoutError):
        while sent < 5_000:
            client.socket.sendall(message)
            sent += 1
    assert 500 < sent < 5_000, sent
    yield
    call_all(other, [wire.method(1, "queue.delete", queue="backlog")], "queue.delete-ok")
    for peer in (client, other):
        peer.socket.close()


PLANTS: List[Tuple[str, Callable[[Host], Any]]] = [
    ("sensors", sensors), ("subscriber", subscriber), ("retained", retained), ("queues", queues),
    ("connections", connections), ("bindings", bindings), ("backlog", backlog),
]


def run() -> Dict[str, int]:
    """Runs all plants twice, one after the other. Returns the resident memory of each, in KiB."""
    resident: Dict[str, int] = {}
    with host(*PI_ZERO) as it:
        for is_second in (False, True):
            for name, plant in PLANTS:
                before = it.broker.rss_kib()
                with plant(it):
                    resident[name] = it.broker.rss_kib()
                if is_second:
                    until(f"the memory of {name} is returned: {before} KiB before, {resident[name]} KiB",
                          lambda before=before: it.broker.rss_kib() <= before + LEFT_KIB, patience(BACK_S))
                peak = it.broker.peak_kib() * 1024
                assert peak <= LIMIT, f"{name}: the peak memory was {peak:,} bytes, of {LIMIT:,}"
                assert it.broker.alive()
    return resident


def publish_backlog(it: Host, count: int) -> None:
    """Leaves persistent messages of 1,000 bytes in a queue."""
    with Client(it.broker.address, patience(60)) as client:
        client.open(1)
        client.call(1, "queue.declare", queue="readings", durable=True)
        client.call(1, "confirm.select")
        for first in range(0, count, 250):
            client.send(b"".join(wire.publish(1, "", "readings", struct.pack(">I", number) + bytes(996),
                                              props={"delivery_mode": 2}) for number in range(first, first + 250)))
            while client.expect("basic.ack").args["delivery_tag"] < first + 250:
                pass


def router() -> Dict[str, int]:
    """A router with 16 MB: 100 MQTT clients, 20 of them over TLS, and a queue with 10 MB on its disk. Each client publishes a
    message that all get, and the queue is consumed in its order. Returns the resident memory in KiB after each step.
    """
    resident: Dict[str, int] = {}
    with host(*ROUTER) as it, contextlib.ExitStack() as stack:
        def note(step: str) -> None:
            resident[step] = it.broker.rss_kib()

        peers = []
        for number in range(100):
            tls = it.tls if number < 20 else None
            peer, code = connect(it.mqtt_tls if tls else it.mqtt, f"sensor-{number}", tls, is_kept=False)
            stack.enter_context(contextlib.closing(peer))
            assert code == 0, (number, code)
            peer.sendall(packet(0x82, struct.pack(">H", 1) + text("state/+") + b"\x01"))
            assert receive_packet(peer)[1][2:] == b"\x01", number
            peers.append(peer)
        note("clients")
        publish_backlog(it, 10_000)
        note("backlog")
        for number, peer in enumerate(peers):
            peer.sendall(packet(0x30, text(f"state/{number}") + b"x"))
            for other in peers:
                topic = text(f"state/{number}")
                kind, body = receive_packet(other)
                assert (kind, body) == (3, topic + b"x"), (number, kind, body)
        note("messages")
        with Client(it.broker.address, patience(60)) as client:
            client.open(1)
            client.call(1, "basic.consume", queue="readings", no_ack=True, consumer_tag="c")
            for number in range(10_000):
                assert struct.unpack_from(">I", client.expect("basic.deliver").body)[0] == number
        note("backlog consumed")
        peak = it.broker.peak_kib() * 1024
        assert peak <= ROUTER_LIMIT, f"the peak memory was {peak:,} bytes"
    return resident
