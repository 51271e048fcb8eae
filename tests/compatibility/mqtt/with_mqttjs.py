"""MQTT.js publishes and subscribes while the broker is killed: over TCP, and over WebSocket as browsers do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Dict, List

from harness import environment
from harness.suite import patience, until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from with_websocket import websocket_broker

HERE = Path(__file__).resolve().parent
# The broker is killed after the first messages of each step. After a step, the program waits for the kill.
COUNT = 80
STEP = 20
KILLED_AFTER = 5


def program() -> List[str]:
    """Returns the command of the JavaScript program."""
    home = environment.mqttjs()
    # Node looks for modules beside the program.
    shutil.copy(HERE / "with_mqttjs.js", home)
    return ["node", str(home / "with_mqttjs.js")]


def under_kills(broker: MqttBroker, address: str, version: int, qos: int) -> None:
    """Runs the program, and kills the broker several times. Checks what is acknowledged and received."""
    output = broker.home / "output"

    def numbers(word: str) -> List[str]:
        return re.findall(rf"^{word} (\d+)", output.read_text(), re.MULTILINE)

    with open(output, "wb") as out:
        command = [*program(), address, str(version), str(qos), str(COUNT), str(STEP)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
    try:
        for begun in range(0, COUNT - STEP, STEP):
            acknowledged = begun + KILLED_AFTER
            until(f"{acknowledged} messages are acknowledged",
                  lambda: len(numbers("acknowledged")) >= acknowledged or child.poll() is not None, PATIENCE)
            assert child.poll() is None, "the client ended: " + output.read_text()[-2000:]
            broker.kill()
            child.stdin.write(b"\n")
            child.stdin.flush()
        assert child.wait(patience(3 * PATIENCE)) == 0, output.read_text()[-2000:]
    finally:
        child.kill()
        child.communicate()
    said = output.read_text()
    assert said.rstrip().endswith("done"), said[-2000:]
    received = numbers("received")
    assert numbers("acknowledged") == [str(number) for number in range(COUNT)], said
    assert sorted(set(received), key=int) == [str(number) for number in range(COUNT)], said
    if qos == 2:
        assert len(received) == COUNT, f"received twice with QoS 2: {received}"
    assert f"{qos} false" in said, "with another QoS"


def over_tcp(home: Path, version: int, qos: int) -> None:
    """MQTT.js over TCP."""
    with mqtt_broker(home) as broker:
        under_kills(broker, f"mqtt://127.0.0.1:{broker.port}", version, qos)


def over_websocket(home: Path, version: int) -> None:
    """MQTT.js over WebSocket."""
    with websocket_broker(home) as (broker, port):
        under_kills(broker, f"ws://127.0.0.1:{port}/mqtt", version, 1)


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {}
    for version, name in ((4, "3.1.1"), (5, "5")):
        for qos in (1, 2):
            found[f"mqttjs-{name}-qos-{qos}"] = lambda home, version=version, qos=qos: over_tcp(home, version, qos)
        found[f"mqttjs-{name}-websocket"] = lambda home, version=version: over_websocket(home, version)
    return found
