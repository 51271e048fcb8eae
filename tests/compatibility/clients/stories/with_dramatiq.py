"""Dramatiq: the messages of 100 actors over both kills, a retry, a delayed message, and one that is dead-lettered to
`.XQ`."""

import os
import sys
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika.exceptions import AMQPError

from ledger import lines, numbers, please, until, write

broker = RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor
def mark(number):
    write(number)
    time.sleep(0.02)


@dramatiq.actor(max_retries=3, min_backoff=100, max_backoff=200)
def third_time(number):
    write(number)
    if sum(line == str(number) for line in lines()) < 3:
        raise ValueError("to be retried")


@dramatiq.actor(max_retries=0)
def die():
    raise ValueError("an intended failure")


def send(actor, *args, **options):
    """Sends a message, and retries when the broker was gone."""
    while True:
        try:
            return actor.send_with_options(args=args, **options)
        except (dramatiq.errors.ConnectionError, AMQPError):
            broker.close()
            time.sleep(0.1)


def story():
    for number in range(80):
        send(mark, number)
    until(lambda: len(lines()) >= 5, "five")
    please("worker")
    until(lambda: len(lines()) >= 30, "thirty")
    send(mark, 200, delay=3000)
    please("broker")
    for number in range(80, 100):
        send(mark, number)
    send(third_time, 300)
    send(die)
    until(lambda: numbers() == {*range(100), 200, 300} and lines().count("300") == 3, "all messages are processed")
    until(lambda: broker.get_queue_message_counts("default") == (0, 0, 1), "the dead-lettered message is processed")


if __name__ == "__main__":
    story()
    print("ok", sys.argv[1], flush=True)
