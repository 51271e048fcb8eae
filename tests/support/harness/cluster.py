"""A cluster of RabbitMQ nodes on this machine, each a process with its own port, home and log.

The first is an ordinary node. The others find it at their first start by RabbitMQ's peer discovery, and share its port
mapper and cookie. Each is ended by its own process id.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

from .brokers import RabbitMq


class Cluster:
    """The nodes of a cluster."""

    def __init__(self, *names: str) -> None:
        self.nodes: List[RabbitMq] = []
        try:
            self.nodes.append(RabbitMq(name=names[0]))
            first = self.nodes[0]
            lines = ("cluster_formation.peer_discovery_backend = classic_config\n"
                     f"cluster_formation.classic_config.nodes.1 = {first.node}\n"
                     "cluster_formation.randomized_startup_delay_range.min = 0\n"
                     "cluster_formation.randomized_startup_delay_range.max = 1\n")
            for name in names[1:]:
                self.nodes.append(RabbitMq(name=name, others=first, lines=lines))
            for node in self.nodes[1:]:
                node.wait()
        except BaseException:
            self.close()
            raise

    def at(self, address: str) -> RabbitMq:
        """Returns the node whose port an AMQP address names."""
        return next(node for node in self.nodes if f":{node.address.port}" in address)

    def queues(self, asked: RabbitMq) -> Dict[str, Tuple[str, List[str]]]:
        """Returns the leader and the members of each quorum queue, as this node knows them."""
        rows: Any = json.loads(asked.ctl("list_queues", "--formatter", "json", "name", "leader", "members"))
        return {row["name"]: (row["leader"], sorted(row["members"])) for row in rows}

    def close(self) -> None:
        """Ends all nodes. The first goes last, because it owns the port mapper."""
        for node in reversed(self.nodes):
            node.close()
        self.nodes.clear()
