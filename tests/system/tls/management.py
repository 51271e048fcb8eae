"""The management API over TLS: answers in any division into records, and connections without a handshake."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Callable, Dict, Optional

from harness.raw import Client
from harness.suite import patience

from listeners import say
from office import Office, Paper
from reloading import put
from support import Broker, context, wait_for

GUEST = "Basic " + base64.b64encode(b"guest:guest").decode()


def management(office: Office, top: str = "", tls: str = "", paper: Optional[Paper] = None) -> Broker:
    """Starts a broker whose management API is served over TLS only."""
    broker = Broker(paper or office.server(), top=top, tls=tls, extra=["--management-tls", "127.0.0.1:0"])
    broker.api_port = int(broker.logged(r"management API on https://127\.0\.0\.1:(\d+)/").group(1))
    return broker


def visitor(broker: Broker, how: ssl.SSLContext, source: str = "127.0.0.1") -> http.client.HTTPSConnection:
    """Returns a TLS client of the management API."""
    return http.client.HTTPSConnection(
        "127.0.0.1", broker.api_port, context=how, timeout=patience(20), source_address=(source, 0))


def ask(peer: http.client.HTTPSConnection, path: str, method: str = "GET", body: object = None) -> object:
    """Returns the answer to a request on a connection that stays open."""
    text = None if body is None else json.dumps(body).encode()
    peer.request(method, path, text, {"Authorization": GUEST, "Content-Type": "application/json"})
    answer = peer.getresponse()
    heard = answer.read()
    assert answer.status in (200, 201, 204), f"{method} {path}: {answer.status} {heard[:200]!r}"
    return json.loads(heard) if heard else None


def requests_and_answers(folder: Path) -> None:
    """One connection: small requests, bodies of 50 KB, answers of more than 200 KB, the page, metrics, and the close.
    """
    office = Office(folder)
    with management(office) as broker:
        how = context(office)
        peer = visitor(broker, how)
        assert ask(peer, "/api/whoami")["name"] == "guest"
        queues = [{"name": f"{number:05}-{'x' * 150}", "vhost": "/", "durable": False, "auto_delete": False,
                   "arguments": {}} for number in range(1000)]
        for _ in range(2):
            for start in range(0, 1000, 200):
                ask(peer, "/api/definitions", "POST", {"queues": queues[start:start + 200]})
            found = ask(peer, "/api/definitions")["queues"]
            assert sorted(each["name"] for each in found) == [each["name"] for each in queues], len(found)
            assert len(ask(peer, "/api/queues")) == 1000
        peer.request("GET", "/")
        page = peer.getresponse()
        text = page.read()
        kind = page.headers["Content-Type"]
        assert page.status == 200 and kind.startswith("text/html") and text, (page.status, kind, len(text))
        peer.request("GET", "/metrics", headers={"Authorization": GUEST})
        assert b"rabbitmq_queues 1000" in peer.getresponse().read()
        sock = peer.sock
        # Records of one octet, and two requests in one record.
        request = f"GET /api/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: {GUEST}\r\n\r\n".encode()
        for octet in request:
            sock.sendall(bytes([octet]))
        reply = http.client.HTTPResponse(sock)
        reply.begin()
        assert json.loads(reply.read())["name"] == "guest"
        sock.sendall(request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        heard = b""
        while data := sock.recv(65536):
            heard += data
        assert heard.count(b'"name":"guest"') == 2, heard
        # 100 KB of requests at once: those that wait are stored in the buffer of this client.
        peer = visitor(broker, how)
        peer.connect()
        peer.sock.sendall(request * 1000)
        heard = b""
        while heard.count(b'"name":"guest"') < 1000:
            data = peer.sock.recv(65536)
            assert data, heard.count(b'"name":"guest"')
            heard += data
        broker.ctl("check_protocol_listener", "https")
        assert f"port: {broker.api_port}, protocol: https, purpose: HTTP API over TLS" in broker.ctl("status")


def wrong_protocol(folder: Path) -> None:
    """HTTP without TLS gets an error text, and other bytes close the connection. A client with another authority
    refuses the certificate. The listener continues."""
    office = Office(folder)
    with management(office) as broker:
        heard = say(broker.api_port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert heard.startswith(b"HTTP/1.1 400 ") and heard.endswith(b"This port speaks TLS: use https:// with it.\n"), heard
        broker.logged("refused: HTTP on the port for the management API with TLS: use https://")
        for words in (b"AMQP\0\0\x09\x01", b"\0\1\2\3 who is there", b"\x16\x03\x01\x00\x05\x01\0\0\x01\0"):
            say(broker.api_port, words)
        try:
            ask(visitor(broker, ssl.create_default_context()), "/api/whoami")
        except ssl.SSLCertVerificationError:
            pass
        else:
            raise AssertionError("a certificate of an unknown authority was trusted")
        broker.logged("the TLS handshake failed")
        assert ask(visitor(broker, context(office)), "/api/whoami")["name"] == "guest"
        Client(broker.address).close()


def silent_clients(folder: Path) -> None:
    """Forty clients of one address are silent or send half a hello, and there are two connections. A client of another
    address is accepted."""
    office = Office(folder)
    with management(office, top='memory_limit = "20MB"') as broker:
        how = context(office)
        held = []
        for number in range(40):
            raw = socket.create_connection(("127.0.0.1", broker.api_port), timeout=patience(20))
            if number % 3 == 1:
                raw.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
            held.append(raw)
        for _ in range(3):
            assert ask(visitor(broker, how, "127.0.0.2"), "/api/whoami")["name"] == "guest"
        assert all(each.fileno() >= 0 for each in held)


def client_certificates(folder: Path) -> None:
    """Client certificates that AMQP requires are required here too. The login still needs a password."""
    office = Office(folder)
    required = f'client_ca = "{office.authority}"\nclient_certificates = "require"'
    with management(office, tls=required) as broker:
        assert ask(visitor(broker, context(office, office.issue("ann"))), "/api/whoami")["name"] == "guest"
        try:
            ask(visitor(broker, context(office)), "/api/whoami")
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            pass
        else:
            raise AssertionError("a client without a certificate was accepted")


def new_certificates(folder: Path) -> None:
    """After a reload this listener and the AMQP listener use the replaced certificate."""
    office = Office(folder)
    place = Paper(folder / "in-use.pem", folder / "in-use.key")
    put(office.server("before"), place)
    with management(office, paper=place) as broker:
        how = context(office)
        assert shown(broker, how) == "1000"
        put(office.server("after"), place)
        os.kill(broker.process.pid, signal.SIGHUP)
        wait_for(lambda: shown(broker, how) == "1001")


def shown(broker: Broker, how: ssl.SSLContext) -> str:
    """Returns the serial number of the certificate that a client receives."""
    peer = visitor(broker, how)
    peer.connect()
    number = peer.sock.getpeercert()["serialNumber"]
    peer.close()
    return number


CASES: Dict[str, Callable[[Path], None]] = {
    "management": requests_and_answers,
    "management-wrong-protocol": wrong_protocol,
    "management-silent-clients": silent_clients,
    "management-client-certificates": client_certificates,
    "management-new-certificates": new_certificates,
}
