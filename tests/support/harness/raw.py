"""A blocking AMQP client on the suites' own codec. It can also break the protocol in ways that client libraries do not
allow.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional

from . import wire
from .brokers import Address
from .suite import patience


class Closed(Exception):
    """The broker closed the connection. `method` is its connection.close, if it sent one."""

    def __init__(self, method: Optional[wire.Method]) -> None:
        super().__init__(str(method) if method else "the socket was closed")
        self.method = method


class Content(NamedTuple):
    """A message that was delivered, fetched or returned."""

    channel: int
    method: wire.Method
    header: wire.Header
    body: bytes


class Client:
    """A connection. `recv` returns the methods of all channels in the order of arrival."""

    def __init__(self, address: Address, timeout: float = 20.0, heartbeat: int = 0, frame_max: int = 131072,
                 receive_buffer: Optional[int] = None, user: str = "guest", password: str = "guest",
                 vhost: str = "/", mechanism: str = "PLAIN", connected: Optional[socket.socket] = None,
                 properties: Optional[Dict[str, Any]] = None) -> None:
        """Connects and logs in. `properties` are added to the client's capabilities. `connected` is an open socket, for
        example over TLS. The timeout only detects hangs, and the patience multiplies it; timeouts of `frame`, `recv`
        and `expect` are exact.
        """
        self.timeout = patience(timeout)
        self.frame_max = frame_max
        self.buffer = bytearray()
        self.frames: Deque[wire.Frame] = deque()
        self.held: Deque[Any] = deque()
        self.socket = connected or socket.socket()
        self.socket.settimeout(self.timeout)
        if connected is None:
            if receive_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.connect(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._handshake(heartbeat, mechanism, credentials(mechanism, user, password), vhost, properties or {})

    def _handshake(self, heartbeat: int, mechanism: str, response: bytes, vhost: str,
                   properties: Dict[str, Any]) -> None:
        capabilities = {name: True for name in ("basic.nack", "consumer_cancel_notify", "publisher_confirms",
                                                "authentication_failure_close", "connection.blocked")}
        self.send(wire.PROTOCOL_HEADER)
        self.expect("connection.start")
        self.send(wire.method(0, "connection.start-ok", client_properties={"capabilities": capabilities, **properties},
                              mechanism=mechanism, response=response, locale="en_US"))
        tune = self.expect("connection.tune")
        self.frame_max = min(self.frame_max, tune.args["frame_max"])
        self.send(wire.method(0, "connection.tune-ok", channel_max=min(2047, tune.args["channel_max"]),
                              frame_max=self.frame_max, heartbeat=heartbeat)
                  + wire.method(0, "connection.open", virtual_host=vhost))
        self.expect("connection.open-ok")

    def send(self, data: bytes) -> None:
        """Sends bytes unchanged."""
        self.socket.sendall(data)

    def frame(self, timeout: Optional[float] = None) -> wire.Frame:
        """Returns the next frame that is not a heartbeat."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            while self.frames:
                frame = self.frames.popleft()
                if frame.kind != wire.FRAME_HEARTBEAT:
                    return frame
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed(None)
            self.buffer += data
            self.frames.extend(wire.split_frames(self.buffer))

    def recv(self, timeout: Optional[float] = None) -> Any:
        """Returns the next method, with its channel as `channel`, or message."""
        if self.held:
            return self.held.popleft()
        return self._recv(timeout)

    def _recv(self, timeout: Optional[float] = None) -> Any:
        frame = self.frame(timeout)
        if frame.kind != wire.FRAME_METHOD:
            raise wire.WireError(f"an unexpected frame of type {frame.kind}")
        method = wire.decode_method(frame.payload)
        if method.name == "connection.close":
            self.socket.sendall(wire.method(0, "connection.close-ok"))
            raise Closed(method)
        if method.name not in wire.CONTENT_METHODS:
            return method
        header_frame = self.frame(timeout)
        header = wire.decode_header(header_frame.payload)
        body = bytearray()
        while len(body) < header.size:
            body += self.frame(timeout).payload
        return Content(frame.channel, method, header, bytes(body))

    def expect(self, *names: str, timeout: Optional[float] = None) -> Any:
        """Returns the next method or message with one of these names. Others are kept for `recv`."""
        for index, item in enumerate(self.held):
            if name_of(item) in names:
                del self.held[index]
                return item
        while True:
            item = self._recv(timeout)
            if name_of(item) in names:
                return item
            if name_of(item) == "channel.close":
                raise Closed(item)
            self.held.append(item)

    def open(self, channel: int = 1) -> None:
        """Opens a channel."""
        self.send(wire.method(channel, "channel.open"))
        self.expect("channel.open-ok")

    def call(self, channel: int, name: str, **args: Any) -> Any:
        """Calls a synchronous method and returns its reply."""
        self.send(wire.method(channel, name, **args))
        replies = [name + "-ok"] if name != "basic.get" else ["basic.get-ok", "basic.get-empty"]
        return self.expect(*replies)

    def publish(self, channel: int, exchange: str, key: str, body: bytes = b"", **options: Any) -> None:
        """Publishes a message."""
        self.send(wire.publish(channel, exchange, key, body, frame_max=self.frame_max, **options))

    def close(self) -> None:
        """Closes the connection cleanly if the peer still listens."""
        try:
            self.send(wire.method(0, "connection.close", reply_code=200))
            self.expect("connection.close-ok", timeout=patience(5.0))
        except (OSError, Closed, wire.WireError):
            pass
        self.socket.close()

    def drop(self) -> None:
        """Closes the socket without connection.close."""
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def credentials(mechanism: str, user: str, password: str) -> bytes:
    """Returns the response of a client for SASL."""
    if mechanism == "AMQPLAIN":
        return wire.table({"LOGIN": user, "PASSWORD": password})[4:]
    return f"\0{user}\0{password}".encode()


def name_of(item: Any) -> str:
    """Returns the name of a method, also of a message's method."""
    return item.method.name if isinstance(item, Content) else item.name


def queue_state(address: Address, queue: str) -> Optional[List[int]]:
    """Returns the number of ready messages and of consumers of a queue; None if it does not exist, and an empty list if
    it is exclusive to another connection.
    """
    with Client(address) as client:
        client.open()
        try:
            reply = client.call(1, "queue.declare", queue=queue, passive=True)
        except Closed as answer:
            code = answer.method.args["reply_code"] if answer.method else 0
            return None if code == 404 else []
        return [reply.args["message_count"], reply.args["consumer_count"]]
