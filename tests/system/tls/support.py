"""A broker with TLS, and clients that connect to it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from typing import Callable, Optional

import pika

from harness import brokers
from harness.raw import Client
from harness.suite import patience

from office import Office, Paper

PATIENCE = 20.0


class Broker(brokers.Leveret):
    """A broker with a plain and a TLS listener."""

    def __init__(self, paper: Paper, tls: str = "", limits: str = "", top: str = "", extra: Optional[list] = None) -> None:
        text = f'{top}\n[tls]\ncertificate = "{paper.certificate}"\nkey = "{paper.key}"\n{tls}\n[limits]\n{limits}\n'
        super().__init__(brokers.leveret_binary(), ["--listen-tls", "127.0.0.1:0", *(extra or [])], text)
        self.config_path = self.home / "leveret.toml"
        self.tls_port = self.port_of("listening with TLS")

    def logged(self, pattern: str) -> re.Match:
        """Waits for a line of the log."""
        return wait_for(lambda: re.search(pattern, self.log()), lambda: f"{pattern!r} is not in the log:\n{self.log()}")


def wait_for(look: Callable, complaint: Callable[[], str] = lambda: "nothing came"):
    """Waits for the first true value of `look` and returns it."""
    deadline = time.monotonic() + patience(PATIENCE)
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(complaint())
        time.sleep(0.02)


def context(office: Office, paper: Optional[Paper] = None, version: Optional[ssl.TLSVersion] = None) -> ssl.SSLContext:
    """Returns a TLS context with the client's authority and certificate."""
    made = ssl.create_default_context(cafile=str(office.authority))
    if paper:
        made.load_cert_chain(str(paper.certificate), str(paper.key))
    if version:
        made.minimum_version = made.maximum_version = version
    return made


def hello(how: ssl.SSLContext) -> bytes:
    """Returns the first TLS record of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = how.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


def dial(broker: Broker, how: ssl.SSLContext, receive_buffer: int = 0) -> ssl.SSLSocket:
    """Returns a socket after its TLS handshake."""
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.settimeout(patience(PATIENCE))
    raw.connect(("127.0.0.1", broker.tls_port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return how.wrap_socket(raw, server_hostname="localhost")


def raw_client(broker: Broker, how: ssl.SSLContext, receive_buffer: int = 0) -> Client:
    """Returns an AMQP client over TLS."""
    return Client(broker.address, connected=dial(broker, how, receive_buffer))


def pika_client(broker: Broker, how: ssl.SSLContext, **options: object) -> pika.BlockingConnection:
    """Returns a pika connection with common TLS settings."""
    return pika.BlockingConnection(pika.ConnectionParameters(
        "localhost", broker.tls_port, ssl_options=pika.SSLOptions(how, "localhost"), heartbeat=0,
        blocked_connection_timeout=patience(PATIENCE), socket_timeout=patience(PATIENCE), **options))
