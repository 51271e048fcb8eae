"""Messages between MQTT and AMQP: paho on one side, pika on the other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pika

from harness.suite import until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from paho_client import Received, paho_client

MESSAGES = 30
VERSIONS = ["3.1.1", "5"]
# Topics, and the routing keys that they become.
KEYS = {"in/a": "in.a", "in/b.c/d": "in.b/c.d", "in/": "in.", "in/ä": "in.ä"}


def bound_queue(broker: MqttBroker, key: str) -> None:
    """Declares the durable queue `readings`, and binds it to amq.topic."""
    connection = broker.amqp()
    channel = connection.channel()
    channel.queue_declare("readings", durable=True)
    channel.queue_bind("readings", "amq.topic", key)
    connection.close()


def consumed(broker: MqttBroker, count: int) -> List[Tuple[Any, pika.BasicProperties, str]]:
    """Empties the queue, which has this number of messages: returns method, properties and body of each."""
    connection = broker.amqp()
    channel = connection.channel()
    found: List[Tuple[Any, pika.BasicProperties, str]] = []

    def all_arrived() -> bool:
        method, properties, body = channel.basic_get("readings", auto_ack=True)
        while method is not None:
            found.append((method, properties, body.decode()))
            method, properties, body = channel.basic_get("readings", auto_ack=True)
        return len(found) >= count

    until(f"{count} messages have arrived", all_arrived, PATIENCE)
    connection.close()
    assert len(found) == count, f"{len(found)} messages arrived instead of {count}"
    return found


def mqtt_to_amqp(version: str, home: Path) -> None:
    """Messages with QoS 1 and 2 are persistent and survive a kill. pika gets their routing keys and bodies."""
    with mqtt_broker(home) as broker, paho_client("sensor", version, broker.port) as sensor:
        bound_queue(broker, "in.#")
        sensor.connected()
        wanted = []
        for number in range(MESSAGES):
            topic, qos = list(KEYS)[number % len(KEYS)], 1 + number % 2
            reason = sensor.publish_and_wait(topic, str(number), qos)
            assert reason == "Success", reason
            wanted.append((KEYS[topic], str(number)))
        broker.kill()
        found = consumed(broker, MESSAGES)
        assert [(method.routing_key, body) for method, _, body in found] == wanted, found
        for method, properties, _ in found:
            assert (method.exchange, properties.delivery_mode) == ("amq.topic", 2), (method, properties)
            assert properties.content_type is None, properties
        # A message with QoS 0 is transient.
        sensor.connected().publish("in/a", "transient", 0)
        (method, properties, body), = consumed(broker, 1)
        assert (method.routing_key, properties.delivery_mode, body) == ("in.a", 1, "transient"), properties


def amqp_to_mqtt(version: str, home: Path) -> None:
    """Transient messages arrive with QoS 0 and persistent ones with QoS 1. A kept session has the persistent ones after
    a kill.
    """
    def publish(broker: MqttBroker, texts: Dict[str, int], key: str = "out.b/c.d") -> None:
        connection = broker.amqp()
        channel = connection.channel()
        channel.confirm_delivery()
        for text, mode in texts.items():
            properties = pika.BasicProperties(delivery_mode=mode, content_type="text/plain", headers={"x": 1})
            channel.basic_publish("amq.topic", key, text, properties, mandatory=True)
        connection.close()

    with mqtt_broker(home) as broker:
        with paho_client("live", version, broker.port) as live, \
                paho_client("kept", version, broker.port, is_kept=True) as kept:
            live.connected().subscribe("out/#", qos=1)
            kept.connected().subscribe("out/#", qos=1)
            publish(broker, {"transient": 1, "persistent": 2, "second transient": 1, "end": 2})
            wanted = [Received("out/b.c/d", text, qos, False)
                      for text, qos in (("transient", 0), ("persistent", 1), ("second transient", 0), ("end", 1))]
            for client in (live, kept):
                received = client.wait_received("end")
                assert received == wanted, received
            live.close()
            kept.close()
            publish(broker, {f"away {number}": 2 for number in range(MESSAGES)})
            broker.kill()
            kept.client.reconnect()
            kept.client.loop_start()
            kept.connected()
            publish(broker, {"end 2": 2})
            received = [message for message in kept.wait_received("end 2")[4:] if message.text.startswith("away")]
            assert [message.text for message in received] == [f"away {number}" for number in range(MESSAGES)], received
            assert {(message.topic, message.qos) for message in received} == {("out/b.c/d", 1)}, received


def content_type(home: Path) -> None:
    """pika gets messages with the content type in `mqtt_content_type`, also after a kill."""
    with mqtt_broker(home, 'mqtt_content_type = "application/json"') as broker:
        bound_queue(broker, "in.#")
        for version in VERSIONS:
            with paho_client("sensor", version, broker.port) as sensor:
                sensor.connected().publish_and_wait("in/json", '{"n": 1}', 1)
                broker.kill()
                (_, properties, body), = consumed(broker, 1)
                assert (properties.content_type, properties.delivery_mode, body) == \
                    ("application/json", 2, '{"n": 1}'), properties
                sensor.connected().publish("in/json", "{}", 0)
                (_, properties, _), = consumed(broker, 1)
                assert (properties.content_type, properties.delivery_mode) == ("application/json", 1), properties


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {"content-type": content_type}
    for version in VERSIONS:
        found[f"mqtt-to-amqp-{version}"] = lambda home, version=version: mqtt_to_amqp(version, home)
        found[f"amqp-to-mqtt-{version}"] = lambda home, version=version: amqp_to_mqtt(version, home)
    return found
