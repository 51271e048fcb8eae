"""Node-RED receives, changes and publishes messages while the broker is killed.

Paho publishes, and another paho client receives what Node-RED has published.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

from clients.program import Program
from harness import environment
from harness.suite import until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from with_paho import WINDOW, kept_client, publish_windows

# Protocol levels, as in the broker configuration of a flow.
LEVELS = {"3.1.1": "4", "5": "5"}
# Node-RED has no web server without a root for its editor and for its HTTP nodes. With `runtimeSyncDelivery`, a message is
# published before Node-RED reads that a connection is lost.
SETTINGS = """module.exports = {
  flowFile: "flows.json", credentialSecret: false, httpAdminRoot: false, httpNodeRoot: false, disableEditor: true,
  mqttReconnectTime: 50, runtimeSyncDelivery: true, telemetry: { enabled: false },
  logging: { console: { level: "info", metrics: false, audit: false } },
};
"""
# A number becomes a JSON object on another topic. An `mqtt out` node drops messages while it is not connected, and a kept
# session delivers messages before that node is connected again. So the function keeps messages until its status is green.
FUNCTION = """
const waiting = context.get("waiting") || [];
if (msg.status) {
  context.set("isConnected", msg.status.fill === "green");
} else {
  const topic = msg.topic.replace("loop/", "done/");
  waiting.push({ topic, payload: { number: Number(msg.payload), by: "Node-RED" } });
}
const isConnected = context.get("isConnected");
context.set("waiting", isConnected ? [] : waiting);
return isConnected ? [waiting] : null;
"""


def flow(port: int, version: str) -> List[Dict[str, Any]]:
    """Returns a flow: `mqtt in`, a function, and `mqtt out`, with QoS 2 and a kept session."""
    return [
        {"id": "tab", "type": "tab", "label": "plant", "disabled": False, "info": ""},
        {"id": "broker", "type": "mqtt-broker", "name": "Leveret", "broker": "127.0.0.1", "port": str(port),
         "clientid": "node-red", "autoConnect": True, "usetls": False, "protocolVersion": LEVELS[version],
         "keepalive": "60", "cleansession": False, "autoUnsubscribe": False, "sessionExpiry": "3600",
         "birthTopic": "", "closeTopic": "", "willTopic": ""},
        {"id": "in", "type": "mqtt in", "z": "tab", "name": "", "topic": "loop/+", "qos": "2", "datatype": "utf8",
         "broker": "broker", "nl": False, "rap": True, "rh": 0, "inputs": 0, "x": 100, "y": 100,
         "wires": [["function"]]},
        {"id": "function", "type": "function", "z": "tab", "name": "", "func": FUNCTION, "outputs": 1, "timeout": 0,
         "noerr": 0, "initialize": "", "finalize": "", "libs": [], "x": 300, "y": 100, "wires": [["out"]]},
        {"id": "status", "type": "status", "z": "tab", "name": "", "scope": ["out"], "x": 100, "y": 200,
         "wires": [["function"]]},
        {"id": "out", "type": "mqtt out", "z": "tab", "name": "", "topic": "", "qos": "2", "retain": "false",
         "broker": "broker", "x": 500, "y": 100, "wires": []},
    ]


@contextlib.contextmanager
def node_red(broker: MqttBroker, version: str) -> Iterator[Program]:
    """Runs Node-RED during a `with` block, from the moment when it has subscribed."""
    user = broker.home / "node-red"
    user.mkdir()
    (user / "settings.js").write_text(SETTINGS)
    (user / "flows.json").write_text(json.dumps(flow(broker.port, version)))
    (user / "flows_cred.json").write_text(json.dumps({"broker": {"user": "guest", "password": "guest"}}))
    command = ["node", str(environment.node_red() / "node_modules" / "node-red" / "red.js"), "--userDir", str(user)]
    program = Program("Node-RED", command, dict(os.environ, HOME=str(user), NODE_RED_DISABLE_TELEMETRY="true"))
    try:
        program.wait("Connected to broker", patience_s=3 * PATIENCE)
        until("Node-RED has subscribed", lambda: has_subscribed(broker), PATIENCE)
        yield program
        assert not program.over, "Node-RED ended:\n" + program.text()
    finally:
        program.kill()


def has_subscribed(broker: MqttBroker) -> bool:
    """Returns whether the session of Node-RED has its subscription."""
    sessions = broker.process.ctl("list_mqtt_sessions", "client_id", "subscriptions", "--formatter", "csv")
    return '"node-red","1"' in sessions.splitlines()


def under_kills(version: str, kills: int, home: Path) -> None:
    """Each acknowledged message arrives through Node-RED exactly once, although all clients lose their connections."""
    with mqtt_broker(home) as broker, \
            kept_client("subscriber", version, broker, 2) as subscriber, \
            kept_client("publisher", version, broker, 2) as publisher, \
            node_red(broker, version) as program:
        subscriber.connected().subscribe("done/+", qos=2)
        publish_windows(broker, publisher, 2, kills)
        count = 2 * kills * WINDOW
        until("Node-RED has connected again", lambda: program.count("Connected to broker") > 1, PATIENCE)
        numbers: List[int] = []

        def is_complete() -> bool:
            numbers[:] = [json.loads(message.text)["number"] for message in list(subscriber.received)]
            return len(set(numbers)) == count

        try:
            until("all messages have arrived", is_complete, PATIENCE)
        except AssertionError:
            lost = sorted(set(range(count)) - set(numbers))
            raise AssertionError(f"acknowledged and not received through Node-RED: {lost}") from None
        twice = sorted(number for number in set(numbers) if numbers.count(number) > 1)
        assert not twice, f"received twice with QoS 2: {twice}"
        topics = {f"done/{number % 3}" for number in range(count)}
        assert {message.topic for message in subscriber.received} == topics, subscriber.received[:5]
        assert {message.qos for message in subscriber.received} == {2}, subscriber.received[:5]


def cases(kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {f"node-red-{version}": lambda home, version=version: under_kills(version, min(kills, 10), home)
            for version in LEVELS}
