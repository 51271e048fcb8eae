"""Third-party programs from the package registries against the management API: the Nagios plug-ins of Debian, the
clients of AMQPStorm and pyrabbit2, and Celery's Flower."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import raw  # noqa: E402
from harness.brokers import Address, free_port  # noqa: E402
from harness.environment import apt_install, python_with  # noqa: E402
from harness.suite import patience  # noqa: E402

LOGIN = "Basic " + base64.b64encode(b"guest:guest").decode()
PACKAGES = ["amqpstorm==3.1.4", "pyrabbit2==1.0.7", "flower==2.2.0", "celery==5.7.0"]
# Each with its output when all is well. The last one finds nothing to check without bridges.
PLUGINS = [
    ("aliveness", [], "OK"), ("connections", ["-w", "100", "-c", "200"], "OK"), ("objects", [], "OK"),
    ("overview", [], "OK"), ("partition", ["--node=NODE"], "OK"), ("queue", ["--queue=tools"], "OK"),
    ("server", ["--node=NODE"], "OK"), ("watermark", ["--node=NODE"], "OK"),
    ("shovels", [], "CRITICAL - API error: empty JSON"),
]
AMQPSTORM = """
import sys
from amqpstorm.management import ManagementApi
api = ManagementApi(sys.argv[1], "guest", "guest")
assert api.overview()["node"] == api.nodes()[0]["name"]
assert api.node(api.nodes()[0]["name"])["running"] and api.whoami()["name"] == "guest"
assert api.aliveness_test("/")["status"] == api.healthchecks.get()["status"] == "ok"
api.virtual_host.create("v")
assert api.virtual_host.get("v")["name"] == "v" and len(api.virtual_host.get_permissions("v")) == 1
api.user.create("u", "p", tags="management")
api.user.set_permission("u", "v")
assert api.user.get_permission("u", "v")["configure"] == ".*" and len(api.user.get_permissions("u")) == 1
api.user.delete_permission("u", "v")
api.queue.declare("q", virtual_host="v", durable=True)
api.exchange.declare("x", "topic", virtual_host="v")
api.queue.bind("q", "x", "k", virtual_host="v")
assert len(api.queue.bindings("q", virtual_host="v")) == 2
assert api.basic.publish("hi", "k", exchange="x", virtual_host="v") == {"routed": True}
for _ in range(2):
    assert [one.body for one in api.basic.get("q", requeue=True, virtual_host="v")] == ["hi"]
api.queue.purge("q", virtual_host="v")
assert api.queue.get("q", virtual_host="v")["messages"] == 0 and len(api.queue.list("v")) == 1
api.queue.unbind("q", "x", "k", virtual_host="v")
api.exchange.delete("x", virtual_host="v")
api.queue.delete("q", virtual_host="v")
api.user.delete("u")
api.virtual_host.delete("v")
assert isinstance(api.connection.list(), list) and isinstance(api.channel.list(), list)
"""
PYRABBIT = """
import sys
from pyrabbit2.api import Client
client = Client(sys.argv[1], "guest", "guest")
assert client.is_alive() and client.get_vhost_names() == ["/"]
for ask in (client.get_overview, client.get_nodes, client.get_users, client.get_connections, client.get_channels,
            client.get_exchanges, client.get_bindings, client.get_definitions):
    ask()
client.create_queue("/", "p")
client.publish("/", "amq.default", "p", "hi")
assert client.get_queue_depth("/", "p") == 1
assert client.get_messages("/", "p", requeue=True)[0]["payload"] == "hi"
client.purge_queue("/", "p")
assert client.get_queue("/", "p")["messages"] == 0
client.delete_queue("/", "p")
"""


def call(port: int, method: str, path: str, body: Any = None) -> Any:
    """Returns the answer of the API."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    try:
        headers = {"Authorization": LOGIN}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, (path, answer.status, text)
        return json.loads(text) if text else None
    finally:
        connection.close()


def run(command: List[str]) -> str:
    """Runs a program that must succeed. Returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(120), check=False)
    assert done.returncode == 0, (command[:2], done.returncode, done.stdout, done.stderr)
    return done.stdout


def nagios(amqp: Address, port: int) -> None:
    """Every plug-in gets the data that it requests. They log in with the realm of the broker's challenge."""
    if shutil.which("check_rabbitmq_aliveness") is None:
        apt_install("nagios-plugins-rabbitmq")
    call(port, "PUT", "/api/queues/%2F/tools", {"durable": True})
    # The plug-ins put `rabbit@` in front of it.
    node = call(port, "GET", "/api/cluster-name")["name"].split("@")[1]
    # One of them reports an error if there is no socket at all.
    client = raw.Client(amqp)
    for name, more, wanted in PLUGINS:
        command = [f"check_rabbitmq_{name}", "-H", "127.0.0.1", f"--port={port}", "-u", "guest", "-p", "guest"]
        command += [word.replace("NODE", node) for word in more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=False)
        assert wanted in done.stdout, (name, done.returncode, done.stdout, done.stderr)
    client.close()
    call(port, "DELETE", "/api/queues/%2F/tools")


def clients(port: int) -> None:
    """Two API clients can use all their functions."""
    python = str(python_with("management-tools", *PACKAGES))
    run([python, "-c", AMQPSTORM, f"http://127.0.0.1:{port}"])
    run([python, "-c", PYRABBIT, f"127.0.0.1:{port}"])


def flower(amqp: Address, port: int) -> None:
    """Flower's broker view shows a queue with its messages."""
    python = str(python_with("management-tools", *PACKAGES))
    own = free_port()
    call(port, "PUT", "/api/queues/%2F/celery", {"durable": True})
    message = {"properties": {}, "routing_key": "celery", "payload": "hi", "payload_encoding": "string"}
    for _ in range(3):
        call(port, "POST", "/api/exchanges/%2F/amq.default/publish", message)
    broker = f"amqp://guest:guest@127.0.0.1:{amqp.port}//"
    with tempfile.TemporaryFile("w+") as log:
        command = [python, "-m", "celery", f"--broker={broker}", "flower", "--address=127.0.0.1", f"--port={own}",
                   f"--broker-api=http://guest:guest@127.0.0.1:{port}/api/"]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tempfile.gettempdir())
        try:
            cells: List[str] = []
            for _ in range(round(patience(120))):
                time.sleep(0.5)
                try:
                    page = asked(own)
                except OSError:
                    continue
                cells = re.sub(r"<[^>]*>", " ", page).split()
                if "celery" in cells and cells[cells.index("celery") + 1:][:3] == ["3", "0", "3"]:
                    return
            log.seek(0)
            raise AssertionError(f"{cells[-40:]}\n{log.read()[-2000:]}")
        finally:
            process.terminate()
            process.wait(patience(30))


def asked(port: int) -> str:
    """Returns Flower's page about the broker."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(10))
    try:
        connection.request("GET", "/broker")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
