#!/usr/bin/env python
import os
import time

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()
channel.confirm_delivery()

channel.exchange_declare(exchange='later', exchange_type='x-delayed-message', durable=True,
                         arguments={'x-delayed-type': 'topic'})
channel.queue_declare(queue='reminders', durable=True)
channel.queue_bind(queue='reminders', exchange='later', routing_key='remind.#')

began = time.time()
for delay, body in ((900, 'third'), (300, 'first'), (600, 'second')):
    channel.basic_publish(exchange='later', routing_key='remind.me', body=body,
                          properties=pika.BasicProperties(delivery_mode=2, headers={'x-delay': delay}))
channel.basic_publish(exchange='later', routing_key='remind.me', body='at once')
method, properties, body = channel.basic_get(queue='reminders')
print(body.decode())

left = 3
while left:
    method, properties, body = channel.basic_get(queue='reminders')
    if method is None:
        connection.sleep(0.02)
        continue
    left -= 1
    channel.basic_ack(method.delivery_tag)
    delay = properties.headers['x-delay']
    is_early = time.time() - began < -delay / 1000.0
    print("%s after %d, too early: %s" % (body.decode(), -delay, is_early))

channel.queue_delete(queue='reminders')
channel.exchange_delete(exchange='later')
try:
    channel.exchange_declare(exchange='later', exchange_type='x-delayed-message')
    print("declared?")
except pika.exceptions.ChannelClosed as error:
    print("closed: %s" % (error.args[-1] if isinstance(error.args[-1], str) else error))
connection.close()
