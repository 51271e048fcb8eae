"""Fair shares: one client uses as much as it is given on a small board, and another client is still served.

The first client is the user `loud` in a virtual host of its own (in one case in `/`); the other one is guest in `/`.
Suite lines: `PASS fair_shares/BOARD/NAME`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from harness import brokers  # noqa: E402
from harness.raw import Client  # noqa: E402
from harness.suite import Suite  # noqa: E402

BOARDS = ("pi-zero-w", "router-64")
# Number of messages that the normal client sends while the tenant's messages fill the memory.
HONEST = 3000


class Ward:
    """A broker with the profile of a board, which can be restarted with its data."""

    def __init__(self, board: str, disk_limit: str = "200MB") -> None:
        self.board = board
        self.disk_limit = disk_limit
        self.home = tempfile.TemporaryDirectory(prefix="leveret-shares-")
        self.start()
        self.broker.ctl("add_vhost", "loud")
        self.broker.ctl("add_user", "loud", "secret")
        self.broker.ctl("set_permissions", "-p", "loud", "loud", ".*", ".*", ".*")

    def start(self) -> None:
        """Starts the broker."""
        # The sync interval of the board does not affect the shares. With the disk limits of the boards, filling the
        # disk would take a minute.
        config = f'board = "{self.board}"\n[store]\ndisk_limit = "{self.disk_limit}"\nsyncs_per_second = 0\n'
        self.broker = brokers.Leveret(brokers.leveret_binary(), [], config, data_dir=Path(self.home.name) / "data")

    def restart(self) -> None:
        """Stops the broker cleanly and starts it again."""
        self.broker.stop()
        self.broker.close()
        self.start()

    def close(self) -> None:
        """Stops the broker for good."""
        self.broker.close()
        self.home.cleanup()

    def tenant(self, vhost: str = "loud") -> Client:
        """Returns a connection of the user `loud` with a channel open."""
        client = Client(self.broker.address, user="loud", password="secret", vhost=vhost)
        client.open()
        return client

    def honest(self) -> Client:
        """Returns a connection of the user guest with a channel open."""
        client = Client(self.broker.address, timeout=60.0)
        client.open()
        return client


def take_all(client: Client, name: str) -> Tuple[int, str]:
    """Declares durable exchanges until one is refused. Returns how many were declared, and the refusal."""
    for number in range(100_000):
        try:
            client.call(1, "exchange.declare", exchange=f"{name}-{number}", type="direct", durable=True)
        except Exception as refusal:  # noqa: BLE001
            return number, str(refusal)
    raise AssertionError("no limit of exchanges was reached")


def work(client: Client, number: int, count: int) -> None:
    """The requests of a normal program: it declares an exchange and a queue, binds, publishes with confirms, and
    consumes.
    """
    exchange, queue = f"mine-{number}", f"mine-{number}"
    client.call(1, "exchange.declare", exchange=exchange, type="direct", durable=True)
    client.call(1, "queue.declare", queue=queue, durable=True)
    client.call(1, "queue.bind", queue=queue, exchange=exchange, routing_key="k")
    client.call(1, "confirm.select")
    client.call(1, "basic.consume", queue=queue, consumer_tag=queue, no_ack=True)
    publish_confirmed(client, exchange, "k", count)
    client.call(1, "basic.cancel", consumer_tag=queue)


def publish_confirmed(client: Client, exchange: str, key: str, count: int) -> None:
    """Publishes messages, each of which is confirmed and delivered before the next is sent."""
    for number in range(count):
        client.publish(1, exchange, key, b"%d" % number)
        awaited = {"confirm", "message"}
        while awaited:
            got = client.recv()
            name = getattr(getattr(got, "method", got), "name", "")
            awaited.discard("message" if name == "basic.deliver" else "confirm")


def exchanges(ward: Ward) -> None:
    """A connection declares all the exchanges that it is given. Another one can still work."""
    taken, refusal = take_all(ward.tenant(), "taken")
    assert taken >= 40, f"only {taken} exchanges were declared"
    assert "RESOURCE_ERROR" in refusal and "exchanges" in refusal, refusal
    client = ward.honest()
    for number in range(3):
        work(client, number, 10)


def flooded(ward: Ward, size: int, vhost: str) -> Iterator[Client]:
    """Returns connections of the tenant that publish transient messages until each is blocked."""
    body = b"." * size
    for connection in range(4):
        client = ward.tenant(vhost)
        client.call(1, "queue.declare", queue=f"full-{connection}")
        client.socket.settimeout(1.5)
        try:
            while True:
                client.publish(1, "", f"full-{connection}", body)
        except TimeoutError:
            yield client


def flood(ward: Ward, size: int, least_bytes: int, vhost: str = "loud") -> None:
    """Publishes messages of the tenant without a consumer, and checks that the other client's confirms arrive in time.
    """
    client = ward.honest()
    client.call(1, "queue.declare", queue="mine")
    loud = list(flooded(ward, size, vhost))
    rows = ward.broker.ctl("list_queues", "-p", vhost, "--no-table-headers", "messages").split()
    held = sum(map(int, rows)) * max(size, 128)
    assert len(loud) == 4 and held >= least_bytes, f"only {held:,} bytes of the tenant are held, which is no flood"
    client.call(1, "confirm.select")
    client.call(1, "basic.consume", queue="mine", consumer_tag="t", no_ack=True)
    begin = time.monotonic()
    publish_confirmed(client, "", "mine", HONEST)
    assert time.monotonic() - begin < 60.0
    assert all(waits(one) for one in loud), "the tenant's own publishers are not blocked"


def waits(publisher: Client) -> bool:
    """Returns whether the broker has stopped reading from this publisher: it cannot send more than fits the kernel's
    buffers."""
    publisher.socket.settimeout(0.5)
    try:
        for _ in range(64):
            publisher.publish(1, "", "full-0", b"." * (256 << 10))
    except TimeoutError:
        return True
    return False


def flood_of_small(ward: Ward) -> None:
    """The tenant sends many small messages."""
    flood(ward, 16, {"pi-zero-w": 7_000_000, "router-64": 750_000}[ward.board])


def flood_of_bodies(ward: Ward) -> None:
    """The tenant sends large messages."""
    flood(ward, 4000, {"pi-zero-w": 12_000_000, "router-64": 1_000_000}[ward.board])


def flood_in_the_same_virtual_host(ward: Ward) -> None:
    """The tenant is another user of `/`: the memory for messages is also divided among users."""
    ward.broker.ctl("set_permissions", "-p", "/", "loud", ".*", ".*", ".*")
    flood(ward, 4000, {"pi-zero-w": 12_000_000, "router-64": 1_000_000}[ward.board], "/")


class Durably:
    """Publishes persistent messages to several queues in turn, and waits for the confirms of each window."""

    WINDOW = 20
    BODY = b"." * 16_000

    def __init__(self, client: Client, queues: List[str]) -> None:
        self.client, self.queues = client, queues
        self.sent = self.confirmed = 0
        for queue in queues:
            client.call(1, "queue.declare", queue=queue, durable=True)
        client.call(1, "confirm.select")

    def publish(self, count: int, patience_s: float) -> int:
        """Publishes `count` messages. Returns how many were confirmed in time."""
        begin = self.confirmed
        try:
            self.await_confirms(patience_s)
            while self.confirmed < begin + count:
                for _ in range(self.WINDOW):
                    queue = self.queues[self.sent % len(self.queues)]
                    self.client.publish(1, "", queue, self.BODY, props={"delivery_mode": 2})
                    self.sent += 1
                self.await_confirms(patience_s)
        except TimeoutError:
            pass
        return self.confirmed - begin

    def await_confirms(self, patience_s: float) -> None:
        """Waits for the confirms of everything sent."""
        while self.confirmed < self.sent:
            got = self.client.recv(patience_s)
            if got.name in ("connection.blocked", "connection.unblocked"):
                continue
            assert got.name == "basic.ack", got
            self.confirmed = got.args["delivery_tag"]


def disk_of_one(ward: Ward) -> None:
    """Two queues of the tenant fill most of `disk_limit`."""
    ward.broker.ctl("delete_vhost", "loud")
    taken = Durably(ward.honest(), ["mine", "other"]).publish(10_000, 8.0)
    assert taken * len(Durably.BODY) >= 0.6 * 64_000_000, f"only {taken} messages fit"


CASES = [exchanges, flood_of_small, flood_of_bodies, flood_in_the_same_virtual_host, disk_of_one]
# Small, so that it can be filled quickly.
DISK_LIMITS = {disk_of_one: "64MiB"}


def main() -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    status = 0
    for board in BOARDS:
        suite = Suite(f"fair_shares/{board}", args.case)
        for case in CASES:
            ward = Ward(board, DISK_LIMITS.get(case, "200MB"))
            try:
                suite.case(case.__name__.replace("_", "-"), lambda: case(ward), lambda: ward.broker.log())
            finally:
                ward.close()
        status |= suite.status()
    return status


if __name__ == "__main__":
    sys.exit(main())
