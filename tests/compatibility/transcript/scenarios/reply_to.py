"""Direct reply-to: the pseudo-queue amq.rabbitmq.reply-to."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from ..peer import Script
from ..registry import scenario

NAME = "amq.rabbitmq.reply-to"


@scenario("direct-reply-to")
def direct_reply_to(t: Script) -> None:
    a, b = t.connect("A"), t.connect("B")
    caller, server = a.channel(), b.channel()
    server.call("queue.declare", queue="drt")
    server.call("basic.consume", queue="drt", consumer_tag="server", no_ack=True)
    caller.call("basic.consume", queue=NAME, consumer_tag="replies", no_ack=True)
    caller.publish("", "drt", "question", props={"reply_to": NAME, "correlation_id": "1"})
    request = server.expect(1)[0]
    token = request.props["reply_to"].decode()
    t.note(f"the token begins with the name: {token.startswith(NAME + '.')}")
    t.note("a server may ask whether the caller is still there")
    server.call("queue.declare", queue=token, passive=True)
    server.call("queue.declare", queue=token)
    server.publish("", token, "answer", props={"correlation_id": "1"})
    caller.expect(1)
    t.note("more than one answer, mandatory")
    server.publish("", token, "answer 2", mandatory=True)
    server.expect(0)
    caller.expect(1)
    t.note("confirms of an answer")
    other = b.channel(2)
    other.call("confirm.select")
    other.publish("", token, "answer 3")
    other.expect_confirms(1)
    caller.expect(1)
    t.note("it stays the same token for the channel")
    caller.publish("", "drt", "second question", props={"reply_to": NAME})
    again = server.expect(1)[0].props["reply_to"].decode()
    t.note(f"same token: {again == token}")
    t.note("other reply_to values are left alone")
    caller.publish("", "drt", "third", props={"reply_to": NAME + ".x"})
    server.expect(1)
    t.note("the caller has gone")
    a.close()
    server.publish("", token, "too late", mandatory=True)
    t.settle()
    server.expect(0, settle=False)
    b.once("queue.declare", queue=token, passive=True)
    b.once("queue.declare", queue=token)


@scenario("direct-reply-to-errors")
def direct_reply_to_errors(t: Script) -> None:
    a = t.connect()
    t.note("with acknowledgements")
    a.once("basic.consume", queue=NAME, consumer_tag="r")
    t.note("twice on a channel")
    ch = a.channel()
    ch.call("basic.consume", queue=NAME, consumer_tag="r", no_ack=True)
    ch.call("basic.consume", queue=NAME, consumer_tag="r2", no_ack=True)
    t.note("cancel, then again")
    ch = a.channel()
    ch.call("basic.consume", queue=NAME, consumer_tag="r", no_ack=True)
    ch.call("basic.cancel", consumer_tag="r")
    ch.call("basic.consume", queue=NAME, consumer_tag="r", no_ack=True)
    t.note("a reply_to of that name without a consumer")
    ch = a.channel(2)
    ch.publish("", "nobody", "x", props={"reply_to": NAME})
    ch.expect_close()
    t.note("publishing to the name itself, and to a made-up token")
    ch = a.channel(2)
    ch.publish("", NAME, "x", mandatory=True)
    ch.expect(1)
    ch.publish("", NAME + ".made-up", "x", mandatory=True)
    ch.expect(1)
    t.note("other methods on the name")
    others: List[Tuple[str, Dict[str, Any]]] = [
        ("basic.get", {}), ("queue.purge", {}), ("queue.delete", {}), ("queue.declare", {"passive": True}),
        ("queue.declare", {}), ("queue.bind", {"exchange": "amq.direct", "routing_key": "k"}),
    ]
    for name, args in others:
        a.once(name, queue=NAME, **args)
    more: List[Tuple[str, Dict[str, Any]]] = [
        ("queue.declare", {"passive": True}), ("queue.declare", {}), ("basic.consume", {})]
    for name, args in more:
        a.once(name, queue=NAME + ".made-up", **args)
    t.note("server-made tag, exclusive flag")
    ch = a.channel(5)
    ch.call("basic.consume", queue=NAME, no_ack=True, exclusive=True)
