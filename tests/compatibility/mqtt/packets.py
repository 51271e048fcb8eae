"""MQTT packets as bytes, and a client that sends them and sorts what it receives.

With it, a case sends the packets of a device byte for byte, also those that no library would send at that moment.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from harness.suite import patience

from mqtt_broker import PATIENCE

# Protocol levels, as in CONNECT.
V3_1_1, V5 = 4, 5
# Packet types.
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, PINGRESP, DISCONNECTED = 2, 3, 4, 5, 6, 7, 9, 13, 14
PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"


class Will(NamedTuple):
    """The will in a CONNECT."""

    topic: str
    payload: bytes
    qos: int
    is_retained: bool


class Message(NamedTuple):
    """A received message."""

    topic: str
    payload: bytes
    qos: int
    # The RETAIN flag: the message was retained before the client subscribed.
    is_retained: bool


class Answer(NamedTuple):
    """A received packet that is no message."""

    kind: int
    # 0 in packets without one.
    packet_id: int
    # The reason codes of SUBACK, or the one reason code of another packet.
    codes: List[int]


def variable(number: int) -> bytes:
    """Returns an integer of variable length, as in MQTT and in protocol buffers."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def binary(data: bytes) -> bytes:
    """Returns bytes with their length before them."""
    return len(data).to_bytes(2, "big") + data


def text(value: str) -> bytes:
    """Returns a string with its length before it."""
    return binary(value.encode())


def packet(first_octet: int, body: bytes) -> bytes:
    """Returns a packet: type and flags, the remaining length, and the rest."""
    return bytes([first_octet]) + variable(len(body)) + body


def with_length(version: int, properties: bytes) -> bytes:
    """Returns properties as a packet has them; nothing before MQTT 5."""
    return variable(len(properties)) + properties if version == V5 else b""


def connect(version: int, client_id: str, keep_alive_s: int, is_clean: bool, will: Optional[Will] = None,
            properties: bytes = b"") -> bytes:
    """Returns a CONNECT of the user guest."""
    flags = 0xC0 | is_clean << 1
    body = text(client_id)
    if will:
        flags |= 0x04 | will.qos << 3 | will.is_retained << 5
        body += with_length(version, b"") + text(will.topic) + binary(will.payload)
    head = text("MQTT") + bytes([version, flags]) + keep_alive_s.to_bytes(2, "big") + with_length(version, properties)
    return packet(0x10, head + body + text("guest") + text("guest"))


def publish(version: int, topic: str, payload: bytes, qos: int = 0, is_retained: bool = False,
            packet_id: int = 0) -> bytes:
    """Returns a PUBLISH. With QoS 1 and 2 it has a packet identifier."""
    number = packet_id.to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1 | is_retained, text(topic) + number + with_length(version, b"") + payload)


def subscribe(version: int, packet_id: int, *filters: str, qos: int) -> bytes:
    """Returns a SUBSCRIBE."""
    body = b"".join(text(one) + bytes([qos]) for one in filters)
    return packet(0x82, packet_id.to_bytes(2, "big") + with_length(version, b"") + body)


class RawClient:
    """A connection. It acknowledges messages when it reads them."""

    def __init__(self, port: int, version: int, connect_packet: bytes) -> None:
        """Connects, and waits for CONNACK."""
        self.version = version
        self.messages: List[Message] = []
        self.answers: List[Answer] = []
        self.packet_id = 0
        self.input = bytearray()
        self.socket = socket.create_connection(("127.0.0.1", port), patience(PATIENCE))
        self.socket.sendall(connect_packet)
        connack = self.answer(CONNACK)
        assert connack.codes == [0], f"CONNECT is refused: {connack}"
        self.has_session = bool(connack.packet_id)

    def send(self, *packets: bytes) -> None:
        """Sends packets at once, as devices do that do not wait for answers."""
        self.socket.sendall(b"".join(packets))

    def next_id(self) -> int:
        """Returns a new packet identifier."""
        self.packet_id += 1
        return self.packet_id

    def subscribe(self, *filters: str, qos: int = 0) -> None:
        """Subscribes with one packet, and waits for SUBACK."""
        packet_id = self.next_id()
        self.send(subscribe(self.version, packet_id, *filters, qos=qos))
        codes = self.answer(SUBACK, packet_id).codes
        assert codes == [qos] * len(filters), f"SUBACK for {filters}: {codes}"

    def publish(self, topic: str, payload: bytes, qos: int = 0, is_retained: bool = False) -> int:
        """Publishes a message, and waits for PUBACK or PUBCOMP. Returns its reason code."""
        packet_id = self.next_id() if qos else 0
        self.send(publish(self.version, topic, payload, qos, is_retained, packet_id))
        return self.acknowledged(qos, packet_id) if qos else 0

    def acknowledged(self, qos: int, packet_id: int) -> int:
        """Waits until a message that was sent is acknowledged. Returns the reason code."""
        if qos == 2:
            self.answer(PUBREC, packet_id)
            self.send(packet(0x62, packet_id.to_bytes(2, "big")))
        return self.answer(PUBCOMP if qos == 2 else PUBACK, packet_id).codes[0]

    def ping(self) -> None:
        """Waits until the broker has processed all packets that were sent."""
        before = sum(answer.kind == PINGRESP for answer in self.answers)
        self.send(PINGREQ)
        self._read_until(lambda: sum(answer.kind == PINGRESP for answer in self.answers) > before, "no PINGRESP")

    def answer(self, kind: int, packet_id: Optional[int] = None) -> Answer:
        """Waits for a packet that is no message."""
        def found() -> Optional[Answer]:
            return next((answer for answer in self.answers
                         if answer.kind == kind and packet_id in (None, answer.packet_id)), None)

        return self._read_until(found, f"no packet of type {kind} with the packet identifier {packet_id}")

    def wait(self, topic: str, payload: Optional[bytes] = None, count: int = 1) -> Message:
        """Waits for the message number `count` with this topic, and with this payload unless it is None."""
        def found() -> Optional[Message]:
            matching = [message for message in self.messages
                        if message.topic == topic and payload in (None, message.payload)]
            return matching[count - 1] if len(matching) >= count else None

        return self._read_until(found, f"no message number {count} with the topic {topic} and the payload {payload!r}")

    def check_retained(self, wanted: Dict[str, bytes]) -> None:
        """Checks that these payloads, by topic, are all that has arrived: each once and with the RETAIN flag."""
        def all_there() -> bool:
            return len(self.messages) >= len(wanted)

        self._read_until(all_there, f"not {len(wanted)} retained messages")
        self.ping()
        found = {message.topic: message.payload for message in self.messages}
        assert found.keys() == wanted.keys(), f"retained topics: {sorted(found)}, wanted: {sorted(wanted)}"
        changed = {topic: payload[:80] for topic, payload in found.items() if payload != wanted[topic]}
        assert not changed, f"retained with another payload: {changed}"
        assert len(self.messages) == len(wanted), "a retained message arrived twice"
        assert all(message.is_retained for message in self.messages), "a retained message arrived without RETAIN"

    def _read_until(self, found: Callable[[], object], complaint: str) -> object:
        while not (result := found()):
            try:
                self._read()
            except (socket.timeout, EOFError) as why:
                last = [f"{message.topic} ({len(message.payload)} bytes)" for message in self.messages[-5:]]
                raise AssertionError(f"{complaint} ({why}); {len(self.messages)} messages, at last {last}") from None
        return result

    def _read(self) -> None:
        """Reads from the socket, and sorts the complete packets."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError("the broker closed the connection")
        self.input += data
        while (length := complete(self.input)) is not None:
            first_octet, head = self.input[0], length[0]
            body = bytes(self.input[head:head + length[1]])
            del self.input[:head + length[1]]
            self._sort(first_octet, body)

    def _sort(self, first_octet: int, body: bytes) -> None:
        kind = first_octet >> 4
        if kind == PUBLISH:
            self._take(first_octet, body)
        elif kind == CONNACK:
            # Whether a session is present is in the place of the packet identifier.
            self.answers.append(Answer(kind, body[0] & 1, [body[1]]))
        elif kind == PUBREL:
            self.send(packet(0x70, body[:2]))
        elif kind == SUBACK:
            start = 2 + (1 + body[2] if self.version == V5 else 0)
            self.answers.append(Answer(kind, int.from_bytes(body[:2], "big"), list(body[start:])))
        elif kind in (PUBACK, PUBREC, PUBCOMP):
            self.answers.append(Answer(kind, int.from_bytes(body[:2], "big"), list(body[2:3]) or [0]))
        else:
            self.answers.append(Answer(kind, 0, list(body[:1])))

    def _take(self, first_octet: int, body: bytes) -> None:
        qos = first_octet >> 1 & 3
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        packet_id, end = (body[end:end + 2], end + 2) if qos else (b"", end)
        if self.version == V5:
            assert body[end] < 0x80, "these messages have few properties"
            end += 1 + body[end]
        self.messages.append(Message(topic, body[end:], qos, bool(first_octet & 1)))
        if qos:
            self.send(packet(0x40 if qos == 1 else 0x50, packet_id))

    def disconnect(self) -> None:
        """Sends DISCONNECT, and waits until the broker closes the connection."""
        self.send(DISCONNECT)
        with contextlib.suppress(EOFError):
            while True:
                self._read()
        self.lose()

    def lose(self) -> None:
        """Closes the connection without DISCONNECT."""
        self.socket.close()


def complete(data: bytearray) -> Optional[List[int]]:
    """Returns the lengths of the header and of the rest of the first packet, or None if it is not complete."""
    length = 0
    for at in range(1, min(len(data), 5)):
        length |= (data[at] & 0x7F) << 7 * (at - 1)
        if data[at] < 0x80:
            return [at + 1, length] if len(data) >= at + 1 + length else None
    return None


@contextlib.contextmanager
def raw_client(port: int, version: int, client_id: str) -> Iterator[RawClient]:
    """Runs a client without a will and with a clean session during a `with` block."""
    client = RawClient(port, version, connect(version, client_id, 60, True))
    try:
        yield client
    finally:
        client.lose()
