"""A well-behaved client beside a flood, in its own process so that the flood does not slow it down.

It publishes to its own queue and consumes from it, takes messages from a backlog one at a time with
acknowledgement, and holds an idle connection with heartbeats. It uses its own virtual host and user. The arguments
are host and port. It prints `ready`, works until it reads a line (or the end of input), and prints its results as one
line of JSON. They contain when each round ended, so that they can be checked by the second.
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
    """One of the three tasks of the witness, with its counts and its error."""

    def __init__(self, address: Address, stopping: threading.Event) -> None:
        self.address = address
        self.stopping = stopping
        # The time of `ended` is the system's monotonic clock, which run.py reads, too.
        self.seen: Dict[str, Any] = {"ended": [], "slowest_s": 0.0, "accident": ""}
        self.began = 0.0
        self.set_up()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def set_up(self) -> None:
        """Prepares the task before the flood."""

    def round(self) -> None:
        """Does one round of the task."""

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.began = time.monotonic()
                self.round()
                self._note()
                self.stopping.wait(0.01)
        except Exception as accident:  # printed with the results
            self.seen["accident"] = f"{type(accident).__name__}: {accident}"

    def _note(self) -> None:
        now = time.monotonic()
        self.seen["slowest_s"] = max(self.seen["slowest_s"], now - self.began)
        self.seen["ended"].append(now)


class Echo(Work):
    """Publishes a message and receives it."""

    def set_up(self) -> None:
        self.client = Client(self.address, timeout=PATIENCE_S, **LOGIN)
        self.client.open()
        self.client.call(1, "queue.declare", queue="witness.echo", exclusive=True)
        self.client.call(1, "basic.consume", queue="witness.echo", consumer_tag="w", no_ack=True)

    def round(self) -> None:
        body = b"%d" % len(self.seen["ended"])
        self.client.publish(1, "", "witness.echo", body)
        item = self.client.expect("basic.deliver")
        assert item.body == body, f"{item.body!r} instead of {body!r}"


class Backlog(Work):
    """Takes the messages of the backlog in order and acknowledges them."""

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
            self.stopping.wait()  # the backlog is empty; the results show when
            return
        item = self.client.expect("basic.deliver")
        assert item.body == b"%d" % self.next, f"{item.body!r} instead of {self.next}"
        self.next += 1
        self.client.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))
        self.stopping.wait(0.03)


class Beats(Work):
    """Holds an idle connection. At most two heartbeat intervals may pass without a heartbeat from the broker."""

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
    """Works until told to stop."""
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
