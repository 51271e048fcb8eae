"""Queues, exchanges, bindings, messages, a consumer: something to list. Stays until it is killed."""

import contextlib
import sys

import pika
import pika.exceptions

connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1])))
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
    channel.basic_publish("", "dur", b"hello", pika.BasicProperties(delivery_mode=2))
second = connection.channel(2)
second.basic_qos(prefetch_count=2)
second.basic_consume("dur", lambda *_: None, consumer_tag="ctag", arguments={"x-priority": 3})
connection.process_data_events(0.5)
print("ready", flush=True)
# One of the commands that are compared ends its connection.
with contextlib.suppress(pika.exceptions.ConnectionClosedByBroker):
    while True:
        connection.process_data_events(1)
