"""Tasks on quorum queues with Celery's native delayed delivery. Results are in files, because chords need a result
backend."""

import os

from celery import Celery

from ledger import write

app = Celery("delayed", broker=os.environ["AMQP_URL"], backend="file://" + os.environ["RESULTS"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=1,
    task_default_queue="delayed",
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",
)


@app.task
def square(number):
    return number * number


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True, acks_late=True)
def later(self, what):
    write(what)
    return what
