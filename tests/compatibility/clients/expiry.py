"""Messages with a delay or an expiration in durable queues without consumers, and a kill in between.

Only Leveret is tested: RabbitMQ counts the time over restarts in another way.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import List

from harness import brokers
from harness.raw import Client
from harness.suite import Suite, patience

CASE = "expiry-over-a-kill"
DELAYED = "delayed-over-a-kill"
CASES = [CASE, DELAYED]
QUEUES = ("own-time", "queue-time", "dropped")
COUNT = 300
TTL_MS = 4000
PATIENCE_S = 60.0
# Expiry of an unused queue; shorter than the first run of the broker.
EXPIRES_MS = 1500


def open_channel(broker: brokers.Leveret) -> Client:
    """Returns a connection with a channel open."""
    client = Client(broker.address)
    client.open(1)
    return client


def counts(client: Client) -> List[int]:
    """Returns the number of messages in each queue, with the dead-letter queue last."""
    answers = [client.call(1, "queue.declare", queue=queue, passive=True) for queue in (*QUEUES, "dead")]
    return [answer.args["message_count"] for answer in answers]


def publish(client: Client) -> None:
    """Fills all queues, and waits until the messages are durable."""
    letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    arguments = (letters, {"x-message-ttl": TTL_MS, **letters}, {"x-message-ttl": TTL_MS})
    client.call(1, "queue.declare", queue="dead", durable=True)
    client.call(1, "tx.select")
    for queue, its in zip(QUEUES, arguments):
        client.call(1, "queue.declare", queue=queue, durable=True, arguments=its)
        own = {"expiration": str(TTL_MS)} if queue == "own-time" else {}
        for number in range(COUNT):
            client.publish(1, "", queue, b"%d" % number, props={"delivery_mode": 2, **own})
    client.call(1, "tx.commit")


def story() -> None:
    """Each message expires into the right queue, once and in order."""
    with tempfile.TemporaryDirectory() as home:
        data_dir = Path(home) / "data"
        broker = brokers.Leveret(brokers.leveret_binary(), [], data_dir=data_dir)
        try:
            client = open_channel(broker)
            publish(client)
            client.call(1, "queue.declare", queue="used", durable=True, arguments={"x-expires": EXPIRES_MS})
            for _ in range(2 * EXPIRES_MS // 300):
                time.sleep(0.3)
                client.call(1, "queue.declare", queue="used", passive=True)
            # This writes a log entry with the current time, so that the next start knows how much time has passed.
            client.call(1, "queue.declare", queue="late", durable=True)
            broker.kill()
            broker.close()
            broker = brokers.Leveret(brokers.leveret_binary(), [], data_dir=data_dir)
            client = open_channel(broker)
            time.sleep(0.3)
            client.call(1, "queue.declare", queue="used", passive=True)
            deadline = time.monotonic() + patience(PATIENCE_S)
            while counts(client) != [0, 0, 0, 2 * COUNT]:
                assert time.monotonic() < deadline, counts(client)
                time.sleep(0.1)
            bodies = {queue: [] for queue in QUEUES[:2]}
            for _ in range(2 * COUNT):
                letter = client.call(1, "basic.get", queue="dead", no_ack=True)
                props = letter.header.props
                death = dict(dict(props["headers"])[b"x-death"].value[0].value)
                assert "expiration" not in props and death[b"reason"].value == b"expired", props
                bodies[death[b"queue"].value.decode()].append(int(letter.body))
            assert all(found == list(range(COUNT)) for found in bodies.values()), bodies
            client.close()
        finally:
            broker.close()


def delayed() -> None:
    """A delayed exchange delivers each message once and in the order of time, before or after the restart."""
    with tempfile.TemporaryDirectory() as home:
        data_dir = Path(home) / "data"
        broker = brokers.Leveret(brokers.leveret_binary(), [], data_dir=data_dir)
        try:
            client = open_channel(broker)
            client.call(1, "exchange.declare", exchange="later", type="x-delayed-message", durable=True,
                        arguments={"x-delayed-type": "direct"})
            client.call(1, "queue.declare", queue="q", durable=True)
            client.call(1, "queue.bind", queue="q", exchange="later", routing_key="q")
            client.call(1, "tx.select")
            for number in reversed(range(COUNT)):
                # Every tenth is due in a later time slot than the others.
                delay = 3000 + 10 * number + (20_000 if number % 10 == 9 else 0)
                props = {"delivery_mode": 2, "headers": {"x-delay": delay}}
                client.publish(1, "later", "q", b"%d" % delay, props=props)
            client.call(1, "tx.commit")
            broker.kill()
            broker.close()
            broker = brokers.Leveret(brokers.leveret_binary(), [], data_dir=data_dir)
            client = open_channel(broker)
            deadline = time.monotonic() + patience(PATIENCE_S)
            bodies: List[int] = []
            while len(bodies) < COUNT:
                assert time.monotonic() < deadline, len(bodies)
                found = client.call(1, "basic.get", queue="q", no_ack=True)
                if not hasattr(found, "body"):
                    time.sleep(0.05)
                else:
                    bodies.append(int(found.body))
            assert bodies == sorted(bodies), bodies
            assert not hasattr(client.call(1, "basic.get", queue="q", no_ack=True), "body")
            client.close()
        finally:
            broker.close()


def run(only: List[str]) -> int:
    """Runs all cases, or those that are named. Returns the exit code."""
    suite = Suite("clients/raw", only)
    suite.case(CASE, story)
    suite.case(DELAYED, delayed)
    return suite.status()
