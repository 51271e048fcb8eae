#!/usr/bin/env python
import os

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()

channel.queue_declare(queue='get_queue')
channel.queue_purge(queue='get_queue')

for letter in 'abcd':
    channel.basic_publish(exchange='', routing_key='get_queue', body=letter)

for _ in range(3):
    method, properties, body = channel.basic_get(queue='get_queue')
    print("%s tag=%d exchange=%r key=%r left=%d redelivered=%s body=%s" % (
        method.NAME, method.delivery_tag, method.exchange, method.routing_key, method.message_count,
        method.redelivered, body.decode()))

# Settles 1 and 2. Message 3 is requeued when the channel closes.
channel.basic_ack(2, multiple=True)
channel.close()

channel = connection.channel()
for _ in range(2):
    method, properties, body = channel.basic_get(queue='get_queue', auto_ack=True)
    print("%s left=%d redelivered=%s body=%s" % (
        method.NAME, method.message_count, method.redelivered, body.decode()))
print("empty: %r" % (channel.basic_get(queue='get_queue', auto_ack=True),))
connection.close()
