"""The management API compared with RabbitMQ 3.10.8: shapes of answers, and rabbitmqadmin, after the same traffic."""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import raw  # noqa: E402
from harness.brokers import Address, RabbitMq, free_port, leveret, watchdog  # noqa: E402
from harness.shapes import differences, shape  # noqa: E402
from harness.suite import Skip, Suite, patience  # noqa: E402
import dashboard  # noqa: E402
import metrics  # noqa: E402
import rights  # noqa: E402
import tools  # noqa: E402

HERE = Path(__file__).resolve().parent
SHAPES = HERE / "shapes.txt"
COMMANDS = HERE / "rabbitmqadmin.txt"
ANSWERS = HERE / "rabbitmqadmin.json"
DIFFERENCES = HERE / "differences.txt"
PLUGINS = "rabbitmq_management, rabbitmq_prometheus, rabbitmq_shovel_management"
LOGIN = "Basic " + base64.b64encode(b"guest:guest").decode()

# The paths that are requested while there is traffic; NODE is the node's name.
PATHS = """overview whoami nodes nodes/NODE nodes/NODE/memory cluster-name extensions vhosts vhosts/%2F users users/guest
users/guest/permissions permissions topic-permissions queues queues/%2F queues/%2F/q exchanges exchanges/%2F
exchanges/%2F/x exchanges/%2F/x/bindings/source exchanges/%2F/x/bindings/destination queues/%2F/q/bindings
bindings bindings/%2F bindings/%2F/e/x/q/q bindings/%2F/e/x/q/q/~ connections channels consumers consumers/%2F
vhosts/%2F/connections vhosts/%2F/channels vhosts/%2F/permissions definitions policies policies/%2F
operator-policies operator-policies/%2F policies/%2F/p operator-policies/%2F/op parameters parameters/shovel
parameters/shovel/%2F/s global-parameters global-parameters/g vhost-limits user-limits shovels shovels/%2F auth
connections/username/guest topic-permissions/%2F/guest users/lonely
federation-links auth/attempts/NODE health/checks/alarms health/checks/local-alarms
health/checks/virtual-hosts health/checks/node-is-quorum-critical health/checks/node-is-mirror-sync-critical
health/checks/port-listener/PORT health/checks/protocol-listener/amqp091 aliveness-test/%2F
queues?page=1&page_size=10 exchanges?page=1 definitions/%2F permissions/%2F/guest topic-permissions/%2F/guest
users/without-permissions feature-flags healthchecks/node health/checks/certificate-expiration/1/months
health/checks/certificate-expiration/1/moons deprecated-features definitions/none permissions/%2F/none none queues/%2F/none exchanges/%2F/none""".split()


class Broker(NamedTuple):
    """A broker under test: its ports and the name of its node."""

    amqp: Address
    port: int
    node: str
    metrics_port: int

    def ask(self, method: str, path: str, body: Any = None) -> Tuple[int, Any]:
        """Returns status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience(30))
        try:
            headers = {"Authorization": LOGIN, "Content-Type": "application/json"}
            connection.request(method, "/api/" + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text else None


class Managed(RabbitMq):
    """A RabbitMQ with its plug-ins for management, metrics and shovels."""

    def __init__(self, plugins: str = PLUGINS) -> None:
        super().__init__(plugins=plugins)

    def _environment(self) -> Dict[str, str]:
        self.port, self.metrics_port = free_port(), free_port()
        environment = super()._environment()
        with open(environment["RABBITMQ_CONFIG_FILE"], "a", encoding="utf-8") as config:
            config.write(f"management.tcp.port = {self.port}\nmanagement.tcp.ip = 127.0.0.1\n")
            config.write(f"prometheus.tcp.port = {self.metrics_port}\nprometheus.tcp.ip = 127.0.0.1\n")
        return environment


@contextlib.contextmanager
def started(is_rabbitmq: bool, config: str = "") -> Iterator[Broker]:
    """Starts a RabbitMQ or a Leveret; `config` is Leveret's."""
    if is_rabbitmq:
        oracle = Managed()
        try:
            yield Broker(oracle.address, oracle.port, "oracle@localhost", oracle.metrics_port)
        finally:
            oracle.close()
        return
    args = ["--management", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with leveret(args=args, config=config) as broker:
        ours = Broker(broker.address, broker.port_of("management API"), "", broker.port_of("metrics without a login"))
        yield ours._replace(node=ours.ask("GET", "cluster-name")[1]["name"])


def traffic(broker: Broker) -> raw.Client:
    """Creates some objects of each kind. Returns a connection with a consumer, which keeps some of them alive."""
    client = raw.Client(broker.amqp)
    client.open(1)
    for method, path, body in [
        ("PUT", "queues/%2F/q", {"durable": True, "arguments": {"x-max-length": 100}}),
        ("PUT", "exchanges/%2F/x", {"type": "topic", "durable": True}),
        ("PUT", "exchanges/%2F/y", {"type": "fanout"}),
        ("POST", "bindings/%2F/e/x/q/q", {}),
        ("POST", "bindings/%2F/e/x/q/q", {"routing_key": "a.#"}),
        ("POST", "bindings/%2F/e/x/e/y", {"routing_key": "k"}),
        ("PUT", "vhost-limits/%2F/max-queues", {"value": 50}),
        ("PUT", "user-limits/guest/max-channels", {"value": 500}),
        ("PUT", "policies/%2F/p", {"pattern": "^q", "definition": {"max-length": 99}, "apply-to": "queues"}),
        ("PUT", "operator-policies/%2F/op", {"pattern": "^q", "definition": {"max-length": 98}}),
        ("PUT", "topic-permissions/%2F/guest", {"exchange": "x", "write": ".*", "read": ".*"}),
        ("PUT", "global-parameters/g", {"value": {"a": 1}}),
        ("PUT", "users/lonely", {"password": "x", "tags": "monitoring"}),
        # Its address has no listener, so its state does not change.
        ("PUT", "parameters/shovel/%2F/s",
         {"value": {"src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "q", "dest-protocol": "amqp091",
                    "dest-uri": "amqp://127.0.0.1:1", "dest-queue": "q", "reconnect-delay": 3600}}),
        ("POST", "exchanges/%2F/x/publish",
         {"properties": {}, "routing_key": "a.b", "payload": "1", "payload_encoding": "string"}),
    ]:
        status, answer = broker.ask(method, path, body)
        assert status in (200, 201, 204), (path, status, answer)
    client.call(1, "confirm.select")
    client.call(1, "basic.consume", queue="q", consumer_tag="c")
    return client


def shapes_of(broker: Broker) -> Dict[str, Any]:
    """Returns status and shape of every answer."""
    shapes = {}
    for path in PATHS:
        asked = path.replace("NODE", broker.node).replace("PORT", str(broker.amqp.port))
        status, answer = broker.ask("GET", asked)
        # The node's name is a key of some objects.
        named = json.loads(json.dumps(answer).replace(json.dumps(broker.node), '"NODE"'))
        shapes[path] = {"status": status, "shape": shape(named)}
    return shapes


def written(shapes: Dict[str, Any]) -> str:
    """Returns the recorded form: each answer once, below its status and the paths that have it."""
    paths: Dict[str, List[str]] = {}
    for path, answer in sorted(shapes.items()):
        text = json.dumps(answer["shape"], sort_keys=True)
        lines = textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)
        paths.setdefault(f"{answer['status']}\n{lines}", []).append(path)
    blocks = (f"{' '.join(of_it)} {answer}\n" for answer, of_it in paths.items())
    return "\n".join(blocks)


def read_shapes() -> Dict[str, Any]:
    """Reads the recorded shapes, by path."""
    shapes: Dict[str, Any] = {}
    for block in SHAPES.read_text().split("\n\n"):
        head, text = block.split("\n", 1)
        *paths, status = head.split()
        shapes.update(dict.fromkeys(paths, {"status": int(status), "shape": json.loads(text)}))
    return shapes


def admin(broker: Broker, words: List[str], folder: Path) -> Tuple[int, List[str]]:
    """Returns the sorted output and the exit code of rabbitmqadmin."""
    script = shutil.which("rabbitmqadmin")
    if script is None:
        raise Skip("rabbitmqadmin is not installed")
    command = [sys.executable, script, "-H", "127.0.0.1", "-P", str(broker.port), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), cwd=folder, check=False)
    # The exchange exists in older releases; Leveret has it but logs nothing into it.
    lines = done.stdout.replace(broker.node, "NODE").splitlines()
    return done.returncode, sorted(line for line in lines if "amq.rabbitmq.log" not in line)


def words_of(line: str) -> List[str]:
    """Splits a line at blanks. Text in single quotes is one word."""
    return shlex.split(line)


def run_admin(broker: Broker) -> List[Dict[str, Any]]:
    """Runs every command of the list in order."""
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        for line in COMMANDS.read_text().splitlines():
            if line and not line.startswith("#"):
                status, lines = admin(broker, words_of(line), Path(folder))
                answers.append({"command": line, "status": status, "lines": lines})
    return answers


def listed() -> List[str]:
    """Returns the listed, intended differences."""
    lines = DIFFERENCES.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def compare_shapes(broker: Broker) -> None:
    """Every answer has the fields of RabbitMQ's, except for the listed differences."""
    theirs = read_shapes()
    client = traffic(broker)
    try:
        ours = shapes_of(broker)
    finally:
        client.close()
    found = []
    for path, answer in theirs.items():
        if answer["status"] != ours[path]["status"]:
            found.append(f"{path}: status {answer['status']}")
        else:
            found += differences(path + ":", answer["shape"], ours[path]["shape"])
    meant = listed()
    news = [line for line in found if line not in meant]
    gone = [line for line in meant if line not in found]
    assert not news, "different from RabbitMQ:\n" + "\n".join(news)
    assert not gone, "listed, but no longer different:\n" + "\n".join(gone)


def compare_admin(broker: Broker) -> None:
    """Every command of rabbitmqadmin has the same exit code and output as with RabbitMQ."""
    theirs = json.loads(ANSWERS.read_text())
    pairs = list(zip(theirs, run_admin(broker), strict=True))
    wrong = [f"RabbitMQ: {one}\nLeveret:  {other}" for one, other in pairs if one != other]
    assert not wrong, "different from RabbitMQ:\n" + "\n".join(wrong)


def main() -> int:
    """Runs the suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*")
    parser.add_argument("--rabbitmq", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--record-metrics", action="store_true")
    parser.add_argument("--record-rights", action="store_true")
    options = parser.parse_args()
    suite = Suite("management", options.only)
    timer = watchdog(600)
    if options.record_rights:
        oracle = Managed()
        try:
            rights.record(oracle.address, oracle.port, oracle.node)
        finally:
            oracle.close()
        return 0
    with started(options.rabbitmq) as broker:
        if options.record_metrics:
            metrics.record(broker.amqp, broker.metrics_port)
            return 0
        if options.record:
            ANSWERS.write_text(json.dumps(run_admin(broker), indent=1) + "\n")
            client = traffic(broker)
            # RabbitMQ updates its statistics every five seconds, and reports nothing about a queue before that.
            time.sleep(12)
            SHAPES.write_text(written(shapes_of(broker)))
            client.close()
            return 0
        suite.case("rabbitmqadmin", lambda: compare_admin(broker))
        suite.case("shapes", lambda: compare_shapes(broker))
    # Counters start with the broker. RabbitMQ's metrics come from another port, without a login and with another media
    # type.
    if not options.rabbitmq:
        with started(False, "") as broker:
            client = metrics.traffic(broker.amqp)
            for case in (
                metrics.compare, metrics.objects, metrics.guarded, metrics.totals, metrics.checked, metrics.scraped,
            ):
                suite.case("metrics-" + case.__name__, lambda case=case: case(broker.port))
            suite.case("metrics-open", lambda: metrics.open_to_all(broker.metrics_port))
            suite.case("metrics-many", lambda: metrics.many(broker.amqp, broker.port))
            client.close()
        suite.case("dashboard-file", dashboard.is_valid)
        with dashboard.board() as port:
            suite.case("dashboard-metrics", lambda: dashboard.names(port))
            suite.case("dashboard-queries", lambda: dashboard.queries(port))
        with started(False) as broker:
            suite.case("rights", lambda: rights.compare(broker.amqp, broker.port, broker.node))
        with started(False, "") as broker:
            suite.case("tools-nagios", lambda: tools.nagios(broker.amqp, broker.port))
            suite.case("tools-clients", lambda: tools.clients(broker.port))
            suite.case("tools-flower", lambda: tools.flower(broker.amqp, broker.port))
    timer.cancel()
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
