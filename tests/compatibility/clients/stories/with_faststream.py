"""FastStream: 100 messages over both kills, done twice only if marked as redelivered; a topic exchange; an answered
request."""

import asyncio
import os
import sys

from faststream import AckPolicy, FastStream
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from ledger import lines, numbers, please, until, write

broker = RabbitBroker(os.environ["AMQP_URL"])
app = FastStream(broker)
marks = RabbitQueue("marks", durable=True)
topics = RabbitExchange("topics", type=ExchangeType.TOPIC, durable=True)


async def send(*args, **options):
    """Publishes a message, and retries when the broker was gone."""
    while True:
        try:
            return await broker.publish(*args, **options)
        except Exception as why:  # the layers below raise various errors for a lost connection
            print("again:", why, flush=True)
            await asyncio.sleep(0.1)


async def story():
    await broker.start()
    answer = await broker.request(21, queue="double", timeout=30)
    assert await answer.decode() == 42
    for number in range(80):
        await send(number, queue=marks, persist=True)
    await asyncio.to_thread(until, lambda: len(lines()) >= 5, "five")
    await asyncio.to_thread(please, "worker")
    await asyncio.to_thread(until, lambda: len(lines()) >= 30, "thirty")
    await asyncio.to_thread(please, "broker")
    for number in range(80, 100):
        await send(number, queue=marks, persist=True)
    await send(200, exchange=topics, routing_key="news.sport", persist=True)
    await send(201, exchange=topics, routing_key="weather", persist=True)
    await asyncio.to_thread(until, lambda: numbers() >= {*range(100), 200}, "all of it")
    first = [line for line in lines() if line.endswith("False")]
    assert len(first) == len(set(first)), "a message was processed twice without a redelivered mark"
    assert 201 not in numbers()
    answer = await broker.request(4, queue="double", timeout=30)
    assert await answer.decode() == 8
    await broker.stop()


def work():
    @broker.subscriber(RabbitQueue("double", durable=True))
    async def double(number: int) -> int:
        return 2 * number

    @broker.subscriber(marks, ack_policy=AckPolicy.NACK_ON_ERROR)
    @broker.subscriber(RabbitQueue("news", durable=True, routing_key="news.#"), topics)
    async def mark(number: int, message: RabbitMessage) -> None:
        write(number, message.raw_message.redelivered)
        await asyncio.sleep(0.02)

    @app.after_startup
    async def ready() -> None:
        print("worker is ready", flush=True)

    asyncio.run(app.run())


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work()
    else:
        asyncio.run(story())
        print("ok", sys.argv[1], flush=True)
