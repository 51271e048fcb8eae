"""The mapping between MQTT 3.1.1 and AMQP beside the MQTT plug-in of RabbitMQ 3.10.8.

`recorded.tsv` has what RabbitMQ does: a name and a text in each line. `differences.tsv` has what Leveret does instead,
and why. The case `mapping` compares Leveret with both. A difference that is not listed is a failure, and so is a listed
one that no longer occurs.

    python3 mapping.py --record      # records RabbitMQ anew; needs rabbitmq-server and pika
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    TESTS = HERE.parents[1]
    sys.path[:0] = [str(TESTS / "support"), str(HERE.parent), str(TESTS / "system" / "tls"), str(HERE)]

import pika  # noqa: E402

from harness import brokers  # noqa: E402
from harness.suite import patience, until  # noqa: E402

from mqtt_broker import PATIENCE, mqtt_broker  # noqa: E402
from packets import SUBACK, V3_1_1, RawClient, Will, connect, publish, subscribe  # noqa: E402

RECORDED, DIFFERENCES = HERE / "recorded.tsv", HERE / "differences.tsv"
# Topics that MQTT clients publish to, and routing keys that AMQP clients use.
TOPICS = ["a/b", "a/b.c/d", "/a", "a/", "a//b", "ä/ö", "a b", "spBv1.0/g/NBIRTH/n", "a*b", "$x/y"]
KEYS = ["a.b", "a/b", ".a", "a.", "a..b", "ä.ö", "a.b/c", "a.*.b", "$x.y"]
FILTERS = ["a/b", "a/+", "a/#", "#", "+/b", "+", "a.b/+", "a//+", "ä/+"]


class Node(NamedTuple):
    """A broker, and its addresses."""

    mqtt_port: int
    amqp: brokers.Address
    # Runs `rabbitmqctl` or `leveretctl`.
    ctl: Callable[..., str]
    # RabbitMQ sends a retained message some time after SUBACK.
    retained_after_s: float = 0.0


def connected(node: Node, name: str, is_kept: bool = False, will: Optional[Will] = None) -> RawClient:
    """Connects a client of MQTT 3.1.1."""
    return RawClient(node.mqtt_port, V3_1_1, connect(V3_1_1, name, 60, not is_kept, will))


def subscribed(client: RawClient, topic_filter: str, qos: int) -> List[int]:
    """Subscribes. Returns the codes of SUBACK."""
    packet_id = client.next_id()
    client.send(subscribe(V3_1_1, packet_id, topic_filter, qos=qos))
    return client.answer(SUBACK, packet_id).codes


@contextlib.contextmanager
def amqp(node: Node) -> Iterator[Any]:
    """Returns a channel of pika during a `with` block."""
    connection = pika.BlockingConnection(pika.ConnectionParameters(
        node.amqp.host, node.amqp.port, heartbeat=0, socket_timeout=patience(PATIENCE)))
    try:
        yield connection.channel()
    finally:
        connection.close()


def next_message(channel: Any) -> Tuple[Any, pika.BasicProperties, bytes]:
    """Returns method, properties and body of the next message in the queue `all`."""
    def found() -> Any:
        got = channel.basic_get("all", auto_ack=True)
        return got if got[0] else None

    return until("a message has arrived", found, PATIENCE)


def properties_of(properties: pika.BasicProperties) -> str:
    """Returns the properties that are set as a text."""
    values = {name: value for name, value in vars(properties).items() if value is not None}
    headers = values.pop("headers", None) or {}
    values.update({f"header {name}": value for name, value in headers.items()})
    return " ".join(f"{name}={value!r}" for name, value in sorted(values.items()))


def from_mqtt(node: Node, seen: Dict[str, str]) -> None:
    """Messages of MQTT clients, as AMQP clients get them."""
    with amqp(node) as channel:
        channel.queue_declare("all", durable=True)
        channel.queue_bind("all", "amq.topic", "#")
        publisher = connected(node, "publisher")
        ways = [(topic, 1, False) for topic in TOPICS]
        ways += [("a/b", 0, False), ("a/b", 2, False), ("retained/b", 1, True), ("retained/b", 0, True)]
        for topic, qos, retain in ways:
            name = f"publish {topic!r} with QoS {qos}{' and RETAIN' if retain else ''}"
            # RabbitMQ answers QoS 2 with PUBACK, so no answer is awaited.
            publisher.send(publish(V3_1_1, topic, name.encode(), qos, retain, publisher.next_id()))
            method, properties, body = next_message(channel)
            assert body.decode() == name, (name, body)
            seen[name] = f"exchange={method.exchange!r} key={method.routing_key!r} {properties_of(properties)}"
        connected(node, "dying", will=Will("will/b", b"gone", 1, False)).lose()
        method, properties, _ = next_message(channel)
        seen["will with QoS 1"] = f"key={method.routing_key!r} {properties_of(properties)}"
        publisher.disconnect()
        channel.queue_delete("all")


def from_amqp(node: Node, seen: Dict[str, str]) -> None:
    """Messages of AMQP clients, as MQTT clients get them."""
    subscribers = {qos: connected(node, f"subscriber-{qos}") for qos in range(3)}
    for qos, subscriber in subscribers.items():
        seen[f"SUBACK for QoS {qos}"] = str(subscribed(subscriber, "#", qos))
    with amqp(node) as channel:
        channel.confirm_delivery()
        ways = [(key, 2, 1) for key in KEYS]
        ways += [("a.b", mode, qos) for mode in (None, 1, 2) for qos in subscribers]
        for key, mode, qos in ways:
            name = f"key {key!r} delivery_mode {mode} for QoS {qos}"
            headers = {"text": "value", "number": 1}
            properties = pika.BasicProperties(delivery_mode=mode, content_type="text/plain", headers=headers)
            channel.basic_publish("amq.topic", key, name, properties)
            # A message that arrives in any case.
            channel.basic_publish("amq.topic", "end", f"after {name}", properties)
            subscribers[qos].wait("end", f"after {name}".encode())
            found = [f"topic={message.topic!r} qos={message.qos} retain={int(message.is_retained)}"
                     for message in subscribers[qos].messages if message.payload.decode() == name]
            seen[name] = ", ".join(found)
    for subscriber in subscribers.values():
        subscriber.disconnect()


def queues(node: Node, seen: Dict[str, str]) -> None:
    """The queues and bindings of subscriptions."""
    for name, is_kept, qos in [("clean", False, 0), ("clean", False, 1), ("kept", True, 1)]:
        client = connected(node, name, is_kept)
        subscribed(client, "a/b", qos)
        columns = ["name", "durable", "auto_delete", "exclusive"]
        text = node.ctl("list_queues", *columns)
        rows = [row.split("\t") for row in text.splitlines() if row.startswith("mqtt-")]
        found = sorted(" ".join(f"{column}={value}" for column, value in zip(columns, row)) for row in rows)
        seen[f"queue of a {name} session with QoS {qos}"] = "; ".join(found)
        client.disconnect()
        connected(node, name).disconnect()
        until("the queue is gone", lambda: "mqtt-" not in node.ctl("list_queues", "name"), PATIENCE)
    for topic_filter in FILTERS:
        client = connected(node, "filters")
        subscribed(client, topic_filter, 1)
        rows = node.ctl("list_bindings", "source_name", "routing_key").splitlines()
        keys = [row.split("\t")[1] for row in rows if row.startswith("amq.topic\t")]
        seen[f"binding of {topic_filter!r}"] = f"keys={keys}"
        client.disconnect()
        until("the binding is gone",
              lambda: "amq.topic\t" not in node.ctl("list_bindings", "source_name", "routing_key"), PATIENCE)


def retained(node: Node, seen: Dict[str, str]) -> None:
    """Retained messages."""
    publisher = connected(node, "publisher")
    publisher.publish("kept/x", b"retained", 1, is_retained=True)
    for topic_filter in ["kept/x", "kept/+", "kept/#"]:
        subscriber = connected(node, "later")
        subscribed(subscriber, topic_filter, 1)
        time.sleep(node.retained_after_s)
        publisher.publish("kept/x", b"live", 1)
        subscriber.wait("kept/x", b"live")
        found = [f"{message.payload.decode()} retain={int(message.is_retained)} qos={message.qos}"
                 for message in subscriber.messages]
        seen[f"retained message for {topic_filter!r}"] = ", ".join(found)
        subscriber.disconnect()
    publisher.publish("kept/x", b"", 1, is_retained=True)
    publisher.disconnect()


def observe(node: Node) -> Dict[str, str]:
    """Returns all observations."""
    seen: Dict[str, str] = {}
    for part in (from_mqtt, from_amqp, queues, retained):
        part(node, seen)
    return seen


def lines_of(path: Path) -> Dict[str, List[str]]:
    """Returns the other columns of each line, by the first one."""
    rows = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: texts for name, *texts in rows}


def mapping(home: Path) -> None:
    """Compares Leveret with the recording."""
    recorded = {name: texts[0] for name, texts in lines_of(RECORDED).items()}
    differences = {name: texts[0] for name, texts in lines_of(DIFFERENCES).items()}
    with mqtt_broker(home) as broker:
        seen = observe(Node(broker.port, broker.process.address, broker.process.ctl))
    wrong = [f"{name}: the difference does not occur any more" for name in differences
             if recorded.get(name) in (None, differences[name])]
    for name in sorted(recorded.keys() | seen.keys()):
        expected = differences.get(name, recorded.get(name))
        if seen.get(name) != expected:
            wrong.append(f"{name}\n  RabbitMQ: {recorded.get(name)}\n  expected: {expected}\n  Leveret:  {seen.get(name)}")
    assert not wrong, "\n".join(wrong)


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {"mapping": mapping}


def record() -> None:
    """Records RabbitMQ."""
    port = brokers.free_port()
    lines = f"mqtt.listeners.tcp.1 = 127.0.0.1:{port}\nmqtt.allow_anonymous = false\n"
    node = brokers.RabbitMq(lines=lines, plugins="rabbitmq_mqtt")
    try:
        seen = observe(Node(port, node.address, node.ctl, 0.5))
    finally:
        node.close()
    head = "# What the MQTT plug-in of RabbitMQ 3.10.8 does: see mapping.py.\n"
    RECORDED.write_text(head + "".join(f"{name}\t{text}\n" for name, text in seen.items()))


if __name__ == "__main__":
    brokers.raise_on_sigterm()
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        with tempfile.TemporaryDirectory() as folder:
            mapping(Path(folder))
