"""Packets of ESPHome, Home Assistant, Zigbee2MQTT and Sparkplug B in the order in which these programs send them.

The order, the flags, the topics and the shape of the payloads are those of ESPHome 2025, Home Assistant 2025,
Zigbee2MQTT 2 and Sparkplug 3.0. The programs themselves would need boards, radios or many packages.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from harness.suite import patience

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from packets import PINGREQ, SUBACK, V3_1_1, V5, RawClient, Will, connect, publish, raw_client, subscribe, variable

VERSIONS = {V3_1_1: "3.1.1", V5: "5"}
OFFLINE, ONLINE = b"offline", b"online"
# Reason codes of PUBACK.
SUCCESS, NO_MATCHING_SUBSCRIBERS = 0, 0x10


def as_json(value: object) -> bytes:
    """Returns compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def check_retained(broker: MqttBroker, version: int, wanted: Dict[str, bytes], *filters: str) -> None:
    """Checks what a new subscriber gets: the payloads of retained messages by topic."""
    with raw_client(broker.port, version, "new-subscriber") as client:
        client.subscribe(*filters)
        client.check_retained(wanted)


# ---- ESPHome

NODE = "greenhouse"
LIGHT, SENSOR = f"{NODE}/light/lamp", f"{NODE}/sensor/soil_moisture"
LIGHT_CONFIG, SENSOR_CONFIG = (f"homeassistant/{kind}/{NODE}/{entity}/config"
                               for kind, entity in (("light", "lamp"), ("sensor", "soil_moisture")))


def esphome_discovery(kind: str, entity: str, more: Dict[str, object]) -> bytes:
    """Returns the configuration of an entity, with the abbreviated keys that ESPHome sends."""
    return as_json({
        **more, "name": entity, "stat_t": f"{NODE}/{kind}/{entity}/state", "avty_t": f"{NODE}/status",
        "uniq_id": f"ESP{kind}{entity}",
        "dev": {"ids": "240ac4112233", "name": NODE, "sw": "2025.9.0 (config hash 0x1234abcd)", "mdl": "esp32dev",
                "mf": "Espressif", "cns": [["mac", "240ac4112233"]]},
    })


# The retained messages, with their payloads.
ESPHOME_RETAINED = {
    LIGHT_CONFIG: esphome_discovery("light", "lamp", {"schema": "json", "brightness": True, "cmd_t": f"{LIGHT}/command"}),
    f"{LIGHT}/state": as_json({"state": "OFF", "color_mode": "brightness"}),
    SENSOR_CONFIG: esphome_discovery("sensor", "soil_moisture", {"unit_of_meas": "%", "stat_cla": "measurement"}),
    f"{SENSOR}/state": b"41.7",
}
ESPHOME_ADDRESS = as_json({"ip": "192.0.2.7", "name": NODE, "version": "2025.9.0", "mac": "240ac4112233",
                           "platform": "ESP32", "board": "esp32dev", "network": "wifi"})
# A line of its log, with the colours of a terminal.
ESPHOME_LOG = b"\x1b[0;36m[D][sensor:094]: 'Soil moisture': Sending state 41.70000 % with 1 decimals of accuracy\x1b[0m"


class EspHome:
    """A board. It sends all packets after CONNACK at once."""

    def __init__(self, broker: MqttBroker, is_clean: bool) -> None:
        # CONNECT: MQTT 3.1.1, keep-alive 15 s, the will NODE/status = offline with QoS 0 and RETAIN.
        self.client = RawClient(broker.port, V3_1_1, connect(
            V3_1_1, f"{NODE}-240ac4112233", 15, is_clean, Will(f"{NODE}/status", OFFLINE, 0, True)))
        self.client.send(
            # Three SUBSCRIBE: two for the search of boards with QoS 2, one for commands with QoS 0.
            subscribe(V3_1_1, 1, "esphome/discover", qos=2),
            subscribe(V3_1_1, 2, f"esphome/ping/{NODE}", qos=2),
            subscribe(V3_1_1, 3, f"{LIGHT}/command", qos=0),
            # PUBLISH of its address with QoS 2 and RETAIN.
            publish(V3_1_1, f"esphome/discover/{NODE}", ESPHOME_ADDRESS, 2, True, 4),
            # PUBLISH of the birth with QoS 0 and RETAIN.
            publish(V3_1_1, f"{NODE}/status", ONLINE, 0, True),
            # PUBLISH of the configuration and the state of each entity with QoS 0 and RETAIN.
            *(publish(V3_1_1, topic, payload, 0, True) for topic, payload in ESPHOME_RETAINED.items()),
            # PUBLISH of a line of its log with QoS 0 and RETAIN.
            publish(V3_1_1, f"{NODE}/debug", ESPHOME_LOG, 0, True),
            PINGREQ)
        for packet_id, qos in ((1, 2), (2, 2), (3, 0)):
            codes = self.client.answer(SUBACK, packet_id).codes
            assert codes == [qos], f"SUBACK {packet_id}: {codes}"
        self.client.acknowledged(2, 4)
        self.client.ping()

    def stop(self) -> None:
        """PUBLISH of the shutdown message, which is that of the will, and DISCONNECT."""
        self.client.send(publish(V3_1_1, f"{NODE}/status", OFFLINE, 0, True))
        self.client.disconnect()


def check_esphome(broker: MqttBroker, status: bytes) -> None:
    """Checks what is retained of the board."""
    wanted = {**ESPHOME_RETAINED, f"{NODE}/status": status, f"{NODE}/debug": ESPHOME_LOG}
    check_retained(broker, V3_1_1, wanted, f"{NODE}/#", f"homeassistant/+/{NODE}/+/config")


def esphome(home: Path) -> None:
    """Birth, will, discovery, states and commands of a board, with the default session, and with `clean_session: true`.
    It is lost, and it comes back after a kill of the broker.
    """
    with mqtt_broker(home) as broker:
        for is_clean in (False, True):
            with raw_client(broker.port, V3_1_1, "watcher") as watcher:
                watcher.subscribe(f"{NODE}/status")
                watcher.ping()
                watcher.messages.clear()
                board = EspHome(broker, is_clean)
                watcher.wait(f"{NODE}/status", ONLINE)
                check_esphome(broker, ONLINE)
                watcher.publish(f"{LIGHT}/command", b'{"state":"ON"}')
                assert board.client.wait(f"{LIGHT}/command").payload == b'{"state":"ON"}'
                # The board loses its power.
                board.client.lose()
                watcher.wait(f"{NODE}/status", OFFLINE)
                check_esphome(broker, OFFLINE)
                board = EspHome(broker, is_clean)
                assert board.client.has_session is not is_clean, "the session"
                check_esphome(broker, ONLINE)
            broker.kill()
            # Its retained message with QoS 2 survives. Those with QoS 0 need not be on the disk yet.
            check_retained(broker, V3_1_1, {f"esphome/discover/{NODE}": ESPHOME_ADDRESS}, "esphome/discover/+")
            with raw_client(broker.port, V3_1_1, "watcher") as watcher:
                watcher.subscribe(f"{NODE}/status", f"esphome/discover/{NODE}")
                watcher.ping()
                watcher.messages.clear()
                board = EspHome(broker, is_clean)
                assert board.client.has_session is not is_clean, "the session after the kill"
                watcher.wait(f"{NODE}/status", ONLINE)
                check_esphome(broker, ONLINE)
                watcher.publish(f"esphome/ping/{NODE}", b"", 2)
                board.client.wait(f"esphome/ping/{NODE}")
                board.stop()
                watcher.wait(f"{NODE}/status", OFFLINE)
                watcher.ping()
                # No will, because the board came back and then sent DISCONNECT.
                states = [message.payload for message in watcher.messages if message.topic == f"{NODE}/status"]
                assert states == [ONLINE, OFFLINE], states
            check_esphome(broker, OFFLINE)


# ---- Home Assistant

ENTITIES = 200
STATUS = "homeassistant/status"


def discovery() -> Dict[str, bytes]:
    """Returns discovery configurations with and without a node in the topic, and one of a whole device."""
    found = {}
    for number in range(ENTITIES):
        node = f"0x00158d{number // 4:010x}"
        entity = ("temperature", "humidity", "battery", "linkquality")[number % 4]
        separator = "/" if number % 10 else "_"
        found[f"homeassistant/sensor/{node}{separator}{entity}/config"] = as_json({
            "availability": [{"topic": "zigbee2mqtt/bridge/state", "value_template": "{{ value_json.state }}"}],
            "device": {"identifiers": [f"zigbee2mqtt_{node}"], "manufacturer": "Aqara", "model": "T & H sensor",
                       "name": node, "via_device": "zigbee2mqtt_bridge_0x00124b0024c1a2b3"},
            "device_class": entity, "enabled_by_default": True, "object_id": f"{node}_{entity}",
            "origin": {"name": "Zigbee2MQTT", "sw": "2.6.0", "url": "https://www.zigbee2mqtt.io"},
            "state_class": "measurement", "state_topic": f"zigbee2mqtt/{node}",
            "unique_id": f"{node}_{entity}_zigbee2mqtt",
            "value_template": f"{{{{ value_json.{entity} }}}}"})
    found["homeassistant/device/rack/config"] = as_json(
        {"dev": {"ids": "rack"}, "o": {"name": "rack"}, "cmps": {f"fan{number}": {"p": "fan"} for number in range(20)}})
    return found


class HomeAssistant:
    """Home Assistant, from CONNECT until it has the discovery configurations."""

    def __init__(self, broker: MqttBroker, version: int) -> None:
        # CONNECT: a clean session, keep-alive 60 s, the will homeassistant/status = offline with QoS 0 without RETAIN.
        self.client = RawClient(broker.port, version, connect(
            version, "3uPqXq0a8Qd3vVnT1mYkzB", 60, True, Will(STATUS, OFFLINE, 0, False)))
        # One SUBSCRIBE for each filter with wildcards, and one for all others, without waiting for SUBACK.
        self.client.send(
            subscribe(version, 1, "homeassistant/+/+/config", qos=0),
            subscribe(version, 2, "homeassistant/+/+/+/config", qos=0),
            subscribe(version, 3, "tasmota/discovery/#", qos=0),
            subscribe(version, 4, *(f"zigbee2mqtt/0x00158d{number:010x}" for number in range(ENTITIES // 4)), qos=0))
        for packet_id, count in ((1, 1), (2, 1), (3, 1), (4, ENTITIES // 4)):
            codes = self.client.answer(SUBACK, packet_id).codes
            assert codes == [0] * count, f"SUBACK {packet_id}: {codes}"

    def announce(self) -> None:
        """PUBLISH of the birth with QoS 0 without RETAIN, after discovery."""
        self.client.publish(STATUS, ONLINE)


def home_assistant(home: Path) -> None:
    """Home Assistant gets all discovery configurations, also after a kill. Devices get its birth and its will."""
    for version, name in VERSIONS.items():
        (home / name).mkdir()
        with mqtt_broker(home / name) as broker:
            wanted = discovery()
            with raw_client(broker.port, version, "zigbee2mqtt") as device:
                for topic, payload in wanted.items():
                    assert device.publish(topic, payload, 1, True) in (SUCCESS, NO_MATCHING_SUBSCRIBERS)
            with raw_client(broker.port, version, "device") as device:
                device.subscribe(STATUS)
                assistant = HomeAssistant(broker, version)
                assistant.client.check_retained(wanted)
                assistant.announce()
                device.wait(STATUS, ONLINE)
                # An entity is removed, and another one changes.
                removed, changed = list(wanted)[3:5]
                del wanted[removed]
                wanted[changed] = wanted[changed].replace(b"Aqara", b"Xiaomi")
                assert device.publish(removed, b"", 1, True) == SUCCESS
                assert device.publish(changed, wanted[changed], 1, True) == SUCCESS
                assert assistant.client.wait(removed, b"").is_retained is False
                assert assistant.client.wait(changed, wanted[changed]).is_retained is False
            broker.kill()
            with raw_client(broker.port, version, "device") as device:
                device.subscribe(STATUS)
                assistant = HomeAssistant(broker, version)
                assistant.client.check_retained(wanted)
                assistant.announce()
                device.publish("zigbee2mqtt/0x00158d0000000001", b'{"temperature":21.5}')
                assistant.client.wait("zigbee2mqtt/0x00158d0000000001", b'{"temperature":21.5}')
                # It stops without DISCONNECT, so that devices get the will.
                assistant.client.lose()
                device.wait(STATUS, OFFLINE)
                states = [message.payload for message in device.messages if message.topic == STATUS]
                assert states == [ONLINE, OFFLINE], states
            # Neither the birth nor the will is retained.
            check_retained(broker, version, {}, STATUS)


# ---- Zigbee2MQTT

BASE = "zigbee2mqtt"
BRIDGE_ONLINE, BRIDGE_OFFLINE = (as_json({"state": state}) for state in ("online", "offline"))


def zigbee_devices(count: int) -> bytes:
    """Returns the payload of bridge/devices with this number of devices, about 1.6 KiB each."""
    def exposed(name: str) -> Dict[str, object]:
        return {"access": 1, "category": "diagnostic", "description": f"Measured {name} value", "label": name,
                "name": name, "property": name, "type": "numeric", "unit": "%", "value_max": 100, "value_min": 0}

    return as_json([{
        "date_code": "20191130", "disabled": False, "friendly_name": f"Raum {number}/Fühler",
        "ieee_address": f"0x{number:016x}",
        "interview_completed": True, "interview_state": "SUCCESSFUL", "interviewing": False, "manufacturer": "LUMI",
        "model_id": "lumi.weather", "network_address": 4096 + number, "power_source": "Battery", "supported": True,
        "type": "EndDevice",
        "endpoints": {"1": {"bindings": [], "clusters": {"input": ["genBasic", "msTemperatureMeasurement"], "output": []},
                            "configured_reportings": [], "scenes": []}},
        "definition": {"description": "Temperature and humidity sensor", "model": "WSDCGQ11LM", "supports_ota": False,
                       "vendor": "Aqara", "options": [], "source": "native",
                       "exposes": [exposed(name) for name in ("battery", "temperature", "humidity", "pressure", "voltage",
                                                              "linkquality")]},
    } for number in range(count)])


def bridge_retained(device_count: int) -> Dict[str, bytes]:
    """Returns what Zigbee2MQTT publishes with QoS 0 and RETAIN."""
    return {
        f"{BASE}/bridge/info": as_json({"version": "2.6.0", "permit_join": False, "config": {"mqtt": {"version": 5}}}),
        f"{BASE}/bridge/devices": zigbee_devices(device_count),
        f"{BASE}/bridge/groups": as_json([{"friendly_name": "Keller", "id": 1, "members": [], "scenes": []}]),
    }


class Zigbee2Mqtt:
    """Zigbee2MQTT, from CONNECT until its retained messages are published."""

    def __init__(self, broker: MqttBroker, version: int, messages: Dict[str, bytes]) -> None:
        # CONNECT: a clean session, keep-alive 60 s, the will bridge/state = offline with QoS 1 and RETAIN. With MQTT 5,
        # Maximum Packet Size is 1 MiB.
        properties = b"\x27" + (1 << 20).to_bytes(4, "big") if version == V5 else b""
        self.client = RawClient(broker.port, version, connect(
            version, "mqttjs_7c2f01aa", 60, True, Will(f"{BASE}/bridge/state", BRIDGE_OFFLINE, 1, True), properties))
        # PUBLISH of the birth with QoS 1 and RETAIN, and SUBSCRIBE of everything below its topic, its own messages too.
        assert self.client.publish(f"{BASE}/bridge/state", BRIDGE_ONLINE, 1, True) in (SUCCESS, NO_MATCHING_SUBSCRIBERS)
        self.client.subscribe(f"{BASE}/#")
        for topic, payload in messages.items():
            self.client.publish(topic, payload, 0, True)


def zigbee2mqtt(home: Path) -> None:
    """The bridge, with 160 KB of devices in one retained message. It is lost, and it comes back after a kill."""
    for version, name in VERSIONS.items():
        (home / name).mkdir()
        with mqtt_broker(home / name) as broker:
            messages = bridge_retained(100)
            size = len(messages[f"{BASE}/bridge/devices"])
            assert 150_000 < size, size
            state = {f"{BASE}/bridge/state": BRIDGE_ONLINE}
            with raw_client(broker.port, version, "frontend") as frontend:
                frontend.subscribe(f"{BASE}/bridge/state", qos=1)
                bridge = Zigbee2Mqtt(broker, version, messages)
                for topic, payload in messages.items():
                    assert bridge.client.wait(topic).payload == payload, f"{topic} comes back changed"
                check_retained(broker, version, {**messages, **state}, f"{BASE}/#")
                frontend.publish(f"{BASE}/Lampe/set", b'{"state":"ON"}')
                frontend.publish(f"{BASE}/bridge/request/permit_join", b'{"time":254}')
                bridge.client.wait(f"{BASE}/Lampe/set", b'{"state":"ON"}')
                bridge.client.wait(f"{BASE}/bridge/request/permit_join", b'{"time":254}')
                bridge.client.lose()
                assert frontend.wait(f"{BASE}/bridge/state", BRIDGE_OFFLINE).qos == 1
                # The log is written in order: after this PUBACK, the will is on the disk.
                frontend.publish("frontend/last_seen", b"1764345600", 1, True)
            # A message with QoS 1 is in the log. The will has replaced the birth.
            broker.kill()
            check_retained(broker, version, {f"{BASE}/bridge/state": BRIDGE_OFFLINE}, f"{BASE}/bridge/state")
            bridge = Zigbee2Mqtt(broker, version, messages)
            bridge.client.ping()
            check_retained(broker, version, {**messages, **state}, f"{BASE}/#")
            bridge.client.disconnect()
            # A clean stop writes those with QoS 0.
            broker.restart()
            check_retained(broker, version, {**messages, **state}, f"{BASE}/#")
            small_client(broker, messages)
            snapshots(broker, version)


def small_client(broker: MqttBroker, messages: Dict[str, bytes]) -> None:
    """Checks that a client with a Maximum Packet Size of 4 KiB gets the smaller messages only."""
    client = RawClient(broker.port, V5, connect(V5, "small", 60, True, None, b"\x27" + (4 << 10).to_bytes(4, "big")))
    client.subscribe(f"{BASE}/bridge/#")
    small = {topic: payload for topic, payload in messages.items() if len(payload) < 4 << 10}
    client.check_retained({**small, f"{BASE}/bridge/state": BRIDGE_ONLINE})
    client.disconnect()


def snapshots(broker: MqttBroker, version: int) -> None:
    """Checks retained images of 1 MB as Frigate's: with QoS 1 over a kill, with QoS 0 over a clean stop."""
    topic = "frigate/yard/person/snapshot"
    images = [bytes((at * factor + at // 4096) % 256 for at in range(1_000_000)) for factor in (3, 5)]
    with raw_client(broker.port, version, "viewer") as viewer, raw_client(broker.port, version, "frigate") as frigate:
        viewer.subscribe(topic)
        assert frigate.publish(topic, images[0], 1, True) == SUCCESS
        viewer.wait(topic, images[0])
    broker.kill()
    check_retained(broker, version, {topic: images[0]}, topic)
    with raw_client(broker.port, version, "frigate") as frigate:
        frigate.publish(topic, images[1], 0, True)
        frigate.ping()
    broker.restart()
    check_retained(broker, version, {topic: images[1]}, topic)


# ---- Sparkplug B

GROUP, EDGE, METER = "plant", "line.1", "meter"
STATE = "spBv1.0/STATE/scada"
# Data types of metrics.
INT64, DOUBLE, BOOLEAN = 4, 10, 11
DATA_COUNT = 20
TIME_MS = 1_764_345_600_000


def edge_topic(kind: str, *device: str) -> str:
    """Returns a topic of the edge node or of its device."""
    return "/".join(["spBv1.0", GROUP, kind, EDGE, *device])


def routing_key(topic: str) -> str:
    """Returns the routing key of a topic, or the topic of a routing key."""
    return topic.translate(str.maketrans("/.", "./"))


def metric(name: str, kind: int, value: Any) -> bytes:
    """Returns a metric: name (field 1), timestamp (3), data type (4), and long_value (11), double_value (13) or
    boolean_value (14).
    """
    values = {INT64: lambda: b"\x58" + variable(value), DOUBLE: lambda: b"\x69" + struct.pack("<d", value),
              BOOLEAN: lambda: b"\x70" + variable(value)}
    label = b"\x0a" + variable(len(name)) + name.encode()
    return label + b"\x18" + variable(TIME_MS) + b"\x20" + variable(kind) + values[kind]()


def sparkplug_payload(sequence: Optional[int], *metrics: bytes) -> bytes:
    """Returns a payload: timestamp (field 1), metrics (2), and the sequence number (3) unless it is a death."""
    found = b"\x08" + variable(TIME_MS)
    for one in metrics:
        found += b"\x12" + variable(len(one)) + one
    return found + (b"" if sequence is None else b"\x18" + variable(sequence))


def death(number: int) -> bytes:
    """Returns the payload of an NDEATH, with the number of the NBIRTH that it belongs to."""
    return sparkplug_payload(None, metric("bdSeq", INT64, number))


def births(number: int) -> List[Tuple[str, bytes]]:
    """Returns NBIRTH, DBIRTH and some DDATA, with sequence numbers from 0."""
    found = [
        (edge_topic("NBIRTH"), sparkplug_payload(
            0, metric("bdSeq", INT64, number), metric("Node Control/Rebirth", BOOLEAN, False))),
        (edge_topic("DBIRTH", METER), sparkplug_payload(1, metric("Power", DOUBLE, 0.0))),
    ]
    return found + [(edge_topic("DDATA", METER), sparkplug_payload(2 + at, metric("Power", DOUBLE, 230.5 + at)))
                    for at in range(DATA_COUNT)]


def host_state(is_online: bool, time_ms: int) -> bytes:
    """Returns the payload of STATE."""
    return as_json({"online": is_online, "timestamp": time_ms})


class Host:
    """A host application, from CONNECT until its STATE is published."""

    def __init__(self, broker: MqttBroker, version: int, time_ms: int) -> None:
        # CONNECT: a clean session, keep-alive 30 s, the will STATE = offline with QoS 1 and RETAIN.
        self.client = RawClient(broker.port, version, connect(
            version, "scada", 30, True, Will(STATE, host_state(False, time_ms), 1, True)))
        # SUBSCRIBE of everything, before PUBLISH of STATE = online with QoS 1 and RETAIN.
        self.client.subscribe("spBv1.0/#", qos=1)
        assert self.client.publish(STATE, host_state(True, time_ms), 1, True) == SUCCESS
        self.client.wait(STATE, host_state(True, time_ms))

    def check_births(self, number: int) -> None:
        """Checks that all messages of the edge node since its NBIRTH are there, in order."""
        wanted = births(number)
        self.client.wait(*wanted[-1])
        found = [(message.topic, message.payload) for message in self.client.messages if message.topic != STATE]
        assert found == wanted, f"{len(found)} messages instead of {len(wanted)}, or not in order"
        self.client.messages.clear()


class EdgeNode:
    """An edge node, from CONNECT until it has published its births and some data."""

    def __init__(self, broker: MqttBroker, version: int, number: int, time_ms: int) -> None:
        # CONNECT: a clean session, keep-alive 30 s, the will NDEATH with QoS 1 without RETAIN.
        self.client = RawClient(broker.port, version, connect(
            version, f"{GROUP}-{EDGE}", 30, True, Will(edge_topic("NDEATH"), death(number), 1, False)))
        # SUBSCRIBE of commands, and of the state of its host, for which it waits.
        self.client.subscribe(edge_topic("NCMD"), edge_topic("DCMD") + "/#", STATE, qos=1)
        assert self.client.wait(STATE, host_state(True, time_ms)).is_retained
        self.publish_births(number)

    def publish_births(self, number: int) -> None:
        """PUBLISH of NBIRTH, DBIRTH and DDATA with QoS 0 without RETAIN."""
        for topic, payload in births(number):
            self.client.publish(topic, payload)
        self.client.ping()


def amqp_messages(broker: MqttBroker, count: int) -> List[Tuple[str, bytes, int]]:
    """Consumes this number of messages with pika: returns topic, body and delivery mode of each."""
    connection = broker.amqp()
    found = []
    for method, properties, body in connection.channel().consume("sparkplug", auto_ack=True,
                                                                 inactivity_timeout=patience(PATIENCE)):
        assert method is not None, f"{len(found)} of {count} messages arrived"
        found.append((routing_key(method.routing_key), body, properties.delivery_mode))
        if len(found) == count:
            break
    connection.close()
    return found


def amqp_command(broker: MqttBroker, topic: str, payload: bytes) -> None:
    """Publishes a command with pika."""
    connection = broker.amqp()
    connection.channel().basic_publish("amq.topic", routing_key(topic), payload)
    connection.close()


def sparkplug(home: Path) -> None:
    """Births, data, commands and deaths of an edge node reach its host, and a consumer with AMQP. The host's STATE
    survives a kill.
    """
    for version, name in VERSIONS.items():
        (home / name).mkdir()
        with mqtt_broker(home / name) as broker:
            connection = broker.amqp()
            connection.channel().queue_declare("sparkplug", durable=True)
            # All messages of edge nodes: dots of a topic are slashes of a routing key.
            connection.channel().queue_bind("sparkplug", "amq.topic", f"spBv1/0.{GROUP}.#")
            connection.close()
            host = Host(broker, version, TIME_MS)
            node = EdgeNode(broker, version, 0, TIME_MS)
            host.check_births(0)
            assert amqp_messages(broker, len(births(0))) == [(*message, 1) for message in births(0)]
            commands(broker, host, node)
            # The edge node dies.
            node.client.lose()
            assert host.client.wait(edge_topic("NDEATH"), death(0)).qos == 1
            assert amqp_messages(broker, 1) == [(edge_topic("NDEATH"), death(0), 2)]
            # Neither births nor data nor deaths are retained.
            check_retained(broker, version, {STATE: host_state(True, TIME_MS)}, "spBv1.0/#")
            host.client.messages.clear()
            node = EdgeNode(broker, version, 1, TIME_MS)
            host.check_births(1)
            node.client.lose()
            host.client.wait(edge_topic("NDEATH"), death(1))
            # The log is written in order: after this PUBACK, NDEATH is on the disk.
            host.client.publish(STATE, host_state(True, TIME_MS), 1, True)
            broker.kill()
            # Of the messages for the consumer, only NDEATH is persistent.
            assert amqp_messages(broker, 1) == [(edge_topic("NDEATH"), death(1), 2)]
            # The edge node is back before its host. STATE is still that of the host's last connection.
            node = EdgeNode(broker, version, 2, TIME_MS)
            host = Host(broker, version, TIME_MS + 1)
            assert not node.client.wait(STATE, host_state(True, TIME_MS + 1)).is_retained
            node.publish_births(2)
            host.check_births(2)
            stop(broker, host, node)


def commands(broker: MqttBroker, host: Host, node: EdgeNode) -> None:
    """Checks a request for a new birth from the host, and a command from an AMQP program."""
    rebirth = sparkplug_payload(None, metric("Node Control/Rebirth", BOOLEAN, True))
    host.client.publish(edge_topic("NCMD"), rebirth)
    node.client.wait(edge_topic("NCMD"), rebirth)
    host.client.wait(edge_topic("NCMD"), rebirth)
    host.client.messages.clear()
    node.publish_births(0)
    host.check_births(0)
    amqp_messages(broker, 1 + len(births(0)))
    command = sparkplug_payload(None, metric("Relay", BOOLEAN, True))
    amqp_command(broker, edge_topic("DCMD", METER), command)
    node.client.wait(edge_topic("DCMD", METER), command)
    assert amqp_messages(broker, 1)[0][:2] == (edge_topic("DCMD", METER), command)


def stop(broker: MqttBroker, host: Host, node: EdgeNode) -> None:
    """Checks ends with DISCONNECT. Node and host publish their deaths themselves, so no will follows."""
    version = host.client.version
    node.client.publish(edge_topic("NDEATH"), death(2), 1)
    node.client.disconnect()
    host.client.wait(edge_topic("NDEATH"), death(2))
    host.client.ping()
    assert sum(message.topic == edge_topic("NDEATH") for message in host.client.messages) == 1, host.client.messages
    host.client.publish(STATE, host_state(False, TIME_MS + 2), 1, True)
    host.client.disconnect()
    check_retained(broker, version, {STATE: host_state(False, TIME_MS + 2)}, STATE)
    # The will of a host that is lost.
    with raw_client(broker.port, version, "other") as other:
        other.subscribe(STATE)
        Host(broker, version, TIME_MS + 3).client.lose()
        other.wait(STATE, host_state(False, TIME_MS + 3))
    check_retained(broker, version, {STATE: host_state(False, TIME_MS + 3)}, STATE)


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {"esphome": esphome, "home-assistant": home_assistant, "zigbee2mqtt": zigbee2mqtt, "sparkplug": sparkplug}
