#!/usr/bin/env python
"""Runs publishers and a worker with pika until the broker is gone, then prints their records as JSON.

For each stream: what was sent, what was confirmed, and what the worker got and acknowledged.
"""

import json
import os
import sys
import threading

import pika

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support import body_of, number_in  # noqa: E402

PERSISTENT = pika.BasicProperties(delivery_mode=2)


def connect():
    """Returns a connection with a channel."""
    parameters = pika.ConnectionParameters(host=os.environ["AMQP_HOST"], port=int(os.environ["AMQP_PORT"]),
                                           socket_timeout=10)
    return pika.BlockingConnection(parameters).channel()


def confirm(stream, first, told):
    """Publishes, and waits for the confirm of each message before the next."""
    channel = connect()
    channel.confirm_delivery()
    told.update(sent=first, confirmed=first)
    while True:
        told["sent"] += 1
        channel.basic_publish("", stream, body_of(stream, told["sent"] - 1, 50 + told["sent"] % 5 * 700), PERSISTENT)
        told["confirmed"] = told["sent"]


def tx(stream, first, told):
    """Publishes in transactions of seven messages."""
    channel = connect()
    channel.tx_select()
    told.update(sent=first, confirmed=first)
    while True:
        for _ in range(7):
            told["sent"] += 1
            channel.basic_publish("", stream, body_of(stream, told["sent"] - 1, 300), PERSISTENT)
        channel.tx_commit()
        told["confirmed"] = told["sent"]


def work(stream, first, told):
    """Consumes the queue of the stream and acknowledges most messages."""
    channel = connect()
    channel.basic_qos(prefetch_count=10)
    told.update(got=[], acknowledged=[])
    for method, _, body in channel.consume(stream):
        number = number_in(body, stream)
        told["got"].append(number)
        if number % 10 != 3:
            channel.basic_ack(method.delivery_tag)
            told["acknowledged"].append(number)
        elif number % 20 == 3:
            channel.basic_nack(method.delivery_tag, requeue=False)
            told["acknowledged"].append(number)


def guarded(run, stream, first, told):
    """Runs an action. The loss of the broker is expected; any other error is reported."""
    try:
        run(stream, first, told)
    except (pika.exceptions.AMQPError, OSError):
        pass
    except BaseException as accident:
        told["accident"] = repr(accident)


def main():
    """Reads the arguments: KIND:STREAM:FIRST for each thread."""
    told, threads = {}, []
    for argument in sys.argv[1:]:
        kind, stream, first = argument.split(":")
        mine = told.setdefault(f"{kind}:{stream}", {})
        thread = threading.Thread(target=guarded, args=(globals()[kind], stream, int(first), mine))
        thread.start()
        threads.append(thread)
    print("started", flush=True)
    for thread in threads:
        thread.join()
    print(json.dumps(told), flush=True)


main()
