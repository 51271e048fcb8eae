"""Tasks with common settings: classic queues, results by rpc://."""

import os
import time

from celery import Celery
from kombu import Exchange, Queue

from ledger import write

app = Celery("jobs", broker=os.environ["AMQP_URL"], backend="rpc://")
topics = Exchange("topics", "topic")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=1,
    task_default_queue="jobs",
    task_queues=[
        Queue("jobs", Exchange("jobs"), routing_key="jobs"),
        Queue("news", topics, routing_key="news.#"),
        Queue("sport", topics, routing_key="*.sport"),
    ],
)


@app.task
def add(first, second):
    return first + second


@app.task
def fail():
    raise ValueError("an intended failure")


@app.task(bind=True, max_retries=5)
def third_time(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task
def note(what):
    write(what)


@app.task(bind=True)
def where(self, what):
    write(what, self.request.delivery_info["routing_key"])


@app.task(bind=True, acks_late=True)
def mark(self, number):
    write(number, bool(self.request.delivery_info["redelivered"]))
    time.sleep(0.03)
    return number


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def stay(self, number):
    """The first worker that runs it never finishes it."""
    redelivered = bool(self.request.delivery_info["redelivered"])
    write("stay", number, redelivered)
    while not redelivered:
        time.sleep(1)
    return number
