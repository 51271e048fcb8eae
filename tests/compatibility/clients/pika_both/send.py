#!/usr/bin/env python
import os

import pika

credentials = pika.PlainCredentials('guest', 'guest')
parameters = pika.ConnectionParameters(os.environ['AMQP_HOST'], int(os.environ['AMQP_PORT']), '/', credentials)
connection = pika.BlockingConnection(parameters)
channel = connection.channel()

channel.queue_declare(queue='hello')

channel.basic_publish(exchange='', routing_key='hello', body='Hello World!')
print(" [x] Sent 'Hello World!'")
connection.close()
