"""A well-behaved client beside a flood, in a process of its own so that the flood's work is not in its way.

It publishes to its own queue and consumes from it, over and over; takes a backlog that was there before, one
message at a time with acknowledgement; and holds an idle connection with heartbeats, all in a virtual host and as
a user of its own. Called with host and port; says `ready`, works until a line (or the end) comes in, then prints
what it saw as one line of JSON: when each round ended, so that it can be judged by the second.
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from harness import wire  # noqa: E402
from harness.brokers import Address  # noqa: E402
from harness.raw import Client  # noqa: E402
from harness.suite import patience  # noqa: E402

HEARTBEAT_S = 4
BACKLOG = 600
PATIENCE_S = 300.0
NAME = "witness"
LOGIN = {"user": NAME, "password": NAME, "vhost": NAME}


class Work:
    """One of the three things; what it counted and what went wrong."""

    def __init__(self, address: Address, stopping: threading.Event) -> None:
        self.address = address
        self.stopping = stopping
        # The clock of `ended` is the system's, so the judge's too.
        self.seen: Dict[str, Any] = {"ended": [], "slowest_s": 0.0, "accident": ""}
        self.began = 0.0
        self.set_up()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def set_up(self) -> None:
        """Before the flood."""

    def round(self) -> None:
        """One piece of work."""

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.began = time.monotonic()
                self.round()
                self._note()
                self.stopping.wait(0.01)
        except Exception as accident:  # told with the rest
            self.seen["accident"] = f"{type(accident).__name__}: {accident}"

    def _note(self) -> None:
        now = time.monotonic()
        self.seen["slowest_s"] = max(self.seen["slowest_s"], now - self.began)
        self.seen["ended"].append(now)


class Echo(Work):
    """Publishes and gets it back."""

    def set_up(self) -> None:
        self.client = Client(self.address, timeout=PATIENCE_S, **LOGIN)
        self.client.open()
        self.client.call(1, "queue.declare", queue="witness.echo", exclusive=True)
        self.client.call(1, "basic.consume", queue="witness.echo", consumer_tag="w", no_ack=True)

    def round(self) -> None:
        body = b"%d" % len(self.seen["ended"])
        self.client.publish(1, "", "witness.echo", body)
        item = self.client.expect("basic.deliver")
        assert item.body == body, f"{item.body!r} in place of {body!r}"


class Backlog(Work):
    """Takes what was there before, in order, and acknowledges it."""

    def set_up(self) -> None:
        self.client = Client(self.address, timeout=20.0, **LOGIN)
        self.client.open()
        self.client.call(1, "queue.declare", queue="witness.backlog", durable=True)
        self.client.call(1, "queue.purge", queue="witness.backlog")
        self.client.call(1, "confirm.select")
        self.put(BACKLOG)
        self.next = 0
        self.client.call(1, "basic.qos", prefetch_count=1)
        self.client.call(1, "basic.consume", queue="witness.backlog", consumer_tag="b")

    def put(self, count: int) -> None:
        for number in range(count):
            self.client.publish(1, "", "witness.backlog", b"%d" % number, props={"delivery_mode": 2})
        confirmed = 0
        while confirmed < count:
            confirmed = max(confirmed, self.client.expect("basic.ack").args["delivery_tag"])

    def round(self) -> None:
        if self.next == BACKLOG:
            self.stopping.wait()  # all is taken: whoever judges sees when
            return
        item = self.client.expect("basic.deliver")
        assert item.body == b"%d" % self.next, f"{item.body!r} in place of {self.next}"
        self.next += 1
        self.client.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))
        self.stopping.wait(0.03)


class Beats(Work):
    """An idle connection: a sign of life in each heartbeat's time, twice that at most."""

    def set_up(self) -> None:
        self.client = Client(self.address, heartbeat=HEARTBEAT_S, **LOGIN)
        self.client.socket.setblocking(False)
        self.beat = wire.frame(wire.FRAME_HEARTBEAT, 0, b"")
        self.heard = self.said = time.monotonic()

    def round(self) -> None:
        now = time.monotonic()
        if now - self.said > HEARTBEAT_S / 2:
            self.client.socket.send(self.beat)
            self.said = now
        if select.select([self.client.socket], [], [], 0.1)[0]:
            data = self.client.socket.recv(65536)
            assert data, "the idle connection was closed"
            self.heard = time.monotonic()
        silent = time.monotonic() - self.heard
        assert silent < 2 * HEARTBEAT_S, f"no heartbeat for {silent:.1f} s"


def main() -> None:
    """Work until told to stop."""
    address = Address(sys.argv[1], int(sys.argv[2]))
    stopping = threading.Event()
    works = [Echo(address, stopping), Backlog(address, stopping), Beats(address, stopping)]
    for work in works:
        work.thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stopping.set()
    for work in works:
        work.thread.join(patience(20.0))
        if work.thread.is_alive():
            work.seen["accident"] = f"still waiting after {time.monotonic() - work.began:.0f} s"
    print(json.dumps({type(work).__name__.lower(): work.seen for work in works}), flush=True)


if __name__ == "__main__":
    main()
