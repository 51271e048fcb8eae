#!/usr/bin/env python
import os

import pika

credentials = pika.PlainCredentials('guest', 'guest')
parameters = pika.ConnectionParameters(os.environ['AMQP_HOST'], int(os.environ['AMQP_PORT']), '/', credentials)
connection = pika.BlockingConnection(parameters)
channel = connection.channel()

channel.queue_declare(queue='hello')

# Without connection.close(), as many programs do.
for number in range(1000):
    channel.basic_publish(exchange='', routing_key='hello', body='Hello %d' % number)
print(" [x] Sent 1000")
os._exit(0)
