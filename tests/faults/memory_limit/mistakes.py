"""Floods with a planted mistake, which test the checks: each mistake must be detected with the right failure message.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, List, NamedTuple

from harness.raw import Client

from floods import Flood, batch, declare
from site_of_flood import QUEUES, Site


class Mistake(NamedTuple):
    """A planted mistake. Its flood is created for the process of a broker. `words` is a part of the expected failure
    message."""

    name: str
    flood: Callable[[int], Flood]
    words: str


def idle(site: Site) -> None:
    """A flood that sends nothing."""
    declare(site.client(), QUEUES[0])
    site.wait()


def refused(site: Site) -> None:
    """All its clients are refused when they log in."""
    for _ in range(4):
        site.go(lambda: site.listen(Client(site.address, vhost="nowhere")))
    site.wait()


def lossy(site: Site) -> None:
    """A client purges confirmed messages, which simulates a broker that loses them."""
    client = site.client()
    declare(client, QUEUES[0])
    client.call(1, "confirm.select")
    site.go(site.listen, client)
    client.send(batch(QUEUES[0], 100, 500))
    while site.counts.get("confirmed", 0) < 500:
        time.sleep(0.01)
    site.client().call(1, "queue.purge", queue=QUEUES[0])
    site.wait()


def stalling(process_id: int) -> Callable[[Site], None]:
    """Stops the broker for 1.5 s with SIGSTOP."""

    def stall(site: Site) -> None:
        time.sleep(0.5)
        os.kill(process_id, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process_id, signal.SIGCONT)
        site.wait()

    return stall


MISTAKES: List[Mistake] = [
    Mistake("a-flood-that-does-nothing", lambda _: Flood("idle", idle, {"bytes in": 1}), "it was no flood: 0 bytes in"),
    Mistake("flooders-that-are-refused", lambda _: Flood("refused", refused, {}), "it was no flood: all 4 were cut off"),
    Mistake("a-witness-that-stalls", lambda pid: Flood("stall", stalling(pid), {}), "the witness's echo was starved"),
    Mistake("confirmed-messages-that-are-lost", lambda _: Flood("lossy", lossy, {}),
            "500 messages were confirmed, and 0 were drained"),
]
