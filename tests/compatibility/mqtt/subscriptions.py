"""Options of subscriptions and shared subscriptions, which outlive a kill of the broker."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, Dict, List

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from harness.suite import patience, until

from mqtt_broker import PATIENCE, mqtt_broker
from paho_client import PahoClient, paho_client

JOBS = 60


def workers(version: str, home: Path) -> None:
    """Two clients share the jobs of a third. The broker is killed while one is away, and while both work."""
    with mqtt_broker(home) as broker, contextlib.ExitStack() as stack:
        def kept(client_id: str) -> PahoClient:
            client = paho_client(client_id, version, broker.port, is_kept=True)
            return stack.enter_context(client).connected()

        publisher, first, second = (kept(client_id) for client_id in ("publisher", "first", "second"))
        for worker in (first, second):
            codes = worker.subscribe("$share/workers/jobs/+", "end", qos=1)
            assert [code.value for code in codes] == [1, 1], codes
        number = 0
        for is_away in (False, True, False):
            if is_away:
                second.close()
            for _ in range(JOBS):
                publisher.publish(f"jobs/{number % 3}", str(number), 1)
                number += 1
            if is_away:
                # After a kill, the publisher may be connected earlier than the other worker.
                publisher.wait_acknowledged(number)
            broker.kill()
            publisher.wait_acknowledged(number)
            if is_away:
                second.client.reconnect()
                second.client.loop_start()
                second.connected()
        publisher.publish_and_wait("end", "end", 1)
        texts: List[List[str]] = []
        for worker in (first, second):
            texts.append([message.text for message in worker.wait_received("end") if message.topic != "end"])
        while_away = {str(at) for at in range(JOBS, 2 * JOBS)}.intersection(texts[1])
        assert not while_away, f"for a worker that was away, although the other one was connected: {while_away}"
        everything = texts[0] + texts[1]
        lost = {str(at) for at in range(number)} - set(everything)
        assert not lost, f"acknowledged and not received: {lost}"
        assert all(len(set(part)) >= JOBS // 4 for part in texts), [len(part) for part in texts]


def options(home: Path) -> None:
    """Identifiers, No Local and Retain As Published are the same after a kill."""
    with mqtt_broker(home) as broker, \
            paho_client("publisher", "5", broker.port, is_kept=True) as publisher, \
            paho_client("subscriber", "5", broker.port, is_kept=True) as subscriber:
        seen: List[paho.MQTTMessage] = []
        subscriber.client.on_message = lambda _client, _data, message: seen.append(message)
        publisher.connected()
        subscriber.connected()
        wanted = {"#": (1, SubscribeOptions(1, noLocal=True)), "a/+": (300, SubscribeOptions(1, retainAsPublished=True))}
        for text, (identifier, how) in wanted.items():
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = identifier
            _, packet_id = subscriber.client.subscribe(text, options=how, properties=properties)
            until("SUBACK has arrived", lambda: subscriber.subacks.get(packet_id), PATIENCE)

        def one(publish: Callable[[], Any]) -> paho.MQTTMessage:
            before = len(seen)
            publish()
            until("the message has arrived", lambda: len(seen) > before, PATIENCE)
            assert len(seen) == before + 1, seen[before:]
            return seen[before]

        for is_after_kill in (False, True):
            if is_after_kill:
                broker.kill()
                until("both are connected", lambda: publisher.client.is_connected() and subscriber.client.is_connected(),
                      PATIENCE)
            message = one(lambda: publisher.client.publish("a/b", "text", 1, retain=True))
            assert message.retain and sorted(message.properties.SubscriptionIdentifier) == [1, 300], message.properties
            message = one(lambda: publisher.client.publish("c", "text", 1, retain=True))
            assert not message.retain and message.properties.SubscriptionIdentifier == [1], message.properties
            # Its own message matches a filter without No Local, too.
            message = one(lambda: subscriber.client.publish("a/own", "text", 1))
            assert message.topic == "a/own"
            before = len(seen)
            subscriber.client.publish("own", "text", 1).wait_for_publish(patience(PATIENCE))
            assert len(seen) == before, "it has got its own message"


def aliases(home: Path) -> None:
    """A client publishes with topic aliases."""
    with mqtt_broker(home) as broker, \
            paho_client("publisher", "5", broker.port) as publisher, \
            paho_client("subscriber", "5", broker.port) as subscriber:
        publisher.connected()
        subscriber.connected().subscribe("#", qos=1)
        properties = Properties(PacketTypes.PUBLISH)
        properties.TopicAlias = 16
        for topic in ("long/topic", "", "another", ""):
            publisher.client.publish(topic, "text", 1, properties=properties).wait_for_publish(patience(PATIENCE))
        publisher.publish_and_wait("end", "end", 1)
        topics = [message.topic for message in subscriber.wait_received("end")]
        assert topics == ["long/topic"] * 2 + ["another"] * 2 + ["end"], topics


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {
        "shared-3.1.1": lambda home: workers("3.1.1", home),
        "shared-5": lambda home: workers("5", home),
        "subscription-options": options,
        "topic-aliases": aliases,
    }
