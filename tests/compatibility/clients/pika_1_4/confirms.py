#!/usr/bin/env python
import os

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()

channel.confirm_delivery()
channel.queue_declare(queue='confirmed')
channel.queue_purge(queue='confirmed')

for number in range(100):
    channel.basic_publish(exchange='', routing_key='confirmed', body='safe %d' % number, mandatory=True,
                          properties=pika.BasicProperties(delivery_mode=2))
print("100 confirmed")

try:
    channel.basic_publish(exchange='', routing_key='no such queue', body='lost', mandatory=True)
    print("routed?")
except pika.exceptions.UnroutableError as error:
    print("UnroutableError: %d message, %s, %s" % (
        len(error.messages), error.messages[0].method.reply_text, error.messages[0].body.decode()))

channel.basic_publish(exchange='', routing_key='no such queue', body='lost')
print("vanished without an error")

try:
    channel.basic_publish(exchange='no such exchange', routing_key='k', body='refused')
    print("accepted?")
except pika.exceptions.ChannelClosedByBroker as error:
    print("closed: %d %s" % (error.reply_code, error.reply_text))

channel = connection.channel()
print("kept: %d" % channel.queue_declare(queue='confirmed', passive=True).method.message_count)
connection.close()
