"""Declare many queues with arguments."""

import sys

import pika

connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1])))
channel = connection.channel()
for number in range(int(sys.argv[2])):
    channel.queue_declare(f"queue-{number}", arguments={"x-max-length": number})
connection.close()
