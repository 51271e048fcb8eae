"""A raw AMQP client that records what it sends and receives.

Every run against the same broker must produce the same transcript. So replies to a synchronous method are recorded at
once, and asynchronous methods (deliveries, returns, confirms, cancels) wait in the inbox of the channel until the
script calls `expect`. That nothing more arrives is proved by synchronous methods through every channel and queue
(`settle`), not by a sleep.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Tuple

from harness import wire
from harness.brokers import Address
from harness.suite import patience

PATIENCE = patience(10.0)
BARRIER_CHANNEL = 900
ASYNC = {"basic.deliver", "basic.return", "basic.ack", "basic.nack", "basic.cancel"}
GENERATED = [
    (re.compile(r"amq\.gen-[A-Za-z0-9_-]{10,}"), "gen"),
    (re.compile(r"amq\.ctag-[A-Za-z0-9_-]{10,}"), "ctag"),
    (re.compile(r"amq\.rabbitmq\.reply-to\.[A-Za-z0-9_.+/=-]{20,}"), "reply-to"),
]
# Values that depend on RabbitMQ's machine, the date, or the start: for example, it lists the mechanisms in either
# order.
MACHINE = [
    (re.compile(r"(oracle|leveret)@[A-Za-z0-9_.-]+"), r"\1@<host>"),
    (re.compile(r"Erlang/OTP [0-9.]+"), "Erlang/OTP <version>"),
    (re.compile(r"(platform=S)'(Linux|Rust)[^']*'"), r"\1'<platform>'"),
    (re.compile(r"time=T:1[0-9]{9}\b"), "time=T:<now>"),
    (re.compile(r"\bnode=S'[^']*'"), "node=S'<node>'"),
    (re.compile(r"connection=S'127\.0\.0\.1:[0-9]+ -> 127\.0\.0\.1:[0-9]+'"), "connection=S'<client> -> <broker>'"),
    (re.compile(r"mechanisms='AMQPLAIN PLAIN'"), "mechanisms='PLAIN AMQPLAIN'"),
]


class Unit(NamedTuple):
    """A method with its content."""

    method: wire.Method
    header: Optional[wire.Header]
    pieces: List[int]
    body: bytes

    @property
    def props(self) -> Dict[str, Any]:
        """Returns the properties of the content, none for a method without content."""
        return self.header.props if self.header else {}


class Script:
    """The connections of a scenario and their common transcript."""

    def __init__(self, address: Address, broker: Any = None) -> None:
        """`broker` is the process, for a scenario that has its own broker."""
        self.address = address
        self.broker = broker
        self.lines: List[str] = []
        self.connections: Dict[str, Connection] = {}
        self.queues: Dict[str, Connection] = {}
        self.exchanges: List[str] = []

    def note(self, text: str) -> None:
        """Records a heading or a result computed by the script."""
        self.lines.append(f"# {text}")

    def connect(self, name: str = "A", **options: Any) -> "Connection":
        """Opens a connection. The handshake is not recorded."""
        connection = Connection(self, name)
        connection.open(**options)
        return connection

    def raw(self, name: str = "A") -> "Connection":
        """Opens a socket on which nothing has been sent."""
        return Connection(self, name)

    def text(self) -> str:
        """Returns the transcript, with generated names numbered in order of appearance."""
        text = "\n".join(self.lines) + "\n"
        for pattern, label in GENERATED:
            seen: Dict[str, str] = {}

            def number(found: "re.Match[str]") -> str:
                return seen.setdefault(found.group(), f"<{label}-{len(seen) + 1}>")

            text = pattern.sub(number, text)
        for pattern, replacement in MACHINE:
            text = pattern.sub(replacement, text)
        return text

    def settle(self) -> None:
        """Waits until everything sent so far has taken effect."""
        self._sync_channels()
        for name, owner in list(self.queues.items()):
            if not owner.dead:
                owner.barrier("queue.declare", queue=name, passive=True)
        self._sync_channels()
        self._sync_channels()

    def _sync_channels(self) -> None:
        for connection in self.connections.values():
            for channel in list(connection.channels.values()):
                channel.sync()

    def cleanup(self) -> None:
        """Deletes what the scenario left, so that scenarios do not affect each other."""
        for connection in list(self.connections.values()):
            connection.close_quietly()
        if not self.queues and not self.exchanges:
            return
        janitor = Connection(self, "janitor")
        janitor.open()
        for queue in self.queues:
            janitor.barrier("queue.delete", queue=queue)
        for exchange in self.exchanges:
            janitor.barrier("exchange.delete", exchange=exchange)
        janitor.close_quietly()


class Connection:
    """A socket, its channels, and the methods received on channel 0."""

    def __init__(self, script: Script, name: str) -> None:
        self.script = script
        self.name = name
        script.connections[name] = self
        self._begin()

    def _begin(self) -> None:
        """Opens a new socket and clears the received methods."""
        self.channels: Dict[int, Channel] = {}
        self.events: Deque[wire.Method] = deque()
        self.heartbeats = 0
        self.dead = False
        self.closed_by_peer = False
        self.buffer = bytearray()
        self.stray: Deque[wire.Frame] = deque()
        self.gathered: Optional[bytearray] = None
        self.socket = socket.create_connection(self.script.address, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- sending

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Sends everything inside the block in one write, so that a broker may read it at once."""
        self.gathered = bytearray()
        yield
        data, self.gathered = bytes(self.gathered), None
        self.send(data)

    def send(self, data: bytes) -> None:
        """Sends bytes unchanged. A closed connection is noticed when reading."""
        if self.gathered is not None:
            self.gathered += data
            return
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def say(self, text: str, data: bytes) -> None:
        """Sends bytes and records `text` for them."""
        self.line(0, ">", text)
        self.send(data)

    def line(self, channel: int, arrow: str, text: str) -> None:
        """Records one line."""
        self.script.lines.append(f"{self.name}.{channel} {arrow} {text}")

    def method(self, name: str, **args: Any) -> None:
        """Sends and records a method on channel 0."""
        self.line(0, ">", show_method(name, args))
        self.send(wire.method(0, name, **args))

    # -- receiving

    def pump(self, deadline: float) -> bool:
        """Reads once and distributes the frames. Returns False at the deadline or the end of the connection."""
        if self.closed_by_peer:
            return False
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 20)
        except socket.timeout:
            return False
        except OSError:
            data = b""
        if not data:
            self.closed_by_peer = True
            return False
        self.buffer += data
        for frame in wire.split_frames(self.buffer):
            self._hand_out(frame)
        return True

    def _hand_out(self, frame: wire.Frame) -> None:
        if frame.kind == wire.FRAME_HEARTBEAT:
            self.heartbeats += 1
        elif frame.channel == 0 and frame.kind == wire.FRAME_METHOD:
            self.events.append(wire.decode_method(frame.payload))
        elif frame.channel in self.channels:
            self.channels[frame.channel].take(frame)
        else:
            self.stray.append(frame)

    def wait(self, ready: Callable[[], bool], patience_s: float = PATIENCE) -> bool:
        """Reads until `ready` returns true. Returns False if it did not in time."""
        deadline = time.monotonic() + patience_s
        while not ready():
            if not self.pump(deadline):
                return ready()
        return True

    def hear(self, patience_s: float = PATIENCE) -> Optional[wire.Method]:
        """Records the next method on channel 0, or the end of the connection."""
        self.wait(lambda: bool(self.events), patience_s)
        if self.events:
            method = self.events.popleft()
            self.line(0, "<", show_method(method.name, method.args))
            if method.name == "connection.close":
                self.method("connection.close-ok")
                self.hear_end()
            return method
        self.hear_end(0.0)
        return None

    def hear_end(self, patience_s: float = PATIENCE) -> None:
        """Records whether the peer closed the connection."""
        self.wait(lambda: self.closed_by_peer, patience_s)
        if self.buffer:
            self.line(0, "<", f"bytes {wire.show(bytes(self.buffer))}")
            self.buffer.clear()
        while self.events:
            self.hear(0.0)
        if self.dead:
            return
        if self.closed_by_peer:
            self.line(0, "<", "(socket closed)")
            self.dead = True
            self.socket.close()
        else:
            self.line(0, "<", "(nothing)")

    # -- connections and channels

    def open(
        self,
        user: str = "guest",
        password: str = "guest",
        vhost: str = "/",
        channel_max: int = 2047,
        frame_max: int = 131072,
        heartbeat: int = 0,
        capabilities: Optional[List[str]] = None,
    ) -> None:
        """Does the whole handshake without recording it. Anything unexpected is an error of the script."""
        if capabilities is None:
            capabilities = ["basic.nack", "consumer_cancel_notify", "publisher_confirms",
                            "authentication_failure_close", "connection.blocked"]
        self.frame_max = frame_max
        self.send(wire.PROTOCOL_HEADER)
        self._await("connection.start")
        table = {"product": "transcript", "capabilities": {name: True for name in capabilities}}
        self.send(wire.method(0, "connection.start-ok", client_properties=table, mechanism="PLAIN",
                              response=f"\0{user}\0{password}", locale="en_US"))
        self._await("connection.tune")
        self.send(wire.method(0, "connection.tune-ok", channel_max=channel_max, frame_max=frame_max,
                              heartbeat=heartbeat))
        self.send(wire.method(0, "connection.open", virtual_host=vhost))
        self._await("connection.open-ok")

    def _await(self, name: str) -> wire.Method:
        self.wait(lambda: bool(self.events))
        if not self.events or self.events[0].name != name:
            raise RuntimeError(f"waited for {name}, heard {list(self.events)} closed={self.closed_by_peer}")
        return self.events.popleft()

    def channel(self, number: int = 1) -> "Channel":
        """Returns an open channel. Its opening is not recorded. A closed connection is replaced."""
        self.revive()
        if number in self.channels:
            self.channels[number].close_quietly()
        channel = Channel(self, number)
        channel.open()
        return channel

    def revive(self) -> None:
        """Reconnects and records that, if the connection is known to be closed. Records the reason if it is new. This
        does not wait: a script that expects the end of a connection calls `hear`."""
        if self.events and not self.dead:
            self.hear(0.0)
        if self.dead or self.closed_by_peer:
            self._begin()
            self.open()
            self.line(0, ">", "(connected again)")

    def hear_or_live(self) -> None:
        """Records the server's answer to an error, or that the connection continues: channel 3 still works, and nothing
        arrives for a moment after that."""
        probe = Channel(self, 3)
        self.channels[3] = probe
        self.send(wire.method(3, "channel.open"))
        self.wait(lambda: bool(self.events) or bool(probe.replies))
        if not self.events:
            self.wait(lambda: bool(self.events), 0.3)
        self.channels.pop(3)
        if self.events or self.closed_by_peer:
            self.hear(0.0)
        elif probe.replies:
            self.line(0, "<", "(nothing; the connection works)")
        else:
            self.line(0, "<", "(nothing; the connection hangs)")

    def once(self, name: str, **args: Any) -> wire.Method:
        """Calls a synchronous method on a new channel, for methods that may close it."""
        channel = self.channel(2)
        channel.lasting = False
        reply = channel.call(name, **args)
        channel.close_quietly()
        return reply

    def barrier(self, name: str, **args: Any) -> None:
        """Calls a synchronous method on a separate channel without recording it, and ignores the answer."""
        if self.dead or self.closed_by_peer or self.events:
            return
        channel = Channel(self, BARRIER_CHANNEL)
        channel.open()
        channel.ask(name, **args)
        channel.close_quietly()

    def close(self) -> None:
        """Closes the connection with connection.close and records it."""
        self.method("connection.close", reply_code=200, reply_text="bye")
        self.hear()
        self.drop()  # which side closes the socket after close-ok is not part of the protocol

    def close_quietly(self) -> None:
        """Closes the connection with connection.close without recording it."""
        if not self.dead and not self.closed_by_peer:
            self.send(wire.method(0, "connection.close", reply_code=200))
            self.wait(lambda: any(event.name == "connection.close-ok" for event in self.events), patience(2.0))
        self.drop()

    def drop(self) -> None:
        """Closes the socket without connection.close."""
        self.dead = True
        self.socket.close()
        self.channels.clear()


class Channel:
    """One channel: replies in order, and an inbox for asynchronous methods."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.script = connection.script
        self.number = number
        self.replies: Deque[Unit] = deque()
        self.inbox: Deque[Unit] = deque()
        self.partial: Optional[Tuple[wire.Method, Optional[wire.Header], List[int], bytearray]] = None
        self.fate: Dict[int, str] = {}
        self.is_open = False
        self.lasting = False

    # -- receiving

    def take(self, frame: wire.Frame) -> None:
        """Handles one frame of this channel."""
        if frame.kind == wire.FRAME_METHOD:
            method = wire.decode_method(frame.payload)
            if method.name in wire.CONTENT_METHODS:
                self.partial = (method, None, [], bytearray())
            else:
                self._put(Unit(method, None, [], b""))
            return
        if self.partial is None:
            raise wire.WireError(f"content without a method on channel {self.number}")
        method, header, pieces, body = self.partial
        if frame.kind == wire.FRAME_HEADER:
            header = wire.decode_header(frame.payload)
            self.partial = (method, header, pieces, body)
        else:
            pieces.append(len(frame.payload))
            body += frame.payload
        if header is not None and len(body) >= header.size:
            self.partial = None
            self._put(Unit(method, header, pieces, bytes(body)))

    def _put(self, unit: Unit) -> None:
        name = unit.method.name
        if name == "channel.close":
            self.is_open = False
            self.connection.send(wire.method(self.number, "channel.close-ok"))
        if name in ASYNC:
            self.inbox.append(unit)
        else:
            self.replies.append(unit)

    def _record(self, unit: Unit) -> None:
        self.line("<", show_method(unit.method.name, unit.method.args))
        if unit.header is not None:
            for line in show_content(unit):
                self.line("<", "  " + line)
        if unit.method.name == "channel.close":
            self.line(">", "channel.close-ok")

    def line(self, arrow: str, text: str) -> None:
        """Records one line."""
        self.connection.line(self.number, arrow, text)

    # -- sending

    def open(self) -> None:
        """Opens a channel without a line in the transcript. Its number may be opened again after a close."""
        self.connection.channels[self.number] = self
        self.connection.send(wire.method(self.number, "channel.open"))
        self._wait_reply()
        reply = self.replies.popleft() if self.replies else None
        if reply is None or reply.method.name != "channel.open-ok":
            raise RuntimeError(f"channel.open was answered by {reply} {list(self.connection.events)}")
        self.is_open = self.lasting = True

    def revive(self) -> None:
        """Reopens the channel and records that, if the server closed it and the script continues."""
        connection = self.connection
        if not self.lasting or connection.gathered is not None:
            return
        connection.pump(time.monotonic() + 0.001)
        if self.is_open and not connection.events and not connection.closed_by_peer and not connection.dead:
            return
        while self.replies:
            self._record(self.replies.popleft())
        connection.revive()
        self.inbox.clear()
        self.partial = None
        self.fate.clear()
        self.open()
        self.line(">", "(opened again)")

    def reopen(self) -> "Channel":
        """Opens a new channel with the same number."""
        return self.connection.channel(self.number)

    def send(self, name: str, **args: Any) -> None:
        """Sends and records a method that has no reply."""
        self.revive()
        self.line(">", show_method(name, args))
        self.connection.send(wire.method(self.number, name, **args))
        self._learn(name, args)

    def publish(self, exchange: str, key: str, body: Any = b"", props: Optional[Dict[str, Any]] = None,
                **options: Any) -> None:
        """Publishes a message. Options: mandatory, immediate, pieces."""
        self.revive()
        data = body if isinstance(body, bytes) else str(body).encode()
        flags: Dict[str, Any] = {flag: options[flag] for flag in ("mandatory", "immediate") if flag in options}
        shown = show_method("basic.publish", {"exchange": exchange, "routing_key": key, **flags})
        self.line(">", f"{shown} body={wire.show(data)}" + (f" props={wire.show(props)}" if props else ""))
        self.connection.send(wire.publish(self.number, exchange, key, data, props=props,
                                          frame_max=self.connection.frame_max, **options))

    def call(self, name: str, **args: Any) -> wire.Method:
        """Sends a synchronous method, and records it and its reply, if any."""
        self.revive()
        self.line(">", show_method(name, args))
        unit = self.ask(name, **args)
        if unit is None:
            self.connection.hear(0.0)
            return wire.Method("", {})
        self._record(unit)
        self._learn(name, args, unit.method)
        return unit.method

    def ask(self, name: str, **args: Any) -> Optional[Unit]:
        """Sends a synchronous method without recording it. Returns the reply."""
        if self.connection.dead:
            raise RuntimeError(f"{name} on a connection that has ended")
        self.connection.send(wire.method(self.number, name, **args))
        self._wait_reply()
        return self.replies.popleft() if self.replies else None

    def answer(self, name: str, **args: Any) -> None:
        """Records the reply to a synchronous method that was sent together with others."""
        self._wait_reply()
        if not self.replies:
            self.connection.hear(0.0)
            return
        unit = self.replies.popleft()
        self._record(unit)
        self._learn(name, args, unit.method)

    def need(self, name: str, **args: Any) -> Unit:
        """Like `ask`, but raises if there is no reply."""
        unit = self.ask(name, **args)
        if unit is None:
            raise RuntimeError(f"{name} was not answered")
        return unit

    def _wait_reply(self) -> None:
        connection = self.connection
        connection.wait(lambda: bool(self.replies) or bool(connection.events))

    def sync(self) -> None:
        """Does one round trip on this channel without recording it."""
        if not self.is_open or self.connection.closed_by_peer or self.connection.dead:
            return
        held = list(self.replies)
        self.replies.clear()
        self.connection.send(wire.method(self.number, "exchange.declare", exchange="amq.direct",
                                         type="direct", passive=True))
        self.connection.wait(
            lambda: any(unit.method.name in ("exchange.declare-ok", "channel.close") for unit in self.replies)
            or bool(self.connection.events)
        )
        for unit in self.replies:
            if unit.method.name != "exchange.declare-ok":
                held.append(unit)
        self.replies = deque(held)

    def expect(self, count: int, settle: bool = True) -> List[Unit]:
        """Records asynchronous methods: `count` of them, and any others that have arrived."""
        self.connection.wait(lambda: len(self.inbox) >= count or bool(self.replies)
                             or bool(self.connection.events), patience(5.0))
        if settle:
            self.script.settle()
        units = list(self.inbox)
        self.inbox.clear()
        for unit in units:
            self._record(unit)
        if len(units) < count:
            self.line("<", f"(only {len(units)} of {count} came)")
        elif not units:
            self.line("<", "(nothing)")
        return units

    def expect_close(self) -> None:
        """Records that the server closed this channel or the connection."""
        connection = self.connection
        self.sync()
        connection.wait(lambda: bool(self.replies) or bool(connection.events), 0.1)
        if self.replies:
            self._record(self.replies.popleft())
        elif connection.events or connection.closed_by_peer:
            connection.hear(0.0)
        else:
            self.line("<", "(nothing; the channel works)")

    def expect_confirms(self, count: int) -> None:
        """Records which publishes were confirmed or refused, independently of how the broker batches confirms."""
        fresh: Dict[int, str] = {}

        def read() -> bool:
            for unit in list(self.inbox):
                if unit.method.name in ("basic.ack", "basic.nack"):
                    self.inbox.remove(unit)
                    tag = unit.method.args["delivery_tag"]
                    first = 1 if unit.method.args["multiple"] else tag
                    for number in range(first, tag + 1):
                        if number not in self.fate:
                            self.fate[number] = fresh[number] = unit.method.name[6:]
            return len(fresh) >= count or bool(self.replies)

        self.connection.wait(read, patience(5.0))
        self.script.settle()
        read()
        for kind in ("ack", "nack"):
            tags = sorted(tag for tag, what in fresh.items() if what == kind)
            if tags:
                self.line("<", f"({kind}ed: {' '.join(map(str, tags))})")
        if not fresh:
            self.line("<", "(nothing confirmed)")

    def close(self) -> None:
        """Closes the channel and records it."""
        self.call("channel.close", reply_code=200, reply_text="done")
        self.is_open = self.lasting = False
        self.connection.channels.pop(self.number, None)

    def close_quietly(self) -> None:
        """Closes the channel without recording it, if it is open."""
        self.lasting = False
        if self.is_open and not self.connection.dead and not self.connection.closed_by_peer:
            self.is_open = False
            self.ask("channel.close", reply_code=200)
        self.connection.channels.pop(self.number, None)

    def _learn(self, name: str, args: Dict[str, Any], reply: Optional[wire.Method] = None) -> None:
        """Remembers which queues and exchanges exist, for `settle` and `cleanup`."""
        script = self.script
        if name == "queue.declare" and not args.get("passive"):
            queue = args.get("queue", "")
            if reply is not None and reply.name == "queue.declare-ok":
                queue = reply.args["queue"].decode("latin-1")
            if queue and (reply is None or reply.name == "queue.declare-ok"):
                script.queues.setdefault(queue, self.connection)
        elif name == "queue.delete" and (reply is None or reply.name == "queue.delete-ok"):
            script.queues.pop(args.get("queue", ""), None)
        elif name == "exchange.declare" and not args.get("passive"):
            if args["exchange"] not in script.exchanges:
                script.exchanges.append(args["exchange"])


def show_method(name: str, args: Dict[str, Any]) -> str:
    """Returns a method as one line, without the arguments that the sender omitted."""
    return " ".join([name] + [f"{key}={wire.show(value)}" for key, value in args.items()])


def show_content(unit: Unit) -> List[str]:
    """Returns the content as text: properties, frame sizes and body."""
    header = unit.header
    assert header is not None
    props = " ".join(f"{key}={wire.show(value)}" for key, value in header.props.items())
    # Class and weight are recorded only if they differ from the usual values.
    kind = "" if (header.class_id, header.weight) == (60, 0) else f"class={header.class_id} weight={header.weight} "
    lines = [f"header {kind}size={header.size} {props}".rstrip()]
    if unit.pieces == [len(unit.body)]:
        lines.append(f"body {wire.show(unit.body)}")
    elif unit.pieces:
        lines.append(f"body in frames of {unit.pieces} {wire.show(unit.body)}")
    else:
        lines.append("no body frame")
    return lines
