"""The handshake from the protocol header to connection.open-ok, and its errors."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional

from harness import wire

from ..peer import Connection, Script
from ..registry import scenario

CAPABLE = {"capabilities": {"authentication_failure_close": True}}


def start(t: Script, name: str = "A", **start_ok: Any) -> Connection:
    """Does the handshake up to start-ok. The caller records the server's next method."""
    a = t.raw(name)
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    args: Dict[str, Any] = {"client_properties": CAPABLE, "mechanism": "PLAIN", "response": "\0guest\0guest",
                            "locale": "en_US"}
    args.update(start_ok)
    a.method("connection.start-ok", **args)
    return a


def tuned(t: Script, name: str = "A", channel_max: int = 2047, frame_max: int = 131072,
          heartbeat: int = 0) -> Connection:
    """Does the handshake up to tune-ok with these values."""
    a = start(t, name)
    a._await("connection.tune")
    a.method("connection.tune-ok", channel_max=channel_max, frame_max=frame_max, heartbeat=heartbeat)
    return a


def opened(a: Connection, vhost: str = "/", **args: Any) -> Optional[wire.Method]:
    """Sends connection.open and records the answer."""
    a.method("connection.open", virtual_host=vhost, **args)
    return a.hear()


@scenario("handshake", alone=False)
def handshake(t: Script) -> None:
    a = t.raw()
    a.say("AMQP 0 0 9 1", wire.PROTOCOL_HEADER)
    a.hear()
    a.method("connection.start-ok", client_properties=CAPABLE, mechanism="PLAIN", response="\0guest\0guest",
             locale="en_US")
    a.hear()
    a.method("connection.tune-ok", channel_max=2047, frame_max=131072, heartbeat=60)
    opened(a)
    a.close()


@scenario("handshake-protocol-header", alone=False)
def protocol_header(t: Script) -> None:
    for name, header in [
        ("version 0-8", b"AMQP\x01\x01\x08\x00"),
        ("version 0-9", b"AMQP\x00\x00\x09\x00"),
        ("version 0-10", b"AMQP\x01\x01\x00\x0a"),
        ("version 1.0", b"AMQP\x00\x01\x00\x00"),
        ("version 1.0 with SASL", b"AMQP\x03\x01\x00\x00"),
        ("rubbish", b"HELO world"),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n"),
        ("a TLS hello", bytes.fromhex("160301020001000001fc0303")),
    ]:
        t.note(name)
        a = t.raw()
        a.say(f"bytes {wire.show(header)}", header)
        if a.hear() is None:
            continue
        a.drop()


@scenario("handshake-split", alone=False)
def split(t: Script) -> None:
    t.note("one byte at a time")
    a = t.raw()
    data = (
        wire.PROTOCOL_HEADER
        + wire.method(0, "connection.start-ok", client_properties=CAPABLE, mechanism="PLAIN",
                      response="\0guest\0guest", locale="en_US")
        + wire.method(0, "connection.tune-ok", channel_max=2047, frame_max=131072, heartbeat=0)
        + wire.method(0, "connection.open", virtual_host="/")
    )
    for byte in data:
        a.send(bytes([byte]))
    for _ in range(3):
        a.hear()
    a.close()
    t.note("all at once, without waiting for anything")
    b = t.raw("B")
    b.send(data)
    for _ in range(3):
        b.hear()
    b.close()


@scenario("handshake-plain", alone=False)
def plain(t: Script) -> None:
    t.note("with an authorisation identity")
    a = start(t, response="guest\0guest\0guest")
    a.hear()
    opened_after_tune(a)
    for what, response in [
        ("wrong password", "\0guest\0wrong"),
        ("unknown user", "\0nobody\0guest"),
        ("no separators", "guest"),
        ("one separator", "guest\0guest"),
        ("empty", ""),
        ("empty password", "\0guest\0"),
        ("empty user", "\0\0guest"),
    ]:
        t.note(f"{what}, the client can be told")
        start(t, response=response).hear()
    t.note("wrong password, the client cannot be told")
    start(t, client_properties={}, response="\0guest\0wrong").hear_end()
    t.note("wrong password, the capability is there but false")
    start(t, client_properties={"capabilities": {"authentication_failure_close": False}},
          response="\0guest\0wrong").hear_end()


def opened_after_tune(a: Connection) -> None:
    """Finishes a handshake after connection.tune, if there was one."""
    if a.dead:
        return
    a.method("connection.tune-ok", channel_max=2047, frame_max=131072, heartbeat=0)
    opened(a)
    a.close()


@scenario("handshake-mechanisms", alone=False)
def mechanisms(t: Script) -> None:
    t.note("AMQPLAIN: a table without its length")
    login = wire.table({"LOGIN": "guest", "PASSWORD": "guest"})[4:]
    a = start(t, mechanism="AMQPLAIN", response=login)
    a.hear()
    opened_after_tune(a)
    for what, response in [
        ("AMQPLAIN with a wrong password", wire.table({"LOGIN": "guest", "PASSWORD": "wrong"})[4:]),
        ("AMQPLAIN without a password", wire.table({"LOGIN": "guest"})[4:]),
        ("AMQPLAIN with the password as a number", wire.table({"LOGIN": "guest", "PASSWORD": 5})[4:]),
        ("AMQPLAIN, empty", b""),
    ]:
        t.note(what)
        start(t, mechanism="AMQPLAIN", response=response).hear()
    for name in ("EXTERNAL", "RABBIT-CR-DEMO", "NONSENSE", "", "plain"):
        t.note(f"mechanism {name!r}")
        start(t, mechanism=name).hear()


@scenario("handshake-locale", alone=False)
def locale(t: Script) -> None:
    for name in ("", "de_DE"):
        t.note(f"locale {name!r}")
        a = start(t, locale=name)
        a.hear()
        opened_after_tune(a)


@scenario("handshake-client-properties", alone=False)
def client_properties(t: Script) -> None:
    t.note("empty")
    a = start(t, client_properties={})
    a.hear()
    opened_after_tune(a)
    t.note("with nested tables, arrays and every other type")
    a = start(t, client_properties={
        "product": "x", "n": None, "list": [1, "two", {"three": 3.5}],
        "capabilities": {"authentication_failure_close": True, "x": wire.Field("T", 1)},
    })
    a.hear()
    opened_after_tune(a)
    t.note("3,900 bytes of them")
    a = start(t, client_properties={"product": "x" * 3900})
    a.hear()
    opened_after_tune(a)
    t.note("capabilities that are not a table")
    a = start(t, client_properties={"capabilities": "all"})
    a.hear()


@scenario("handshake-tune", alone=False)
def tune(t: Script) -> None:
    variants: List[Dict[str, Any]] = [
        {"channel_max": 2047, "frame_max": 131072, "heartbeat": 0},
        {"channel_max": 1, "frame_max": 4096, "heartbeat": 600},
        {"channel_max": 10, "frame_max": 8192, "heartbeat": 65535},
        {"channel_max": 0},
        {"channel_max": 2048},
        {"channel_max": 65535},
        {"frame_max": 0},
        {"frame_max": 131073},
        {"frame_max": 4095},
        {"frame_max": 4096},
        {"frame_max": 1},
        {"channel_max": 0, "frame_max": 0, "heartbeat": 0},
    ]
    for values in variants:
        t.note(f"tune-ok {values}")
        a = tuned(t, **values)
        method = opened(a)
        if method is not None and method.name == "connection.open-ok":
            a.close()


@scenario("handshake-open", alone=False)
def open_(t: Script) -> None:
    t.note("an unknown virtual host")
    opened(tuned(t), "nowhere")
    t.note("an empty virtual host")
    opened(tuned(t), "")
    t.note("capabilities and insist are ignored")
    a = tuned(t)
    opened(a, capabilities="x", insist=True)
    a.close()


@scenario("handshake-out-of-order", alone=False)
def out_of_order(t: Script) -> None:
    t.note("tune-ok in place of start-ok")
    a = t.raw()
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    a.method("connection.tune-ok", channel_max=0, frame_max=0, heartbeat=0)
    a.hear()
    t.note("open in place of start-ok")
    a = t.raw()
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    a.method("connection.open", virtual_host="/")
    a.hear()
    t.note("open in place of tune-ok")
    a = start(t)
    a._await("connection.tune")
    a.method("connection.open", virtual_host="/")
    a.hear()
    t.note("start-ok twice")
    a = start(t)
    a._await("connection.tune")
    a.method("connection.start-ok", client_properties=CAPABLE, mechanism="PLAIN", response="\0guest\0guest",
             locale="en_US")
    a.hear()
    t.note("channel.open before connection.open")
    a = tuned(t)
    a.say("(channel 1) channel.open", wire.method(1, "channel.open"))
    a.hear()
    t.note("channel.open before start-ok")
    a = t.raw()
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    a.say("(channel 1) channel.open", wire.method(1, "channel.open"))
    a.hear()
    t.note("close before open")
    a = tuned(t)
    a.method("connection.close", reply_code=200, reply_text="changed my mind")
    a.hear()
    t.note("close before start-ok")
    a = t.raw()
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    a.method("connection.close", reply_code=200, reply_text="changed my mind")
    a.hear()
    t.note("a second connection.open")
    a = t.connect()
    a.method("connection.open", virtual_host="/")
    a.hear()
    t.note("tune-ok on an open connection")
    a = t.connect()
    a.method("connection.tune-ok", channel_max=0, frame_max=0, heartbeat=0)
    a.hear()
    t.note("a frame too large for the handshake")
    a = t.raw()
    a.send(wire.PROTOCOL_HEADER)
    a._await("connection.start")
    a.say("(a method frame of 131065 bytes begins)", b"\x01\x00\x00\x00\x01\xff\xf9" + b"\x00\x0a\x00\x0b")
    a.hear(2.0)


@scenario("connection-close")
def connection_close(t: Script) -> None:
    t.note("by the client, with channels open")
    a = t.connect()
    a.channel(1)
    a.channel(2)
    a.close()
    t.note("close-ok out of the blue")
    a = t.connect()
    a.method("connection.close-ok")
    a.hear()
    t.note("after the server's close only close-ok counts")
    a = t.connect()
    a.line(0, ">", "(method 10,99)")
    a.send(wire.frame(1, 0, b"\x00\x0a\x00\x63"))
    a.wait(lambda: bool(a.events))
    a.send(wire.method(1, "channel.open"))
    a.send(wire.frame(8, 0, b""))
    a.hear()


@scenario("connection-update-secret")
def update_secret(t: Script) -> None:
    a = t.connect()
    a.method("connection.update-secret", new_secret="guest", reason="token")
    a.hear()
    a.method("connection.update-secret", new_secret="", reason="")
    a.hear()
    a.close()


@scenario("heartbeat", alone=False)
def heartbeat(t: Script) -> None:
    t.note("a heartbeat of one second, and a client that says nothing")
    a = tuned(t, heartbeat=1)
    opened(a)
    began = time.monotonic()
    a.wait(lambda: False, 8.0)
    silent = time.monotonic() - began
    t.note(f"the server sent heartbeats: {a.heartbeats > 0}")
    t.note(f"it hung up after two to four seconds: {1.5 < silent < 4.5}")
    a.hear_end(0.1)
    t.note("a client whose only life signs are heartbeats")
    a = tuned(t, heartbeat=1)
    opened(a)
    for _ in range(5):
        a.send(wire.frame(8, 0, b""))
        a.wait(lambda: False, 0.7)
    t.note(f"still connected: {not a.closed_by_peer}")
    a.close()
    t.note("a client whose only life signs are methods")
    a = tuned(t, heartbeat=1)
    opened(a)
    ch = a.channel()
    for _ in range(5):
        ch.ask("basic.qos", prefetch_count=1)
        a.wait(lambda: False, 0.7)
    t.note(f"still connected: {not a.closed_by_peer}")
    a.close()
    t.note("no heartbeat agreed, but the client sends one")
    a = t.connect()
    a.say("heartbeat", wire.frame(8, 0, b""))
    a.channel().call("basic.qos")
    a.close()
