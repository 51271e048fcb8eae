#!/usr/bin/env python
import os
import sys

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()

channel.exchange_declare(exchange='topic_logs', exchange_type='topic')

result = channel.queue_declare(exclusive=True)
queue_name = result.method.queue

for binding_key in sys.argv[1:]:
    channel.queue_bind(exchange='topic_logs', queue=queue_name, routing_key=binding_key)


def callback(ch, method, properties, body):
    print(" [x] %s:%s" % (method.routing_key, body.decode()))


channel.basic_consume(callback, queue=queue_name, no_ack=True)

print(' [*] Waiting for logs. To exit press CTRL+C')
channel.start_consuming()
