"""Programs of home automation with as many topics as a large home has, against a broker with the profile of a small board.

They need packages that are too large for the gate, so these cases run in `full` mode only. Home Assistant runs as a core
with its MQTT integration, and Zigbee2MQTT with a simulated radio. Telegraf and Frigate are imitated with paho.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import paho.mqtt.client as paho

from clients.program import Program
from harness import environment
from harness.suite import patience, until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from paho_client import PahoClient, paho_client

HERE = Path(__file__).resolve().parent
# Programs start slowly on a busy machine.
START_PATIENCE = 6 * PATIENCE
# Protocol versions, as Zigbee2MQTT's configuration has them.
LEVELS = {"3.1.1": "4", "5": "5"}
BOARD = 'board = "pi-zero-w"'


# Warnings that follow from a clean stop with clients, and from a kill.
EXPECTED = ("reason 'shutdown'", "have no footer")
# Seconds without a new message after which the discovery of Zigbee2MQTT has ended.
SETTLED_S = 3.0


def publish_retained(publisher: PahoClient, messages: Dict[str, bytes], qos: int = 1) -> None:
    """Publishes retained messages by topic, and waits until all are acknowledged."""
    publisher.connected()
    for message in [publisher.client.publish(topic, payload, qos, True) for topic, payload in messages.items()]:
        message.wait_for_publish(patience(PATIENCE))
        assert message.is_published(), "a retained message was not acknowledged"


def check_quiet(broker: MqttBroker) -> None:
    """Checks that the broker had nothing to warn of."""
    loud = [line for line in broker.log().splitlines()
            if (" WARN " in line or " ERROR " in line) and not any(text in line for text in EXPECTED)]
    assert not loud, "\n".join(loud)


# ---- Home Assistant

ENTITIES = 1500
ENTITIES_PER_DEVICE = 4


def discovery() -> Dict[str, bytes]:
    """Returns the configuration of each sensor. Each has a topic for its state, so that there are as many subscriptions."""
    found = {}
    for number in range(ENTITIES):
        device = number // ENTITIES_PER_DEVICE
        found[f"homeassistant/sensor/d{device}/e{number}/config"] = json.dumps({
            "name": f"E{number}", "unique_id": f"leveret_{number}", "state_topic": state_topic(number),
            "value_template": "{{ value_json.value }}",
            "availability": [{"topic": f"home/d{device}/availability"}],
            "device": {"identifiers": [f"leveret_d{device}"], "name": f"D{device}", "manufacturer": "Aqara",
                       "model": "Temperature and humidity sensor (WSDCGQ11LM)", "sw_version": "2.14.1"},
            "origin": {"name": "Zigbee2MQTT", "sw": "2.14.1", "url": "https://www.zigbee2mqtt.io"},
        }).encode()
    for device in range(ENTITIES // ENTITIES_PER_DEVICE):
        found[f"home/d{device}/availability"] = b"online"
    return found


def state_topic(number: int) -> str:
    """Returns the topic of the state of a sensor."""
    return f"home/d{number // ENTITIES_PER_DEVICE}/e{number}/state"


def states(turn: int) -> Dict[str, bytes]:
    """Returns the states of all sensors in a round."""
    return {state_topic(number): json.dumps({"value": f"{number}.{turn}", "linkquality": 120}).encode()
            for number in range(ENTITIES)}


@contextlib.contextmanager
def home_assistant(broker: MqttBroker, folder: Path) -> Iterator[Program]:
    """Runs Home Assistant during a `with` block, from the moment when its integration is set up."""
    command = [str(environment.home_assistant_python()), str(HERE / "with_homeassistant.py"), str(folder),
               str(broker.port), str(ENTITIES)]
    program = Program("Home Assistant", command, dict(os.environ))
    try:
        program.wait("started", patience_s=START_PATIENCE)
        yield program
        # An empty line ends it.
        program.answer()
        program.wait("stopped", patience_s=START_PATIENCE)
    finally:
        program.kill()


def check_states(program: Program, turn: int) -> None:
    """Checks that Home Assistant has each sensor with its state of a round, and no others."""
    before = program.count(f"complete {turn}")
    program.process.stdin.write(f"{turn}\n")
    program.process.stdin.flush()
    program.wait(f"complete {turn}", before + 1, START_PATIENCE)


def discovered(home: Path) -> None:
    """Home Assistant finds all sensors and their states, also after it starts again, and after kills of the broker."""
    with mqtt_broker(home, BOARD) as broker, paho_client("publisher", "5", broker.port) as publisher:
        publish_retained(publisher, {**discovery(), **states(1)})
        with home_assistant(broker, home / "first") as program:
            check_states(program, 1)
            publish_retained(publisher, states(2))
            check_states(program, 2)
        with home_assistant(broker, home / "first") as program:
            check_states(program, 2)
            # The new states come while it is not connected, so it must get them as retained messages.
            os.kill(program.process.pid, signal.SIGSTOP)
            broker.kill()
            publish_retained(publisher, states(3))
            os.kill(program.process.pid, signal.SIGCONT)
            check_states(program, 3)
        broker.kill()
        # Without its registry, it has only what is retained.
        with home_assistant(broker, home / "second") as program:
            check_states(program, 3)
        check_quiet(broker)


# ---- Zigbee2MQTT

ZIGBEE_DEVICES = 100
# The payload of `bridge/devices` is larger.
LARGE = 256 << 10


@contextlib.contextmanager
def zigbee2mqtt(broker: MqttBroker, folder: Path, version: str) -> Iterator[Program]:
    """Runs Zigbee2MQTT during a `with` block, from the moment when it has started."""
    packages = environment.zigbee2mqtt()
    # Node looks for modules beside the program.
    shutil.copy(HERE / "with_zigbee2mqtt.js", packages)
    folder.mkdir(exist_ok=True)
    command = ["node", str(packages / "with_zigbee2mqtt.js"), str(broker.port), LEVELS[version], str(ZIGBEE_DEVICES)]
    program = Program("Zigbee2MQTT", command, dict(os.environ, ZIGBEE2MQTT_DATA=str(folder)))
    try:
        program.wait("started", patience_s=START_PATIENCE)
        yield program
        assert not program.over, "Zigbee2MQTT ended:\n" + program.text()
    finally:
        program.kill()


def published(program: Program) -> Dict[str, bytes]:
    """Returns the retained messages that Zigbee2MQTT has published so far."""
    before = program.count("retained ")
    program.answer()
    line = program.wait("retained ", before + 1)
    return {topic: payload.encode() for topic, payload in json.loads(line.split(" ", 1)[1]).items()}


def check_retained(broker: MqttBroker, wanted: Callable[[], Dict[str, bytes]]) -> None:
    """Checks what a new subscriber gets of all that is retained. Later messages belong to it too."""
    found: Dict[str, bytes] = {}
    with paho_client("new-subscriber", "3.1.1", broker.port) as subscriber:
        subscriber.client.on_message = lambda _client, _data, message: found.update({message.topic: message.payload})
        subscriber.connected().subscribe("#", qos=1)
        try:
            until("the retained messages have arrived", lambda: wanted().items() == dict(found).items(), PATIENCE)
        except AssertionError:
            missing = [topic for topic, payload in wanted().items() if found.get(topic) != payload]
            raise AssertionError(f"not retained: {missing}; unknown: {sorted(set(found) - set(wanted()))}") from None


def bridge(version: str, home: Path) -> None:
    """All that Zigbee2MQTT publishes with RETAIN is retained, also after a clean stop, and then after a kill."""
    with mqtt_broker(home, BOARD) as broker, zigbee2mqtt(broker, home / "bridge", version) as program:
        def is_settled() -> bool:
            before = published(program)
            time.sleep(patience(SETTLED_S))
            return any(topic.startswith("homeassistant/") for topic in before) and published(program) == before

        # It drops what it publishes while it is not connected.
        until("Zigbee2MQTT has published its discovery", is_settled, START_PATIENCE)
        check_retained(broker, lambda: published(program))
        devices = published(program)["zigbee2mqtt/bridge/devices"]
        assert len(devices) > LARGE, len(devices)
        # What it sends with QoS 0 is only written within a minute, and at a clean stop.
        broker.restart()
        check_retained(broker, lambda: published(program))
        broker.kill()
        check_retained(broker, lambda: published(program))
        check_quiet(broker)


# ---- Telegraf

READINGS = 2400
# Telegraf's `max_undelivered_messages`.
UNDELIVERED_MAX = 1000


def late_acknowledgements(version: str, home: Path) -> None:
    """All messages arrive at a consumer that acknowledges only when it has 1,000, as Telegraf with a persistent session.
    After a kill it gets again at least those that it has not acknowledged.
    """
    with mqtt_broker(home, BOARD) as broker, \
            paho_client("telegraf", version, broker.port, is_kept=True) as consumer, \
            paho_client("sensor", version, broker.port) as publisher:
        numbers: List[int] = []
        undelivered: List[int] = []

        def on_message(client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
            numbers.append(int(message.payload))
            undelivered.append(message.mid)
            if len(undelivered) == UNDELIVERED_MAX:
                for packet_id in undelivered:
                    client.ack(packet_id, message.qos)
                undelivered.clear()

        consumer.client.on_message = on_message
        consumer.client.manual_ack_set(True)
        consumer.connected().subscribe("telegraf/#", qos=1)
        publisher.connected()
        messages = [publisher.client.publish(f"telegraf/{number % 50}/power", str(number), 1) for number in range(READINGS)]
        for message in messages:
            message.wait_for_publish(patience(PATIENCE))
            assert message.is_published(), "a message was not acknowledged"
        until("all messages have arrived", lambda: len(numbers) >= READINGS, PATIENCE)
        assert numbers == list(range(READINGS)), "not in order, or some twice"
        # Those that were sent to a connection that is lost cannot be acknowledged on another one.
        undelivered.clear()
        broker.kill()
        waiting = set(range(READINGS // UNDELIVERED_MAX * UNDELIVERED_MAX, READINGS))
        until("the others have arrived again", lambda: waiting <= set(numbers[READINGS:]), PATIENCE)
        again = numbers[READINGS:]
        assert again == list(range(again[0], READINGS)), f"not in order, or some twice: {again}"
        assert consumer.connacks[-1][1], "the session was lost"


# ---- Frigate

CAMERAS = 6
IMAGES = 4
IMAGE_BYTES = 1_000_000


def image(camera: int, number: int) -> bytes:
    """Returns the bytes of an image, with the beginning and the end of JPEG."""
    seed = b"%d %d " % (camera, number)
    return b"\xff\xd8\xff\xe0" + (seed * (IMAGE_BYTES // len(seed)))[:IMAGE_BYTES - 6] + b"\xff\xd9"


def camera_images(qos: int, home: Path) -> None:
    """The images of several cameras arrive, and the last ones are retained: with QoS 0, Frigate's default, over a clean
    stop, and with QoS 1 over a kill.
    """
    with mqtt_broker(home, BOARD) as broker, paho_client("viewer", "3.1.1", broker.port) as viewer:
        arrived: List[bytes] = []
        viewer.client.on_message = lambda _client, _data, message: arrived.append(message.payload)
        viewer.connected().subscribe("frigate/+/person/snapshot", qos=0)
        with paho_client("frigate", "3.1.1", broker.port) as frigate:
            for number in range(IMAGES):
                publish_retained(frigate, {f"frigate/cam{camera}/person/snapshot": image(camera, number)
                                           for camera in range(CAMERAS)}, qos)
                # With QoS 0, a client that does not read in time misses messages.
                count = (number + 1) * CAMERAS
                until(f"{count} images have arrived", lambda: len(arrived) == count, PATIENCE)
        wanted = [image(camera, number) for number in range(IMAGES) for camera in range(CAMERAS)]
        assert arrived == wanted, "another image, or another order"
        if qos:
            broker.kill()
        else:
            broker.restart()
        check_retained(broker, lambda: {f"frigate/cam{camera}/person/snapshot": image(camera, IMAGES - 1)
                                        for camera in range(CAMERAS)})
        check_quiet(broker)


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {
        "application-home-assistant": discovered,
        "application-frigate-qos-0": lambda home: camera_images(0, home),
        "application-frigate-qos-1": lambda home: camera_images(1, home),
    }
    for version in LEVELS:
        found[f"application-zigbee2mqtt-{version}"] = lambda home, version=version: bridge(version, home)
        found[f"application-telegraf-{version}"] = lambda home, version=version: late_acknowledgements(version, home)
    return found
