"""Tutorial row 10: ann is in two virtual hosts, ben may touch his own things in one, cyd may go nowhere."""

import sys

import pika
from pika.exceptions import AMQPError

port = int(sys.argv[1])


def connect(user: str, vhost: str) -> pika.BlockingConnection:
    """A connection of a user."""
    credentials = pika.PlainCredentials(user, f"{user}-secret")
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, vhost, credentials))


def refused(code: int, attempt) -> str:  # type: ignore[no-untyped-def]
    """What the broker says to something that it must refuse."""
    try:
        attempt()
    except AMQPError as closed:
        assert str(code) in repr(closed), closed
        return repr(closed)
    raise AssertionError(f"{code} was expected, and it worked")


for vhost, bodies in (("one", [b"1"]), ("two", [b"2", b"3"])):
    connection = connect("ann", vhost)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("tasks", durable=True)
    for body in bodies:
        channel.basic_publish("", "tasks", body, pika.BasicProperties(delivery_mode=2))
    connection.close()
connection = connect("ann", "one")
found = connection.channel().basic_get("tasks")[2]
assert found == b"1", found
connection.close()

connection = connect("ben", "one")
connection.channel().queue_declare("ben-tasks")
assert "ACCESS_REFUSED" in refused(403, lambda: connection.channel().queue_declare("tasks", passive=False, durable=True))
connection.close()
assert "NOT_ALLOWED" in refused(530, lambda: connect("ben", "two"))
assert "NOT_ALLOWED" in refused(530, lambda: connect("cyd", "one"))
assert "NOT_ALLOWED" in refused(530, lambda: connect("ann", "nowhere"))
