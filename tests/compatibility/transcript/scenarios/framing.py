"""Wrong frames: misplaced, too large, incomplete, or of an unknown type."""

from __future__ import annotations

import struct

from harness import wire

from ..peer import Connection, Script
from ..registry import scenario


def ready(t: Script) -> Connection:
    """Returns a connection with channel 1 open."""
    a = t.connect()
    a.channel(1)
    return a


def wrong(t: Script, what: str, data: bytes) -> None:
    """Sends bytes on a connection with channel 1 open, and records the result."""
    t.note(what)
    a = ready(t)
    a.say(f"bytes {wire.show(data)}", data)
    a.hear_or_live()


@scenario("framing-errors", alone=False)
def framing_errors(t: Script) -> None:
    wrong(t, "a bad end octet on a method", wire.frame(1, 1, wire.encode_method("basic.qos"), end=0))
    wrong(t, "a bad end octet on a heartbeat", wire.frame(8, 0, b"", end=1))
    wrong(t, "a bad end octet on channel 0", wire.frame(1, 0, b"\x00\x0a\x00\x32", end=0xCF))
    for kind in (0, 4, 5, 7, 9, 65, 255):
        wrong(t, f"frame type {kind} on channel 1", wire.frame(kind, 1, b"abc"))
    wrong(t, "frame type 5 on channel 0", wire.frame(5, 0, b""))
    wrong(t, "a heartbeat on channel 1", wire.frame(8, 1, b""))
    wrong(t, "a heartbeat with a payload", wire.frame(8, 0, b"x"))
    wrong(t, "a body on channel 0", wire.frame(3, 0, b"x"))
    wrong(t, "a header on channel 0", wire.frame(2, 0, wire.encode_header(0, {})))
    wrong(t, "a second protocol header", wire.PROTOCOL_HEADER)


@scenario("framing-size", alone=False)
def framing_size(t: Script) -> None:
    t.note("the largest frame that was agreed: 131072 with its eight octets around the payload")
    a = ready(t)
    ch = a.channels[1]
    ch.call("queue.declare", queue="framing-size")
    body = b"x" * (131072 - 8)
    ch.publish("", "framing-size", body, pieces=[len(body)])
    ch.call("basic.get", queue="framing-size", no_ack=True)
    t.note("one octet more")
    body += b"x"
    ch.publish("", "framing-size", body, pieces=[len(body)])
    a.hear_or_live()
    t.note("only its first octets, announcing a size beyond the limit")
    a = ready(t)
    a.say("frame type 3, channel 1, size 1000000", struct.pack(">BHI", 3, 1, 1000000))
    a.hear()
    t.note("announcing 4 GiB less one octet")
    a = ready(t)
    a.say("frame type 1, channel 1, size 4294967295", struct.pack(">BHI", 1, 1, 0xFFFFFFFF))
    a.hear()
    t.note("4096 agreed, 4097 sent")
    a = t.connect(frame_max=4096)
    ch = a.channel(1)
    ch.publish("", "framing-size", b"y" * 4089, pieces=[4089])
    a.hear_or_live()
    t.note("4096 agreed, larger bodies come in frames of at most 4096")
    a = t.connect(frame_max=4096)
    ch = a.channel(1)
    ch.publish("", "framing-size", b"z" * 10000)
    ch.call("basic.get", queue="framing-size", no_ack=True)


@scenario("framing-content", alone=False)
def framing_content(t: Script) -> None:
    publish = wire.method(1, "basic.publish", routing_key="nowhere")
    header = wire.frame(2, 1, wire.encode_header(5, {}))
    wrong(t, "a body without a method", wire.frame(3, 1, b"hello"))
    wrong(t, "a header without a method", header)
    wrong(t, "publish, then a method", publish + wire.method(1, "basic.qos"))
    wrong(t, "publish, then a body", publish + wire.frame(3, 1, b"hello"))
    wrong(t, "publish, header, header", publish + header + header)
    wrong(t, "publish, header, method", publish + header + wire.method(1, "basic.qos"))
    wrong(t, "publish, half a body, method",
          publish + header + wire.frame(3, 1, b"he") + wire.method(1, "basic.qos"))
    wrong(t, "a header of another class", publish + wire.frame(2, 1, wire.encode_header(5, {}, class_id=50)))
    wrong(t, "a header of class 0", publish + wire.frame(2, 1, wire.encode_header(5, {}, class_id=0)))
    wrong(t, "more body than announced", publish + header + wire.frame(3, 1, b"hello!"))
    wrong(t, "a body frame after the body is complete",
          publish + header + wire.frame(3, 1, b"hello") + wire.frame(3, 1, b"more"))
    wrong(t, "an empty body frame after an empty body",
          publish + wire.frame(2, 1, wire.encode_header(0, {})) + wire.frame(3, 1, b""))
    wrong(t, "a body of 2^63 octets", publish + wire.frame(2, 1, wire.encode_header(2**63, {})))
    wrong(t, "a header that is too short", publish + wire.frame(2, 1, b"\x00\x3c\x00\x00"))
    wrong(t, "property flags without their properties",
          publish + wire.frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0x8000)))
    wrong(t, "property octets left over",
          publish + wire.frame(2, 1, wire.encode_header(0, {}) + b"\x00"))
    wrong(t, "a property flags continuation bit",
          publish + wire.frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 1) + b"\x00\x00"))
    wrong(t, "a header table longer than its frame",
          publish + wire.frame(2, 1, struct.pack(">HHQHI", 60, 0, 0, 0x2000, 100)))
    wrong(t, "an unknown field type in the headers",
          publish + wire.frame(2, 1, wire.encode_header(0, {"headers": {"a": wire.Field("raw", b"?")}})))
    t.note("weight is ignored")
    a = ready(t)
    ch = a.channels[1]
    ch.call("queue.declare", queue="framing-content")
    a.send(wire.method(1, "basic.publish", routing_key="framing-content")
           + wire.frame(2, 1, wire.encode_header(5, {}, weight=7)) + wire.frame(3, 1, b"hello"))
    a.hear()
    ch.call("basic.get", queue="framing-content", no_ack=True)
    t.note("empty body frames in between are harmless")
    a.send(wire.method(1, "basic.publish", routing_key="framing-content") + header
           + wire.frame(3, 1, b"") + wire.frame(3, 1, b"he") + wire.frame(3, 1, b"") + wire.frame(3, 1, b"llo"))
    ch.call("basic.get", queue="framing-content", no_ack=True)
    t.note("interleaved channels")
    other = a.channel(2)
    a.send(wire.method(1, "basic.publish", routing_key="framing-content") + header + wire.frame(3, 1, b"ab"))
    a.send(wire.method(2, "basic.publish", routing_key="framing-content") + wire.frame(2, 2, wire.encode_header(3, {})))
    a.send(wire.frame(3, 1, b"cde") + wire.frame(3, 2, b"xyz"))
    other.sync()
    ch.sync()
    got = sorted(str(wire.show(ch.need("basic.get", queue="framing-content", no_ack=True).body)) for _ in range(2))
    t.note(f"both arrived: {got}")


@scenario("framing-methods", alone=False)
def framing_methods(t: Script) -> None:
    def on(channel: int, payload: bytes) -> bytes:
        return wire.frame(1, channel, payload)

    wrong(t, "an unknown class", on(1, struct.pack(">HH", 99, 10)))
    wrong(t, "an unknown method of queue", on(1, struct.pack(">HH", 50, 99)))
    wrong(t, "an unknown class on channel 0", on(0, struct.pack(">HH", 99, 10)))
    wrong(t, "an unknown method of connection", on(0, struct.pack(">HH", 10, 99)))
    wrong(t, "a method too short to have a name", on(1, b"\x00\x32"))
    wrong(t, "an empty method frame", on(1, b""))
    wrong(t, "arguments that are missing", on(1, struct.pack(">HH", 50, 10)))
    wrong(t, "arguments cut short", on(1, wire.encode_method("queue.declare", queue="q")[:-3]))
    wrong(t, "octets left over", on(1, wire.encode_method("basic.qos") + b"\x00"))
    wrong(t, "an argument table longer than the frame",
          on(1, wire.encode_method("queue.declare", queue="q")[:-4] + b"\x00\x00\x00\x09"))
    wrong(t, "an unknown field type in an argument table",
          on(1, wire.encode_method("queue.declare", queue="q", arguments={"a": wire.Field("raw", b"?")})))
    wrong(t, "a reply as a request: queue.declare-ok", on(1, wire.encode_method("queue.declare-ok", queue="q")))
    wrong(t, "a reply as a request: basic.consume-ok", on(1, wire.encode_method("basic.consume-ok")))
    wrong(t, "a server's method: basic.deliver", on(1, wire.encode_method("basic.deliver")))
    wrong(t, "a server's method: basic.return", on(1, wire.encode_method("basic.return")))
    wrong(t, "basic.cancel-ok, allowed after a server's cancel", on(1, wire.encode_method("basic.cancel-ok"))
         )
    wrong(t, "a channel method on channel 0", on(0, wire.encode_method("channel.open")))
    wrong(t, "queue.declare on channel 0", on(0, wire.encode_method("queue.declare", queue="q")))
    wrong(t, "a connection method on channel 1", on(1, wire.encode_method("connection.open", virtual_host="/")))
    wrong(t, "connection.close on channel 1", on(1, wire.encode_method("connection.close", reply_code=200)))
    wrong(t, "connection.blocked from the client", on(0, wire.encode_method("connection.blocked")))


@scenario("framing-table-types", alone=False)
def framing_table_types(t: Script) -> None:
    t.note("every field type RabbitMQ takes, as queue.declare arguments; unknown names are ignored")
    a = t.connect()
    for kind, value in [
        ("t", True), ("b", -5), ("B", 250), ("s", -300), ("u", 60000), ("I", -70000), ("i", 4000000000),
        ("l", -5000000000), ("L", 5000000000), ("f", 1.5), ("d", -2.25), ("D", (2, 314)), ("S", "text"),
        ("x", b"\x00\xff"), ("T", 1700000000), ("F", {"a": {"b": 1}}), ("A", [1, "x", [True]]), ("V", None),
    ]:
        a.once("queue.declare", queue="framing-table-types", arguments={"x-none": wire.Field(kind, value)})
    t.note("types nobody defined")
    for kind in "U?zC":
        wrong(t, f"type {kind}", wire.method(1, "queue.declare", queue="framing-table-types",
              arguments={"x": wire.Field("raw", kind.encode() + b"\x00" * 8)}))
