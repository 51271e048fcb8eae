"""The two brokers of the suite: a Leveret, and a RabbitMQ of the same configuration to compare with."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness.brokers import RabbitMq, free_port, leveret, leveret_binary  # noqa: E402
from harness.suite import patience  # noqa: E402

PLUGINS = "rabbitmq_management, rabbitmq_shovel_management"
LOGIN = "Basic " + base64.b64encode(b"guest:guest").decode()
# The programs of RabbitMQ's package that some tools start. Leveret has one program for all of them.
PROGRAMS = ["rabbitmqctl", "rabbitmq-diagnostics"]


class Side(NamedTuple):
    """A broker under test."""

    is_rabbitmq: bool
    amqp_port: int
    port: int
    node: str
    # A folder with `rabbitmqctl` and the other programs, which is prepended to PATH.
    programs: Path

    def environment(self, **more: str) -> Dict[str, str]:
        """Returns the environment of a tool, which finds this broker's programs."""
        return dict(os.environ, PATH=f"{self.programs}:{os.environ['PATH']}", **more)

    def request(self, method: str, path: str, body: Any = None) -> Tuple[int, bytes]:
        """Returns status and body of an answer of the management API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience(60))
        try:
            headers = {"Authorization": LOGIN, "Content-Type": "application/json"}
            connection.request(method, "/api/" + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the JSON of an answer, which must be a success."""
        status, text = self.request(method, path, body)
        assert status < 300, (method, path, status, text)
        return json.loads(text) if text else None

    def run(self, words: List[str], folder: Optional[Path] = None,
            **more: str) -> "subprocess.CompletedProcess[str]":
        """Runs a program with this broker's programs in PATH."""
        return subprocess.run(words, env=self.environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=patience(120), check=False, cwd=folder)


def write_program(path: Path, *lines: str) -> None:
    """Writes a shell script."""
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


@contextlib.contextmanager
def our_side() -> Iterator[Side]:
    """Runs a Leveret. Its `rabbitmqctl` is what the guide recommends for scripts: `leveret ctl` with a socket."""
    with tempfile.TemporaryDirectory(prefix="leveret-tools-") as home, \
            leveret(args=["--management", "127.0.0.1:0"], config="") as broker:
        socket = broker.data_dir / "ctl.sock"
        for name in PROGRAMS:
            write_program(Path(home) / name,
                          f'exec {shlex.quote(str(leveret_binary()))} ctl --socket {shlex.quote(str(socket))} "$@"')
        side = Side(False, broker.address.port, broker.port_of("management API"), "rabbit", Path(home))
        yield side


class Managed(RabbitMq):
    """A RabbitMQ with its management API on a port of its own."""

    def __init__(self) -> None:
        super().__init__(plugins=PLUGINS)

    def _environment(self) -> Dict[str, str]:
        self.port = free_port()
        environment = super()._environment()
        with open(environment["RABBITMQ_CONFIG_FILE"], "a", encoding="utf-8") as config:
            config.write(f"management.tcp.port = {self.port}\nmanagement.tcp.ip = 127.0.0.1\n")
        return environment


@contextlib.contextmanager
def their_side() -> Iterator[Side]:
    """Runs a RabbitMQ."""
    oracle = Managed()
    try:
        with tempfile.TemporaryDirectory(prefix="leveret-tools-") as home:
            ours = [f"export {key}={shlex.quote(value)}" for key, value in oracle.environment.items()
                    if os.environ.get(key) != value]
            for name in PROGRAMS:
                write_program(Path(home) / name, *ours, f'exec {oracle.sbin / name} "$@"')
            yield Side(True, oracle.address.port, oracle.port, oracle.node, Path(home))
    finally:
        oracle.close()


def listed(path: Path) -> List[str]:
    """Returns the lines of a file without comments and empty lines."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
