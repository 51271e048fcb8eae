"""A consumer that settles nothing: after `consumer_timeout` its channel is closed, and other consumers get its
messages.

The case is the same for Leveret and RabbitMQ, with a short timeout. Both must give the texts that are written here.
"""

from __future__ import annotations

import contextlib
from typing import Iterator

from harness import brokers, environment, wire
from harness.raw import Client, Content
from harness.suite import Suite

CASE = "stuck-consumer"
TIMEOUT_MS = 2000
PATIENCE_S = 30.0
TEXT = (
    "PRECONDITION_FAILED - delivery acknowledgement on channel {channel} timed out. Timeout value used: {ms} ms. "
    "This timeout value can be configured, see consumers doc guide to learn more"
)


@contextlib.contextmanager
def target(rabbitmq: bool) -> Iterator[brokers.Address]:
    """Provides a new broker with that timeout."""
    if rabbitmq:
        environment.have_rabbitmq()
        # RabbitMQ checks the timeout once a minute by default.
        with brokers.rabbitmq(f"{{consumer_timeout, {TIMEOUT_MS}}}, {{channel_tick_interval, 500}}") as oracle:
            yield oracle.address
    else:
        with brokers.leveret(config=f'[limits]\nconsumer_timeout = "{TIMEOUT_MS}ms"\n') as broker:
            yield broker.address


def story(address: brokers.Address) -> None:
    """Three channels of one connection hold unacknowledged messages, two of them longer than the timeout."""
    client = Client(address, timeout=PATIENCE_S)
    for channel in (1, 2, 3, 4):
        client.open(channel)
    for queue in ("consumed", "fetched", "automatic"):
        client.call(2, "queue.declare", queue=queue)
        for number in range(3):
            client.publish(2, "", queue, b"%d" % number)
    client.call(1, "basic.consume", queue="consumed", consumer_tag="stuck")
    deliveries = [client.expect("basic.deliver") for _ in range(3)]
    assert [item.body for item in deliveries] == [b"0", b"1", b"2"]
    client.send(wire.method(1, "basic.ack", delivery_tag=1))
    while not isinstance(client.call(3, "basic.get", queue="fetched"), Content):
        pass
    client.call(4, "basic.consume", queue="automatic", consumer_tag="automatic", no_ack=True)
    for _ in range(3):
        client.expect("basic.deliver")

    closes = {}
    while len(closes) < 2:
        frame = client.frame()
        method = wire.decode_method(frame.payload)
        assert method.name == "channel.close", method
        closes[frame.channel] = method.args
        client.send(wire.method(frame.channel, "channel.close-ok"))
    for channel in (1, 3):
        args = closes[channel]
        assert (args["reply_code"], args["class_id"], args["method_id"]) == (406, 0, 0), args
        assert args["reply_text"].decode() == TEXT.format(channel=channel, ms=TIMEOUT_MS), args

    # Unacknowledged messages go to other consumers in their old order; acknowledged ones do not.
    other = Client(address, timeout=PATIENCE_S)
    other.open(1)
    for queue, bodies in (("consumed", [b"1", b"2"]), ("fetched", [b"0", b"1", b"2"])):
        for number, body in enumerate(bodies):
            item = other.call(1, "basic.get", queue=queue, no_ack=True)
            assert item.body == body, (queue, item)
            assert item.method.args["redelivered"] is (queue == "consumed" or number == 0), (queue, item)
        assert other.call(1, "basic.get", queue=queue).name == "basic.get-empty"

    # The other channels of the connection continue, also one without acknowledgements. The closed channel numbers can
    # be used again.
    client.publish(2, "", "automatic", b"still here")
    assert client.expect("basic.deliver").body == b"still here"
    client.open(1)
    assert client.call(1, "queue.declare", queue="consumed").args["consumer_count"] == 0
    client.close()
    other.close()


def run(rabbitmq: bool) -> int:
    """Runs the suite. Returns the exit code."""
    suite = Suite(f"clients/{'rabbitmq-' if rabbitmq else ''}raw")

    def case() -> None:
        # Under load RabbitMQ sometimes closed the whole connection with 320 'shutdown' when it had to close two
        # channels at once. That is not what is tested here, so the case is repeated.
        for is_last in [False, False, True] if rabbitmq else [True]:
            try:
                with target(rabbitmq) as address:
                    return story(address)
            except AssertionError as why:
                if is_last or "reason 'shutdown'" not in str(why):
                    raise
                print(f"# repeated: {why}", flush=True)

    suite.case(CASE, case)
    return suite.status()
