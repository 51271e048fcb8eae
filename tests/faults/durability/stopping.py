"""A stop while the disk is slow: the event loop sleeps until the disk is done, and received messages are written."""

from __future__ import annotations

import signal
import time

from logins import running
from refused import built
from support import HERE, PERSISTENT, scratch, take_all
from harness.raw import Client
from harness.suite import patience

# Duration of a sync; the stop waits for at least one.
SYNC_MS = 2_000
# Maximum number of polls from then on. An event loop that does not sleep polls a million times.
LOOKS_MAX = 200


def sleeps_while_the_disk_is_busy() -> None:
    """The event loop sleeps while the disk is busy, and leaves the processor to the disk thread."""
    with scratch() as folder:
        library, log, data = built(folder, HERE / "slow_sync.c"), folder / "looks", folder / "data"
        prefix = ["env", f"LD_PRELOAD={library}", f"SYNC_MS={SYNC_MS}", f"SYNC_LOG={log}"]
        with running(data, None, prefix) as broker:
            client = Client(broker.address)
            client.open()
            client.call(1, "queue.declare", queue="q", durable=True)
            log.write_text("")
            for number in range(10):
                client.publish(1, "", "q", b"%d" % number, props=PERSISTENT)
            # The answer comes after all messages before it were received.
            client.call(1, "queue.declare", queue="q", durable=True, passive=True)
            began = time.monotonic()
            broker.process.send_signal(signal.SIGTERM)
            assert broker.process.wait(patience(30.0)) == 0, broker.log()
            assert time.monotonic() - began > SYNC_MS / 1000, "the stop did not wait for the disk"
        looks = len(log.read_text())
        print(f"# {looks} polls in {time.monotonic() - began:.1f} s")
        assert looks <= LOOKS_MAX, f"the event loop polled {looks} times"
        with running(data, None) as broker, Client(broker.address) as client:
            client.open()
            assert [message.body for message in take_all(client, "q")] == [b"%d" % number for number in range(10)]


CASES = [sleeps_while_the_disk_is_busy]
QUICK_CASES = CASES
