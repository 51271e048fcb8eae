"""People's programs in other languages: what was confirmed to them is worked on, whoever is killed in the middle.

Each is a program that publishes numbers, trying again when the broker has gone, and that works: it writes each number
and whether it came again into a file, and acknowledges it. The story of all is the same.
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
    """A program that stands on Debian's packages."""

    def install() -> List[str]:
        missing = [name for name in packages if not Path(f"/var/lib/dpkg/info/{name}.list").exists()]
        if missing:
            environment.apt_install(*missing)
        return command

    return install


def of_npm() -> List[str]:
    """Node's, in a folder of its own."""
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
    """Eighty numbers, a worker killed, twenty more while the broker is killed, and all of them in the end."""

    def __init__(self, stage: frameworks.Stage, other: Other, command: List[str]) -> None:
        self.stage, self.other, self.command = stage, other, command
        stage.environment["AMQP_PORT"] = str(stage.house.port)

    def worker(self) -> Program:
        """One that works."""
        found = self.stage.start_command([*self.command, "work"])
        found.wait("worker is ready", patience_s=PATIENCE_S)
        return found

    def published(self) -> int:
        """How many there are in the queue, and how many were done."""
        state = queue_state(brokers.Address("127.0.0.1", self.stage.house.port), "jobs")
        return (state[0] if state else 0) + len(set(self.done()))

    def lines(self) -> List[str]:
        """Returns the lines that the programs wrote."""
        ledger = self.stage.house.home / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []

    def done(self) -> List[int]:
        """The numbers of it."""
        return [int(line.split()[0]) for line in self.lines()]

    def tell(self) -> None:
        """From its beginning to its end."""
        worker = self.worker()
        self.stage.start_command([*self.command, "publish", "0", "80"]).ended(PATIENCE_S)
        until("five are done", lambda: len(self.lines()) >= 5, PATIENCE_S)
        worker.kill()
        worker = self.worker()
        until("thirty are done", lambda: len(self.lines()) >= 30, PATIENCE_S)
        more = self.stage.start_command([*self.command, "publish", "80", "180"])
        if self.other.is_confirmed:
            until("it publishes", lambda: self.published() > 80, PATIENCE_S)
        else:
            # The client gets no confirm, but after a second (commit_window) everything is stored.
            more.ended(PATIENCE_S)
            time.sleep(2.0)
        self.stage.house.kill()
        more.ended(PATIENCE_S)
        until("all are done", lambda: set(self.done()) == set(range(180)), PATIENCE_S)
        # Messages confirmed before the broker was killed are handled twice only if they are marked as redelivered.
        first = [number for number, line in zip(self.done(), self.lines()) if line.endswith("False") and number < 80]
        assert len(first) == len(set(first)) and (first or not self.other.marks), "twice without a mark"


def run(rabbitmq: bool, only: Optional[List[str]] = None) -> int:
    """The suite's status."""
    suite = Suite("clients/rabbitmq" if rabbitmq else "clients", only)
    for name, other in OTHERS.items():
        suite.case(name, lambda: on_a_stage(other, rabbitmq))
    return suite.status()


def on_a_stage(other: Other, rabbitmq: bool) -> None:
    """Runs a case with its own broker and folder, if its packages are installed."""
    command = other.install()
    house = frameworks.RabbitHouse() if rabbitmq else frameworks.LeveretHouse()
    stage = frameworks.Stage(house, Path(sys.executable), HERE)
    frameworks.told(stage, Story(stage, other, command).tell)
