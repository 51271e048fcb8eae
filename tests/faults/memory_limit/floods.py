"""The floods. Each is a function that gets a `Site`, sends its load until the time is up, and returns.

A new listener or a new kind of load is added by one entry in `FLOODS`, with the minimum counts that prove the load.
A flood of 2 s on a busy machine with two processors reaches these counts several times over: answers and
acknowledgements, bytes that the broker has read, messages that were consumed from what it left (`drained`).
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from harness import mqtt_raw, suite, wire
from harness.brokers import Address
from harness.raw import Client, Closed

from site_of_flood import EXCHANGES, QUEUES, Site

KIB = 1 << 10
PERSISTENT = {"delivery_mode": 2}


class Flood(NamedTuple):
    """One kind of flood."""

    name: str
    run: Callable[[Site], None]
    # Minimum counts at the end. With less, the flood was too small to test anything.
    least: Dict[str, int]
    # Whether it uses TLS, which small boards do not have.
    tls: bool = False
    # The reason why all its clients may be disconnected before it is over; empty if they may not.
    cut_off: str = ""


def declare(client: Client, queue: str, **options: bool) -> None:
    """Declares a queue of the flood."""
    client.call(1, "queue.declare", queue=queue, **options)


def batch(queue: str, size: int, count: int, **options: object) -> bytes:
    """Returns the bytes of `count` publishes."""
    return wire.publish(1, "", queue, bytes(size), frame_max=4096, **options) * count


# ---- publishers without a consumer ------------------------------------------------------------------------


def transient_to_one(site: Site) -> None:
    """Publishes transient messages to one queue, up to its share of the memory."""
    declare(site.client(), QUEUES[0])
    for size in (16, 300, 1000, 5000):
        site.go(site.pour, site.client(), batch(QUEUES[0], size, 50))
    site.wait()


def transient_to_many(site: Site) -> None:
    """Publishes to enough queues that their shares together are the whole pool."""
    first = site.client()
    for queue in QUEUES[:16]:
        declare(first, queue)
    for size in (16, 300, 5000, 60_000):
        data = b"".join(batch(queue, size, 5) for queue in QUEUES[:16])
        site.go(site.pour, site.client(), data)
    site.wait()


def transient_confirmed(site: Site) -> None:
    """Publishes transient messages with confirms, and reads them."""
    first = site.client()
    for queue in QUEUES[:8]:
        declare(first, queue)
    for size in (16, 300, 5000, 60_000):
        client = site.client()
        client.call(1, "confirm.select")
        site.go(site.pour, client, b"".join(batch(queue, size, 5) for queue in QUEUES[:8]))
        site.go(site.listen, client)
    site.wait()


def persistent(site: Site) -> None:
    """Publishes to durable queues, with and without confirms, more than fits into memory."""
    first = site.client()
    for queue in QUEUES[:8]:
        declare(first, queue, durable=True)
    for number, size in enumerate((16, 300, 5000, 60_000)):
        client = site.client()
        if number % 2:
            client.call(1, "confirm.select")
        site.go(site.pour, client, b"".join(batch(queue, size, 5, props=PERSISTENT) for queue in QUEUES[:8]))
        site.go(site.listen, client)
    site.wait()


def mixed(site: Site) -> None:
    """Publishes persistent and transient messages in turn to the same queues, beside a consumer that is too slow."""
    first = site.client()
    for queue in QUEUES[:4]:
        declare(first, queue, durable=True)
    slow = site.client()
    slow.call(1, "basic.qos", prefetch_count=1)
    slow.call(1, "basic.consume", queue=QUEUES[0], consumer_tag="slow")

    def take() -> None:
        while not site.over():
            item = slow.expect("basic.deliver")
            site.count("taken")
            time.sleep(0.02)
            slow.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))

    site.go(take)
    for size in (100, 3000):
        data = b"".join(batch(queue, size, 3, props=PERSISTENT) + batch(queue, size, 3) for queue in QUEUES[:4])
        site.go(site.pour, site.client(), data)
    site.wait()


def large_bodies(site: Site) -> None:
    """Publishes messages of the maximum size beside small ones."""
    declare(site.client(), QUEUES[0])
    declare(site.client(), QUEUES[1])
    size = site.limits["message_size_max"]
    for _ in range(3):
        client = site.client()
        site.go(site.pour, client, wire.publish(1, "", QUEUES[0], bytes(size), frame_max=client.frame_max))
    site.go(site.pour, site.client(), batch(QUEUES[1], 100, 100))
    site.wait()


def giant_headers(site: Site) -> None:
    """Publishes headers that fill a frame, to a headers exchange and to another one."""
    first = site.client()
    declare(first, QUEUES[0])
    first.call(1, "queue.bind", queue=QUEUES[0], exchange="amq.headers", arguments={"x-match": "any", "k0": 1})
    room = first.frame_max - 2000
    many = {f"k{number}": number for number in range(room // 14)}
    for headers in ({"k0": "x" * room}, many, {"deep": nested(room // 10)}):
        for exchange in ("", "amq.headers"):
            data = wire.publish(1, exchange, QUEUES[0], b"x", props={"headers": headers})
            client = site.client()
            site.go(site.pour, client, data)
            site.go(site.listen, client)
    site.wait()


def nested(octets: int) -> wire.Field:
    """Returns a table of this size that is nested twenty levels deep."""
    value: object = "y" * max(1, octets - 400)
    for _ in range(20):
        value = {"a": value}
    return wire.as_field(value)


def half_bodies(site: Site) -> None:
    """Begins messages of all sizes up to the maximum and does not finish them."""
    largest = site.limits["message_size_max"]
    for number in range(20):
        client = site.client()
        size = (100, 5000, largest // 4, largest)[number % 4]
        client.send(wire.method(1, "basic.publish", routing_key="nowhere")
                    + wire.frame(2, 1, wire.encode_header(size, {})) + wire.frame(3, 1, bytes(size // 3)[:4000]))
        site.count("half bodies")
        site.go(site.listen, client)
    site.wait()


def transactions(site: Site) -> None:
    """Fills transactions without a commit, beside queues that fill the rest of the memory."""
    first = site.client()
    declare(first, QUEUES[0], durable=True)
    for queue in QUEUES[1:4]:
        declare(first, queue)

    def transact(size: int) -> None:
        client = site.client()
        client.call(1, "tx.select")
        data = batch(QUEUES[0], size, 20, props=PERSISTENT)
        while not site.over():
            client.send(data)
            client.call(1, "basic.qos", prefetch_count=1)  # its answer comes after the messages before it were accepted
            site.count("in transactions", 20)

    for size in (16, 3000):
        site.go(site.again, lambda size=size: transact(size))
    # The client that fills the rest comes second. If it came first it took all the memory, and no transaction began.
    while not site.over() and site.counts.get("in transactions", 0) < 2000:
        time.sleep(0.01)
    fill(site, QUEUES[1:4], 3000)
    site.wait()


def forgotten_transactions(site: Site) -> None:
    """Leaves transactions with messages uncommitted and silent, beside transactions that fill the memory."""
    declare(site.client(), QUEUES[0])
    each = site.limits["memory_limit"] // 80
    for _ in range(6):
        client = site.client()
        client.call(1, "tx.select")
        client.send(batch(QUEUES[0], 2000, each // 2000))
        site.count("forgotten")
        site.go(site.listen, client)

    def want_all() -> None:
        while not site.over():
            client = site.client()
            client.call(1, "tx.select")
            with contextlib.suppress(Closed):
                while not site.over():
                    client.send(batch(QUEUES[0], 2000, 10))
                    client.call(1, "basic.qos", prefetch_count=1)
            site.count("refused")
            client.close()

    for _ in range(3):
        site.go(want_all)
    site.wait()


# ---- consumers --------------------------------------------------------------------------------------------


def fill(site: Site, queues: List[str], size: int, **options: object) -> None:
    """Keeps queues full from a connection of its own."""
    site.go(site.pour, site.client(), b"".join(batch(queue, size, 20, **options) for queue in queues))


def never_acknowledge(site: Site) -> None:
    """Consumes without prefetch and acknowledges nothing."""
    first = site.client()
    for queue in QUEUES[:3]:
        declare(first, queue)
    for queue in QUEUES[:3]:
        client = site.client()
        client.call(1, "basic.consume", queue=queue, consumer_tag="greedy")
        site.go(site.listen, client)
    fill(site, QUEUES[:3], 200)
    fill(site, QUEUES[:3], 3000, props=PERSISTENT)
    site.wait()


def stuck_consumer(site: Site) -> None:
    """A consumer without prefetch reads everything and settles nothing. Its queue receives more than the memory can
    hold."""
    declare(site.client(), QUEUES[0])
    stuck = site.client()
    stuck.call(1, "basic.consume", queue=QUEUES[0], consumer_tag="stuck")
    site.go(site.listen, stuck)
    fill(site, QUEUES[:1], 4000)
    fill(site, QUEUES[:1], 100)
    site.wait()


def never_read(site: Site) -> None:
    """1,880 connections with 64 MB, and 280 with 16 MB, consume small and large messages and read nothing."""
    first = site.client()
    for queue in QUEUES[:4]:
        declare(first, queue)
    # On a small board the memory of clients ends before the connections.
    most = min(site.limits["connections_max"] * 15 // 16, site.limits["memory_limit"] // 30_000 - 250)
    for number in range(most):
        deaf = site.client(receive_buffer=4096)
        deaf.send(wire.method(1, "basic.consume", queue=QUEUES[number % 4], consumer_tag="deaf", no_ack=number % 2 == 0))
    fill(site, QUEUES[:2], 200)
    fill(site, QUEUES[2:4], site.limits["message_size_max"] // 4)
    site.wait()


def requeue_storm(site: Site) -> None:
    """Requeues everything that is delivered, one by one and all together."""
    first = site.client()
    for queue in QUEUES[:2]:
        declare(first, queue)
    fill(site, QUEUES[:2], 100)
    time.sleep(0.3)

    def storm(queue: str, multiple: bool) -> None:
        client = site.client()
        client.call(1, "basic.consume", queue=queue, consumer_tag="storm")
        while not site.over():
            item = client.expect("basic.deliver")
            tag = item.method.args["delivery_tag"]
            if not multiple or tag % 100 == 0:
                client.send(wire.method(1, "basic.nack", delivery_tag=tag, multiple=multiple, requeue=True))
            site.count("given back")

    for number in range(4):
        site.go(storm, QUEUES[number % 2], number < 2)
    site.wait()


def pipelined_gets(site: Site) -> None:
    """Sends basic.get in batches of 10,000, with the answers read and not read."""
    declare(site.client(), QUEUES[0])
    fill(site, QUEUES[:1], 1000)
    time.sleep(0.3)
    for no_ack in (True, False):
        for reads in (True, False):
            client = site.client(receive_buffer=None if reads else 4096)
            site.go(site.pour, client, wire.method(1, "basic.get", queue=QUEUES[0], no_ack=no_ack) * 1000)
            if reads:
                site.go(site.listen, client)
    site.wait()


def unread_answers(site: Site) -> None:
    """Causes returns and replies without reading them."""
    for number in range(6):
        deaf = site.client(receive_buffer=4096)
        if number % 2:
            site.go(site.pour, deaf, wire.publish(1, "", "nowhere", bytes(2000), mandatory=True) * 20)
        else:
            site.go(site.pour, deaf, wire.method(1, "queue.declare", queue=QUEUES[0]) * 100)
    site.wait()


# ---- connections, handshakes and resources -----------------------------------------------------------------


def ten_thousand(site: Site) -> None:
    """Opens 10,000 connections, most of which are never served, and new ones when some are closed."""
    goal, made = 10_000, 0
    while not site.over() and made < goal:
        with contextlib.suppress(OSError):
            site.raw(f"127.0.{made % 4}.{1 + made % 200}")
            site.count("connections")
        made += 1
        if made % 200 == 0:
            time.sleep(0.02)
    for peer in site.sockets:
        with contextlib.suppress(OSError):
            peer.send(wire.PROTOCOL_HEADER)
            site.count("hellos")
    site.wait()


def stop_on_the_way(site: Site, address: Optional[Address], openings: List[bytes]) -> None:
    """Opens connections that each send one of these incomplete openings and then nothing."""
    while not site.over():
        peers = [site.raw(address=address) for _ in range(50)]
        time.sleep(0.05)
        for number, peer in enumerate(peers):
            with contextlib.suppress(OSError):
                peer.send(openings[number % len(openings)])
                site.count("half handshakes")
        # The older half is closed, so that new ones can connect.
        for peer in site.sockets[: len(site.sockets) // 2]:
            peer.close()
        site.sockets = site.sockets[len(site.sockets) // 2 :]
    site.wait()


def half_handshakes(site: Site) -> None:
    """Opens one connection after the other with an incomplete AMQP handshake."""
    start_ok = wire.method(0, "connection.start-ok", mechanism="PLAIN", response="\0guest\0guest", locale="en_US",
                           client_properties={"x": "y" * 2000})
    hellos = [b"", b"AMQ", wire.PROTOCOL_HEADER, wire.PROTOCOL_HEADER + start_ok[:500],
              wire.PROTOCOL_HEADER + start_ok, wire.PROTOCOL_HEADER + b"\xff" * 200]
    stop_on_the_way(site, site.address, hellos)


def tls_half_handshakes(site: Site) -> None:
    """Sends beginnings of handshakes, other bytes or nothing to the TLS listener."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
    openings = [b"", hello[:3], hello, b"\x16\x03\x01\x48\x00" + bytes(9000), b"\x17\x03\x03\xff\xff" + bytes(500),
                wire.PROTOCOL_HEADER, b"GET / HTTP/1.1\r\n\r\n"]
    stop_on_the_way(site, site.tls_address, openings)


def tls_handshakes(site: Site) -> None:
    """Makes complete TLS handshakes without session resumption as fast as possible, and then closes the connections."""

    def shake() -> None:
        while not site.over():
            with contextlib.suppress(OSError):
                peer = site.secure()
                if peer.getpeername():
                    site.count("handshakes")
                peer.close()

    for _ in range(12):
        site.go(shake)
    site.wait()


def tls_publishers(site: Site) -> None:
    """Opens the maximum number of TLS sessions, each with unread data in both directions."""

    def publish() -> None:
        while not site.over():
            client = Client(site.address, connected=site.secure(), timeout=60.0)
            client.open(1)
            declare(client, QUEUES[0])
            client.send(wire.method(1, "basic.consume", queue=QUEUES[0], no_ack=True, consumer_tag=""))
            site.count("sessions")
            site.pour(client, batch(QUEUES[0], 20_000, 5))

    for _ in range(48):
        site.go(publish)
    site.wait()


def tls_half_records(site: Site) -> None:
    """Stops inside a TLS record of 16 KiB on most TLS connections, beside a consumer over TLS that goes on."""
    worker = Client(site.address, connected=site.secure(), timeout=60.0)
    worker.open(1)
    declare(worker, QUEUES[0])
    worker.call(1, "basic.qos", prefetch_count=10)
    worker.call(1, "basic.consume", queue=QUEUES[0], consumer_tag="worker")

    def work() -> None:
        while not site.over():
            item = worker.expect("basic.deliver")
            worker.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))
            site.count("acknowledged")

    record = wire.publish(1, "", QUEUES[1], bytes(20_000))[:16_384]
    for _ in range(site.limits["memory_limit"] // 333_000):
        session = site.secure_by_hand()
        # The first half of the record stays in the broker: it cannot be decrypted before its end.
        session.send(record, sent_bytes=8_000)
        site.count("half records")
    site.go(work)
    fill(site, QUEUES[:1], 1000)
    site.wait()


def wrong_passwords(site: Site) -> None:
    """Sends wrong passwords as fast as they are refused."""
    guess = wire.PROTOCOL_HEADER + wire.method(
        0, "connection.start-ok", mechanism="PLAIN", response="\0guest\0wrong", locale="en_US")
    while not site.over():
        # From another address, whose logins are delayed longer and longer.
        peers = [site.raw("127.0.9.1") for _ in range(20)]
        time.sleep(0.05)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.send(guess)
                site.count("guesses")
        time.sleep(0.2)
        for peer in peers:
            peer.close()


def come_and_go(site: Site) -> None:
    """Opens connections with channels, consumers and exclusive queues, and drops them without connection.close."""

    def visit() -> None:
        while not site.over():
            client = Client(site.address, timeout=60.0)
            site.sockets.append(client.socket)
            client.open()
            name = client.call(1, "queue.declare", exclusive=True).args["queue"].decode()
            client.call(1, "basic.consume", queue=name, consumer_tag="c")
            client.send(batch(name, 500, 20))
            site.count("visits")
            client.drop()

    for _ in range(4):
        site.go(visit)
    site.wait()


def all_channels(site: Site) -> None:
    """Opens the maximum number of channels from several connections."""

    def take() -> None:
        most, had = 1000, 0

        def visit() -> None:
            nonlocal most, had
            had = 0
            client = site.client(channels=0)
            client.send(b"".join(wire.method(number, "channel.open") for number in range(1, most)))
            try:
                for _ in range(1, most):
                    client.expect("channel.open-ok")
                    had += 1
            finally:
                most = min(most, had + 1)  # one fewer than was refused, and those stay open
                site.count("channels", had)
            site.wait()

        site.again(visit)

    for _ in range(6):
        site.go(take)
    site.wait()


def all_consumers(site: Site) -> None:
    """Starts the maximum number of consumers on one queue that receives messages all the time."""
    declare(site.client(), QUEUES[0])

    def take() -> None:
        most = 3000

        def visit() -> None:
            nonlocal most
            client, had = site.client(), 0
            client.send(wire.method(1, "basic.consume", queue=QUEUES[0], no_ack=True) * most)
            try:
                for _ in range(most):
                    client.expect("basic.consume-ok")
                    had += 1
            finally:
                most = min(most, max(1, had))  # no more than was granted, and those stay
                site.count("consumers", had)
                site.count("basic.deliver", len(client.held))
                client.held.clear()
            site.listen(client)

        site.again(visit)

    for _ in range(4):
        site.go(take)
    fill(site, QUEUES[:1], 100)
    site.wait()


def all_queues(site: Site) -> None:
    """Declares queues with the longest names until the limit is reached, from several connections."""

    def take(number: int) -> None:
        client = site.client()
        for count in range(10_000):
            name = f"flood.{number}.{count}.".ljust(250, "q")
            try:
                client.call(1, "queue.declare", queue=name, exclusive=True, arguments={"x-note": "n" * 50})
            except Closed as closed:
                # Only the channel is closed. The queues belong to the connection and stay.
                site.refused(closed.method.args["reply_code"] if closed.method else 0)
                return site.wait()
            site.count("queues")
            if site.over():
                return

    for number in range(4):
        site.go(take, number)
    site.wait()


def all_bindings(site: Site) -> None:
    """Creates bindings with long patterns and large arguments, and publishes messages that are matched against them."""
    first = site.client()
    for number, kind in enumerate(("topic", "headers", "topic", "direct")):
        first.call(1, "exchange.declare", exchange=EXCHANGES[number], type=kind)
        declare(first, QUEUES[number])

    def bind(number: int) -> None:
        client = site.client()
        for count in range(20_000):
            key = ".".join(["#" if number else "*", f"w{count}", "#"] * (10 if number else 1))[:250]
            arguments = {f"h{count}": count, "x-match": "any"} if number == 1 else {}
            try:
                client.call(1, "queue.bind", queue=QUEUES[number], exchange=EXCHANGES[number], routing_key=key,
                            arguments=arguments)
            except Closed as closed:
                site.refused(closed.method.args["reply_code"] if closed.method else 0)
                return site.wait()
            site.count("bindings")
            if site.over():
                return

    for number in range(4):
        site.go(bind, number)
    key = ".".join(f"w{number}" for number in range(40))
    headers = {f"h{number}": number for number in range(300)}
    for exchange, props in ((EXCHANGES[0], None), (EXCHANGES[1], {"headers": headers}), (EXCHANGES[2], None)):
        site.go(site.pour, site.client(), wire.publish(1, exchange, key, b"b", props=props) * 20)
    site.wait()


# ---- MQTT -------------------------------------------------------------------------------------------------


def mqtt_retained(site: Site) -> None:
    """Sets retained messages of more and more topics, from several clients."""
    topics: List[str] = []

    def publish(number: int) -> None:
        with site.mqtt(f"flood-{number}") as peer:
            while not site.over():
                some = [f"flood/{number}/{count}" for count in range(len(topics), len(topics) + 100)]
                topics.extend(some)
                peer.sendall(b"".join(mqtt_raw.publish(topic, bytes(1000), 1, is_retained=True) for topic in some))
                for _ in some:
                    assert mqtt_raw.receive_packet(peer)[0] == mqtt_raw.PUBACK
                    site.count("retained")

    def forget() -> None:
        with mqtt_afterwards(site, "flood-end") as peer:
            for first in range(0, len(topics), 100):
                some = topics[first:first + 100]
                peer.sendall(b"".join(mqtt_raw.publish(topic, b"", 1, is_retained=True) for topic in some))
                for _ in some:
                    mqtt_raw.receive_packet(peer)

    site.at_end.append(forget)
    for number in range(4):
        site.go(site.again, lambda number=number: publish(number))
    site.wait()


def mqtt_sessions(site: Site) -> None:
    """Leaves one kept session after the other, each with a few subscriptions."""
    sessions: List[str] = []
    numbers = itertools.count()

    def leave(number: int) -> None:
        while not site.over():
            session = f"flood-{number}-{next(numbers)}"
            with site.mqtt(session, is_kept=True) as peer:
                sessions.append(session)
                filters = b"".join(mqtt_raw.text(f"{session}/{each}/#") + b"\x01" for each in range(20))
                peer.sendall(mqtt_raw.packet(0x82, struct.pack(">H", 1) + filters))
                assert mqtt_raw.receive_packet(peer)[0] == mqtt_raw.SUBACK
                site.count("sessions")

    def forget() -> None:
        for session in sessions:
            with mqtt_afterwards(site, session):
                pass

    site.at_end.append(forget)
    for number in range(16):
        site.go(site.again, lambda number=number: leave(number))
    site.wait()


@contextlib.contextmanager
def mqtt_afterwards(site: Site, client_id: str) -> Iterator[socket.socket]:
    """Returns a connection with a clean session, which ends a kept one, as soon as the broker accepts it."""
    deadline = time.monotonic() + suite.patience(60)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                peer = stack.enter_context(site.mqtt(client_id))
                break
            except Closed:
                assert time.monotonic() < deadline, f"{client_id} cannot connect after the flood"
                time.sleep(0.1)
        yield peer


def garbage(site: Site) -> None:
    """Sends random bytes, and frames with random bytes in them."""
    noise = suite.chance("garbage")

    def shout() -> None:
        while not site.over():
            client = Client(site.address, timeout=60.0)
            site.sockets.append(client.socket)
            client.open()
            with contextlib.suppress(OSError):
                if noise.random() < 0.5:
                    client.send(noise.randbytes(3000))
                else:
                    client.send(wire.frame(1, 1, noise.randbytes(noise.randrange(4, 300))) * 3)
                select.select([client.socket], [], [], 0.5)
            site.count("shouts")
            client.drop()

    for _ in range(3):
        site.go(shout)
    site.wait()


FLOODS: List[Flood] = [
    Flood("transient-to-one-queue", transient_to_one, {"bytes in": 500_000, "drained": 500}),
    Flood("transient-to-many-queues", transient_to_many, {"bytes in": 500_000, "drained": 300}),
    Flood("transient-confirmed", transient_confirmed, {"confirmed": 300, "drained": 300}),
    Flood("persistent", persistent, {"bytes in": 2_000_000, "confirmed": 100, "drained": 500}),
    Flood("mixed-with-a-slow-consumer", mixed, {"drained": 400, "taken": 15}),
    Flood("largest-bodies", large_bodies, {"bytes in": 500_000, "drained": 30}),
    # The broker stops reading from all clients of a user whose memory is full, so it reads little more than that
    # memory.
    Flood("giant-headers", giant_headers, {"bytes in": 1_500_000, "connection.blocked": 3, "drained": 80}),
    Flood("half-sent-bodies", half_bodies, {"half bodies": 20}),
    Flood("open-transactions", transactions, {"in transactions": 2000, "drained": 100}),
    Flood("forgotten-transactions", forgotten_transactions, {"forgotten": 6, "refused": 30}),
    Flood("never-acknowledge", never_acknowledge, {"basic.deliver": 150, "drained": 150}),
    Flood("stuck-consumer", stuck_consumer, {"basic.deliver": 200, "drained": 200}),
    Flood("never-read", never_read, {"drained": 60}),
    Flood("requeue-storm", requeue_storm, {"given back": 5000, "drained": 100}),
    Flood("pipelined-gets", pipelined_gets, {"basic.get-ok": 60, "bytes in": 50_000}),
    # The broker stops reading when its answers cannot be sent, so it has read less than a socket buffer holds.
    Flood("unread-answers", unread_answers, {"sent": 500}),
    Flood("ten-thousand-connections", ten_thousand, {"connections": 9000, "hellos": 40}),
    Flood("half-handshakes", half_handshakes, {"half handshakes": 300}),
    Flood("tls-half-handshakes", tls_half_handshakes, {"half handshakes": 300}, tls=True),
    Flood("tls-handshakes", tls_handshakes, {"handshakes": 50}, tls=True),
    Flood("tls-publishers", tls_publishers, {"sessions": 1}, tls=True),
    Flood("tls-half-records", tls_half_records, {"half records": 150, "acknowledged": 200}, tls=True),
    Flood("wrong-passwords", wrong_passwords, {"guesses": 60}),
    Flood("come-and-go", come_and_go, {"visits": 300}),
    Flood("all-channels", all_channels, {"channels": 100}),
    Flood("all-consumers", all_consumers, {"consumers": 40, "basic.deliver": 200}),
    Flood("all-queues", all_queues, {"queues": 40}),
    Flood("all-bindings", all_bindings, {"bindings": 100, "drained": 50}),
    Flood("mqtt-retained", mqtt_retained, {"retained": 500}),
    Flood("mqtt-sessions", mqtt_sessions, {"sessions": 100}),
    Flood("garbage", garbage, {"shouts": 300}),
]

# Floods for which memory of different classes is taken at the same time: clients, definitions and messages. Both have the
# same queues, so none that declares them durable is together with one that does not, and none that counts confirms
# with one that consumes.
PAIRS = [
    ("all-queues", "all-channels"), ("all-queues", "giant-headers"), ("all-queues", "never-read"),
    ("all-queues", "mqtt-retained"), ("all-queues", "persistent"), ("all-bindings", "all-channels"),
    ("all-bindings", "mqtt-sessions"), ("all-bindings", "never-acknowledge"), ("all-channels", "persistent"),
    ("all-channels", "largest-bodies"), ("mqtt-sessions", "mqtt-retained"), ("mqtt-sessions", "transient-to-many-queues"),
    ("mqtt-retained", "persistent"), ("come-and-go", "stuck-consumer"), ("tls-publishers", "all-channels"),
    ("tls-publishers", "mqtt-retained"),
]


def paired(names: "tuple[str, str]") -> Flood:
    """Returns two floods at the same time as one. Each reaches less of its counts than alone."""
    both = [next(flood for flood in FLOODS if flood.name == name) for name in names]

    def run(site: Site) -> None:
        for flood in both:
            site.begin(flood.run)
        site.wait()

    least = {what: max(1, figure // 10) for flood in both for what, figure in flood.least.items() if what != "drained"}
    return Flood("+".join(names), run, least, any(flood.tls for flood in both))
