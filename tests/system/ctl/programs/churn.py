"""Publish persistent messages and take them again, so that segments empty and are used anew."""

import sys

import pika

port, count = int(sys.argv[1]), int(sys.argv[2])
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
channel = connection.channel()
channel.confirm_delivery()
channel.queue_declare("churn", durable=True)
for _ in range(count):
    channel.basic_publish("", "churn", b"x" * 4000, pika.BasicProperties(delivery_mode=2))
taken = 0
for method, _, _ in channel.consume("churn", inactivity_timeout=10):
    assert method is not None, f"only {taken} came back"
    channel.basic_ack(method.delivery_tag)
    taken += 1
    if taken == count:
        break
connection.close()
