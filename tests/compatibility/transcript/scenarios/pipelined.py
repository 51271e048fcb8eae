"""Several methods in one write: a message that was published while a consumer was ready is delivered to it, whatever
follows."""

from __future__ import annotations

from ..peer import Channel, Script
from ..registry import scenario


def ready_consumer(t: Script, queue: str, no_ack: bool = True) -> "tuple[Channel, Channel]":
    """Returns a channel that publishes, and one that has a consumer."""
    a = t.connect()
    ch, eats = a.channel(), a.channel(2)
    ch.call("queue.declare", queue=queue)
    eats.call("basic.consume", queue=queue, consumer_tag="c", no_ack=no_ack)
    return ch, eats


@scenario("pipelined-get")
def get(t: Script) -> None:
    ch, eats = ready_consumer(t, "pg")
    with ch.connection.together():
        for body in "123":
            ch.publish("", "pg", body)
        ch.send("basic.get", queue="pg")
    ch.answer("basic.get")
    eats.expect(3)
    t.note("a consumer that has as many as it may: the next is for whoever gets")
    narrow = ch.connection.channel(3)
    ch.call("queue.declare", queue="pg2")
    narrow.call("basic.qos", prefetch_count=2)
    narrow.call("basic.consume", queue="pg2", consumer_tag="n")
    with ch.connection.together():
        for body in "1234":
            ch.publish("", "pg2", body)
        ch.send("basic.get", queue="pg2", no_ack=True)
    ch.answer("basic.get")
    narrow.expect(2)


@scenario("pipelined-purge-and-delete")
def purge_and_delete(t: Script) -> None:
    ch, eats = ready_consumer(t, "pp")
    with ch.connection.together():
        for body in "123":
            ch.publish("", "pp", body)
        ch.send("queue.purge", queue="pp")
    ch.answer("queue.purge")
    eats.expect(3)
    with ch.connection.together():
        for body in "45":
            ch.publish("", "pp", body)
        ch.send("queue.declare", queue="pp", passive=True)
    ch.answer("queue.declare", queue="pp", passive=True)
    eats.expect(2)
    with ch.connection.together():
        for body in "67":
            ch.publish("", "pp", body)
        ch.send("queue.delete", queue="pp", if_empty=True)
    ch.answer("queue.delete", queue="pp")
    eats.expect(3)
    t.note("messages that wait are counted, and keep it")
    ch.call("queue.declare", queue="pp2")
    with ch.connection.together():
        ch.publish("", "pp2", "1")
        ch.send("queue.delete", queue="pp2", if_empty=True)
    ch.answer("queue.delete", queue="pp2")


@scenario("pipelined-cancel")
def cancel(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("queue.declare", queue="pc")
    ch.call("basic.consume", queue="pc", consumer_tag="c", no_ack=True)
    with a.together():
        for body in "12":
            ch.publish("", "pc", body)
        ch.send("basic.cancel", consumer_tag="c")
        ch.publish("", "pc", "3")
    ch.answer("basic.cancel")
    ch.expect(2)
    ch.call("queue.declare", queue="pc", passive=True)
    t.note("with acknowledgements: theirs all the same")
    ch.call("basic.consume", queue="pc", consumer_tag="d")
    ch.expect(1)
    with a.together():
        ch.publish("", "pc", "4")
        ch.send("basic.cancel", consumer_tag="d")
    ch.answer("basic.cancel")
    ch.expect(1)
    ch.call("queue.declare", queue="pc", passive=True)
    t.note("a channel that is closed behind what it was given: that is given again, marked")
    b = t.connect("B")
    other = b.channel()
    other.call("basic.consume", queue="pc", consumer_tag="e")
    with b.together():
        other.publish("", "pc", "5")
        other.send("channel.close", reply_code=200, reply_text="done")
    other.answer("channel.close")
    other.is_open = other.lasting = False
    t.settle()
    for _ in range(2):
        ch.call("basic.get", queue="pc", no_ack=True)


@scenario("pipelined-bindings")
def bindings(t: Script) -> None:
    ch, eats = ready_consumer(t, "pb")
    ch.call("exchange.declare", exchange="pb-x", type="fanout")
    ch.call("queue.bind", queue="pb", exchange="pb-x")
    with ch.connection.together():
        ch.publish("pb-x", "", "1")
        ch.send("queue.unbind", queue="pb", exchange="pb-x")
        ch.publish("pb-x", "", "2", mandatory=True)
    ch.answer("queue.unbind")
    ch.expect(1)
    eats.expect(1)
    t.note("two consumers take turns, also in one piece")
    second = ch.connection.channel(3)
    second.call("basic.consume", queue="pb", consumer_tag="d", no_ack=True)
    with ch.connection.together():
        for body in "3456":
            ch.publish("", "pb", body)
        ch.send("queue.purge", queue="pb")
    ch.answer("queue.purge")
    eats.expect(2)
    second.expect(2)


@scenario("pipelined-max-length")
def max_length(t: Script) -> None:
    a = t.connect()
    ch, eats = a.channel(), a.channel(2)
    for queue, arguments in (("pm", {"x-max-length": 2}),
                             ("pmr", {"x-max-length": 2, "x-overflow": "reject-publish"})):
        ch.call("queue.declare", queue=queue, arguments=arguments)
        eats.call("basic.consume", queue=queue, consumer_tag=queue, no_ack=True)
    ch.call("confirm.select")
    for queue in ("pm", "pmr"):
        with a.together():
            for body in "123456":
                ch.publish("", queue, body)
        ch.expect_confirms(6)
        eats.expect(6)


@scenario("pipelined-get-and-close")
def get_and_close(t: Script) -> None:
    a = t.connect()
    keeper = a.channel()
    keeper.call("queue.declare", queue="pgc")
    for number, no_ack in ((2, False), (3, True)):
        ch = a.channel(number)
        for body in "12":
            keeper.publish("", "pgc", body)
        with a.together():
            for _ in range(3):
                ch.send("basic.get", queue="pgc", no_ack=no_ack)
            ch.send("channel.close", reply_code=200, reply_text="", class_id=0, method_id=0)
        for _ in range(3):
            ch.answer("basic.get")
        ch.answer("channel.close")
        keeper.call("queue.purge", queue="pgc")
    t.note("and a mistake behind them")
    ch = a.channel(4)
    for body in "12":
        keeper.publish("", "pgc", body)
    with a.together():
        for _ in range(3):
            ch.send("basic.get", queue="pgc")
        ch.send("basic.ack", delivery_tag=99)
    for _ in range(3):
        ch.answer("basic.get")
    ch.answer("basic.ack")
    keeper.call("queue.purge", queue="pgc")
