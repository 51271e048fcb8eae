#!/usr/bin/env python
import os
import sys

import pika

count, size = int(sys.argv[1]), int(sys.argv[2])

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host=os.environ['AMQP_HOST'], port=int(os.environ['AMQP_PORT'])))
channel = connection.channel()
channel.queue_declare(queue='ledger', durable=True)
channel.queue_purge(queue='ledger')
channel.tx_select()


def waiting():
    return channel.queue_declare(queue='ledger', passive=True).method.message_count


def fill(mode):
    for number in range(count):
        channel.basic_publish(exchange='', routing_key='ledger', body=(b'%08d' % number).ljust(size, b'.'),
                              properties=pika.BasicProperties(delivery_mode=mode))


for mode, name in ((1, 'transient'), (2, 'persistent')):
    fill(mode)
    channel.tx_rollback()
    print("%s, rolled back: %d" % (name, waiting()))
    fill(mode)
    channel.tx_commit()
    print("%s, committed: %d" % (name, waiting()))
    numbers, tags = [], []
    for method, _, body in channel.consume('ledger', inactivity_timeout=20):
        if method is None:
            break
        numbers.append(int(body[:8]))
        tags.append(method.delivery_tag)
        if len(numbers) == count:
            break
    print("%s, in order: %s" % (name, numbers == list(range(count))))
    for tag in tags[1::2] + tags[0::2]:
        channel.basic_ack(tag)
    channel.tx_rollback()
    for tag in tags:
        channel.basic_ack(tag)
    channel.tx_commit()
    channel.cancel()
    print("%s, left: %d" % (name, waiting()))
connection.close()
