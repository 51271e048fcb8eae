"""Paho publishes and subscribes in a loop while the broker is killed, with QoS 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, ContextManager, Dict, List, Set

from mqtt_broker import MqttBroker, mqtt_broker
from paho_client import PahoClient, Received, paho_client

# The number of messages that are published before the publisher waits for all acknowledgements. Paho sends up to 20 at
# once. It publishes only while it is connected and none is unacknowledged, because it may otherwise send a new message
# before it repeats older ones.
WINDOW = 20
TOPICS = 3
# How many messages of a window are acknowledged when the broker is killed, for one kill after the other.
ACKNOWLEDGED_AT_KILL = [0, 1, 5, 10, 19]


def kept_client(client_id: str, version: str, broker: MqttBroker, qos: int) -> ContextManager[PahoClient]:
    """Runs a client with a kept session during a `with` block."""
    may_connect = broker.is_listening if qos == 2 else None
    return paho_client(client_id, version, broker.port, is_kept=True, may_connect=may_connect)


def publish_windows(broker: MqttBroker, publisher: PahoClient, qos: int, kills: int) -> Set[str]:
    """Publishes numbers in windows. A kill interrupts every second window. Returns those numbers that the client may
    have published a second time, because they were not acknowledged before the kill.
    """
    repeated: Set[str] = set()
    for window in range(2 * kills):
        first = window * WINDOW
        packet_ids = {}
        publisher.connected()
        for number in range(first, first + WINDOW):
            packet_ids[publisher.publish(f"loop/{number % TOPICS}", str(number), qos)] = str(number)
        if window % 2:
            publisher.wait_acknowledged(first + ACKNOWLEDGED_AT_KILL[window // 2 % len(ACKNOWLEDGED_AT_KILL)])
            # Before the kill, because the client may publish again before `kill` returns.
            done = {packet_id for packet_id, _ in publisher.acknowledged[first:]}
            broker.kill()
            repeated |= {text for packet_id, text in packet_ids.items() if packet_id not in done}
        publisher.wait_acknowledged(first + WINDOW)
    return repeated


def check_received(received: List[Received], count: int, qos: int, repeated: Set[str]) -> None:
    """Checks that no acknowledged message is lost, that each topic is in order, and that only allowed copies came."""
    seen: Dict[str, List[str]] = {}
    for message in received:
        texts = seen.setdefault(message.topic, [])
        if message.text not in texts:
            texts.append(message.text)
            continue
        assert qos < 2, f"received twice with QoS 2: {message}"
        assert message.is_duplicate or message.text in repeated, f"not marked as a duplicate: {message}"
    wanted = {f"loop/{topic}": [str(number) for number in range(count) if number % TOPICS == topic]
              for topic in range(TOPICS)}
    for topic, texts in wanted.items():
        lost = [text for text in texts if text not in seen.get(topic, [])]
        assert not lost, f"acknowledged and not received on {topic}: {lost}"
    # Before the order, because paho reports a message with QoS 1 at PUBLISH, and one with QoS 2 only at PUBREL.
    wrong = [message for message in received if message.qos != qos]
    assert not wrong, f"with another QoS than {qos}: {wrong[:5]}, {len(wrong)} in all"
    for topic, texts in wanted.items():
        assert seen[topic] == texts, f"not in order on {topic}: {seen[topic]}"
    assert set(seen) == set(wanted), set(seen) - set(wanted)


def under_kills(version: str, qos: int, kills: int, home: Path) -> None:
    """A publisher and a subscriber with kept sessions are connected while the broker is killed."""
    with mqtt_broker(home) as broker, \
            kept_client("subscriber", version, broker, qos) as subscriber, \
            kept_client("publisher", version, broker, qos) as publisher:
        subscriber.connected().subscribe("loop/+", "end", qos=qos)
        publisher.connected()
        repeated = publish_windows(broker, publisher, qos, kills)
        publisher.publish_and_wait("end", "end", qos)
        received = [message for message in subscriber.wait_received("end") if message.topic != "end"]
        # PUBREL is repeated if PUBCOMP was lost. The broker may have forgotten the packet identifier then.
        allowed = {"Success", "Packet identifier not found"} if qos == 2 else {"Success"}
        failed = [reason for _, reason in publisher.acknowledged if str(reason) not in allowed]
        assert not failed, f"refused: {failed}"
        check_received(received, 2 * kills * WINDOW, qos, repeated)
        for client in (subscriber, publisher):
            assert len(client.connacks) > kills, client.connacks
            assert all(is_present for _, is_present in client.connacks[1:]), client.connacks


def absent_subscriber(version: str, qos: int, home: Path) -> None:
    """A subscriber that is away gets afterwards what was acknowledged meanwhile, in spite of kills."""
    with mqtt_broker(home) as broker, \
            kept_client("publisher", version, broker, qos) as publisher, \
            kept_client("subscriber", version, broker, qos) as subscriber:
        subscriber.connected().subscribe("loop/+", "end", qos=qos)
        subscriber.close()
        repeated = publish_windows(broker, publisher, qos, 2)
        publisher.publish_and_wait("end", "end", qos)
        broker.kill()
        subscriber.client.reconnect()
        subscriber.client.loop_start()
        received = [message for message in subscriber.wait_received("end") if message.topic != "end"]
        assert subscriber.connacks[-1][1], "the session was lost"
        check_received(received, 4 * WINDOW, qos, repeated)


def cases(kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {}
    for version in ("3.1.1", "5"):
        for qos in (1, 2):
            found[f"paho-{version}-qos-{qos}"] = \
                lambda home, version=version, qos=qos: under_kills(version, qos, kills, home)
            found[f"paho-{version}-qos-{qos}-absent"] = \
                lambda home, version=version, qos=qos: absent_subscriber(version, qos, home)
    return found
