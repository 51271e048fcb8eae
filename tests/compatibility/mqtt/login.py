"""Logins and permissions of MQTT clients."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

from harness.suite import until

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from office import Office
from paho_client import PahoClient, Received, paho_client

VERSIONS = ["3.1", "3.1.1", "5"]
# 3.1 and 3.1.1 have the code 4 for this, and 5 has 0x86.
BAD_LOGIN = "Bad user name or password"


def there_and_back(client: PahoClient, topic: str) -> None:
    """Subscribes, publishes, and waits for the message."""
    assert client.connack() == "Success", client.connacks
    client.subscribe(topic, qos=1)
    assert client.publish_and_wait(topic, f"to {topic}", 1) == "Success", client.acknowledged
    client.wait_received(f"to {topic}")


def refused(reason: str, *words: object, **options: object) -> None:
    """Checks that CONNECT is answered with this reason."""
    with paho_client("refused", *words, **options) as client:
        assert client.connack() == reason, client.connacks


def passwords(home: Path) -> None:
    """Wrong passwords, unknown users and clients without a user name are refused. A right password is accepted, also
    after a kill.
    """
    with mqtt_broker(home) as broker:
        broker.process.ctl("add_user", "sensor", "secret")
        broker.process.ctl("set_permissions", "sensor", ".*", ".*", ".*")
        broker.kill()
        for version in VERSIONS:
            with paho_client("sensor", version, broker.port, user="sensor", password="secret") as client:
                there_and_back(client, f"login/{version}")
            refused(BAD_LOGIN, version, broker.port, user="sensor", password="wrong")
        refused(BAD_LOGIN, "5", broker.port, user="unknown", password="secret")
        for version in VERSIONS:
            refused(BAD_LOGIN, version, broker.port, user=None)


def virtual_hosts(home: Path) -> None:
    """A user name may contain a virtual host. Otherwise it is that of `mqtt_vhost`. Their messages are separate."""
    with mqtt_broker(home, 'mqtt_vhost = "plant"') as broker:
        for vhost in ("plant", "other:one"):
            broker.process.ctl("add_vhost", vhost)
            broker.process.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        broker.kill()
        for version in VERSIONS:
            with paho_client("plant", version, broker.port) as plant, \
                    paho_client("other", version, broker.port, user="other:one:guest") as other:
                plant.connected().subscribe("#", qos=1)
                there_and_back(other, "other")
                there_and_back(plant, "plant")
                assert [message.topic for message in plant.received] == ["plant"], plant.received
                assert [message.topic for message in other.received] == ["other"], other.received
        with paho_client("absent", "5", broker.port, user="absent:guest") as client:
            assert client.connack().is_failure, client.connacks


def anonymous(home: Path) -> None:
    """Clients without a user name are the user in `mqtt_anonymous_user`, with its permissions."""
    with mqtt_broker(home, 'mqtt_anonymous_user = "visitor"') as broker:
        broker.process.ctl("add_user", "visitor", "unused")
        # The permissions that a subscription needs: its queue, and reading from amq.topic.
        broker.process.ctl("set_permissions", "visitor", ".*", "^mqtt-", ".*")
        broker.kill()
        for version in VERSIONS:
            with paho_client("visitor", version, broker.port, user=None) as visitor, \
                    paho_client("sensor", version, broker.port) as sensor:
                assert visitor.connack() == "Success", visitor.connacks
                visitor.subscribe("open/#", qos=1)
                sensor.connected().publish_and_wait("open/door", "for visitors", 1)
                assert visitor.wait_received("for visitors") == [Received("open/door", "for visitors", 1, False)]
        with paho_client("visitor", "5", broker.port, user=None) as visitor:
            visitor.connected()
            assert visitor.publish_and_wait("open/door", "refused", 1) == "Not authorized", visitor.acknowledged


def certificates(home: Path) -> None:
    """A client with a certificate and without a user name is the user that its certificate names."""
    office = Office(home / "office")
    guest, unknown = office.issue("guest"), office.issue("unknown")
    tls = f'client_ca = "{office.authority}"\nclient_certificates = "allow"'
    with mqtt_broker(home, paper=office.server(), tls=tls) as broker:
        for version in VERSIONS:
            how = {"user": None, "authority": str(office.authority)}
            with paho_client("by certificate", version, broker.tls_port, paper=guest, **how) as client:
                there_and_back(client, f"certificate/{version}")
                broker.kill()
                client.connected()
                assert client.publish_and_wait("after/kill", "x", 1) is not None
        refused(BAD_LOGIN, "5", broker.tls_port, paper=unknown, **how)
        refused(BAD_LOGIN, "5", broker.tls_port, **how)
        # A user name takes precedence over the certificate.
        with paho_client("by password", "5", broker.tls_port, authority=str(office.authority), paper=unknown) as client:
            there_and_back(client, "by/password")


def refused_publish(broker: MqttBroker, version: str, topic: str) -> None:
    """Checks that the user `sensor` may not publish to a topic: version 5 gets PUBACK 0x87, others are disconnected."""
    with paho_client("refused", version, broker.port, user="sensor", password="secret") as client:
        assert client.connack() == "Success", client.connacks
        if version == "5":
            assert client.publish_and_wait(topic, "refused", 1) == "Not authorized", client.acknowledged
            assert client.acknowledged[0][1].value == 0x87, client.acknowledged
            assert not client.disconnects, client.disconnects
        else:
            client.publish(topic, "refused", 1)
            until("the client is disconnected", lambda: client.disconnects, PATIENCE)
            assert not client.acknowledged, client.acknowledged


def permissions(home: Path) -> None:
    """A user needs a write pattern that matches amq.topic, and topic permission for the topic, to publish."""
    with mqtt_broker(home) as broker:
        broker.process.ctl("add_user", "sensor", "secret")
        broker.process.ctl("set_permissions", "sensor", ".*", "^mqtt-", ".*")
        broker.kill()
        with paho_client("observer", "5", broker.port) as observer:
            observer.connected().subscribe("#", qos=1)
            for version in VERSIONS:
                refused_publish(broker, version, "any/topic")
            broker.process.ctl("set_permissions", "sensor", ".*", ".*", ".*")
            broker.process.ctl("set_topic_permissions", "sensor", "amq.topic", r"^own\.", r"^(own|common)\.")
            for version in VERSIONS:
                refused_publish(broker, version, "common/topic")
                with paho_client("allowed", version, broker.port, user="sensor", password="secret") as client:
                    there_and_back(client, f"own/{version.replace('.', '-')}")
                    assert not client.subscribe("common/#", qos=1)[0].is_failure, client.subacks
                    reason, = client.subscribe("secret/#", qos=1)
                    # A SUBACK of version 3.1 cannot tell of a refusal.
                    assert reason.value == {"3.1": 0, "3.1.1": 0x80, "5": 0x87}[version], client.subacks
            wanted = [f"own/{version.replace('.', '-')}" for version in VERSIONS]
            observer.wait_received(f"to {wanted[-1]}")
            assert [message.topic for message in observer.received] == wanted, observer.received


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    return {"passwords": passwords, "virtual-hosts": virtual_hosts, "anonymous": anonymous, "certificates": certificates,
            "permissions": permissions}
