"""Publish persistent messages of 500 bytes to a durable queue, each confirmed; they are numbered on."""

import sys

import pika

port, queue, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
channel = connection.channel()
channel.confirm_delivery()
first = channel.queue_declare(queue, durable=True).method.message_count
for number in range(first, first + count):
    body = b"%08d" % number + b"x" * 492
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))
connection.close()
