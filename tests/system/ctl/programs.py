"""Client programs with pika for these cases: `programs.py NAME PORT WORDS...`.

Each is a process of its own, because it runs with pika's interpreter and may be killed while it waits.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Callable

import pika
from pika.exceptions import AMQPError, ConnectionClosedByBroker

PORT = int(sys.argv[2])
PERSISTENT = pika.BasicProperties(delivery_mode=2)


def connect(user: str = "guest", password: str = "guest", vhost: str = "/") -> pika.BlockingConnection:
    """Returns a connection of a user."""
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", PORT, vhost, credentials))


def hello(user: str, password: str) -> None:
    """Leaves one message in the queue `hello`, as another user than guest."""
    connection = connect(user, password)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue="hello", durable=True)
    channel.basic_publish(exchange="", routing_key="hello", body=b"Hello World!", properties=PERSISTENT)
    connection.close()


def publish(queue: str, count: str) -> None:
    """Publishes persistent messages of 500 bytes to a durable queue, each confirmed. The numbers continue those in the
    queue."""
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    first = channel.queue_declare(queue, durable=True).method.message_count
    for number in range(first, first + int(count)):
        channel.basic_publish("", queue, b"%08d" % number + b"x" * 492, PERSISTENT)
    connection.close()


def in_order(queue: str) -> None:
    """Prints whether the numbers in a queue begin at 0 and have no gap."""
    connection = connect()
    channel = connection.channel()
    ready = channel.queue_declare(queue, durable=True).method.message_count
    found = [int(channel.basic_get(queue)[2][:8]) for _ in range(ready)]
    print("unbroken" if found == list(range(ready)) else f"broken: {found[:20]} of {ready}")
    connection.close()


def churn(count: str) -> None:
    """Publishes and consumes persistent messages, so that segments are emptied and reused."""
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("churn", durable=True)
    for _ in range(int(count)):
        channel.basic_publish("", "churn", b"x" * 4000, PERSISTENT)
    taken = 0
    for method, _, _ in channel.consume("churn", inactivity_timeout=10):
        assert method is not None, f"only {taken} were delivered"
        channel.basic_ack(method.delivery_tag)
        taken += 1
        if taken == int(count):
            break
    connection.close()


def many(count: str) -> None:
    """Declares many queues with arguments."""
    connection = connect()
    channel = connection.channel()
    for number in range(int(count)):
        channel.queue_declare(f"queue-{number}", arguments={"x-max-length": number})
    connection.close()


def topology() -> None:
    """Declares queues, exchanges and bindings, publishes and consumes, so that there is something to list. Runs until
    it is killed."""
    connection = connect()
    channel = connection.channel()
    arguments = {"x-max-length": 10, "x-overflow": "reject-publish", "x-b": True, "x-t": {"a": 1}, "x-l": [1, "two"]}
    channel.queue_declare("plain")
    channel.queue_declare("dur", durable=True)
    channel.queue_declare("args", durable=True, arguments=arguments)
    channel.queue_declare("tab\tname")
    channel.queue_declare("excl", exclusive=True)
    channel.queue_declare("auto", auto_delete=True)
    channel.exchange_declare("ex", "topic", durable=True)
    channel.exchange_declare("int", "fanout", internal=True, auto_delete=True, arguments={"alternate-exchange": "ex"})
    channel.queue_bind("dur", "ex", "a.#", arguments={"k": "v"})
    channel.exchange_bind("int", "ex", "x")
    channel.confirm_delivery()
    for _ in range(5):
        channel.basic_publish("", "dur", b"hello", PERSISTENT)
    second = connection.channel(2)
    second.basic_qos(prefetch_count=2)
    second.basic_consume("dur", lambda *_: None, consumer_tag="ctag", arguments={"x-priority": 3})
    connection.process_data_events(0.5)
    print("ready", flush=True)
    # One of the compared commands closes its connection.
    with contextlib.suppress(ConnectionClosedByBroker):
        while True:
            connection.process_data_events(1)


def closed(binary: str, data_dir: str) -> None:
    """Connections that an operator closes: one of two by its pid, then the rest."""

    def ctl(*words: str) -> str:
        command = [binary, "ctl", "--data-dir", data_dir, "-s", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def farewell(connection: pika.BlockingConnection) -> None:
        try:
            while True:
                connection.process_data_events(1)
        except ConnectionClosedByBroker as end:
            print(end.reply_code, end.reply_text.split(" - ")[-1])

    first = connect()
    pid = ctl("list_connections", "pid").strip()
    second = connect()
    ctl("close_connection", pid, "go away")
    farewell(first)
    assert len(ctl("list_connections", "pid").split()) == 1
    # A pid is never reused.
    third = connect()
    ctl("close_connection", pid, "go away")
    third.channel().queue_declare("still-here")
    ctl("close_all_connections", "all of you")
    farewell(second)
    farewell(third)


def vhosts() -> None:
    """ann may use two virtual hosts, ben may use his own objects in one, and cyd may use none."""

    def enter(user: str, vhost: str) -> pika.BlockingConnection:
        return connect(user, f"{user}-secret", vhost)

    def refused(code: int, attempt: Callable[[], object]) -> str:
        try:
            attempt()
        except AMQPError as why:
            assert str(code) in repr(why), why
            return repr(why)
        raise AssertionError(f"{code} was expected, and the operation succeeded")

    for vhost, bodies in (("one", [b"1"]), ("two", [b"2", b"3"])):
        connection = enter("ann", vhost)
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("tasks", durable=True)
        for body in bodies:
            channel.basic_publish("", "tasks", body, PERSISTENT)
        connection.close()
    connection = enter("ann", "one")
    found = connection.channel().basic_get("tasks")[2]
    assert found == b"1", found
    connection.close()

    connection = enter("ben", "one")
    connection.channel().queue_declare("ben-tasks")
    assert "ACCESS_REFUSED" in refused(403, lambda: connection.channel().queue_declare("tasks", durable=True))
    connection.close()
    assert "NOT_ALLOWED" in refused(530, lambda: enter("ben", "two"))
    assert "NOT_ALLOWED" in refused(530, lambda: enter("cyd", "one"))
    assert "NOT_ALLOWED" in refused(530, lambda: enter("ann", "nowhere"))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[3:])
