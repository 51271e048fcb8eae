"""A minimal client of MQTT 3.1.1, which writes and reads single packets."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Optional, Tuple

from . import suite

PUBACK, SUBACK = 4, 9


class ConnectionEnded(AssertionError):
    """The broker closed the connection."""


def text(value: str) -> bytes:
    """Returns a string of MQTT."""
    return struct.pack(">H", len(value)) + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    """Returns a packet with its length."""
    length, rest = bytearray(), len(body)
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([kind, *length, rest]) + body


def receive(peer: socket.socket, size: int) -> bytes:
    """Reads this number of bytes."""
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            raise ConnectionEnded("the broker closed the connection")
        data += piece
    return data


def receive_packet(peer: socket.socket) -> Tuple[int, bytes]:
    """Reads a packet. Returns its type and its content."""
    kind, length, shift = receive(peer, 1)[0] >> 4, 0, 0
    while True:
        byte = receive(peer, 1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, receive(peer, length)


def connect(port: int, client_id: str, tls: Optional[ssl.SSLContext] = None, user: str = "guest",
            is_kept: bool = True) -> Tuple[socket.socket, int]:
    """Connects a client whose session is kept, or ends with the connection. Returns its socket and the return code of
    CONNACK. The password is the name of the user.
    """
    peer = socket.create_connection(("127.0.0.1", port), suite.patience(30))
    if tls is not None:
        peer = tls.wrap_socket(peer, server_hostname="127.0.0.1")
    peer.settimeout(suite.patience(30))
    # 0xc0: with user name and password; 0x02: Clean Session.
    flags = bytes([0xc0 if is_kept else 0xc2])
    peer.sendall(packet(0x10, text("MQTT") + b"\x04" + flags + b"\x00\x00" + text(client_id) + text(user) + text(user)))
    return peer, receive_packet(peer)[1][1]


def publish(topic: str, payload: bytes, qos: int = 0, is_retained: bool = False, packet_id: int = 1) -> bytes:
    """Returns a PUBLISH."""
    identifier = struct.pack(">H", packet_id) if qos else b""
    return packet(0x30 | qos << 1 | is_retained, text(topic) + identifier + payload)
