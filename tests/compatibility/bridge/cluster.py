"""A bridge to a cluster of three RabbitMQ nodes with quorum queues. The node that it is connected to is killed.

At the end each confirmed reading is upstream, in order except for marked repetitions, and each command is here. A
bridge that knows only the killed node waits for it.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, Iterable, List, Optional, Set

from harness import brokers, raw, wire  # noqa: E402
from harness.cluster import Cluster  # noqa: E402
from harness.suite import patience  # noqa: E402

READINGS, AT_ONCE = 20_000, 2_000
COMMANDS = 4_000
# Number of messages that arrived before the node is killed.
KILL_AFTER = 5_000
QUEUES = ("telemetry", "commands", "alone")
QUORUM = {"x-queue-type": "quorum"}


def bridges(cluster: Cluster) -> str:
    """Returns the configuration of two bridges: one with the addresses of all nodes, one with the first address only.
    RabbitMQ nacks messages while a quorum queue has no leader. Such messages must not be parked."""
    addresses = [f"amqp://guest:guest@127.0.0.1:{node.address.port}/%2f" for node in cluster.nodes]
    listed = ", ".join(f'"{address}"' for address in addresses)
    return f"""
[[bridge]]
name = "plant"
upstream = [{listed}]
reconnect_max = "5s"
[[bridge.forward]]
queue = "telemetry"
to_queue = "telemetry"
[[bridge.fetch]]
queue = "commands"
to_queue = "orders"
[[bridge]]
name = "alone"
upstream = "{addresses[0]}"
reconnect_max = "1s"
[[bridge.forward]]
queue = "alone"
to_queue = "alone"
"""


def consumed(address: brokers.Address, queue: str, count: int) -> List[raw.Content]:
    """Consumes a quorum queue until `count` different messages arrived, and none for another second. The queue's
    message count may be seconds old, and basic.get would be about ten times slower."""
    taken: List[raw.Content] = []
    bodies: Set[bytes] = set()
    with raw.Client(address) as client:
        client.open()
        client.call(1, "basic.qos", prefetch_count=1_000)
        client.call(1, "basic.consume", queue=queue, consumer_tag="reader")
        while True:
            try:
                content = client.expect("basic.deliver", timeout=1.0 if len(bodies) == count else 20.0)
            except TimeoutError:
                return taken
            taken.append(content)
            bodies.add(content.body)
            if len(taken) % 100 == 0:
                tag = content.method.args["delivery_tag"]
                client.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))


class Publisher:
    """Publishes numbered readings from a thread. Each batch is sent when the one before is confirmed."""

    def __init__(self, address: brokers.Address, queue: str, count: int, props: Dict[str, Any]) -> None:
        self.address, self.queue, self.count, self.props = address, queue, count, props
        self.accident: Optional[BaseException] = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with raw.Client(self.address, timeout=60.0) as client:
                client.open()
                client.call(1, "queue.declare", queue=self.queue, passive=True)
                client.call(1, "confirm.select")
                for first in range(0, self.count, AT_ONCE):
                    for number in range(first, first + AT_ONCE):
                        client.publish(1, "", self.queue, f"reading {number}".encode(), props=self.props)
                    confirm_all(client, range(first + 1, first + AT_ONCE + 1))
        except BaseException as accident:  # checked by ended()
            self.accident = accident

    def ended(self) -> None:
        """Waits until everything is confirmed."""
        self.thread.join(patience(90.0))
        if self.accident:
            raise self.accident
        assert not self.thread.is_alive(), f"{self.queue}: not everything was confirmed"


def confirm_all(client: raw.Client, tags: Iterable[int]) -> None:
    """Waits for the confirms of these tags, in any order."""
    waited = set(tags)
    while waited:
        ack = client.expect("basic.ack").args
        tag = ack["delivery_tag"]
        waited -= {other for other in waited if other <= tag} if ack["multiple"] else {tag}


class Clustered:
    """The cases with an upstream cluster. It is started with the case, because all others use a single node."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools

    def node_killed(self, place: Any) -> None:
        """The node to which both links are connected, and which leads the queues, is killed with -9 during the
        transfer."""
        cluster = Cluster("first", "second", "third")
        try:
            self._kill_one(place, cluster)
        finally:
            cluster.close()

    def _kill_one(self, place: Any, cluster: Cluster) -> None:
        tools = self.tools
        first, second, third = cluster.nodes
        with raw.Client(first.address) as client:
            client.open()
            for queue in QUEUES:
                client.call(1, "queue.declare", queue=queue, durable=True, arguments=QUORUM)
        names = sorted(node.node for node in cluster.nodes)
        assert cluster.queues(second) == {queue: (first.node, names) for queue in QUEUES}, cluster.queues(second)
        place.edge = edge = brokers.Leveret(brokers.leveret_binary(), [], bridges(cluster))
        commands = Publisher(third.address, "commands", COMMANDS, tools.PERSISTENT)
        readings = Publisher(edge.address, "telemetry", READINGS, tools.PERSISTENT)
        told = tools.until("messages are being forwarded", lambda: self._under_way(edge))
        assert cluster.at(told["upstream"]) is first, told
        first.kill()
        readings.ended()
        commands.ended()
        tools.publish(edge.address, "alone", 0, 100)
        tools.until("the link uses another node, and all readings are upstream",
                    lambda: tools.ready(edge.address, "telemetry") == 0
                    and tools.status(edge)["pending"] == 0)
        told = tools.status(edge)
        assert told["parked"] == 0, told
        arrived = consumed(second.address, "telemetry", READINGS)
        repeats = tools.check_arrived(arrived, READINGS)
        assert repeats <= told["repeats"], told
        self._check_commands(edge)
        for link in (told, tools.status(edge, "fetch")):
            assert cluster.at(link["upstream"]) in (second, third) and link["connected"] >= 2, link
        print(f"# {repeats} repeats, {told['repeats']} sent as possible repeats; the link moved from {first.node} to "
              f"{cluster.at(told['upstream']).node}", flush=True)
        self._one_address(edge, first)

    def _under_way(self, edge: brokers.Leveret) -> Any:
        """Returns the status of the forwarding link when it has moved enough messages and has unconfirmed ones."""
        told = self.tools.status(edge)
        return told if told["moved"] >= KILL_AFTER and told["pending"] > 0 else None

    def _check_commands(self, edge: brokers.Leveret) -> None:
        """Checks that all commands arrived. RabbitMQ redelivers the unacknowledged messages of the killed node only
        when it has noticed the failure, possibly after later ones. So their order is not checked."""
        here: List[int] = []

        def complete() -> bool:
            here.extend(self.tools.numbers(self.tools.drain(edge.address, "orders")))
            return len(set(here)) == COMMANDS

        self.tools.until("all commands arrived at the edge", complete)
        print(f"# {len(here) - COMMANDS} commands were delivered twice", flush=True)

    def _one_address(self, edge: brokers.Leveret, first: brokers.RabbitMq) -> None:
        """A bridge that knows only the killed node waits for it, and continues when it is back."""
        tools = self.tools
        told = tools.status(edge, name="alone")
        assert (told["state"], told["moved"], told["backlog"]) in [
            (state, 0, 100) for state in ("waiting", "connecting")], told
        assert "cannot be reached" in told["last_error"], told
        first.start()
        first.wait()
        tools.until("the waiting messages are upstream", lambda: tools.status(edge, name="alone")["moved"] == 100)
        assert tools.numbers(consumed(first.address, "alone", 100)) == list(range(100))

    def cases(self) -> List[Any]:
        """Returns all cases."""
        return [self.node_killed]
