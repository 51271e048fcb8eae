"""Policies and operator policies: with and without arguments, set and cleared while messages wait."""

from __future__ import annotations

import time

from ..peer import Channel, Script
from ..registry import Own, scenario
from .limits import drain

OWN = Own("", "")


def told(t: Script, *words: str) -> None:
    """Runs a command and waits until the queues have seen the change."""
    t.broker.ctl(*words)
    time.sleep(0.5)
    t.note(" ".join(words))


def fill(ch: Channel, queue: str, bodies: str) -> None:
    for body in bodies:
        ch.publish("", queue, body)
    ch.expect_confirms(len(bodies))


@scenario("policies", own=OWN)
def policies(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("confirm.select")
    for queue in ("dl", "dl2"):
        ch.call("queue.declare", queue=queue)
    ch.call("queue.declare", queue="c2")
    to_dl = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dl"}
    ch.call("queue.declare", queue="c1", arguments=to_dl)
    ch.call("queue.declare", queue="c3", arguments={"x-dead-letter-exchange": ""})
    ch.call("queue.declare", queue="c4", arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
    fill(ch, "c2", "abcd")
    told(t, "set_policy", "d", "^c",
         '{"dead-letter-exchange":"","dead-letter-routing-key":"dl2","max-length":1,"overflow":"drop-head"}')
    ch.call("queue.declare", queue="c2", passive=True)
    ch.call("queue.declare", queue="c5")
    for queue in ("c1", "c2", "c3", "c4", "c5"):
        fill(ch, queue, "123")
        ch.call("queue.declare", queue=queue, passive=True)
        drain(ch, queue)
    for queue in ("dl", "dl2"):
        drain(ch, queue)
    t.note("a declaration is compared with the arguments alone")
    ch.call("queue.declare", queue="c5")
    t.note("an operator sets limits besides")
    told(t, "set_policy", "d", "^c", '{"max-length":5}')
    told(t, "set_operator_policy", "o", "^c", '{"max-length":2}')
    for queue in ("c2", "c4"):
        fill(ch, queue, "1234")
        drain(ch, queue)
    told(t, "clear_operator_policy", "o")
    fill(ch, "c2", "1234567")
    ch.call("queue.declare", queue="c2", passive=True)
    told(t, "clear_policy", "d")
    fill(ch, "c2", "12")
    ch.call("queue.declare", queue="c2", passive=True)
    drain(ch, "c2")


@scenario("policies-of-exchanges", own=OWN)
def exchanges(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("confirm.select")
    ch.call("queue.declare", queue="q")
    ch.call("queue.bind", queue="q", exchange="amq.fanout")
    ch.call("exchange.declare", exchange="f1", type="direct")
    ch.call("exchange.declare", exchange="f2", type="direct", arguments={"alternate-exchange": "none"})
    told(t, "set_policy", "--apply-to", "exchanges", "a", "^f", '{"alternate-exchange":"amq.fanout"}')
    ch.call("exchange.declare", exchange="f3", type="direct")
    for exchange in ("f1", "f2", "f3"):
        ch.publish(exchange, "nowhere", exchange)
        ch.expect_confirms(1)
    drain(ch, "q")
    told(t, "clear_policy", "a")
    ch.publish("f1", "nowhere", "f1")
    ch.expect_confirms(1)
    drain(ch, "q")
