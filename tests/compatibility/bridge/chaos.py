"""A bridge under random faults at the same time, for a minute or for `LEVERET_CHAOS_S` seconds. Connections are cut, reset,
stalled, slow or refused, and the broker is killed with -9. It runs over TCP and TLS, with two rules up (one of them
urgent) and commands down.

At the end each message confirmed at one end is at the other, unaltered. Repeated messages are marked and have the same
id. No id stands for two messages. The first copies of a rule are in order.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Set

from harness import brokers, raw, wire  # noqa: E402
from harness.suite import chance  # noqa: E402
from over_tls import keys  # noqa: E402
from proxy import Proxy  # noqa: E402

UP, DOWN = ("telemetry", "alarms", "meters"), "commands"
TROUBLES = ("cut", "reset", "stalled", "down_stalled", "delay_s", "refuses", "kill")


def body_of(queue: str, number: int) -> bytes:
    """Returns the body of a message: its number, and bytes that only it has, in one frame or several."""
    filler = chance(f"{queue} {number}")
    return f"{queue} {number} ".encode() + filler.randbytes(filler.choice((0, 20, 300, 300, 5_000)))


class Confirmed:
    """The published messages, and which of them were confirmed."""

    def __init__(self) -> None:
        self.next = dict.fromkeys((*UP, DOWN), 0)
        self.numbers: Dict[str, Set[int]] = {queue: set() for queue in self.next}

    def publish(self, address: brokers.Address, queue: str, count: int, props: Dict[str, Any]) -> None:
        """Publishes `count` messages at once, and records those that are confirmed before the broker ends."""
        first = self.next[queue]
        self.next[queue] += count
        try:
            with raw.Client(address, timeout=60.0) as client:
                client.open()
                client.call(1, "confirm.select")
                for number in range(first, first + count):
                    client.publish(1, "", queue, body_of(queue, number), props=props)
                waited = set(range(1, count + 1))
                while waited:
                    ack = client.expect("basic.ack").args
                    tag = ack["delivery_tag"]
                    over = {other for other in waited if other <= tag} if ack["multiple"] else {tag}
                    self.numbers[queue] |= {first + other - 1 for other in over}
                    waited -= over
        except (OSError, raw.Closed) as ended:
            print(f"# {queue}: {ended}", flush=True)


def taken_from(address: brokers.Address, queue: str) -> List[raw.Content]:
    """Takes all messages of a queue. Returns them in order."""
    taken: List[raw.Content] = []
    with raw.Client(address) as client:
        client.open()
        depth = client.call(1, "queue.declare", queue=queue, passive=True).args["message_count"]
        client.call(1, "basic.qos", prefetch_count=1_000)
        client.call(1, "basic.consume", queue=queue, consumer_tag="reader")
        while len(taken) < depth:
            taken.append(client.expect("basic.deliver", timeout=20.0))
            tag = taken[-1].method.args["delivery_tag"]
            if len(taken) % 100 == 0 or len(taken) == depth:
                client.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))
        client.call(1, "basic.cancel", consumer_tag="reader")
    return taken


class Chaos:
    """The case. It shares the upstream broker and the certificates with the other cases."""

    def __init__(self, over_tls: Any, tools: Any) -> None:
        self.over_tls, self.tools = over_tls, tools

    def config(self, plain: Proxy, secure: Proxy) -> str:
        """Returns the configuration of two bridges from one device."""
        own = 'heartbeat = "2s"\nconfirm_timeout = "4s"\nreconnect_max = "1s"'
        login = "guest:guest@127.0.0.1"
        return f"""
[[bridge]]
name = "plant"
upstream = "amqp://{login}:{plain.address.port}/%2f"
{own}
[[bridge.forward]]
queue = "telemetry"
to_queue = "telemetry"
[[bridge.forward]]
queue = "alarms"
to_queue = "alarms"
urgent = true
[[bridge.fetch]]
queue = "{DOWN}"
to_queue = "orders"
[[bridge]]
name = "secure"
upstream = "amqps://{login}:{secure.address.port}/%2f"
{own}
{keys(self.over_tls.office, self.over_tls.meter)}
[[bridge.forward]]
queue = "meters"
to_queue = "meters"
"""

    def chaos(self, place: Any) -> None:
        """Runs the faults for the given time and compares the messages of both ends."""
        seconds = float(os.environ.get("LEVERET_CHAOS_S", "60"))
        with raw.Client(place.upstream.address) as client:
            client.open()
            for queue in (*UP, DOWN):
                client.call(1, "queue.delete", queue=queue)
                client.call(1, "queue.declare", queue=queue, durable=True)
        home = Path(tempfile.mkdtemp(prefix="leveret-test-"))
        proxies = [Proxy(place.upstream.address), Proxy(self.over_tls.rabbitmq)]
        start = lambda: brokers.Leveret(brokers.leveret_binary(), [], self.config(*proxies), home)  # noqa: E731
        confirmed, luck, kills, troubles = Confirmed(), chance("chaos"), 0, 0
        try:
            place.edge = start()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                proxy, trouble = luck.choice(proxies), luck.choice(TROUBLES)
                troubles += 1
                confirmed.publish(place.upstream.address, DOWN, luck.choice((1, 50, 200)), self.tools.PERSISTENT)
                # The broker is killed while messages are published and forwarded, or shortly after.
                killer = threading.Timer(luck.random() * 0.5, place.edge.kill) if trouble == "kill" else None
                if killer:
                    killer.start()
                for queue in UP:
                    confirmed.publish(place.edge.address, queue, luck.choice((1, 100, 700)), self.tools.PERSISTENT)
                if killer:
                    kills += 1
                    killer.join()
                    place.edge.close()
                    place.edge = start()
                else:
                    self.make(proxy, trouble, luck.random() * 5)
            for proxy in proxies:
                proxy.cut()
            self.until_all_is_over(place)
            repeats = {queue: self.check(taken_from(place.upstream.address, queue), queue, confirmed) for queue in UP}
            repeats[DOWN] = self.check(taken_from(place.edge.address, "orders"), DOWN, confirmed)
            count = sum(len(numbers) for numbers in confirmed.numbers.values())
            connections = sum(proxy.connections for proxy in proxies)
            print(f"# {troubles} faults, {kills} of them kills, {connections} connections; {count} messages confirmed, "
                  f"repeats: {repeats}", flush=True)
            assert connections > 2, "no connection was ever closed"
        finally:
            for proxy in proxies:
                proxy.close()
            if place.edge:
                place.edge.close()
            shutil.rmtree(home, ignore_errors=True)

    def make(self, proxy: Proxy, trouble: str, lasts_s: float) -> None:
        """Applies one network fault to one proxy."""
        if trouble in ("cut", "reset"):
            getattr(proxy, trouble)()
            return
        calm, worse = {"delay_s": (0.0, 0.3), "refuses": (False, True)}.get(trouble, (False, True))
        setattr(proxy, trouble, worse)
        if trouble == "refuses":
            proxy.cut()
        time.sleep(lasts_s)
        setattr(proxy, trouble, calm)

    def until_all_is_over(self, place: Any) -> None:
        """Waits until no queue on either side and no parking queue has messages left to move."""
        tools = self.tools
        edge = place.edge
        for name, queues in (("plant", ("telemetry", "alarms")), ("secure", ("meters",))):
            tools.until(f"{name} forwarded everything",
                        lambda: all(tools.ready(edge.address, queue) == 0 for queue in queues)
                        and tools.status(edge, name=name)["pending"] == 0, 120.0)
            told = tools.status(edge, name=name)
            assert told["parked"] == 0, told
        tools.until("all commands arrived at the edge", lambda: tools.ready(place.upstream.address, DOWN) == 0
                    and tools.status(edge, "fetch")["pending"] == 0, 120.0)

    def check(self, contents: List[raw.Content], queue: str, confirmed: Confirmed) -> int:
        """Compares the received messages with the confirmed ones. Returns the number of repeated messages."""
        ids: Dict[int, Any] = {}
        last, repeats = -1, 0
        for content in contents:
            headers = self.tools.headers_of(content)
            number = int(content.body.split(b" ", 2)[1])
            assert content.body == body_of(queue, number), f"{queue} {number} was altered"
            assert headers[b"site"] == b"north" and content.header.props["content_type"] == b"text/plain", content.header
            own_id = headers.get(b"x-bridge-id")
            if number in ids:
                repeats += 1
                assert headers.get(b"x-bridge-repeat") is True, f"{queue} {number} was repeated without a mark"
                assert own_id == ids[number], f"{queue} {number} has two ids"
                continue
            assert number > last, f"{queue} {number} arrived after {last}"
            last, ids[number] = number, own_id
        missing = confirmed.numbers[queue] - set(ids)
        assert not missing, f"{queue}: {len(missing)} of {len(confirmed.numbers[queue])} are lost: {sorted(missing)[:5]}"
        if queue != DOWN:
            assert len(set(ids.values())) == len(ids), f"{queue}: two messages have the same id"
        return repeats

    def cases(self) -> List[Any]:
        """Returns the only case."""
        return [self.chaos]
