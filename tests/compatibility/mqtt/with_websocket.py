"""Paho over WebSocket, with and without TLS, over kills of the broker; and upgrades by hand."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Callable, Dict, Iterator, Tuple

from harness.suite import patience, until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker, reserved_port
from office import Office
from paho_client import Received, paho_client

VERSIONS = ["3.1", "3.1.1", "5"]
OVER_WEBSOCKET = {"transport": "websockets"}


@contextlib.contextmanager
def websocket_broker(home: Path, keys: str = "", **options: object) -> Iterator[Tuple[MqttBroker, int]]:
    """Runs a broker that serves MQTT over WebSocket at a port of its own, with TLS if there is a certificate. The port
    stays the same over a kill.
    """
    listener = "management_tls" if options else "management"
    with contextlib.closing(reserved_port()) as reservation:
        port = reservation.getsockname()[1]
        keys = f'mqtt_websocket = true\n{listener} = ["127.0.0.1:{port}"]\n{keys}'
        with mqtt_broker(home, keys, **options) as broker:
            yield broker, port


def protocols(broker: MqttBroker) -> str:
    """Returns the protocols of all connections, one a line."""
    return broker.process.ctl("list_connections", "protocol")


def with_paho(home: Path) -> None:
    """A browser and a sensor exchange messages of each quality of service. The browser connects again after a kill."""
    with websocket_broker(home) as (broker, port):
        for version in VERSIONS:
            with paho_client("browser", version, port, **OVER_WEBSOCKET) as browser, \
                    paho_client("sensor", version, broker.port) as sensor:
                assert browser.connack() == "Success", browser.connacks
                sensor.connected().subscribe("to/sensor", qos=2)
                browser.subscribe("to/browser", qos=2)
                assert len(protocols(broker).split("MQTT")) == 3, protocols(broker)
                for qos, length in ((0, 1), (1, 200), (2, 100_000)):
                    text = f"{qos}".ljust(length, "x")
                    browser.publish("to/sensor", text, qos)
                    assert Received("to/sensor", text, qos, False) in sensor.wait_received(text)
                    sensor.publish("to/browser", text, qos)
                    assert Received("to/browser", text, qos, False) in browser.wait_received(text)
        with paho_client("browser", "5", port, is_kept=True, **OVER_WEBSOCKET) as browser:
            browser.connected().subscribe("kept", qos=1)
            broker.kill()
            browser.connected()
            assert browser.publish_and_wait("kept", "after the kill", 1) == "Success", browser.acknowledged
            browser.wait_received("after the kill")


def with_tls(home: Path) -> None:
    """TLS is below WebSocket. The name in a client certificate is the user."""
    office = Office(home / "office")
    guest, server = office.issue("guest"), office.server()
    tls = f'client_ca = "{office.authority}"\nclient_certificates = "allow"'
    with websocket_broker(home, paper=server, tls=tls) as (broker, port):
        for version in VERSIONS:
            how = {"authority": str(office.authority), **OVER_WEBSOCKET}
            with paho_client("browser", version, port, **how) as browser, \
                    paho_client("certificate", version, port, user=None, paper=guest, **how) as certificate, \
                    paho_client("plain", version, broker.port) as plain:
                assert certificate.connack() == "Success", certificate.connacks
                for client in (browser.connected(), certificate):
                    client.subscribe("large", qos=1)
                text = "y" * 200_000
                plain.connected().publish("large", text, 1)
                browser.wait_received(text)
                certificate.wait_received(text)
                assert browser.publish_and_wait("large", "z" * 50_000, 1) is not None
                certificate.wait_received("z" * 50_000)
            with paho_client("refused", version, port, user=None, **how) as client:
                assert client.connack() == "Bad user name or password", client.connacks


def upgrade(port: int, *more: str, protocol: str = "mqtt") -> Tuple[socket.socket, bytes]:
    """Sends a request for an upgrade. Returns the connection, and the head of the answer."""
    lines = ["GET /mqtt HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
             f"Sec-WebSocket-Protocol: {protocol}", *more, "", ""]
    connection = socket.create_connection(("127.0.0.1", port), patience(PATIENCE))
    connection.sendall("\r\n".join(lines).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1) or b"ended\r\n\r\n"
    return connection, head


def frame(first_octet: int, payload: bytes) -> bytes:
    """Returns a frame of a client, of at most 125 bytes. The mask is 0."""
    return bytes([first_octet, 0x80 | len(payload)]) + bytes(4) + payload


CLOSE = frame(0x88, b"\x03\xe8")
UNMASKED = b"\x82\x01x"
CONNECT_WITH_WILL = (b"\x10\x27\x00\x04MQTT\x04\xc6\x00\x00\x00\x01w\x00\x04will\x00\x04gone"
                     b"\x00\x05guest\x00\x05guest")


def by_hand(home: Path) -> None:
    """Origins and protocols are refused. A will follows a lost connection, a CLOSE without DISCONNECT, and a wrong frame."""
    with websocket_broker(home, 'mqtt_websocket_origins = ["https://dash.example"]\n') as (broker, port), \
            paho_client("watcher", "5", broker.port) as watcher:
        watcher.connected().subscribe("will", qos=0)
        for origin, status in ((f"http://127.0.0.1:{port}", 101), ("https://dash.example", 101),
                               ("https://evil.example", 403), ("null", 403)):
            connection, head = upgrade(port, f"Origin: {origin}")
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), (origin, head)
            connection.close()
        connection, head = upgrade(port, protocol="chat")
        assert head.startswith(b"HTTP/1.1 400 "), head
        connection.close()
        for count, last in ((1, UNMASKED), (2, CLOSE), (3, None)):
            connection, head = upgrade(port)
            assert b"\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head, head
            connection.sendall(frame(0x82, CONNECT_WITH_WILL))
            assert connection.recv(100) == b"\x82\x04\x20\x02\x00\x00"
            connection.sendall(frame(0x89, b"alive"))
            assert connection.recv(100) == b"\x8a\x05alive"
            if last:
                connection.sendall(last)
                code = {CLOSE: b"\x03\xe8", UNMASKED: b"\x03\xea"}[last]
                assert connection.recv(100) == b"\x88\x02" + code and connection.recv(100) == b""
            else:
                # The kernel sends RST.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            until("the will", lambda: [message.text for message in watcher.received] == ["gone"] * count, PATIENCE)
        until("the log has the reason", lambda: "an invalid WebSocket frame (close code 1002)" in broker.log(), PATIENCE)
        until("one connection is left", lambda: len(protocols(broker).split("MQTT")) == 2, PATIENCE)


def off(home: Path) -> None:
    """Without `mqtt_websocket`, the path does not exist."""
    with contextlib.closing(reserved_port()) as reservation:
        port = reservation.getsockname()[1]
        with mqtt_broker(home, f'management = ["127.0.0.1:{port}"]'):
            connection, head = upgrade(port)
            assert head.startswith(b"HTTP/1.1 404 "), head
            connection.close()


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {"websocket": with_paho, "websocket-tls": with_tls, "websocket-by-hand": by_hand, "websocket-off": off}
