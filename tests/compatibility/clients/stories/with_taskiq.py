"""taskiq-aio-pika: 100 tasks over both kills, on a quorum queue behind a delay queue."""

import asyncio
import os
import sys

from taskiq_aio_pika import AioPikaBroker, Queue

from ledger import lines, numbers, please, until, write

broker = AioPikaBroker(os.environ["AMQP_URL"], qos=4, delay_queue=Queue(name="taskiq.delay"))


@broker.task(task_name="mark")
async def mark(number: int) -> None:
    write(number)
    await asyncio.sleep(0.02)


async def send(number, **labels):
    """Sends a task, and retries when the broker was gone."""
    while True:
        try:
            return await mark.kicker().with_labels(**labels).kiq(number)
        except Exception as why:  # the layers below raise various errors for a lost connection
            print("again:", why, flush=True)
            await asyncio.sleep(0.1)


async def story():
    await broker.startup()
    for number in range(80):
        await send(number)
    await asyncio.to_thread(until, lambda: len(lines()) >= 5, "five")
    await asyncio.to_thread(please, "worker")
    await asyncio.to_thread(until, lambda: len(lines()) >= 30, "thirty")
    await send(200, delay=3)
    await asyncio.to_thread(please, "broker")
    for number in range(80, 100):
        await send(number)
    await asyncio.to_thread(until, lambda: numbers() == {*range(100), 200}, "all of it")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(story())
    print("ok", sys.argv[1], flush=True)
