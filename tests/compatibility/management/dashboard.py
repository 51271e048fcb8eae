"""The dashboard for Grafana in the guide: its structure, its metrics, and its queries in a real Prometheus.

No package index has a Grafana server. So these cases check what Grafana needs of the file, and run each query as
Grafana would send it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import raw, wire  # noqa: E402
from harness.brokers import ROOT, leveret  # noqa: E402
from harness.suite import patience, until  # noqa: E402

import metrics  # noqa: E402

FILE = ROOT / "systemd" / "guide" / "leveret-dashboard.json"
# The first schema of Grafana 9.
SCHEMA_VERSION_MIN = 36
# Grafana's grid has 24 columns.
COLUMNS = 24
# A metric of Prometheus itself.
OF_PROMETHEUS = {"up"}
# Answering this number of requests takes much more than 10 ms of processor time.
REQUESTS_MAX = 500
# With a bridge in both directions, MQTT and an endurance of the flash, no panel may be empty.
CONFIGURATION = """mqtt = ["127.0.0.1:0"]
[store]
flash_endurance = "32TB"
[[bridge]]
name = "plant"
upstream = "amqp://guest:guest@127.0.0.1:{port}/%2f"
declare = true
[[bridge.forward]]
queue = "readings"
to_queue = "readings"
[[bridge.fetch]]
queue = "commands"
to_queue = "commands"
"""


def panels() -> List[Dict[str, Any]]:
    """Returns all panels, rows included."""
    return json.loads(FILE.read_text())["panels"]


def expressions() -> List[Tuple[str, str]]:
    """Returns each query with the title of its panel."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", [])]


def variables() -> Dict[str, Dict[str, Any]]:
    """Returns the variables of the dashboard by name."""
    return {variable["name"]: variable for variable in json.loads(FILE.read_text())["templating"]["list"]}


def is_valid() -> None:
    """The file is a dashboard: unique numbers, no panels on top of each other, and each panel is explained."""
    board = json.loads(FILE.read_text())
    assert board["schemaVersion"] >= SCHEMA_VERSION_MIN and board["title"] and board["uid"], board["title"]
    # An exported dashboard with a number of its own would replace another one.
    assert board.get("id") is None
    variable = variables()
    assert (variable["datasource"]["type"], variable["datasource"]["query"]) == ("datasource", "prometheus"), variable
    assert variable["job"]["type"] == variable["instance"]["type"] == "query", variable
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers), numbers
    used: Dict[Tuple[int, int], str] = {}
    wrong: List[str] = []
    titles = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert titles == ["Alarms", "Flash", "Memory", "Queues", "Bridges", "MQTT"], titles
    for panel in panels():
        place, title = panel["gridPos"], panel["title"]
        if place["x"] < 0 or place["x"] + place["w"] > COLUMNS or place["h"] < 1 or place["w"] < 1:
            wrong.append(f"{title}: outside of the grid: {place}")
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"])
                     for y in range(place["y"], place["y"] + place["h"])):
            if cell in used:
                wrong.append(f"{title}: on top of {used[cell]}")
                break
            used[cell] = title
        if panel["type"] == "row":
            continue
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        letters = [target["refId"] for target in panel["targets"]]
        if not panel["description"].endswith("."):
            wrong.append(f"{title}: no description")
        if not panel["fieldConfig"]["defaults"]["unit"]:
            wrong.append(f"{title}: no unit")
        if not letters or len(set(letters)) != len(letters):
            wrong.append(f"{title}: no queries, or two of one name: {letters}")
        if any(source != {"type": "prometheus", "uid": "${datasource}"} for source in sources):
            wrong.append(f"{title}: another data source: {sources}")
        for target in panel["targets"]:
            # Without the selector a panel would show boards that are not selected.
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            if not selectors or any(text != 'job="$job", instance=~"$instance"' for text in selectors):
                wrong.append(f"{title}: does not select by the variables: {target['expr']}")
            if "{{instance}}" not in target["legendFormat"]:
                wrong.append(f"{title}: the legend does not name the board")
    assert not wrong, "\n".join(wrong)


def used_names(text: str) -> Set[str]:
    """Returns the metrics that an expression, or the query of a variable, selects."""
    return set(re.findall(r"([a-zA-Z_:]\w*)\{", text)) | set(re.findall(r"label_values\((\w+)", text))


def absent(port: int) -> List[str]:
    """Returns the metrics of the dashboard that the broker does not have, each with its panel or variable."""
    exposed = {sample.name for sample in metrics.parse(metrics.ask(port, "/metrics")[2]).samples} | OF_PROMETHEUS
    used = expressions() + [(name, variable["definition"]) for name, variable in variables().items()
                            if variable["type"] == "query"]
    for title, text in used:
        assert used_names(text), (title, text)
    return [f"{title}: no metric {name}" for title, text in used for name in sorted(used_names(text) - exposed)]


def names(port: int) -> None:
    """Each metric of the dashboard exists."""
    # The processor time is left out until it is 10 ms, which the answers to these requests take.
    for _ in range(REQUESTS_MAX):
        if not absent(port):
            return
    assert not absent(port), "\n".join(absent(port))


def queries(port: int) -> None:
    """Prometheus accepts each query, and finds at least one series for it."""
    with metrics.prometheus(port) as (own, log):
        for _, text in expressions():
            for name, value in (("$job", "leveret"), ("$instance", f"127.0.0.1:{port}"), ("$__rate_interval", "1m")):
                text = text.replace(name, value)
            assert "$" not in text, f"an unknown variable: {text}"
            metrics.asked(own, text, None, log)


@contextlib.contextmanager
def board() -> Iterator[int]:
    """Runs a broker with a bridge to a second one, a kept MQTT session and a retained message. Yields the port of the
    management API.
    """
    with leveret() as upstream:
        config = CONFIGURATION.format(port=upstream.address.port)
        with leveret(args=["--management", "127.0.0.1:0"], config=config) as broker:
            port = broker.port_of("management API")
            mqtt = until("MQTT", lambda: re.search(r"127\.0\.0\.1:(\d+) for MQTT", broker.log()), 30.0)
            with mqtt_client(int(mqtt[1])), contextlib.closing(raw.Client(broker.address)) as client:
                client.open(1)
                client.call(1, "queue.declare", queue="readings", durable=True)
                client.send(wire.publish(1, "", "readings", b"x" * 10) * 5)
                until("the readings are at the upstream", lambda: re.search(
                    r'leveret_bridge_moved_total\{bridge="plant",direction="forward"\} 5\n',
                    metrics.ask(port, "/metrics")[2]), 60.0)
                yield port


@contextlib.contextmanager
def mqtt_client(port: int) -> Iterator[None]:
    """A client of MQTT 3.1.1 with a kept session, which has published a retained message with QoS 1."""

    def text(value: str) -> bytes:
        return struct.pack(">H", len(value)) + value.encode()

    def packet(kind: int, body: bytes) -> bytes:
        return bytes([kind, len(body)]) + body

    # 0xc0: with user name and password, and without Clean Session.
    connect = packet(0x10, text("MQTT") + b"\x04\xc0\x00\x3c" + text("meter") + text("guest") + text("guest"))
    subscribe = packet(0x82, b"\x00\x01" + text("plant/#") + b"\x01")
    publish = packet(0x33, text("plant/1") + b"\x00\x02" + b"21.5")
    with socket.create_connection(("127.0.0.1", port), patience(30)) as peer:
        peer.settimeout(patience(30))
        peer.sendall(connect + subscribe + publish)
        received = b""
        # CONNACK, SUBACK, and PUBACK of packet 2, the last one among the delivery of the message.
        while b"\x40\x02\x00\x02" not in received:
            piece = peer.recv(1000)
            assert piece, f"the connection was closed after {received!r}"
            received += piece
        assert received.startswith(b"\x20\x02\x00\x00"), received
        yield
