"""Say whether the numbers in a queue begin at 0 and have no gap."""

import sys

import pika

port, queue = int(sys.argv[1]), sys.argv[2]
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
channel = connection.channel()
ready = channel.queue_declare(queue, durable=True).method.message_count
found = [int(channel.basic_get(queue)[2][:8]) for _ in range(ready)]
print("unbroken" if found == list(range(ready)) else f"broken: {found[:20]} of {ready}")
connection.close()
