"""The output of `status`, `environment` and `list_alarms` is compared with the broker's lists, its process and its
configuration, while memory and disk are filled and emptied."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
import time
import tomllib
from typing import Callable, Dict, Iterator, List

from harness import wire
from harness.brokers import Leveret, leveret
from harness.raw import Client, Closed
from harness.suite import patience
from support import good, rows

LISTED = {"connections": "list_connections", "channels": "list_channels", "queues": "list_queues",
          "exchanges": "list_exchanges", "bindings": "list_bindings", "consumers": "list_consumers",
          "vhosts": "list_vhosts"}


def status_is_correct() -> None:
    """The numbers of `status` equal those of the lists and of the process, in both formats, and follow changes."""
    with leveret(config='memory_limit = "200MB"\n') as broker:
        began = time.monotonic()
        good(broker, "add_vhost", "plant")
        good(broker, "set_permissions", "-p", "plant", "guest", ".*", ".*", ".*")
        with Client(broker.address) as one, Client(broker.address, vhost="plant") as other:
            for number in (1, 2, 3):
                one.open(number)
            other.open()
            for queue in ("a", "b"):
                one.call(1, "queue.declare", queue=queue)
            one.call(1, "exchange.declare", exchange="x", type="fanout")
            one.call(1, "queue.bind", queue="a", exchange="x")
            one.call(1, "basic.consume", queue="a", consumer_tag="c")
            other.call(1, "queue.declare", queue="a")
            told = told_status(broker, began)
            for what, number in {"connections": 2, "channels": 4, "queues": 3, "consumers": 1, "vhosts": 2}.items():
                assert told[what] == number, f"{what}: {told[what]}, not {number}"
            one.call(2, "queue.delete", queue="b")
            one.send(wire.method(3, "channel.close", reply_code=200))
            one.expect("channel.close-ok")
            told = told_status(broker, began)
            assert (told["channels"], told["queues"]) == (3, 2), told
        deadline = time.monotonic() + patience(10)
        while json.loads(good(broker, "status", "--formatter", "json"))["connections"]:
            assert time.monotonic() < deadline, "closed connections are still counted"


def told_status(broker: Leveret, began: float) -> Dict[str, int]:
    """Compares `status` with everything else that can be queried. Returns it as JSON."""
    told = json.loads(good(broker, "status", "--formatter", "json"))
    text = good(broker, "-q", "status")
    seconds = time.monotonic() - began
    vhosts = [row[0] for row in rows(broker, "list_vhosts")]
    for key, command in LISTED.items():
        if key in ("connections", "channels", "vhosts"):
            number = len(rows(broker, command))
        else:
            number = sum(len(rows(broker, command, "-p", vhost)) for vhost in vhosts)
        singular = {"vhosts": "Virtual host", "queues": "Queue"}.get(key, key[:-1].capitalize())
        # The implied bindings to the default exchange are listed, but use no memory.
        implied = told["queues"] if key == "bindings" else 0
        assert told[key] == number - implied, f"{key}: {told[key]} in status, {number} in {command}"
        assert f"{singular} count: {told[key]}\n" in text + "\n", f"{key} in {text}"
    host, port = broker.address
    assert told["pid"] == broker.process.pid and f"OS PID: {broker.process.pid}\n" in text, text
    assert told["memory_limit"] == 200_000_000 and "Memory limit: 200.0 MB" in text, text
    for place, name in enumerate(("clients", "definitions", "messages")):
        assert told["classes"][place]["name"] == name and f"Shared, {name}: " in text, text
    assert told["data_dir"] == str(broker.data_dir) and f"Node data directory: {broker.data_dir}\n" in text, text
    listener = {"node": told["node"], "interface": host, "port": int(port), "protocol": "amqp",
                "purpose": "AMQP 0-9-1"}
    assert told["listeners"] == [listener], told["listeners"]
    assert f"Interface: {host}, port: {port}, protocol: amqp, purpose: AMQP 0-9-1" in text, text
    assert told["alarms"] == [] and "Alarms\n\n(none)\n" in plain(text), text
    # Ansible and puppet read RabbitMQ's version here.
    assert f"RabbitMQ version: {told['rabbitmq_version']}\n" in text and told["rabbitmq_version"] > "3.10", text
    assert told["uptime_ms"] / 1000 <= seconds + 5.0, f"{told['uptime_ms']} ms, started {seconds:.1f} s ago"
    resident = float(text.split("Resident: ")[1].split()[0]) * 1_000_000
    assert abs(resident - broker.rss_kib() * 1024) < 2 << 20, f"{resident} bytes, not {broker.rss_kib()} KiB"
    version = subprocess.run([str(broker.binary), "--version"], capture_output=True, text=True, check=True).stdout
    assert told["leveret_version"] in version and f"Leveret version: {told['leveret_version']}\n" in text, text
    return told


def plain(text: str) -> str:
    """Returns the text without the colours of headings."""
    return text.replace("\x1b[1m", "").replace("\x1b[0m", "")


def environment_is_the_configuration() -> None:
    """`environment` prints a configuration file, with set and default values, with which the same broker would start.
    """
    config = """memory_limit = "190MB"
heartbeat = "33s"
product = "Plant"
[store]
commit_window = "7ms"
[limits]
connections_max = 77
message_size_max = "300KiB"
"""
    with leveret(config=config, args=["--log-level", "debug"]) as broker:
        said = good(broker, "-q", "environment")
        for line in ('memory_limit = "190MB"', 'heartbeat = "33s"', 'product = "Plant"', 'commit_window = "7ms"',
                     "connections_max = 77", 'message_size_max = "300KiB"', 'log_level = "debug"',
                     f'data_dir = "{broker.data_dir}"'):
            assert f"\n{line}\n" in f"\n{said}\n", f"{line} is not in\n{said}"
        assert json.loads(good(broker, "environment", "--formatter", "json")) == tomllib.loads(said)
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(said)
            file.flush()
            check = subprocess.run([str(broker.binary), "check", "--config", file.name], capture_output=True, text=True)
            assert check.returncode == 0, check.stdout + check.stderr
            again = [line.split("#")[0].rstrip() for line in check.stdout.splitlines()]
            missing = [line for line in said.splitlines() if line.split("#")[0].rstrip() not in again]
            assert not missing, f"a broker started with this output would lack {missing}"


def alarms_come_and_go() -> None:
    """Without a problem there is no alarm. `memory` is raised while publishers wait for memory, `disk` while they wait
    for the log, and both are cleared when messages are consumed."""
    small = '[limits]\nmessage_size_max = "64KiB"\nassembly_bytes_max = "512KiB"\nbody_bytes_max = "1MiB"\n'
    with leveret(config=small) as broker:
        assert alarms(broker) == []
        with Client(broker.address) as client:
            client.open()
            client.call(1, "queue.declare", queue="full")
        with waiting_publisher(broker, "full", 4000):
            wait_for(broker, lambda said: said == ["memory"], "the memory is not full")
        wait_for(broker, lambda said: purged(broker, "full") and said == [], "the memory is not free again")
    segments = 'frame_max = "16KiB"\n[store]\ndisk_limit = "8MiB"\n[limits]\nsegment_bytes = "512KiB"\n' \
               'commit_bytes_max = "160KiB"\n'
    with leveret(config=segments) as broker:
        assert alarms(broker) == []
        queues = ("kept", "kept too", "and this")
        with Client(broker.address) as client:
            client.open()
            for queue in queues:
                client.call(1, "queue.declare", queue=queue, durable=True)
        with contextlib.ExitStack() as publishers:
            for queue in queues:
                publishers.enter_context(waiting_publisher(broker, queue, 20_000))
            wait_for(broker, lambda said: set(said) == {"disk"}, "the disk is not full")
        wait_for(broker, lambda said: purged(broker, *queues) and said == [], "the disk is not free again")


def alarms(broker: Leveret) -> List[str]:
    """Returns the names of the raised alarms; a placeholder if they changed between the outputs that are compared."""
    said = good(broker, "-q", "list_alarms")
    lines = [line for line in said.splitlines() if line]
    told = json.loads(good(broker, "list_alarms", "--formatter", "json"))
    shown = plain(good(broker, "-q", "status")).split("Alarms\n\n")[1].split("\n\n")[0].splitlines()
    if lines == told and (shown == told or (shown, told) == (["(none)"], [])):
        return [line.split(":")[0] for line in lines]
    return ["(the alarms changed while they were asked for)"]


def purged(broker: Leveret, *queues: str) -> bool:
    """Purges queues. Returns whether all were empty: blocked publishers may have sent more after an earlier purge."""
    with Client(broker.address) as client:
        client.open()
        return not sum(client.call(1, "queue.purge", queue=queue).args["message_count"] for queue in queues)


def wait_for(broker: Leveret, is_right: Callable[[List[str]], bool], what: str) -> None:
    """Waits until `is_right` accepts the raised alarms."""
    deadline = time.monotonic() + patience(20)
    while not is_right(said := alarms(broker)):
        assert time.monotonic() < deadline, f"{what}, and the alarms are {said}"
        time.sleep(0.05)


@contextlib.contextmanager
def waiting_publisher(broker: Leveret, queue: str, size: int) -> Iterator[None]:
    """Starts a publisher that publishes until it is blocked, and stays blocked."""
    client = Client(broker.address, timeout=60.0)
    client.open()

    def publish() -> None:
        with contextlib.suppress(OSError, Closed):
            while True:
                client.publish(1, "", queue, bytes(size), props={"delivery_mode": 2})

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    try:
        yield
    finally:
        client.socket.shutdown(2)
        thread.join(patience(10.0))
        client.drop()


def client_properties_are_listed() -> None:
    """Client properties of any key and length are listed as in RabbitMQ, and the log shows the connection name."""
    name = "sensor " + "x" * 200
    said = {"product": "probe", "connection_name": name, "site": "hall 7", "revision": 12, "is_spare": False,
            "list": [1, 2]}
    with leveret() as broker:
        with Client(broker.address, properties=said):
            shown = rows(broker, "list_connections", "user_provided_name")
            assert shown == [[name]], shown
            listed = json.loads(good(broker, "list_connections", "client_properties", "--formatter", "json"))
            text = json.dumps(listed)
            for part in ("probe", name, "hall 7", "revision", "12", "is_spare", "capabilities", "basic.nack"):
                assert part in text, (part, text)
        lines = [line for line in broker.log().splitlines() if "connection opened" in line]
        assert lines and "connection_name sensor xxx" in lines[0], lines


CASES = [status_is_correct, environment_is_the_configuration, alarms_come_and_go, client_properties_are_listed]
