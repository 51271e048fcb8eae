"""Metrics compared with those of RabbitMQ 3.10.8: names, types, help, labels, and the counts after the same traffic."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import raw, wire  # noqa: E402
from harness.brokers import Address, free_port  # noqa: E402
from harness.environment import apt_install  # noqa: E402
from harness.suite import patience  # noqa: E402

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "metrics.txt"
MISSING = HERE / "metrics_missing.txt"
LOGIN = "Basic " + base64.b64encode(b"guest:guest").decode()
MEDIA = "text/plain; version=0.0.4; charset=utf-8"
FAMILIES = """connection_churn_metrics node_metrics node_coarse_metrics node_persister_metrics queue_coarse_metrics
queue_consumer_count queue_metrics channel_metrics connection_coarse_metrics connection_metrics""".split()
PATHS = {
    "aggregated": "/metrics",
    "per-object": "/metrics/per-object",
    "detailed": "/metrics/detailed?" + "&".join("family=" + family for family in FAMILIES),
}
# Labels that only one of the two brokers has: Leveret's own version, the node name, and a label that dashboards of
# later releases select by.
OTHER_LABELS = {
    "rabbitmq_build_info": {"leveret_version", "prometheus_plugin_version", "prometheus_client_version",
                            "erlang_version"},
    "rabbitmq_identity_info": {"rabbitmq_cluster_permanent_id", "rabbitmq_endpoint"},
}
# The names of these metrics in the management API's overview.
OVERVIEW = {
    "publish": "received", "confirm": "confirmed", "return_unroutable": "unroutable_returned",
    "drop_unroutable": "unroutable_dropped", "deliver": "delivered_consume_manual_ack",
    "deliver_no_ack": "delivered_consume_auto_ack", "get": "delivered_get_manual_ack",
    "get_no_ack": "delivered_get_auto_ack", "get_empty": "get_empty", "deliver_get": "delivered",
    "redeliver": "redelivered", "ack": "acknowledged",
}
# Queue names with characters that a label must escape, or that resemble its end. A name cannot contain a line break.
QUEUES = ["q", 'a"b', "a\\b", 'x"} 7', "ü"]
SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of the metrics."""

    name: str
    labels: Dict[str, str]
    value: str


class Exposed(NamedTuple):
    """A parsed answer: type and help of each name, and the samples in their order."""

    heads: Dict[str, List[str]]
    samples: List[Sample]


def unescaped(text: str) -> str:
    """Returns the unescaped value of a label."""
    return re.sub(r"\\(.)", lambda found: "\n" if found.group(1) == "n" else found.group(1), text)


def ask(port: int, path: str, login: str = LOGIN) -> Tuple[int, str, str]:
    """Returns status, media type and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    try:
        connection.request("GET", path, headers={"Authorization": login} if login else {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("content-type", ""), answer.read().decode()
    finally:
        connection.close()


def parse(text: str) -> Exposed:
    """Parses every line, independently of the broker's code, or fails."""
    heads: Dict[str, List[str]] = {}
    samples = []
    assert text.endswith("\n"), "the last line has no line break"
    for line in text.splitlines() if "\r" not in text else []:
        head = re.fullmatch(r"# (TYPE|HELP) (\S+) (.*)", line)
        if head:
            said = heads.setdefault(head.group(2), ["", ""])
            place = ["TYPE", "HELP"].index(head.group(1))
            assert not said[place], f"stated twice: {line}"
            said[place] = head.group(3)
            continue
        if not line:
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, f"not a sample: {line}"
        labels = {name: unescaped(value) for name, value in LABEL.findall(sample.group(2) or "")}
        float(sample.group(3))
        samples.append(Sample(sample.group(1), labels, sample.group(3)))
    return Exposed(heads, samples)


def drain(client: raw.Client, count: int) -> List[int]:
    """Returns the tags of `count` deliveries."""
    tags: List[int] = []
    while len(tags) < count:
        message = client.expect("basic.deliver")
        tags.append(message.method.args["delivery_tag"])
    return tags


def traffic(address: Address) -> raw.Client:
    """Causes some of everything that is counted. Returns the connection, which keeps some of the objects alive."""
    client = raw.Client(address)
    for channel in (1, 2, 3, 4):
        client.open(channel)
    client.call(1, "queue.declare", queue="q", durable=True)
    client.call(1, "queue.declare", queue="q", durable=True)
    client.call(1, "queue.declare", queue="q", durable=True, passive=True)
    client.call(1, "queue.declare", queue="gone")
    client.call(1, "queue.delete", queue="gone")
    client.call(1, "basic.get", queue="q")
    client.send(wire.publish(1, "", "q", b"x" * 10) * 5)
    client.send(wire.publish(1, "", "none", b"x") * 2)
    client.call(1, "confirm.select")
    client.send(wire.publish(1, "", "q", b"x" * 10) * 3)
    client.send(wire.publish(1, "", "none", b"x"))
    client.send(wire.publish(1, "", "none", b"x", mandatory=True) * 2)
    client.call(2, "tx.select")
    client.send(wire.publish(2, "", "q", b"x" * 10) * 4 + wire.publish(2, "", "none", b"x"))
    client.call(2, "tx.commit")
    # The queue has 12 messages: two are fetched with basic.get, and two consumers in turn consume the rest.
    client.call(3, "basic.get", queue="q", no_ack=True)
    tag = client.call(3, "basic.get", queue="q").method.args["delivery_tag"]
    client.send(wire.method(3, "basic.reject", delivery_tag=tag, requeue=True))
    client.call(3, "basic.qos", prefetch_count=6)
    client.call(3, "basic.consume", queue="q", consumer_tag="manual")
    tags = drain(client, 6)
    client.call(3, "basic.cancel", consumer_tag="manual")
    client.send(wire.method(3, "basic.ack", delivery_tag=tags[1], multiple=True))
    client.send(wire.method(3, "basic.ack", delivery_tag=tags[2]))
    client.send(wire.method(3, "basic.reject", delivery_tag=tags[3], requeue=False))
    client.call(4, "basic.consume", queue="q", consumer_tag="auto", no_ack=True)
    drain(client, 5)
    # Two messages stay unacknowledged, and one is in two queues without a consumer.
    client.call(4, "basic.cancel", consumer_tag="auto")
    for queue in ("left", "right"):
        client.call(1, "queue.declare", queue=queue)
        client.call(1, "queue.bind", queue=queue, exchange="amq.fanout")
    client.send(wire.publish(1, "amq.fanout", "", b"y" * 7))
    for queue in QUEUES[1:]:
        client.call(1, "queue.declare", queue=queue)
    return client


def is_counted(name: str) -> bool:
    """Returns whether both brokers must report the same number after the same traffic."""
    return bool(re.match(r"rabbitmq_(global_|channels|queues|queue_messages|queue_consumers|consumers|channel_)", name))


def counts(exposed: Exposed) -> Dict[str, float]:
    """Returns the counters, summed over all queue types. RabbitMQ also counts discarded messages without a dead-letter
    exchange, with the strategy `disabled`; these are not compared.
    """
    found: Dict[str, float] = {}
    for name, labels, value in exposed.samples:
        if is_counted(name) and labels.get("dead_letter_strategy") != "disabled":
            found[name] = found.get(name, 0) + float(value)
    return found


def described(exposed: Exposed) -> Dict[str, Any]:
    """Returns type, help and label names, by metric name."""
    labels: Dict[str, List[str]] = {name: [] for name in exposed.heads}
    for name, given, _ in exposed.samples:
        if name in labels:
            labels[name] = sorted(set(labels[name]) | set(given))
    # Metrics of the Erlang VM are left out; they have names of their own.
    return {name: {"type": head[0], "help": head[1], "labels": labels[name]}
            for name, head in exposed.heads.items() if name.startswith(("rabbitmq_", "leveret_"))}


def missing() -> List[Tuple[str, str]]:
    """Returns the metrics that RabbitMQ has and Leveret has not, as path and name."""
    lines = [line.split() for line in MISSING.read_text().splitlines() if line and not line.startswith("#")]
    return [(scope, words[-1]) for words in lines for scope in words[:-1]]


def record(address: Address, port: int) -> None:
    """Records RabbitMQ's metrics: each count, then each description once with the paths that contain it. Metrics that
    Leveret does not have are recorded by name only."""
    client = traffic(address)
    # RabbitMQ updates its statistics every five seconds.
    time.sleep(12)
    counted: List[str] = []
    said: Dict[str, List[str]] = {}
    absent = missing()
    for scope, path in PATHS.items():
        # RabbitMQ does not escape labels, so some of its lines cannot be parsed.
        text = "\n".join(line for line in ask(port, path)[2].split("\n") if line[:1] == "#" or SAMPLE.fullmatch(line))
        exposed = parse(text + "\n")
        for name, its in described(exposed).items():
            parts = [] if (scope, name) in absent else [its["type"], " ".join(its["labels"]), its["help"]]
            said.setdefault(" | ".join([name, *parts]), []).append(scope)
        if scope == "aggregated":
            counted = [f"{name} {value:.15g}" for name, value in counts(exposed).items() if (scope, name) not in absent]
    client.close()
    lines = sorted(counted) + sorted(f"{' '.join(scopes)} | {line}" for line, scopes in said.items())
    RECORDED.write_text("\n".join(lines) + "\n")


def recorded() -> Tuple[Dict[str, Dict[str, Any]], Dict[str, float]]:
    """Reads the recording: descriptions by path and name (empty if Leveret has no such name), and counts."""
    descriptions: Dict[str, Dict[str, Any]] = {scope: {} for scope in PATHS}
    counted: Dict[str, float] = {}
    for line in RECORDED.read_text().splitlines():
        if " | " in line:
            scopes, name, *parts = line.split(" | ", 4)
            for scope in scopes.split():
                descriptions[scope][name] = dict(zip(("type", "labels", "help"), parts))
        else:
            name, value = line.split()
            counted[name] = float(value)
    return descriptions, counted


def compare(port: int) -> None:
    """Metrics that both brokers have are described identically, missing ones are listed, and every count is right."""
    descriptions, their_counts = recorded()
    wrong, absent = [], []
    for scope, path in PATHS.items():
        status, media, text = ask(port, path)
        assert (status, media) == (200, MEDIA), (status, media)
        exposed = parse(text)
        ours, theirs = described(exposed), descriptions[scope]
        known = {name: said for name, said in ours.items() if not name.startswith("leveret_")}
        wrong += [f"{scope} {name}: RabbitMQ has no such name" for name in known if name not in theirs]
        absent += [(scope, name) for name in theirs if name not in ours]
        for name in {name for name in known if theirs.get(name)}:
            mine, other = dict(ours[name]), dict(theirs[name], labels=theirs[name]["labels"].split())
            mine["labels"] = [label for label in mine["labels"] if label not in OTHER_LABELS.get(name, ())]
            other["labels"] = [label for label in other["labels"] if label not in OTHER_LABELS.get(name, ())]
            if mine != other:
                wrong.append(f"{scope} {name}: {mine}, with RabbitMQ {other}")
        if scope == "aggregated":
            counted = counts(exposed)
            wrong += [f"{name}: {value}, with RabbitMQ {their_counts.get(name)}"
                      for name, value in counted.items() if their_counts.get(name) != value]
    listed = missing()
    wrong += [f"{' '.join(one)}: RabbitMQ has it, and it is not listed" for one in absent if one not in listed]
    wrong += [f"{' '.join(one)}: listed, and no longer so" for one in listed if one not in absent]
    assert not wrong, "different from RabbitMQ:\n" + "\n".join(wrong)


def objects(port: int) -> None:
    """Each queue appears once under each metric, whatever its name is, and only on the paths for single objects."""
    wanted = sorted(QUEUES + ["left", "right"])
    for path, prefix in [("/metrics/per-object", "rabbitmq_"), (PATHS["detailed"], "rabbitmq_detailed_")]:
        samples = parse(ask(port, path)[2]).samples
        for name in ("queue_messages_ready", "queue_consumers", "queue_messages_persistent"):
            found = sorted(labels["queue"] for other, labels, _ in samples if other == prefix + name)
            assert found == wanted, (path, name, found)
        names = [sample.name for sample in samples]
        for at, name in enumerate(names):
            assert name == names[at - 1] or name not in names[:at], f"{path}: the samples of {name} are not adjacent"
    only = parse(ask(port, "/metrics/detailed?family=queue_consumer_count&vhost=none")[2]).samples
    assert {sample.name for sample in only} == {"rabbitmq_build_info", "rabbitmq_identity_info"}, only
    only = parse(ask(port, "/metrics/detailed?family=queue_consumer_count&vhost=%2F")[2]).samples
    assert len(only) == 2 + len(wanted), only
    plain = parse(ask(port, "/metrics/detailed")[2]).samples
    assert len(plain) == 2, plain


def guarded(port: int) -> None:
    """Users without a login or without the tag `monitoring` get no metrics."""
    status, _, text = ask(port, "/metrics", "")
    assert status == 401 and "rabbitmq_" not in text, (status, text)
    wrong = "Basic " + base64.b64encode(b"guest:wrong").decode()
    status, _, text = ask(port, "/metrics", wrong)
    assert status == 401 and "rabbitmq_" not in text, (status, text)
    assert ask(port, "/metrics/none")[0] == 404
    assert ask(port, "/metricsx")[0] == 404


def open_to_all(port: int) -> None:
    """The metrics listener serves metrics without a login, and nothing else."""
    for path in PATHS.values():
        status, media, text = ask(port, path, "")
        assert status == 200 and media == MEDIA and "rabbitmq_identity_info" in text, (path, status, text[:200])
    for path in ("/", "/app.js", "/api/overview", "/api/ctl/environment", "/metrics/none"):
        assert ask(port, path)[0] == 404, path


def totals(port: int) -> None:
    """The overview reports the same totals, and shows them only to users with the tag `monitoring`."""
    samples = parse(ask(port, "/metrics")[2]).samples
    said = {name.removeprefix("rabbitmq_global_messages_"): float(value) for name, _, value in samples}
    stats = json.loads(ask(port, "/api/overview")[2])["message_stats"]
    for key, name in OVERVIEW.items():
        assert stats.pop(key) == said[name + "_total"] > 0, (key, name)
    assert all(name.endswith("_details") and value["rate"] >= 0 for name, value in stats.items()), stats
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    user = json.dumps({"password": "guest", "tags": "management"})
    connection.request("PUT", "/api/users/reader", user, {"Authorization": LOGIN})
    assert connection.getresponse().status == 201
    connection.close()
    reader = "Basic " + base64.b64encode(b"reader:guest").decode()
    assert json.loads(ask(port, "/api/overview", reader)[2])["message_stats"] == {}
    assert ask(port, "/metrics", reader)[0] == 401


# The metrics that the official overview dashboard (Grafana's 10991) shows: sums of gauges, sums of rates of
# counters.
GAUGES = """queue_messages_ready queue_messages_unacked queue_messages queue_consumers queues connections channels consumers
channel_consumers global_consumers global_publishers process_resident_memory_bytes resident_memory_limit_bytes
disk_space_available_bytes disk_space_available_limit_bytes process_open_fds process_max_fds process_open_tcp_sockets
process_max_tcp_sockets erlang_uptime_seconds alarms_memory_used_watermark alarms_free_disk_space_watermark
alarms_file_descriptor_limit""".split()
COUNTERS = """connections_opened connections_closed channels_opened channels_closed queues_declared queues_created
queues_deleted global_messages_acknowledged global_messages_confirmed global_messages_delivered
global_messages_delivered_consume_auto_ack global_messages_delivered_consume_manual_ack
global_messages_delivered_get_auto_ack global_messages_delivered_get_manual_ack global_messages_get_empty
global_messages_received global_messages_received_confirm global_messages_redelivered global_messages_routed
global_messages_unroutable_dropped global_messages_unroutable_returned""".split()
JOIN = ("* on(instance, job) group_left(rabbitmq_cluster, rabbitmq_node) "
        'rabbitmq_identity_info{rabbitmq_cluster!="", rabbitmq_endpoint="aggregated", namespace=""}')


def dashboard() -> List[str]:
    """Returns the queries of the dashboard in all their forms: over all nodes, by node, and as differences."""
    queries = [f"rabbitmq_build_info {JOIN}", "rabbitmq_identity_info"]
    for name in GAUGES:
        queries += [f"sum(rabbitmq_{name} {JOIN})", f"sum(rabbitmq_{name} {JOIN}) by(rabbitmq_node)"]
    for name in COUNTERS:
        rate = f"rate(rabbitmq_{name}_total[60s]) {JOIN}"
        queries += [f"sum({rate})", f"sum({rate}) by(rabbitmq_node)"]
    for most, used in [("resident_memory_limit_bytes", "process_resident_memory_bytes"),
                       ("process_max_fds", "process_open_fds"),
                       ("process_max_tcp_sockets", "process_open_tcp_sockets"),
                       ("disk_space_available_bytes", "disk_space_available_limit_bytes")]:
        queries.append(f"(rabbitmq_{most} {JOIN}) - (rabbitmq_{used} {JOIN})")
    return queries


def many(address: Address, port: int) -> None:
    """An answer that exceeds the output buffer contains every queue once, also if it is read slowly."""
    names = [f"many-{number:04}" for number in range(2_000)]
    client = raw.Client(address)
    client.open(1)
    client.send(b"".join(wire.method(1, "queue.declare", queue=name, nowait=True) for name in names))
    client.call(1, "queue.declare", queue=names[0], passive=True)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    connection.request("GET", "/metrics/per-object", headers={"Authorization": LOGIN})
    answer = connection.getresponse()
    text = b""
    while piece := answer.read(40_000):
        text += piece
        time.sleep(0.01)
    connection.close()
    for name in names:
        client.send(wire.method(1, "queue.delete", queue=name, nowait=True))
    client.close()
    exposed = parse(text.decode())
    for name in ("queue_messages", "queue_consumers", "queue_messages_ready_bytes"):
        found = [labels["queue"] for other, labels, _ in exposed.samples if other == "rabbitmq_" + name]
        assert sorted(queue for queue in found if queue.startswith("many-")) == names, (name, len(found))


@contextlib.contextmanager
def prometheus(port: int) -> Iterator[Tuple[int, Callable[[], str]]]:
    """Runs a Prometheus that scrapes the management API on this port. Yields its own port, and a function that returns
    its log.
    """
    if shutil.which("prometheus") is None:
        apt_install("prometheus")
    own = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: leveret\n"
            "  basic_auth: {username: guest, password: guest}\n"
            f"  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n")
        with open(Path(folder) / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{own}"], stdout=log, stderr=log)
            try:
                yield own, lambda: Path(log.name).read_text()
            finally:
                process.terminate()
                process.wait(patience(30))


def scraped(port: int) -> None:
    """A real Prometheus scrapes the metrics, and the metrics that the dashboard joins with exist."""
    with prometheus(port) as (own, log):
        for query, value in [
            ("up", 1),
            ("sum(rabbitmq_queue_messages_ready * on(instance, job) "
             "group_left(rabbitmq_cluster, rabbitmq_node) rabbitmq_identity_info)", 2),
            ("sum(rabbitmq_global_messages_received_total * on(instance, job) "
             'group_left(rabbitmq_cluster) rabbitmq_identity_info{rabbitmq_endpoint="aggregated"})', 19),
            ("count(rabbitmq_build_info * on(instance, job) group_left(rabbitmq_cluster) "
             "rabbitmq_identity_info)", 1),
            ("rabbitmq_resident_memory_limit_bytes > bool rabbitmq_process_resident_memory_bytes", 1),
            ("rabbitmq_disk_space_available_bytes > bool rabbitmq_disk_space_available_limit_bytes", 1),
        ]:
            asked(own, query, value, log)
        for query in dashboard():
            asked(own, query, None, log)


def asked(port: int, query: str, value: Optional[float], log: Callable[[], str]) -> None:
    """Waits for the answer of Prometheus: this value, or any value without one."""
    found: Any = None
    for _ in range(round(patience(150))):
        try:
            path = "/api/v1/query?query=" + urllib.parse.quote(query)
            found = json.loads(ask(port, path, "")[2])["data"]["result"]
            values = [float(row["value"][1]) for row in found]
            if values == [value] or value is None and values:
                return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{query}: {found}, not {value}\n{log()}")


def checked(port: int) -> None:
    """Prometheus' own checker accepts the metrics without a warning."""
    if shutil.which("promtool") is None:
        apt_install("prometheus")
    for path in PATHS.values():
        done = subprocess.run(["promtool", "check", "metrics"], input=ask(port, path)[2], text=True, timeout=patience(60),
                              capture_output=True, check=False)
        # It also complains about names that RabbitMQ chose.
        lines = [line for line in done.stderr.splitlines() if not is_taste(line)]
        assert not lines and done.returncode in (0, 3), (path, done.returncode, lines)


def is_taste(line: str) -> bool:
    """Returns whether the warning is about a name that RabbitMQ chose."""
    return line.startswith("rabbitmq_")
