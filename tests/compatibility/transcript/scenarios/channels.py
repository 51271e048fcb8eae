"""Opening, closing and reopening channels, and the other methods of the class channel."""

from __future__ import annotations

from harness import wire
from harness.suite import patience

from ..peer import Channel, Script
from ..registry import scenario


@scenario("channel-open", alone=False)
def channel_open(t: Script) -> None:
    a = t.connect()
    one = a.channel(1)
    one.call("channel.close", reply_code=200, reply_text="done")
    t.note("the number is free again")
    one = Channel(a, 1)
    a.channels[1] = one
    one.call("channel.open")
    t.note("out_of_band is ignored")
    high = Channel(a, 2047)
    a.channels[2047] = high
    high.call("channel.open", out_of_band="x")
    high.call("basic.qos")
    t.note("a number above the agreed maximum")
    a = t.connect(channel_max=10)
    beyond = Channel(a, 11)
    a.channels[11] = beyond
    beyond.call("channel.open")
    t.note("a number above the maximum, the maximum being 2047")
    a = t.connect()
    beyond = Channel(a, 2048)
    a.channels[2048] = beyond
    beyond.call("channel.open")
    t.note("number 65535")
    a = t.connect()
    beyond = Channel(a, 65535)
    a.channels[65535] = beyond
    beyond.call("channel.open")


@scenario("channel-errors", alone=False)
def channel_errors(t: Script) -> None:
    t.note("open twice")
    a = t.connect()
    a.channel(1).call("channel.open")
    t.note("a method on a channel that is not open")
    a = t.connect()
    a.channels[7] = Channel(a, 7)
    a.channels[7].call("queue.declare", queue="q")
    t.note("a publish on a channel that is not open")
    a = t.connect()
    a.say("(channel 7) basic.publish", wire.publish(7, "", "nowhere", b"hello"))
    a.hear()
    t.note("a header on a channel that is not open")
    a = t.connect()
    a.say("(channel 7) header", wire.frame(2, 7, wire.encode_header(0, {})))
    a.hear()
    t.note("a body on a channel that is not open")
    a = t.connect()
    a.say("(channel 7) body", wire.frame(3, 7, b"x"))
    a.hear()
    t.note("channel.close on a channel that is not open")
    a = t.connect()
    a.channels[7] = Channel(a, 7)
    a.channels[7].call("channel.close")
    t.note("channel.close-ok on a channel that is not open")
    a = t.connect()
    a.say("(channel 7) channel.close-ok", wire.method(7, "channel.close-ok"))
    a.hear()
    a.channel(1).call("basic.qos")
    t.note("channel.close-ok on an open channel")
    a = t.connect()
    a.channel(1)
    a.say("(channel 1) channel.close-ok", wire.method(1, "channel.close-ok"))
    a.hear_or_live()
    t.note("a method on a channel after its close-ok")
    a = t.connect()
    ch = a.channel(1)
    ch.lasting = False
    ch.call("channel.close", reply_code=200)
    ch.call("basic.qos")


@scenario("channel-close-by-server", alone=False)
def channel_close_by_server(t: Script) -> None:
    a = t.connect()
    ch = a.channel(1)
    ch.call("queue.declare", queue="no-such", passive=True)
    t.note("the connection lives, the number is free at once")
    ch = ch.reopen()
    ch.call("queue.declare", queue="channel-close")
    t.note("what is sent after the error and before close-ok is ignored")
    other = a.channel(2)
    ch.line(">", "queue.declare queue='no-such' passive=true; queue.declare queue='channel-close-ignored'")
    ch.line(">", "publish to 'channel-close'; basic.qos")
    a.send(wire.method(1, "queue.declare", queue="no-such", passive=True)
           + wire.method(1, "queue.declare", queue="channel-close-ignored")
           + wire.publish(1, "", "channel-close", b"lost")
           + wire.method(1, "basic.qos"))
    ch.expect_close()
    other.call("queue.declare", queue="channel-close", passive=True)
    a.once("queue.declare", queue="channel-close-ignored", passive=True)
    t.note("and open again works without anything left of the old channel")
    ch = ch.reopen()
    ch.call("basic.get", queue="channel-close")
    t.note("a close by the client that crosses the server's close")
    ch.line(">", "queue.declare queue='no-such' passive=true; channel.close")
    a.send(wire.method(1, "queue.declare", queue="no-such", passive=True)
           + wire.method(1, "channel.close", reply_code=200))
    ch.expect_close()
    a.wait(lambda: bool(ch.replies), patience(1.0))
    while ch.replies:
        ch.expect_close()
    a.close()


@scenario("channel-flow", alone=False)
def channel_flow(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("channel.flow", active=True)
    ch.call("channel.flow", active=False)
    t.note("flow-ok out of the blue")
    a = t.connect()
    ch = a.channel()
    ch.send("channel.flow-ok", active=True)
    a.hear()
    ch.call("basic.qos")


@scenario("access-request")
def access_request(t: Script) -> None:
    a = t.connect()
    ch = a.channel()
    ch.call("access.request", realm="/data", active=True, write=True, read=True)
    ch.call("access.request", realm="", passive=True, exclusive=True)
    ch.call("queue.declare", ticket=7, queue="access-request")
