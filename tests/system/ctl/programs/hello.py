"""Tutorial row 1 with a user of one's own: one message is left in `hello`."""

import sys

import pika

port, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3]
credentials = pika.PlainCredentials(user, password)
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, credentials=credentials))
channel = connection.channel()
channel.confirm_delivery()
channel.queue_declare(queue="hello", durable=True)
channel.basic_publish(
    exchange="", routing_key="hello", body=b"Hello World!", properties=pika.BasicProperties(delivery_mode=2)
)
connection.close()
