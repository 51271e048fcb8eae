#!/usr/bin/env python
"""Publishes persistent messages with pika until the broker blocks the connection, and continues when it is unblocked.
"""

import os
import sys

import pika

told = []


def note(name):
    """Prints the name of the notification from the broker."""
    told.append(name)
    print(name, flush=True)


connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ["AMQP_HOST"], port=int(os.environ["AMQP_PORT"])))
connection.add_on_connection_blocked_callback(lambda *_: note("blocked"))
connection.add_on_connection_unblocked_callback(lambda *_: note("unblocked"))
channel = connection.channel()
while not told:
    channel.basic_publish("", sys.argv[1], b"p" * int(sys.argv[2]), pika.BasicProperties(delivery_mode=2))
    connection.process_data_events(0)
while "unblocked" not in told:
    connection.process_data_events(0.1)
connection.close()
