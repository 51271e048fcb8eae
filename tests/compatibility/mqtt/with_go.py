"""A program with paho.mqtt.golang publishes and receives while the broker is killed.

Telegraf uses this library. Its `inputs.mqtt_consumer` sets `AutoReconnect` to false, and makes a new client after a lost
connection. It subscribes again only if CONNACK does not report a session.

Debian has version 1.1.1 of the library. This version hides from the program whether CONNACK reports a session. So there
are cases that subscribe once, and cases that subscribe on each connection. Newer versions of Telegraf acknowledge a message
when an output has written it. Version 1.1.1 of the library acknowledges each message at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Dict, List, Set

from clients.program import Program
from harness import environment
from harness.suite import until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker

HERE = Path(__file__).resolve().parent
# How many messages are acknowledged between the moment when both clients are connected and the kill, for one kill after
# the other.
ACKNOWLEDGED_AT_KILL = [1, 17, 64, 5, 150]


class GoProgram(Program):
    """The running Go program. Its events are lines of its output."""

    def __init__(self, broker: MqttBroker, qos: int, subscribes: str) -> None:
        command = [str(environment.go_mqtt_program(HERE / "with_go.go")), f"tcp://127.0.0.1:{broker.port}", str(qos),
                   subscribes]
        super().__init__("the Go program", command, dict(os.environ))

    def payloads(self, event: str) -> List[str]:
        """Returns the payloads of events, except that of the last message."""
        words = [line.split() for line in list(self.lines) if line.startswith(event + " ")]
        return [payload for _, payload, *_ in words if payload != "end"]

    def until(self, event: str, times: int) -> None:
        """Waits until an event has happened this often."""
        try:
            until(f"{event}, {times} times", lambda: self.over or self.count(event) >= times, PATIENCE)
            assert self.count(event) >= times, f"the program ended before: {event}, {times} times"
        except AssertionError:
            print("\n".join(self.lines[-100:]))
            raise


def kill_often(broker: MqttBroker, program: GoProgram, subscribes: str, kills: int) -> None:
    """Kills the broker while messages are in flight, each time after both clients have connected again."""
    for number in range(kills + 1):
        program.until("connected publisher", number + 1)
        program.until("connected subscriber", number + 1)
        program.until("subscribed", number + 1 if subscribes == "always" else 1)
        more = ACKNOWLEDGED_AT_KILL[number % len(ACKNOWLEDGED_AT_KILL)]
        program.until("acknowledged ", program.count("acknowledged ") + more)
        if number < kills:
            broker.kill()


def delivered(lines: List[str], qos: int) -> List[str]:
    """Returns the payloads of the deliveries, in their order. Checks the packets of these deliveries.

    With QoS 2, a PUBLISH packet with the identifier of a message that is not released repeats that message. The library
    does not detect this, and calls the handler again.
    """
    seen: Set[str] = set()
    found: List[str] = []
    unreleased: Dict[str, str] = {}
    for line in lines:
        event, *words = line.split()
        if event == "released":
            unreleased.pop(words[0], None)
        if event != "arrived":
            continue
        payload, packet_id, arrived_qos, is_duplicate = words
        assert int(arrived_qos) == qos, f"with another QoS than {qos}: {line}"
        if packet_id in unreleased:
            assert unreleased[packet_id] == payload, f"the identifier of {unreleased[packet_id]} is in use: {line}"
        if packet_id in unreleased or (qos == 1 and payload in seen):
            assert payload == "end" or is_duplicate == "true", f"not marked as a duplicate: {line}"
            continue
        assert payload == "end" or payload not in seen, f"delivered twice with QoS 2: {line}"
        if qos == 2:
            unreleased[packet_id] = payload
        if payload != "end":
            seen.add(payload)
            found.append(payload)
    return found


def under_kills(qos: int, subscribes: str, kills: int, home: Path) -> None:
    """Each acknowledged message arrives, with QoS 2 exactly once, although both clients lose their connections."""
    with mqtt_broker(home) as broker:
        program = GoProgram(broker, qos, subscribes)
        try:
            kill_often(broker, program, subscribes, kills)
            program.answer()
            program.until("done", 1)
            lines = program.ended()
        finally:
            program.kill()
    found = delivered(lines, qos)
    acknowledged, failed = program.payloads("acknowledged"), program.payloads("failed")
    lost = sorted(set(acknowledged) - set(found), key=int)
    assert not lost, f"acknowledged and not received: {lost}"
    invented = set(found) - {*acknowledged, *failed}
    assert not invented, f"never published: {invented}"
    wrong = [pair for pair in zip(found, found[1:]) if int(pair[0]) > int(pair[1])]
    assert not wrong, f"not in order: {wrong}"
    # The handler gets each packet of the connection, in this order.
    assert program.payloads("received") == program.payloads("arrived"), "the handler missed a packet"
    assert program.count("lost ") == 2 * kills, program.count("lost ")
    assert program.count("subscribed") == (kills + 1 if subscribes == "always" else 1), program.count("subscribed")


def cases(kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {}
    for qos in (1, 2):
        for subscribes, suffix in (("once", ""), ("always", "-subscribes-again")):
            found[f"go-paho-qos-{qos}{suffix}"] = \
                lambda home, qos=qos, subscribes=subscribes: under_kills(qos, subscribes, kills, home)
    return found
