"""aiomqtt connects again in a loop while the broker is killed.

The loop is that of its documentation, except that each connection has an event loop of its own. `connect` of aiomqtt 2.3.0
runs in a thread. The thread queues `add_writer` for the event loop, but calls `remove_writer` directly. In the wrong order
they leave a closed socket registered in a common event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, List, Optional

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from harness.suite import patience

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker

MESSAGES = 60
# The subscriber is done when this message has arrived.
LAST = str(MESSAGES - 1)
RECONNECT_S = 0.05


def client(broker: MqttBroker, identifier: str, version: aiomqtt.ProtocolVersion) -> aiomqtt.Client:
    """Returns a client with a session that is kept."""
    options: Dict[str, Any] = {"clean_session": False}
    if version == aiomqtt.ProtocolVersion.V5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        options = {"clean_start": False, "properties": properties}
    return aiomqtt.Client("127.0.0.1", broker.port, username="guest", password="guest", identifier=identifier,
                          protocol=version, **options)


async def publish_one(publisher: aiomqtt.Client, number: int, kill: Optional[Callable[[], None]]) -> None:
    """Publishes a message and waits for its PUBACK, or until the connection is lost."""
    sending = asyncio.create_task(publisher.publish(f"aio/{number % 3}", str(number), qos=1))
    # It has no subscription: this only ends with an error, when the connection is lost.
    lost = asyncio.ensure_future(anext(publisher.messages))
    try:
        if kill:
            # PUBLISH is written now, and PUBACK may arrive before the kill, or not.
            await asyncio.gather(asyncio.sleep(0), asyncio.to_thread(kill))
        await asyncio.wait({sending, lost}, return_when=asyncio.FIRST_COMPLETED)
        await (sending if sending.done() else lost)
    finally:
        for task in (sending, lost):
            task.cancel()
        await asyncio.gather(sending, lost, return_exceptions=True)


def connecting_again(connection: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a connection, and the next one after it is lost, until one ends by itself."""
    deadline = time.monotonic() + patience(3 * PATIENCE)
    while time.monotonic() < deadline:
        try:
            return asyncio.run(connection())
        except aiomqtt.MqttError:
            time.sleep(RECONNECT_S)
    raise AssertionError("the client did not finish")


class Subscriber(threading.Thread):
    """Receives in a thread until the last message has arrived."""

    def __init__(self, broker: MqttBroker, version: aiomqtt.ProtocolVersion) -> None:
        super().__init__(daemon=True)
        self.broker = broker
        self.version = version
        self.received: List[str] = []
        self.subscribed = threading.Event()

    def run(self) -> None:
        connecting_again(self.receive)

    async def receive(self) -> None:
        """Receives over one connection."""
        async with client(self.broker, "subscriber", self.version) as subscriber:
            await subscriber.subscribe("aio/#", qos=1)
            self.subscribed.set()
            async for message in subscriber.messages:
                self.received.append(message.payload.decode())
                if self.received[-1] == LAST:
                    return


class Publisher:
    """Publishes all messages one after the other. A message without PUBACK is published again over the next connection.
    The broker is killed while some are in flight.
    """

    def __init__(self, broker: MqttBroker, version: aiomqtt.ProtocolVersion, kills: int) -> None:
        self.broker = broker
        self.version = version
        self.kills = kills
        self.number = self.killed = 0

    async def publish(self) -> None:
        """Publishes over one connection."""
        async with client(self.broker, "publisher", self.version) as publisher:
            while self.number < MESSAGES:
                is_kill_due = self.number >= (self.killed + 1) * MESSAGES // (self.kills + 1)
                self.killed += is_kill_due
                await publish_one(publisher, self.number, self.broker.kill if is_kill_due else None)
                self.number += 1


def under_kills(version: aiomqtt.ProtocolVersion, kills: int, home: Path) -> None:
    """The subscriber receives each acknowledged message, although both clients lose their connections."""
    with mqtt_broker(home) as broker:
        subscriber, publisher = Subscriber(broker, version), Publisher(broker, version, kills)
        subscriber.start()
        assert subscriber.subscribed.wait(patience(PATIENCE)), "no SUBACK arrived"
        connecting_again(publisher.publish)
        assert publisher.killed == kills, publisher.killed
        subscriber.join(patience(PATIENCE))
        first = list(dict.fromkeys(subscriber.received))
        assert first == [str(number) for number in range(MESSAGES)], f"lost or not in order: {first}"


def cases(kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {
        "aiomqtt-3.1.1": lambda home: under_kills(aiomqtt.ProtocolVersion.V311, min(kills, 10), home),
        "aiomqtt-5": lambda home: under_kills(aiomqtt.ProtocolVersion.V5, min(kills, 10), home),
    }
