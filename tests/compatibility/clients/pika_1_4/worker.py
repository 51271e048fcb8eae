#!/usr/bin/env python
import os
import time

import pika

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()

channel.queue_declare(queue='task_queue', durable=True)
print(' [*] Waiting for messages. To exit press CTRL+C')

SPEED = float(os.environ.get('SECONDS_PER_DOT', '1'))


def callback(ch, method, properties, body):
    print(" [x] Received %r redelivered=%s" % (body.decode(), method.redelivered))
    time.sleep(body.count(b'.') * SPEED)
    print(" [x] Done")
    ch.basic_ack(delivery_tag=method.delivery_tag)


channel.basic_qos(prefetch_count=1)
channel.basic_consume(queue='task_queue', on_message_callback=callback)

channel.start_consuming()
