"""Tasks with priorities, as in Celery's guide: a queue with ten priorities, and a worker without prefetching."""

import os
import time

from celery import Celery
from kombu import Exchange, Queue

from ledger import lines, write

app = Celery("urgent", broker=os.environ["AMQP_URL"], backend="rpc://")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_default_queue="urgent",
    task_queues=[Queue("urgent", Exchange("urgent"), routing_key="urgent", max_priority=10)],
)


@app.task
def gate(number):
    """Blocks the worker, so that later messages wait in the queue."""
    write("closed", number)
    while "open" not in lines():
        time.sleep(0.05)


@app.task
def note(what):
    write(what)
