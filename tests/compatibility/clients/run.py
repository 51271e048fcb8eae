"""The tutorial programs with pika 1.4 and 0.13.1 against a broker. Each is a process of its own.

Suite lines: `PASS clients/VERSION/NAME` and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List

HERE = Path(__file__).resolve().parent
# Programs that run unchanged with both versions of pika. The others are in a folder for each version.
BOTH = HERE / "pika_both"
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "support")]

from clients import expiry, frameworks, others, stuck, syslog  # noqa: E402
from clients.program import PATIENCE, Program  # noqa: E402
from harness import brokers, environment  # noqa: E402
from harness.raw import queue_state  # noqa: E402
from harness.suite import Skip, Suite, patience, until  # noqa: E402

class Bench:
    """One broker and one version of pika; ends every program it started."""

    def __init__(self, address: brokers.Address, python: Path, folder: Path) -> None:
        self.address = address
        self.python = python
        self.folder = folder
        self.programs: List[Program] = []
        self.environment: Dict[str, str] = {
            key: value for key, value in os.environ.items() if not key.startswith("PYTHON")
        }
        self.environment.update(AMQP_HOST=address.host, AMQP_PORT=str(address.port))
        if (folder / "site").is_dir():
            self.environment["PYTHONPATH"] = str(folder / "site")

    def start(self, name: str, *args: str, **extra: str) -> Program:
        """Start a program."""
        own = self.folder / f"{name}.py"
        path = own if own.exists() else BOTH / own.name
        command = [str(self.python), "-u", str(path), *args]
        program = Program(" ".join([name, *args]), command, dict(self.environment, **extra))
        self.programs.append(program)
        return program

    def run(self, name: str, *args: str, patience_s: float = PATIENCE, **extra: str) -> List[str]:
        """Runs a program that must end with status 0."""
        return self.start(name, *args, **extra).ended(patience_s)

    def consumers(self, queue: str, count: int) -> None:
        """Waits until the queue has `count` consumers."""
        self._until(lambda: (queue_state(self.address, queue) or [0, -1])[1] == count,
                    f"{queue} never had {count} consumers")

    def gone(self, queue: str) -> None:
        """Waits until the queue does not exist."""
        self._until(lambda: queue_state(self.address, queue) is None, f"{queue} is still there")

    def _until(self, ready: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + patience(PATIENCE)
        while not ready():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.02)

    def end(self) -> None:
        """Ends the programs that still run."""
        for program in self.programs:
            program.kill()
        self.programs.clear()

    def log(self) -> str:
        """Returns the output of all programs, for a failure."""
        return "\n".join(f"  {program.name}\n{program.text()}" for program in self.programs)


def hello(bench: Bench) -> None:
    """Tutorial 1: hello world."""
    receiver = bench.start("receive")
    bench.consumers("hello", 1)
    bench.run("send")
    receiver.wait("[x] Received b'Hello World!'")
    bench.run("send", AMQP_HOST="localhost")
    receiver.wait("[x] Received b'Hello World!'", times=2)


def hello_and_vanish(bench: Bench) -> None:
    """Messages of programs that end without connection.close() are accepted."""
    bench.run("send_and_vanish")
    receiver = bench.start("receive")
    receiver.wait("Received b'Hello ", times=1000)
    assert receiver.count("Received b'Hello 999'") == 1
    numbers = [int(line.split()[-1].rstrip("'")) for line in receiver.lines if "b'Hello" in line]
    assert numbers == list(range(1000)), "out of order"


def work_queue_speeds(bench: Bench) -> None:
    """Tutorial 2: the faster worker gets more tasks."""
    slow = bench.start("worker", SECONDS_PER_DOT="0.6")
    fast = bench.start("worker", SECONDS_PER_DOT="0.05")
    bench.consumers("task_queue", 2)
    for number in range(12):
        bench.run("new_task", f"task {number} ..")
    until("all tasks are done", lambda: slow.count("Done") + fast.count("Done") == 12, 20.0)
    assert fast.count("Done") > slow.count("Done") >= 1, f"{fast.count('Done')} to {slow.count('Done')}"


def work_queue_kill(bench: Bench) -> None:
    """Tutorial 2: a worker is killed during a task. The other worker gets the message, marked as redelivered."""
    dying = bench.start("worker", SECONDS_PER_DOT="1000")
    bench.consumers("task_queue", 1)
    bench.run("new_task", "precious .")
    dying.wait("Received 'precious .' redelivered=False")
    other = bench.start("worker", SECONDS_PER_DOT="0")
    bench.consumers("task_queue", 2)
    assert other.count("Received") == 0
    dying.kill()
    other.wait("Received 'precious .' redelivered=True")
    other.wait("Done")


def get(bench: Bench) -> None:
    """basic.get returns the messages and their counts."""
    assert bench.run("get") == [
        "Basic.GetOk tag=1 exchange='' key='get_queue' left=3 redelivered=False body=a",
        "Basic.GetOk tag=2 exchange='' key='get_queue' left=2 redelivered=False body=b",
        "Basic.GetOk tag=3 exchange='' key='get_queue' left=1 redelivered=False body=c",
        "Basic.GetOk left=1 redelivered=True body=c",
        "Basic.GetOk left=0 redelivered=False body=d",
        "empty: (None, None, None)",
    ]


def confirms(bench: Bench) -> None:
    """Publisher confirms, returned messages and refused publishes."""
    assert bench.run("confirms") == [
        "100 confirmed",
        "UnroutableError: 1 message, NO_ROUTE, lost",
        "vanished without an error",
        "closed: 404 NOT_FOUND - no exchange 'no such exchange' in vhost '/'",
        "kept: 100",
    ]


def publish_subscribe(bench: Bench) -> None:
    """Tutorial 3: each subscriber gets each message. The queue of a subscriber is deleted with it."""
    bench.run("emit_log", "before", "anybody", "listens")
    subscribers = [bench.start("receive_logs") for _ in range(3)]
    names = []
    for subscriber in subscribers:
        line = subscriber.wait("Waiting for logs in amq.gen-")
        names.append(re.findall(r"amq\.gen-[A-Za-z0-9_-]+", line)[0])
    bench.run("emit_log", "to", "all")
    for subscriber in subscribers:
        subscriber.wait("[x] 'to all'")
    subscribers[0].kill()
    bench.gone(names[0])
    bench.run("emit_log", "to", "the", "rest")
    for subscriber in subscribers[1:]:
        subscriber.wait("[x] 'to the rest'")
        assert subscriber.count("before") == 0 and subscriber.count("to all") == 1


def sentinels(bench: Bench, emit: str, receivers: Dict[Program, str]) -> None:
    """Publishes a last message for each receiver. When a receiver has it, it has received all messages before."""
    for number, (receiver, key) in enumerate(receivers.items()):
        bench.run(emit, key, f"end {number}")
        receiver.wait(f"end {number}")


def seen(receiver: Program) -> List[str]:
    """Returns the output of a receiver without the sentinels."""
    return [line[5:] for line in receiver.lines if line.startswith(" [x] ") and ":end " not in line]


def routing(bench: Bench) -> None:
    """Tutorial 4: several bindings of one queue, and keys without a binding."""
    errors = bench.start("receive_logs_direct", "error")
    most = bench.start("receive_logs_direct", "info", "warning", "error")
    for receiver in (errors, most):
        receiver.wait("Waiting")
    time.sleep(0.5)
    for severity in ("error", "info", "debug", "warning", "error"):
        bench.run("emit_log_direct", severity, f"a {severity}")
    sentinels(bench, "emit_log_direct", {errors: "error", most: "info"})
    assert seen(errors) == ["error:a error"] * 2, seen(errors)
    assert seen(most) == ["error:a error", "info:a info", "warning:a warning", "error:a error"], seen(most)


def topics(bench: Bench) -> None:
    """Tutorial 5: topics."""
    patterns = {"#": "x.y.z", "kern.*": "kern.end", "*.critical": "end.critical", "a.*.b": "a.end.b",
                "*.info": "end.info"}
    receivers = {pattern: bench.start("receive_logs_topic", pattern) for pattern in patterns}
    both = bench.start("receive_logs_topic", "kern.*", "*.critical")
    nothing = bench.start("receive_logs_topic")
    for receiver in [*receivers.values(), both, nothing]:
        receiver.wait("Waiting")
    time.sleep(0.5)
    keys = ["kern.critical", "kern.info", "app.critical", "app.info", "a.x.b", "a.x.y.b", "kern", "kern.a.b"]
    for key in keys:
        bench.run("emit_log_topic", key, "m")
    ends = {receivers[pattern]: key for pattern, key in patterns.items()}
    ends[both] = "kern.both"
    sentinels(bench, "emit_log_topic", ends)

    def expect(receiver: Program, *wanted: str) -> None:
        assert seen(receiver) == [f"{key}:m" for key in wanted], f"{receiver.name}: {seen(receiver)}"

    expect(receivers["#"], *keys)
    expect(receivers["kern.*"], "kern.critical", "kern.info")
    expect(receivers["*.critical"], "kern.critical", "app.critical")
    expect(receivers["a.*.b"], "a.x.b")
    expect(receivers["*.info"], "kern.info", "app.info")
    expect(both, "kern.critical", "kern.info", "app.critical")
    expect(nothing)


def rpc(bench: Bench) -> None:
    """Tutorial 6: RPC with a callback queue, and two callers at once."""
    bench.start("rpc_server")
    bench.consumers("rpc_queue", 1)
    callers = [bench.start("rpc_client") for _ in range(2)]
    for caller in callers:
        answers = [line for line in caller.ended() if "Got" in line]
        assert answers == [" [.] Got 5", " [.] Got 55", " [.] Got 6765"], answers


def direct_reply_to(bench: Bench) -> None:
    """RPC with amq.rabbitmq.reply-to. A caller that is gone does not disturb the server."""
    server = bench.start("rpc_server")
    bench.consumers("rpc_queue", 1)
    assert " [.] Got 610" in bench.run("direct_reply_to_client")
    bench.run("ask_and_vanish")
    server.wait("fib(20)")
    assert " [.] Got 610" in bench.run("direct_reply_to_client")
    assert server.process.poll() is None


def large_transactions(bench: Bench) -> None:
    """10,000 messages of 200 octets in one transaction, as programs do that import a table. RabbitMQ has no limit."""
    messages = os.environ.get("TRANSACTION_MESSAGES", "10000")
    lines = bench.run("transactions", messages, "200", patience_s=120.0)
    assert lines == [
        f"{name}, {what}" for name in ("transient", "persistent")
        for what in ("rolled back: 0", f"committed: {messages}", "in order: True", "left: 0")
    ], lines


def delayed(bench: Bench) -> None:
    """An x-delayed-message exchange, used as with RabbitMQ's plug-in. RabbitMQ from apt does not have the plug-in."""
    lines = bench.run("delayed")
    wanted = [f"{body} after {delay}, too early: False" for body, delay in
              (("first", 300), ("second", 600), ("third", 900))]
    assert lines[:4] == ["at once", *wanted], lines
    assert "Invalid argument, 'x-delayed-type' must be an existing exchange type" in lines[4], lines


CASES: List[Callable[[Bench], None]] = [
    hello, hello_and_vanish, work_queue_speeds, work_queue_kill, get, confirms, publish_subscribe, routing, topics,
    rpc, direct_reply_to, large_transactions, delayed,
]
# Cases that run with Leveret only. On a busy machine RabbitMQ may lose messages of a client that is gone, and delayed
# exchanges need a plug-in that apt does not have.
OURS_ALONE = [hello_and_vanish, delayed]
VERSIONS = {"pika-1.4": (environment.PIKA_NEW, "pika_1_4"), "pika-0.13": (environment.PIKA_OLD, "pika_0_13")}


@contextlib.contextmanager
def target(args: argparse.Namespace) -> Iterator[brokers.Address]:
    """Provides the broker to test: one that runs already, or a new one."""
    if args.at:
        host, port = args.at.rsplit(":", 1)
        yield brokers.Address(host, int(port))
    elif args.rabbitmq:
        with brokers.rabbitmq() as oracle:
            yield oracle.address
    else:
        with brokers.leveret() as broker:
            yield broker.address
            if not broker.alive():
                print("FAIL clients/leveret-alive: the broker ended\n" + broker.log(), flush=True)


def run_version(label: str, args: argparse.Namespace) -> int:
    """Runs all programs with one version of pika."""
    version, folder = VERSIONS[label]
    cases = [case for case in CASES if not (args.rabbitmq and case in OURS_ALONE)]
    suite = Suite(f"clients/{'rabbitmq-' if args.rabbitmq else ''}{label}", args.case)
    try:
        python = environment.pika_python(version)
    except Skip as why:
        for case in cases:
            suite.skip(case.__name__.replace("_", "-"), str(why))
        return 0
    with target(args) as address:
        for case in cases:
            bench = Bench(address, python, HERE / folder)
            try:
                suite.case(case.__name__.replace("_", "-"), lambda: case(bench), bench.log)
            finally:
                bench.end()
    return suite.status()


def main() -> int:
    """Parses the arguments and runs the suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rabbitmq", action="store_true", help="test a RabbitMQ, which is started for it")
    parser.add_argument("--at", metavar="HOST:PORT", help="test a broker that runs already")
    parser.add_argument("--pika", choices=sorted(VERSIONS), help="only this version")
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    failed = 0
    quick = os.environ.get("LEVERET_TEST_MODE") == "gate"
    wants_all, wants_stuck = not args.case, stuck.CASE in args.case
    wants_expiry = [name for name in args.case if name in expiry.CASES]
    wants_frameworks = [name for name in args.case if name in frameworks.CASES]
    wants_syslog = syslog.CASE in args.case
    wants_others = [name for name in args.case if name in others.OTHERS]
    apart = (stuck.CASE, *expiry.CASES, syslog.CASE, *frameworks.CASES, *others.OTHERS)
    args.case = [name for name in args.case if name not in apart]
    if wants_all or args.case:
        for label in [args.pika] if args.pika else list(VERSIONS)[: 1 if quick else None]:
            failed |= run_version(label, args)
    if wants_stuck or (wants_all and not args.at and not args.pika):
        failed |= stuck.run(args.rabbitmq)
    if wants_expiry or (wants_all and not args.at and not args.pika and not args.rabbitmq):
        failed |= expiry.run(wants_expiry)
    if wants_frameworks or (wants_all and not quick and not args.at and not args.pika):
        failed |= frameworks.run(args.rabbitmq, wants_frameworks)
    if wants_others or (wants_all and not quick and not args.at and not args.pika):
        failed |= others.run(args.rabbitmq, wants_others)
    if wants_syslog or (wants_all and not quick and not args.at and not args.pika and not args.rabbitmq):
        failed |= syslog.run()
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except brokers.BrokerError as why:
        print(why)
        sys.exit(f"FAIL clients/start: {str(why).splitlines()[0]}")
