"""Paho clients that record what happens to them."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from harness.suite import patience, until

from mqtt_broker import PATIENCE

VERSIONS = {"3.1": paho.MQTTv31, "3.1.1": paho.MQTTv311, "5": paho.MQTTv5}
KEPT_S = 3600


class Received(NamedTuple):
    """A received message."""

    topic: str
    text: str
    qos: int
    # Whether it is marked as a duplicate.
    is_duplicate: bool


class WaitingClient(paho.Client):
    """A client that connects only when a broker listens.

    Without this, paho 2.1.0 publishes a message with QoS 2 twice. If its first attempt to connect again fails, it forgets
    that it has sent PUBREL: `_messages_reconnect_reset_out` turns `resend_pubrel` into `publish` at the second attempt.
    """

    may_connect: Optional[threading.Event] = None

    def reconnect(self) -> paho.MQTTErrorCode:
        """Waits for a broker, and connects."""
        if self.may_connect:
            self.may_connect.wait()
        return super().reconnect()


class PahoClient:
    """A client that connects again by itself after a lost connection, and subscribes only once."""

    def __init__(self, client_id: str, version: str, port: int, is_kept: bool = False, user: Optional[str] = "guest",
                 password: Optional[str] = "guest", authority: str = "", paper: Any = None,
                 may_connect: Optional[threading.Event] = None, transport: str = "tcp") -> None:
        self.changed = threading.Condition()
        self.received: List[Received] = []
        # The answers to CONNECT, and whether each found a session.
        self.connacks: List[Tuple[ReasonCode, bool]] = []
        self.disconnects: List[ReasonCode] = []
        # The reason in the last packet that acknowledges each message (PUBACK or PUBCOMP), by packet identifier.
        self.acknowledged: List[Tuple[int, ReasonCode]] = []
        self.subacks: Dict[int, List[ReasonCode]] = {}
        is_v5 = version == "5"
        self.client = WaitingClient(
            paho.CallbackAPIVersion.VERSION2, client_id, protocol=VERSIONS[version],
            clean_session=None if is_v5 else not is_kept, transport=transport)
        self.client.may_connect = may_connect
        if user is not None:
            self.client.username_pw_set(user, password)
        if authority:
            certificate, key = (str(paper.certificate), str(paper.key)) if paper else (None, None)
            self.client.tls_set(authority, certificate, key)
        self.client.reconnect_delay_set(0.05, 0.2)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = self._on_subscribe
        how: Dict[str, Any] = {}
        if is_v5:
            how["properties"] = Properties(PacketTypes.CONNECT)
            how["properties"].SessionExpiryInterval = KEPT_S if is_kept else 0
            # A kept session also starts anew with its first connection.
            how["clean_start"] = paho.MQTT_CLEAN_START_FIRST_ONLY
        self.client.connect("localhost" if authority else "127.0.0.1", port, **how)
        self.client.loop_start()

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        with self.changed:
            self.connacks.append((reason, flags.session_present))
            self.changed.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        with self.changed:
            self.disconnects.append(reason)
            self.changed.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with self.changed:
            self.received.append(Received(message.topic, message.payload.decode(), message.qos, message.dup))
            self.changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, packet_id: int, reason: ReasonCode, _properties: Any) -> None:
        with self.changed:
            self.acknowledged.append((packet_id, reason))
            self.changed.notify_all()

    def _on_subscribe(self, _client: Any, _data: Any, packet_id: int, reasons: List[ReasonCode], _: Any) -> None:
        with self.changed:
            self.subacks[packet_id] = reasons
            self.changed.notify_all()

    def connected(self) -> "PahoClient":
        """Waits until the client is connected."""
        until("the client is connected", self.client.is_connected, PATIENCE)
        return self

    def connack(self) -> ReasonCode:
        """Returns the reason in the first CONNACK."""
        return until("CONNACK has arrived", lambda: self.connacks, PATIENCE)[0][0]

    def subscribe(self, *filters: str, qos: int) -> List[ReasonCode]:
        """Subscribes to topic filters. Returns the codes of the SUBACK."""
        _, packet_id = self.client.subscribe([(text, qos) for text in filters])
        return until("SUBACK has arrived", lambda: self.subacks.get(packet_id), PATIENCE)

    def publish(self, topic: str, text: str, qos: int) -> int:
        """Publishes a message. Returns its packet identifier."""
        return self.client.publish(topic, text, qos).mid

    def publish_and_wait(self, topic: str, text: str, qos: int) -> Optional[ReasonCode]:
        """Publishes a message, and waits until it is acknowledged. Returns the reason in its PUBACK or PUBCOMP."""
        before = len(self.acknowledged)
        self.publish(topic, text, qos)
        return self.wait_acknowledged(before + 1)[before][1]

    def wait_acknowledged(self, count: int) -> List[Tuple[int, ReasonCode]]:
        """Waits until this number of messages is acknowledged. Returns all that are."""
        def is_reached() -> bool:
            return len(self.acknowledged) >= count

        self._wait(is_reached, lambda: f"{len(self.acknowledged)} of {count} messages are acknowledged")
        return self.acknowledged

    def wait_received(self, text: str) -> List[Received]:
        """Waits until a message with this text has arrived. Returns all that have."""
        def is_there() -> bool:
            return any(message.text == text for message in self.received)

        self._wait(is_there, lambda: f"no message {text!r} among {len(self.received)} messages; last: {self.received[-3:]}")
        return list(self.received)

    def _wait(self, holds: Callable[[], bool], complaint: Callable[[], str]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, patience(PATIENCE)), complaint()

    def close(self) -> None:
        """Disconnects, and ends the thread of the client."""
        self.client.disconnect()
        self.client.loop_stop()


@contextlib.contextmanager
def paho_client(*words: Any, **options: Any) -> Iterator[PahoClient]:
    """Runs a client during a `with` block."""
    client = PahoClient(*words, **options)
    try:
        yield client
    finally:
        client.close()
