"""The first tutorial program: declare a queue, publish to it, consume from it.  Usage: hello.py PORT"""

import sys

import pika

connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1])))
channel = connection.channel()
channel.queue_declare(queue="hello")
for number in range(100):
    channel.basic_publish(exchange="", routing_key="hello", body=f"Hello {number}")

received = []


def on_message(channel, method, properties, body):
    received.append(body)
    if len(received) == 100:
        channel.stop_consuming()


connection.call_later(20, channel.stop_consuming)
channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)
channel.start_consuming()
connection.close()
assert received == [f"Hello {number}".encode() for number in range(100)], received
print("100 messages received in order")
