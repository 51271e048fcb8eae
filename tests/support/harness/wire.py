"""AMQP 0-9-1 bytes, written independently of the broker under test.

Suites of the protocol itself must not share a decoder with the broker, and must see what a client library would hide.
So this codec keeps field types, table order and frame boundaries, and can also build invalid frames.
"""

from __future__ import annotations

import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE

# Every method of RabbitMQ: index, name, arguments. Consecutive `bit`s share an octet, as the protocol requires.
SPEC = """
10 connection
  10 start            version_major:octet version_minor:octet server_properties:table mechanisms:longstr locales:longstr
  11 start-ok         client_properties:table mechanism:shortstr response:longstr locale:shortstr
  20 secure           challenge:longstr
  21 secure-ok        response:longstr
  30 tune             channel_max:short frame_max:long heartbeat:short
  31 tune-ok          channel_max:short frame_max:long heartbeat:short
  40 open             virtual_host:shortstr capabilities:shortstr insist:bit
  41 open-ok          known_hosts:shortstr
  50 close            reply_code:short reply_text:shortstr class_id:short method_id:short
  51 close-ok
  60 blocked          reason:shortstr
  61 unblocked
  70 update-secret    new_secret:longstr reason:shortstr
  71 update-secret-ok
20 channel
  10 open             out_of_band:shortstr
  11 open-ok          channel_id:longstr
  20 flow             active:bit
  21 flow-ok          active:bit
  40 close            reply_code:short reply_text:shortstr class_id:short method_id:short
  41 close-ok
30 access
  10 request          realm:shortstr exclusive:bit passive:bit active:bit write:bit read:bit
  11 request-ok       ticket:short
40 exchange
  10 declare          ticket:short exchange:shortstr type:shortstr passive:bit durable:bit auto_delete:bit internal:bit nowait:bit arguments:table
  11 declare-ok
  20 delete           ticket:short exchange:shortstr if_unused:bit nowait:bit
  21 delete-ok
  30 bind             ticket:short destination:shortstr source:shortstr routing_key:shortstr nowait:bit arguments:table
  31 bind-ok
  40 unbind           ticket:short destination:shortstr source:shortstr routing_key:shortstr nowait:bit arguments:table
  51 unbind-ok
50 queue
  10 declare          ticket:short queue:shortstr passive:bit durable:bit exclusive:bit auto_delete:bit nowait:bit arguments:table
  11 declare-ok       queue:shortstr message_count:long consumer_count:long
  20 bind             ticket:short queue:shortstr exchange:shortstr routing_key:shortstr nowait:bit arguments:table
  21 bind-ok
  30 purge            ticket:short queue:shortstr nowait:bit
  31 purge-ok         message_count:long
  40 delete           ticket:short queue:shortstr if_unused:bit if_empty:bit nowait:bit
  41 delete-ok        message_count:long
  50 unbind           ticket:short queue:shortstr exchange:shortstr routing_key:shortstr arguments:table
  51 unbind-ok
60 basic
  10 qos              prefetch_size:long prefetch_count:short global:bit
  11 qos-ok
  20 consume          ticket:short queue:shortstr consumer_tag:shortstr no_local:bit no_ack:bit exclusive:bit nowait:bit arguments:table
  21 consume-ok       consumer_tag:shortstr
  30 cancel           consumer_tag:shortstr nowait:bit
  31 cancel-ok        consumer_tag:shortstr
  40 publish          ticket:short exchange:shortstr routing_key:shortstr mandatory:bit immediate:bit
  50 return           reply_code:short reply_text:shortstr exchange:shortstr routing_key:shortstr
  60 deliver          consumer_tag:shortstr delivery_tag:longlong redelivered:bit exchange:shortstr routing_key:shortstr
  70 get              ticket:short queue:shortstr no_ack:bit
  71 get-ok           delivery_tag:longlong redelivered:bit exchange:shortstr routing_key:shortstr message_count:long
  72 get-empty        cluster_id:shortstr
  80 ack              delivery_tag:longlong multiple:bit
  90 reject           delivery_tag:longlong requeue:bit
  100 recover-async   requeue:bit
  110 recover         requeue:bit
  111 recover-ok
  120 nack            delivery_tag:longlong multiple:bit requeue:bit
85 confirm
  10 select           nowait:bit
  11 select-ok
90 tx
  10 select
  11 select-ok
  20 commit
  21 commit-ok
  30 rollback
  31 rollback-ok
"""

# The fourteen content properties, in flag order, most significant bit first.
PROPERTIES: List[Tuple[str, str]] = [
    ("content_type", "shortstr"),
    ("content_encoding", "shortstr"),
    ("headers", "table"),
    ("delivery_mode", "octet"),
    ("priority", "octet"),
    ("correlation_id", "shortstr"),
    ("reply_to", "shortstr"),
    ("expiration", "shortstr"),
    ("message_id", "shortstr"),
    ("timestamp", "longlong"),
    ("type", "shortstr"),
    ("user_id", "shortstr"),
    ("app_id", "shortstr"),
    ("cluster_id", "shortstr"),
]

CONTENT_METHODS = {"basic.publish", "basic.return", "basic.deliver", "basic.get-ok"}


class Spec(NamedTuple):
    """One method of the protocol."""

    name: str
    class_id: int
    method_id: int
    args: List[Tuple[str, str]]


def _parse_spec(text: str) -> Tuple[Dict[str, Spec], Dict[Tuple[int, int], Spec]]:
    by_name: Dict[str, Spec] = {}
    by_id: Dict[Tuple[int, int], Spec] = {}
    class_id, class_name = 0, ""
    for line in text.strip().splitlines():
        words = line.split()
        if not line.startswith(" "):
            class_id, class_name = int(words[0]), words[1]
            continue
        args = []
        for word in words[2:]:
            name, kind = word.split(":")
            args.append((name, kind))
        spec = Spec(f"{class_name}.{words[1]}", class_id, int(words[0]), args)
        by_name[spec.name] = spec
        by_id[(class_id, spec.method_id)] = spec
    return by_name, by_id


METHODS, METHODS_BY_ID = _parse_spec(SPEC)


class Field(NamedTuple):
    """A table value with its wire type, since `I 5` and `l 5` are different bytes."""

    kind: str
    value: Any


class Frame(NamedTuple):
    """A received frame, without its end octet."""

    kind: int
    channel: int
    payload: bytes


class Method(NamedTuple):
    """A decoded method."""

    name: str
    args: Dict[str, Any]


class WireError(Exception):
    """The peer sent bytes that are not valid AMQP."""


# ---- scalars ------------------------------------------------------------------------------


def shortstr(text: Any) -> bytes:
    """Encodes a short string of up to 255 bytes. Bytes are encoded unchanged."""
    data = text if isinstance(text, bytes) else str(text).encode()
    if len(data) > 255:
        raise ValueError("a short string holds at most 255 bytes")
    return bytes([len(data)]) + data


def longstr(text: Any) -> bytes:
    """Encodes a long string."""
    data = text if isinstance(text, bytes) else str(text).encode()
    return struct.pack(">I", len(data)) + data


def table(value: Any) -> bytes:
    """Encodes a table, with its length, from a dict or from a list of pairs, which may repeat a name."""
    pairs = value.items() if isinstance(value, dict) else (value or [])
    data = b"".join(shortstr(name) + field(item) for name, item in pairs)
    return struct.pack(">I", len(data)) + data


def as_field(value: Any) -> Field:
    """Returns a plain Python value with its default wire type."""
    if isinstance(value, Field):
        return value
    if value is None:
        return Field("V", None)
    if isinstance(value, bool):
        return Field("t", value)
    if isinstance(value, int):
        return Field("I" if -(2**31) <= value < 2**31 else "l", value)
    if isinstance(value, float):
        return Field("d", value)
    if isinstance(value, dict):
        return Field("F", value)
    if isinstance(value, list):
        return Field("A", value)
    return Field("S", value)


_PACKED = {
    "b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I",
    "l": ">q", "L": ">q", "f": ">f", "d": ">d", "T": ">Q",
}


def field(value: Any) -> bytes:
    """Encodes a field value with its type octet."""
    kind, inner = as_field(value)
    tag = kind.encode("latin-1")
    if kind in _PACKED:
        return tag + struct.pack(_PACKED[kind], inner)
    if kind == "t":
        return tag + (b"\x01" if inner else b"\x00")
    if kind == "D":
        return tag + struct.pack(">BI", inner[0], inner[1])
    if kind in "Sx":
        return tag + longstr(inner)
    if kind == "F":
        return tag + table(inner)
    if kind == "A":
        data = b"".join(field(item) for item in inner)
        return tag + struct.pack(">I", len(data)) + data
    if kind == "V":
        return tag
    if kind == "raw":  # unchanged bytes, for invalid values
        return inner
    raise ValueError(f"no field type {kind!r}")


class Reader:
    """Reads values from the front of a byte string."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """Returns the next bytes. Raises an error if there are too few."""
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise WireError("a value exceeds its frame")
        self.at += count
        return piece

    def unpack(self, form: str) -> Any:
        """Returns one scalar, unpacked with a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, kind: str) -> Any:
        """Returns one method argument or property."""
        if kind == "octet":
            return self.unpack(">B")
        if kind == "short":
            return self.unpack(">H")
        if kind == "long":
            return self.unpack(">I")
        if kind == "longlong":
            return self.unpack(">Q")
        if kind == "shortstr":
            return self.take(self.unpack(">B"))
        if kind == "longstr":
            return self.take(self.unpack(">I"))
        if kind == "table":
            return self.table()
        raise ValueError(kind)

    def table(self) -> List[Tuple[bytes, Field]]:
        """Returns a table in the order in which it was sent."""
        inner = Reader(self.take(self.unpack(">I")))
        pairs = []
        while inner.at < len(inner.data):
            name = inner.take(inner.unpack(">B"))
            pairs.append((name, inner.field()))
        return pairs

    def field(self) -> Field:
        """Returns one field value."""
        kind = self.take(1).decode("latin-1")
        if kind in _PACKED:
            return Field(kind, self.unpack(_PACKED[kind]))
        if kind == "t":
            return Field(kind, self.unpack(">B") != 0)
        if kind == "D":
            return Field(kind, (self.unpack(">B"), self.unpack(">I")))
        if kind in "Sx":
            return Field(kind, self.take(self.unpack(">I")))
        if kind == "F":
            return Field(kind, self.table())
        if kind == "A":
            inner = Reader(self.take(self.unpack(">I")))
            items = []
            while inner.at < len(inner.data):
                items.append(inner.field())
            return Field(kind, items)
        if kind == "V":
            return Field(kind, None)
        raise WireError(f"unknown field type {kind!r}")


# ---- methods, properties, frames ----------------------------------------------------------

_ENCODERS = {
    "octet": lambda v: struct.pack(">B", v),
    "short": lambda v: struct.pack(">H", v),
    "long": lambda v: struct.pack(">I", v),
    "longlong": lambda v: struct.pack(">Q", v),
    "shortstr": shortstr,
    "longstr": longstr,
    "table": table,
}
_DEFAULTS: Dict[str, Any] = {
    "octet": 0, "short": 0, "long": 0, "longlong": 0, "bit": False,
    "shortstr": b"", "longstr": b"", "table": {},
}


def encode_method(name: str, **args: Any) -> bytes:
    """Encodes the payload of a method frame. Omitted arguments are zero, empty or false."""
    spec = METHODS[name]
    unknown = set(args) - {arg for arg, _ in spec.args}
    if unknown:
        raise ValueError(f"{name} has no argument {sorted(unknown)}")
    out = bytearray(struct.pack(">HH", spec.class_id, spec.method_id))
    bits, bit_count = 0, 0
    for arg, kind in spec.args:
        value = args.get(arg, _DEFAULTS[kind])
        if kind == "bit":
            bits |= int(bool(value)) << bit_count
            bit_count += 1
            continue
        if bit_count:
            out.append(bits)
            bits, bit_count = 0, 0
        out += value.value if isinstance(value, Field) and value.kind == "raw" else _ENCODERS[kind](value)
    if bit_count:
        out.append(bits)
    return bytes(out)


def decode_method(payload: bytes) -> Method:
    """Decodes the payload of a method frame, with every argument by name."""
    reader = Reader(payload)
    ids = (reader.unpack(">H"), reader.unpack(">H"))
    spec = METHODS_BY_ID.get(ids)
    if spec is None:
        raise WireError(f"unknown method {ids}")
    args: Dict[str, Any] = {}
    bits, bit_count = 0, 0
    for arg, kind in spec.args:
        if kind == "bit":
            if bit_count == 0:
                bits = reader.unpack(">B")
            args[arg] = bool(bits >> bit_count & 1)
            bit_count += 1
            continue
        bit_count = 0
        args[arg] = reader.value(kind)
    if reader.at != len(payload):
        raise WireError(f"{spec.name} has {len(payload) - reader.at} bytes too many")
    return Method(spec.name, args)


def encode_properties(props: Dict[str, Any]) -> bytes:
    """Encodes the property flags and the given properties."""
    flags, out = 0, b""
    for index, (name, kind) in enumerate(PROPERTIES):
        if name in props:
            flags |= 1 << (15 - index)
            out += _ENCODERS[kind](props[name])
    unknown = set(props) - {name for name, _ in PROPERTIES}
    if unknown:
        raise ValueError(f"unknown properties {sorted(unknown)}")
    return struct.pack(">H", flags) + out


class Header(NamedTuple):
    """A decoded content header."""

    class_id: int
    weight: int
    size: int
    props: Dict[str, Any]


def encode_header(size: int, props: Dict[str, Any], class_id: int = 60, weight: int = 0) -> bytes:
    """Encodes the payload of a content header frame."""
    return struct.pack(">HHQ", class_id, weight, size) + encode_properties(props)


def decode_header(payload: bytes) -> Header:
    """Decodes the payload of a content header frame."""
    reader = Reader(payload)
    class_id, weight, size = reader.unpack(">H"), reader.unpack(">H"), reader.unpack(">Q")
    flags = reader.unpack(">H")
    props = {}
    for index, (name, kind) in enumerate(PROPERTIES):
        if flags >> (15 - index) & 1:
            props[name] = reader.value(kind)
    if reader.at != len(payload):
        raise WireError("a content header has too many bytes")
    return Header(class_id, weight, size, props)


def frame(kind: int, channel: int, payload: bytes, end: int = FRAME_END) -> bytes:
    """Encodes one frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def method(channel: int, name: str, **args: Any) -> bytes:
    """Encodes a method frame."""
    return frame(FRAME_METHOD, channel, encode_method(name, **args))


def content(
    channel: int,
    body: bytes,
    props: Optional[Dict[str, Any]] = None,
    frame_max: int = 131072,
    pieces: Optional[List[int]] = None,
) -> bytes:
    """Encodes header and body frames; `pieces` sets the sizes of the body frames."""
    out = frame(FRAME_HEADER, channel, encode_header(len(body), props or {}))
    at = 0
    sizes = iter(pieces) if pieces else None
    while at < len(body):
        size = next(sizes) if sizes else frame_max - 8
        out += frame(FRAME_BODY, channel, body[at : at + size])
        at += size
    return out


def publish(channel: int, exchange: str, key: str, body: bytes = b"", **options: Any) -> bytes:
    """Encodes a complete publish. Options: props, frame_max, pieces, mandatory, immediate."""
    flags = {name: options[name] for name in ("mandatory", "immediate") if name in options}
    return method(channel, "basic.publish", exchange=exchange, routing_key=key, **flags) + content(
        channel, body, options.get("props"), options.get("frame_max", 131072), options.get("pieces")
    )


def split_frames(buffer: bytearray) -> Iterator[Frame]:
    """Removes every complete frame from the front of the buffer and returns them."""
    while len(buffer) >= 8:
        if buffer[:4] == b"AMQP":
            return
        kind, channel, size = struct.unpack(">BHI", buffer[:7])
        if len(buffer) < size + 8:
            return
        if buffer[size + 7] != FRAME_END:
            raise WireError("a frame has no end octet")
        payload = bytes(buffer[7 : size + 7])
        del buffer[: size + 8]
        yield Frame(kind, channel, payload)


# ---- text ---------------------------------------------------------------------------------


def show(value: Any) -> str:
    """Returns a value as deterministic text; long ones as length and checksum."""
    import zlib

    if isinstance(value, Field):
        return show_field(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, (bytes, bytearray)):
        if len(value) > 300:
            return f"<{len(value)} bytes, crc32 {zlib.crc32(value):08x}>"
        return repr(bytes(value))[1:]
    if isinstance(value, dict):
        return show_table([(k, as_field(v)) for k, v in value.items()])
    if isinstance(value, list):
        return show_table(value)
    return str(value)


def show_table(pairs: Any) -> str:
    """Returns a table as text, in wire order."""
    parts = []
    for name, value in pairs:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        parts.append(f"{text}={show_field(as_field(value))}")
    return "{" + ", ".join(parts) + "}"


def show_field(item: Field) -> str:
    """Returns a field value as text, with its type octet in front."""
    kind, value = item
    if kind == "raw":
        return "raw:" + value.hex()
    if kind == "F":
        return "F" + show_table(value.items() if isinstance(value, dict) else value)
    if kind == "A":
        return "A[" + ", ".join(show_field(as_field(inner)) for inner in value) + "]"
    if kind == "V":
        return "V"
    if kind in "fd":
        return f"{kind}:{struct.pack('>' + kind, value).hex()}"
    if kind == "t":
        return "t:" + show(value)
    if kind in "Sx":
        return kind + show(value)
    return f"{kind}:{value}"
