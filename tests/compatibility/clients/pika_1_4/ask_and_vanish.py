#!/usr/bin/env python
import os

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()


def on_reply(ch, method, props, body):
    print("not reached")


# The caller is gone when the answer arrives.
channel.basic_consume('amq.rabbitmq.reply-to', on_reply, auto_ack=True)
channel.basic_publish(
    exchange='',
    routing_key='rpc_queue',
    properties=pika.BasicProperties(reply_to='amq.rabbitmq.reply-to'),
    body='20')
print(" [x] Asked")
os._exit(0)
