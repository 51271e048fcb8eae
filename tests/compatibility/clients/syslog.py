"""syslog-ng's amqp destination from Debian: lines of a file are sent to an exchange, while syslog-ng and the broker are
killed.

It does not use confirms, and loses a line that it writes to a connection whose peer has just gone. The test checks what
is possible: lines that the broker had for longer than `commit_window` are kept, a killed syslog-ng continues where it
was, and all lines arrive after it has reconnected.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import List, Optional, Set

from harness import environment, raw
from harness.brokers import Address
from harness.suite import Suite, until

from clients import frameworks
from clients.program import Program

CASE = "syslog-ng"
PATIENCE_S = 60.0
PACKAGES = ("syslog-ng-core", "syslog-ng-mod-amqp")
CONFIG = """@version: 3.35
options {{ stats-freq(0); time-reopen(1); }};
source lines {{ file("{home}/lines" follow-freq(0.05) flags(no-parse)); }};
destination broker {{
  amqp(host("127.0.0.1") port({port}) vhost("/") username("guest") password("guest") exchange("logs")
       exchange-declare(yes) exchange-type("topic") persistent(yes) routing-key("app.meter") body("$MSG"));
}};
log {{ source(lines); destination(broker); flags(flow-control); }};
"""


class Lines:
    """A file to which lines are written, and the lines that arrived."""

    def __init__(self, stage: frameworks.Stage) -> None:
        self.stage, self.home = stage, stage.server.home
        self.address = Address("127.0.0.1", stage.server.port)
        self.written = 0
        self.came: Set[int] = set()
        self.syslog: Optional[Program] = None
        (self.home / "lines").write_text("")
        (self.home / "syslog-ng.conf").write_text(CONFIG.format(home=self.home, port=stage.server.port))

    def start(self) -> None:
        """Starts a syslog-ng that continues where the last one was."""
        program = shutil.which("syslog-ng") or "/usr/sbin/syslog-ng"
        files = {"-f": "syslog-ng.conf", "-R": "persist", "-p": "syslog.pid", "-c": "syslog.ctl"}
        places = [word for option, name in files.items() for word in (option, str(self.home / name))]
        self.syslog = self.stage.start_command([program, "-F", "--no-caps", *places])

    def write(self, count: int) -> None:
        """Writes `count` more lines."""
        with open(self.home / "lines", "a", encoding="ascii") as file:
            file.writelines(f"line {number}\n" for number in range(self.written, self.written + count))
        self.written += count

    def declare(self) -> None:
        """Declares the queue for the lines."""
        with raw.Client(self.address) as client:
            client.open()
            client.call(1, "exchange.declare", exchange="logs", type="topic", durable=False)
            client.call(1, "queue.declare", queue="logs", durable=True)
            client.call(1, "queue.bind", queue="logs", exchange="logs", routing_key="app.#")

    def depth(self) -> int:
        """Returns the number of lines in the queue."""
        state = raw.queue_state(self.address, "logs")
        return state[0] if state else 0

    def take(self) -> None:
        """Takes all lines that are in the queue."""
        with raw.Client(self.address) as client:
            client.open()
            while raw.name_of(got := client.call(1, "basic.get", queue="logs", no_ack=True)) == "basic.get-ok":
                assert got.header.props["delivery_mode"] == 2 and got.method.args["routing_key"] == b"app.meter", got
                self.came.add(int(got.body.split()[1]))

    def has(self, first: int) -> bool:
        """Returns whether all lines from number `first` on have arrived."""
        self.take()
        return self.came >= set(range(first, self.written))


def story(lines: Lines) -> None:
    """Runs the test."""
    lines.declare()
    lines.start()
    lines.write(100)
    until("all lines arrived", lambda: lines.has(0), PATIENCE_S)
    lines.write(20_000)
    until("some lines arrived", lambda: lines.depth() > 0, PATIENCE_S)
    assert lines.syslog
    lines.syslog.kill()
    lines.take()
    print(f"# killed when {len(lines.came)} of {lines.written} lines had arrived", flush=True)
    lines.start()
    until("all lines arrived", lambda: lines.has(0), PATIENCE_S)
    lines.write(500)
    until("500 lines are in the queue", lambda: lines.depth() >= 500, PATIENCE_S)
    # Longer than commit_window, which is one second.
    time.sleep(2.0)
    lines.stage.server.kill()
    until("the lines are in the queue", lambda: lines.has(0), PATIENCE_S)
    lines.declare()
    before = lines.written

    def is_back() -> bool:
        lines.write(1)
        time.sleep(0.2)
        lines.take()
        return max(lines.came) >= before

    until("syslog-ng has reconnected", is_back, PATIENCE_S)
    lost = set(range(lines.written)) - lines.came
    print(f"# {len(lost)} lines were lost because the broker was gone when they were sent", flush=True)
    again = lines.written
    lines.write(500)
    until("all lines since the reconnection arrived", lambda: lines.has(again), PATIENCE_S)


def run() -> int:
    """Runs the suite with Leveret only. Returns the exit code. RabbitMQ loses lines of a killed syslog-ng, because it
    discards unread data of a connection that ends."""
    suite = Suite("clients")
    suite.case(CASE, on_a_stage)
    return suite.status()


def on_a_stage() -> None:
    """Runs the case with its own broker and folder."""
    missing: List[str] = [name for name in PACKAGES if not Path(f"/var/lib/dpkg/info/{name}.list").exists()]
    if missing:
        environment.apt_install(*missing)
    stage = frameworks.Stage(frameworks.RestartedLeveret(), Path(), Path())
    frameworks.told(stage, lambda: story(Lines(stage)))
