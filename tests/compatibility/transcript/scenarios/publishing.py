"""Publishing: flags, unaltered properties, sizes, CC and BCC, and refused publishes."""

from __future__ import annotations

from typing import Any, Dict, List

from harness import wire

from ..peer import Script
from ..registry import scenario

EVERY_TYPE: Dict[str, Any] = {
    "t": wire.Field("t", True), "b": wire.Field("b", -5), "B": wire.Field("B", 250), "s": wire.Field("s", -300),
    "u": wire.Field("u", 60000), "I": wire.Field("I", -70000), "i": wire.Field("i", 4000000000),
    "l": wire.Field("l", -5000000000), "L": wire.Field("L", 5000000000), "f": wire.Field("f", 1.5),
    "d": wire.Field("d", -2.25), "D": wire.Field("D", (2, 314)), "S": "text", "x": wire.Field("x", b"\x00\xff"),
    "T": wire.Field("T", 1700000000), "F": {"a": {"b": 1}}, "A": [1, "x", [True, {"y": None}]], "V": None,
}
ALL_PROPERTIES: Dict[str, Any] = {
    "content_type": "text/plain", "content_encoding": "utf-8", "headers": {"a": 1}, "delivery_mode": 1,
    "priority": 3, "correlation_id": "corr", "reply_to": "reply", "expiration": "60000", "message_id": "id",
    "timestamp": 1700000000, "type": "kind", "user_id": "guest", "app_id": "app", "cluster_id": "cluster",
}


@scenario("publish-default-exchange")
def default_exchange(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pde")
    ch.publish("", "pde", "hello")
    ch.call("basic.get", queue="pde", no_ack=True)
    t.note("to nobody: vanishes without an error")
    ch.publish("", "nobody", "lost")
    ch.publish("", "", "lost")
    ch.expect(0)
    t.note("mandatory, routable")
    ch.publish("", "pde", "kept", mandatory=True)
    ch.expect(0)
    ch.call("basic.get", queue="pde", no_ack=True)


@scenario("publish-mandatory")
def mandatory(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    t.note("returned with everything it came with")
    ch.publish("", "nobody", "lost", mandatory=True, props=ALL_PROPERTIES)
    ch.expect(1)
    ch.publish("amq.direct", "nobody", b"", mandatory=True)
    ch.expect(1)
    ch.publish("amq.fanout", "", b"z" * 200000, mandatory=True)
    ch.expect(1)
    t.note("in order, between others")
    ch.call("queue.declare", queue="pm")
    for number, key in enumerate(["nobody", "pm", "none", "pm"]):
        ch.publish("", key, str(number), mandatory=True)
    ch.expect(2)
    ch.call("queue.purge", queue="pm")


@scenario("publish-errors")
def errors(t: Script) -> None:
    a = t.connect()

    def refused(what: str, exchange: str = "", key: str = "nobody", body: bytes = b"x", **options: Any) -> None:
        t.note(what)
        ch = a.channel()
        ch.publish(exchange, key, body, **options)
        ch.expect_close()

    refused("a missing exchange", exchange="missing")
    refused("a missing exchange, mandatory", exchange="missing", mandatory=True)
    refused("the user id of somebody else", props={"user_id": "somebody"})
    refused("an empty user id", props={"user_id": ""})
    for value in ("abc", "", "-1", "1.5", " 5", "5 ", "0x10", "4294967296", "99999999999999999999", "1000ms"):
        refused(f"expiration {value!r}", props={"expiration": value})
    t.note("a missing exchange is found out before a bad expiration or user id")
    refused("", exchange="missing", props={"expiration": "abc", "user_id": "x"})
    refused("", props={"expiration": "abc", "user_id": "x"})
    t.note("immediate")
    ch = a.channel()
    ch.publish("", "nobody", "x", immediate=True)
    ch.expect_close()


@scenario("publish-accepted")
def accepted(t: Script) -> None:
    t.note("what looks odd; only a strange delivery mode is not taken")
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pa")
    odd: List[Dict[str, Any]] = [
        {"user_id": "guest"}, {"expiration": "0"}, {"expiration": "4294967295"}, {"expiration": "00060000"},
        {"priority": 255}, {"priority": 0}, {"delivery_mode": 0}, {"delivery_mode": 2}, {"delivery_mode": 3},
        {"delivery_mode": 255},
    ]
    for props in odd:
        ch.publish("", "pa", "x", props=props)
        if props.get("delivery_mode") not in (None, 1, 2):
            ch.expect_close()
        elif props.get("expiration") != "0":
            ch.call("basic.get", queue="pa", no_ack=True)


@scenario("publish-properties")
def properties(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pp")

    def round_trip(props: Dict[str, Any]) -> None:
        ch.publish("", "pp", "x", props=props)
        ch.call("basic.get", queue="pp", no_ack=True)

    t.note("none, each alone, all")
    round_trip({})
    for name, value in ALL_PROPERTIES.items():
        round_trip({name: value})
    round_trip(ALL_PROPERTIES)
    t.note("present but empty is not absent")
    round_trip({"headers": {}})
    round_trip({"content_type": "", "correlation_id": "", "reply_to": "", "message_id": "", "type": "",
                "app_id": "", "cluster_id": "", "content_encoding": ""})
    round_trip({"priority": 0, "timestamp": 0})
    t.note("any 64-bit timestamp, any octets")
    round_trip({"timestamp": 2**64 - 1})
    round_trip({"timestamp": 2**63})
    round_trip({"correlation_id": b"\x00\xff\xfe", "message_id": b"\x80" * 255, "type": "é"})
    t.note("every field type")
    round_trip({"headers": EVERY_TYPE})
    for name, value in EVERY_TYPE.items():
        round_trip({"headers": {name: value}})
    t.note("extremes")
    round_trip({"headers": {
        "b": wire.Field("b", -128), "s": wire.Field("s", -32768), "I": wire.Field("I", -2**31),
        "l": wire.Field("l", -2**63), "L": wire.Field("L", 2**63 - 1), "T": wire.Field("T", 2**64 - 1),
        "S": "", "F": {}, "A": [], "x": wire.Field("x", b""), "": "a nameless one", "n" * 255: 1,
    }})
    t.note("the same name twice, order kept")
    round_trip({"headers": [("b", 1), ("a", 2), ("b", 3)]})
    t.note("deep")
    deep: Dict[str, Any] = {"end": 1}
    for _ in range(20):
        deep = {"x": deep}
    round_trip({"headers": deep})
    t.note("a true that is not 1")
    round_trip({"headers": {"t": wire.Field("raw", b"t\x02")}})
    t.note("larger than usual: 60,000 octets of headers")
    round_trip({"headers": {"big": "h" * 60000}})


@scenario("publish-sizes")
def sizes(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="ps")
    for size in (0, 1, 79, 80, 255, 256, 257, 4095, 4096, 4097, 65535, 131063, 131064, 131065, 262128, 262129,
                 1000000):
        ch.publish("", "ps", bytes(index % 251 for index in range(size)))
        ch.call("basic.get", queue="ps", no_ack=True)
    t.note("a body in frames of odd sizes")
    ch.publish("", "ps", b"0123456789" * 100, pieces=[1, 2, 3, 500, 400, 94])
    ch.call("basic.get", queue="ps", no_ack=True)
    t.note("each one octet")
    ch.publish("", "ps", b"abcdefghij", pieces=[1] * 10)
    ch.call("basic.get", queue="ps", no_ack=True)
    t.note("the largest routing key")
    ch.publish("", "k" * 255, b"x", mandatory=True)
    ch.expect(1)


@scenario("publish-cc")
def cc(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    for queue in ("cc-1", "cc-2", "cc-3"):
        ch.call("queue.declare", queue=queue)

    def get_all() -> None:
        for queue in ("cc-1", "cc-2", "cc-3"):
            ch.call("basic.get", queue=queue, no_ack=True)

    t.note("CC")
    ch.publish("", "cc-1", "1", props={"headers": {"CC": ["cc-2", "cc-3"], "other": 1}})
    get_all()
    t.note("BCC is taken off")
    ch.publish("", "cc-1", "2", props={"headers": {"BCC": ["cc-2"], "CC": ["cc-3"], "other": 1}})
    get_all()
    t.note("BCC alone leaves an empty table")
    ch.publish("", "cc-1", "3", props={"headers": {"BCC": ["cc-2"]}})
    get_all()
    t.note("the same queue twice gets one copy")
    ch.publish("", "cc-1", "4", props={"headers": {"CC": ["cc-1", "cc-1"]}})
    get_all()
    t.note("the main key leads nowhere, CC does: not unroutable")
    ch.publish("", "nobody", "5", mandatory=True, props={"headers": {"CC": ["cc-2"]}})
    ch.expect(0)
    get_all()
    t.note("empty arrays")
    ch.publish("", "cc-1", "6", props={"headers": {"CC": [], "BCC": []}})
    get_all()
    t.note("an array with what is not a string in it")
    ch.publish("", "cc-1", "7", props={"headers": {"CC": ["cc-2", 5]}})
    ch.expect_close()
    get_all()
    t.note("through a direct and a topic exchange")
    ch.call("queue.bind", queue="cc-2", exchange="amq.direct", routing_key="cc-k")
    ch.call("queue.bind", queue="cc-3", exchange="amq.topic", routing_key="cc.*")
    ch.publish("amq.direct", "none", "8", props={"headers": {"CC": ["cc-k"]}})
    ch.publish("amq.topic", "none", "9", props={"headers": {"BCC": ["cc.x"]}})
    get_all()
    for name in ("CC", "BCC"):
        for value in ("cc-2", 5, {"a": 1}, None, True):
            t.note(f"{name} of the wrong type")
            ch = a.channel(3)
            ch.publish("", "cc-1", "x", props={"headers": {name: value}})
            ch.expect_close()
