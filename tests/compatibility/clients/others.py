"""Client libraries of other languages: every confirmed message is processed, although a worker and the broker are
killed.

Each program publishes numbers, and retries when the broker is gone, or consumes: it writes each number with its
redelivered flag into a file and acknowledges it. All clients run the same test.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

from harness import brokers, cache, environment
from harness.raw import queue_state
from harness.suite import Suite, until

from clients import frameworks
from clients.program import Program

HERE = Path(__file__).resolve().parent / "others"
PATIENCE_S = 60.0
AMQPLIB = "2.3.1"


class Other(NamedTuple):
    """A client: how it is installed and run, whether it uses confirms, and whether it reports redelivered messages."""

    install: Callable[[], List[str]]
    is_confirmed: bool = True
    marks: bool = True


def of_debian(command: List[str], *packages: str) -> Callable[[], List[str]]:
    """Returns a client that uses Debian's packages."""

    def install() -> List[str]:
        missing = [name for name in packages if not Path(f"/var/lib/dpkg/info/{name}.list").exists()]
        if missing:
            environment.apt_install(*missing)
        return command

    return install


def of_npm() -> List[str]:
    """Returns a client for Node.js, installed in its own folder."""
    home = cache.folder("env") / f"amqplib-{AMQPLIB}"
    with environment.one_at_a_time("npm"):
        if not shutil.which("npm"):
            environment.apt_install("nodejs", "npm")
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            environment.attempt(["npm", "install", "--silent", "--prefix", str(home), f"amqplib@{AMQPLIB}"], "amqplib")
            (home / "complete").write_text("")
    # Node looks for modules beside the program.
    shutil.copy(HERE / "with_amqplib.js", home)
    return ["node", str(home / "with_amqplib.js")]


OTHERS: Dict[str, Other] = {
    "php-amqplib": Other(of_debian(["php", str(HERE / "with_php_amqplib.php")], "php-cli", "php-amqplib")),
    "amqplib": Other(of_npm),
    "anyevent": Other(of_debian(["perl", str(HERE / "with_anyevent.pl")], "libanyevent-rabbitmq-perl")),
    "amqp-tools": Other(of_debian([str(HERE / "with_amqp_tools.sh")], "amqp-tools"), is_confirmed=False, marks=False),
}


class Story:
    """The test of a client: 80 numbers with a killed worker, then 20 more while the broker is killed. All are
    processed."""

    def __init__(self, stage: frameworks.Stage, other: Other, command: List[str]) -> None:
        self.stage, self.other, self.command = stage, other, command
        stage.environment["AMQP_PORT"] = str(stage.server.port)

    def worker(self) -> Program:
        """Starts a worker."""
        found = self.stage.start_command([*self.command, "work"])
        found.wait("worker is ready", patience_s=PATIENCE_S)
        return found

    def published(self) -> int:
        """Returns the number of published messages: those in the queue and those that were processed."""
        state = queue_state(brokers.Address("127.0.0.1", self.stage.server.port), "jobs")
        return (state[0] if state else 0) + len(set(self.done()))

    def lines(self) -> List[str]:
        """Returns the lines that the programs wrote."""
        ledger = self.stage.server.home / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []

    def done(self) -> List[int]:
        """Returns the processed numbers."""
        return [int(line.split()[0]) for line in self.lines()]

    def tell(self) -> None:
        """Runs the test."""
        worker = self.worker()
        self.stage.start_command([*self.command, "publish", "0", "80"]).ended(PATIENCE_S)
        until("five numbers are processed", lambda: len(self.lines()) >= 5, PATIENCE_S)
        worker.kill()
        worker = self.worker()
        until("thirty numbers are processed", lambda: len(self.lines()) >= 30, PATIENCE_S)
        more = self.stage.start_command([*self.command, "publish", "80", "180"])
        if self.other.is_confirmed:
            until("the publisher has begun", lambda: self.published() > 80, PATIENCE_S)
        else:
            # The client uses no confirms, but everything is stored within a second (commit_window).
            more.ended(PATIENCE_S)
            time.sleep(2.0)
        self.stage.server.kill()
        more.ended(PATIENCE_S)
        until("all numbers are processed", lambda: set(self.done()) == set(range(180)), PATIENCE_S)
        # Messages confirmed before the broker was killed are handled twice only if they are marked as redelivered.
        first = [number for number, line in zip(self.done(), self.lines()) if line.endswith("False") and number < 80]
        assert len(first) == len(set(first)) and (first or not self.other.marks), (
            "a message was processed twice without a redelivered mark")


def run(rabbitmq: bool, only: Optional[List[str]] = None) -> int:
    """Runs the suite. Returns the exit code."""
    suite = Suite("clients/rabbitmq" if rabbitmq else "clients", only)
    for name, other in OTHERS.items():
        suite.case(name, lambda: on_a_stage(other, rabbitmq))
    return suite.status()


def on_a_stage(other: Other, rabbitmq: bool) -> None:
    """Runs a case with its own broker and folder, if its packages are installed."""
    command = other.install()
    node = frameworks.RestartedRabbitMq() if rabbitmq else frameworks.RestartedLeveret()
    stage = frameworks.Stage(node, Path(sys.executable), HERE)
    frameworks.told(stage, Story(stage, other, command).tell)
