"""Client programs with pika for the first-hour test: `programs.py NAME HOST PORT [USER VHOST CA]`."""

from __future__ import annotations

import ssl
import sys

import pika


def connect(host: str, port: int, user: str = "guest", vhost: str = "/", authority: str = "") -> pika.BlockingConnection:
    """Returns a connection, over TLS if `authority` is given. The password of a user is its name and `-secret`."""
    password = "guest" if user == "guest" else f"{user}-secret"
    parameters = {"credentials": pika.PlainCredentials(user, password), "virtual_host": vhost}
    if authority:
        parameters["ssl_options"] = pika.SSLOptions(ssl.create_default_context(cafile=authority), host)
    return pika.BlockingConnection(pika.ConnectionParameters(host, port, connection_attempts=1, **parameters))


def hello(connection: pika.BlockingConnection) -> None:
    """The first tutorial, with both programs in one."""
    channel = connection.channel()
    channel.queue_declare(queue="hello")
    channel.basic_publish(exchange="", routing_key="hello", body="Hello World!")
    print(" [x] Sent 'Hello World!'")
    for _, _, body in channel.consume("hello", auto_ack=True):
        print(f" [x] Received {body.decode()}")
        break


def reading(connection: pika.BlockingConnection) -> None:
    """A sensor: durable queue, persistent messages, confirms."""
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue="meter.readings", durable=True)
    for number in range(3):
        channel.basic_publish("", "meter.readings", f"21.{number}", pika.BasicProperties(delivery_mode=2))
    print("3 readings confirmed")


def flood(connection: pika.BlockingConnection) -> None:
    """Publishes more than fits into memory. It is killed while it is blocked."""
    channel = connection.channel()
    channel.queue_declare(queue="full")
    print("publishing", flush=True)
    while True:
        channel.basic_publish("", "full", b"x" * 1000)


def main() -> None:
    """Runs the named program. Prints an error as one line."""
    name, host, port, *more = sys.argv[1:]
    try:
        connection = connect(host, int(port), *more)
    except pika.exceptions.AMQPError as refused:
        print(f"{type(refused).__name__}")
        return
    try:
        globals()[name](connection)
    except pika.exceptions.ChannelClosedByBroker as refused:
        print(f"{type(refused).__name__}: {refused.reply_code} {refused.reply_text}")
    connection.close()


if __name__ == "__main__":
    main()
