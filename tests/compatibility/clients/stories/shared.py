"""Three queues and one worker without prefetching: its prefetch applies to the whole channel."""

import os
import time

from celery import Celery
from kombu import Exchange, Queue

from ledger import lines, write

NAMES = ("qa", "qb", "qc")

app = Celery("shared", broker=os.environ["AMQP_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_ignore_result=True,
    task_default_queue="qa",
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in NAMES],
)


@app.task
def gate(number):
    """Blocks the worker, so that later messages wait in their queue."""
    write("closed", number)
    while "open" not in lines():
        time.sleep(0.05)


@app.task
def note(what):
    write(what)
