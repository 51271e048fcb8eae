"""Floods of log lines, and a standard error that does not accept any.

Each case checks that lines caused by peers are within the budget of `src/core/log_limiter.rs`, that the reported number
of suppressed lines is right, and that no client waits for a line to be written.

Suite lines: `PASS log_limits/NAME` and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from harness import brokers, wire  # noqa: E402
from harness.raw import Client, Closed, name_of  # noqa: E402
from harness.suite import Suite, patience, until  # noqa: E402

# The budget of src/core/log_limiter.rs: lines at once, seconds until each further line, seconds between reports, and
# the lines of a start and a stop.
LINES_AT_ONCE, LINE_EVERY_S, REPORT_EVERY_S, LINES_BESIDES = 60, 5, 30, 20
LINE_BYTES = 1024 + 64
# Number of lines of one kind that one address may cause at once. After that, one line a minute.
LINES_OF_A_KIND = 5

REPORT = re.compile(r"not logged one by one: (.*)")
PART = re.compile(r"(\d+) ([A-Za-z ]+?)(?: \(most by [^)]*\))?(?:, |$)")


def left_out(log: str) -> Dict[str, int]:
    """Returns the number of suppressed lines, by kind, summed over all reports."""
    counts: Dict[str, int] = {}
    for report in REPORT.findall(log):
        for count, kind in PART.findall(report):
            counts[kind] = counts.get(kind, 0) + int(count)
    return counts


def warned(log: str, pattern: str) -> int:
    """Returns the warnings that match, without the reports of suppressed lines."""
    lines = [line for line in log.splitlines() if " WARN " in line and not REPORT.search(line)]
    return sum(1 for line in lines if re.search(pattern, line))


def within_budget(log: str, seconds: float) -> None:
    """Checks that the log is within the budget."""
    most = LINES_AT_ONCE + seconds / LINE_EVERY_S + seconds / REPORT_EVERY_S + LINES_BESIDES
    lines = log.splitlines()
    size = len(log.encode())
    print(f"  {len(lines)} lines, {size} bytes in {seconds:.1f} s")
    assert len(lines) <= most, f"{len(lines)} lines in {seconds:.0f} s, and {most:.0f} are allowed"
    assert size <= most * LINE_BYTES, f"{size} bytes in {seconds:.0f} s"
    longest = max(len(line.encode()) for line in lines)
    assert longest <= LINE_BYTES, f"a line of {longest} bytes"


def say(address: brokers.Address, words: bytes, source: str = "127.0.0.1") -> None:
    """Connects, sends `words`, and waits for the answer or the end of the connection."""
    with socket.create_connection(address, patience(20.0), source_address=(source, 0)) as peer:
        peer.sendall(words)
        with contextlib.suppress(ConnectionError):
            peer.recv(64)


def served(address: brokers.Address, rounds: int = 50) -> None:
    """Checks that a normal client is served."""
    with Client(address, timeout=10.0) as client:
        client.open()
        queue = client.call(1, "queue.declare", queue="", exclusive=True).args["queue"]
        for number in range(rounds):
            client.publish(1, "", queue, b"%d" % number)
            got = client.call(1, "basic.get", queue=queue, no_ack=True)
            assert name_of(got) == "basic.get-ok" and got.body == b"%d" % number, got


# ---- floods ----

OPENINGS = [
    b"HELO mail.example.org\r\n",
    b"GET /api/overview HTTP/1.1\r\nHost: x\r\n\r\n",
    b"AMQP\x00\x01\x00\x00",
    bytes.fromhex("16030100c8010000c40303") + bytes(190),
]


def wrong_protocols_and_passwords() -> None:
    """Thousands of clients use another protocol or a wrong password."""
    count = 4000
    began = time.monotonic()
    with brokers.leveret() as broker:
        for number in range(count):
            say(broker.address, OPENINGS[number % len(OPENINGS)])
        for _ in range(300):
            say(broker.address, wire.PROTOCOL_HEADER + b"\x09garbage that is no frame\xce")
        for _ in range(4):
            with contextlib.suppress(Closed):
                Client(broker.address, password="wrong")
        served(broker.address)
        broker.stop()
        log = broker.log()
    within_budget(log, time.monotonic() - began)
    counts = left_out(log)
    told = warned(log, r"refused: (this is not AMQP|HTTP|another version|TLS on)") + counts["wrong protocols"]
    assert told == count, f"the log accounts for {told} of {count} openings: {counts}"
    logins = warned(log, r"refused during the handshake|wrong logins") + counts.get("refused logins", 0)
    assert logins >= 304, f"the log accounts for {logins} refused logins: {counts}"


def many_addresses() -> None:
    """Every connection has another address, so that the common budget limits the lines, and not the one of an address.
    """
    count = 3000
    began = time.monotonic()
    with brokers.leveret() as broker:
        for number in range(count):
            say(broker.address, OPENINGS[number % 4], f"127.1.{number // 250}.{number % 250 + 1}")
        served(broker.address)
        broker.stop()
        log = broker.log()
    seconds = time.monotonic() - began
    within_budget(log, seconds)
    logged, counts = warned(log, "refused: "), left_out(log)
    assert LINES_AT_ONCE <= logged <= LINES_AT_ONCE + seconds / LINE_EVERY_S + 1, f"{logged} lines in {seconds:.0f} s"
    assert logged + counts["wrong protocols"] == count, f"{logged} lines and {counts} of {count}"


def closed_channels() -> None:
    """One connection causes channel errors as fast as possible."""
    count, at_once = 20_000, 100
    began = time.monotonic()
    with brokers.leveret() as broker:
        with Client(broker.address) as client:
            mistake = (wire.method(1, "channel.open") + wire.method(1, "queue.declare", queue="none", passive=True)
                       + wire.method(1, "channel.close-ok"))
            for _ in range(count // at_once):
                client.send(mistake * at_once)
                closes = 0
                while closes < at_once:
                    closes += name_of(client.recv()) == "channel.close"
        served(broker.address)
        broker.stop()
        log = broker.log()
    within_budget(log, time.monotonic() - began)
    logged, counts = warned(log, r"channel 1: 404 NOT_FOUND"), left_out(log)
    assert 0 <= logged - LINES_OF_A_KIND <= (time.monotonic() - began) / 60, f"{logged} lines"
    assert logged + counts["closed channels"] == count, f"{logged} lines and {counts} of {count}"
    assert "closed channels (most by 127.0.0.1)" in log, log[-500:]


def closed_connections() -> None:
    """A client connects again and again and breaks the protocol each time. The log names its address."""
    count = 1000
    began = time.monotonic()
    with brokers.leveret() as broker:
        for _ in range(count):
            client = Client(broker.address)
            client.send(wire.method(1, "basic.ack", delivery_tag=1))
            with contextlib.suppress(Closed):
                client.recv()
            client.drop()
        broker.stop()
        log = broker.log()
    within_budget(log, time.monotonic() - began)
    told = warned(log, r"127\.0\.0\.1:\d+ user guest vhost /: closed: 504 CHANNEL_ERROR") + left_out(log)["closed connections"]
    assert told == count, f"the log accounts for {told} of {count}: {left_out(log)}"


def report_comes_by_itself() -> None:
    """When a flood ends, the number of suppressed lines is logged within a minute, and the event loop then sleeps."""
    count = 200
    with brokers.leveret() as broker:
        for _ in range(count):
            say(broker.address, OPENINGS[0])
        until("the suppressed lines are reported", lambda: left_out(broker.log()), 60)
        counts = left_out(broker.log())
        assert counts == {"wrong protocols": count - LINES_OF_A_KIND}, counts
        before = switches(broker.process.pid)
        time.sleep(5)
        assert switches(broker.process.pid) == before, "the threads of the idle broker woke up"


def switches(pid: int) -> List[int]:
    """Returns the number of voluntary context switches of each thread."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir())
    return [int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text())[1]) for task in tasks]


def strange_names() -> None:
    """Names chosen by peers cannot break or reverse a log line."""
    with brokers.leveret() as broker:
        with Client(broker.address) as client:
            for channel, name in enumerate(["a\u202egpj.exe", "b\x1b[2Jc", "c\u2028d\u2066\u200be"], 1):
                client.open(channel)
                with contextlib.suppress(Closed):
                    client.call(channel, "queue.declare", queue=name, passive=True)
        broker.stop()
        log = broker.log()
    for shown in [r"'a\u{202e}gpj.exe'", r"'b\u{1b}[2Jc'", r"'c\u{2028}d\u{2066}\u{200b}e'"]:
        assert shown in log, f"{shown} is not in\n{log}"
    assert not re.search("[\u202e\u2066\u2028\u200b]", log), log


# ---- standard error that accepts nothing ----


class Pipe:
    """A small pipe that is read only when the test calls `read_all`."""

    def __init__(self, is_full: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, 1031, 4096)  # F_SETPIPE_SZ
        if is_full:
            os.set_blocking(self.writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"x" * 512)
            os.set_blocking(self.writer, True)

    def read_all(self) -> str:
        """Reads everything until the writer has closed the pipe."""
        with open(self.reader, "rb", closefd=False) as reader:
            return reader.read().decode()

    def close(self) -> None:
        """Closes both ends."""
        for end in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(end)


class Mute:
    """A broker whose standard error is a pipe."""

    def __init__(self, pipe: Pipe, *arguments: str) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="leveret-test-")
        self.address = brokers.Address("127.0.0.1", 0)
        command = [str(brokers.leveret_binary()), "serve", "--listen", "127.0.0.1:0",
                   "--data-dir", f"{self.home.name}/data", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=pipe.writer, start_new_session=True)

    def wait_ready(self) -> None:
        """Waits until the broker accepts connections."""
        port = until("the broker listens", lambda: brokers.listening_port(self.process.pid), 15.0)
        self.address = brokers.Address("127.0.0.1", port)

    def stop(self) -> float:
        """Stops the broker. Returns the duration in seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(patience(15.0))
        assert status == 0, f"the broker ended with {status}"
        return time.monotonic() - began


@contextlib.contextmanager
def mute(pipe: Pipe, *arguments: str) -> Iterator[Mute]:
    """Provides a broker with this pipe for the length of a `with` block."""
    broker = Mute(pipe, *arguments)
    try:
        broker.wait_ready()
        yield broker
    finally:
        brokers.end(broker.process)
        broker.home.cleanup()
        pipe.close()


def full_pipe() -> None:
    """Standard error is full before the start. The broker starts, serves and stops."""
    with mute(Pipe(is_full=True)) as broker:
        for _ in range(400):
            say(broker.address, OPENINGS[0])
        served(broker.address)
        took = broker.stop()
    assert took < patience(5.0), f"a stop took {took:.1f} s"


def unread_pipe() -> None:
    """Standard error fills while hostile peers connect. A normal client is served."""
    with mute(Pipe(), "--log-level", "debug") as broker:
        with Client(broker.address) as client:
            for number in range(600):
                say(broker.address, OPENINGS[number % len(OPENINGS)])
                client.open(1)
                with contextlib.suppress(Closed):
                    client.call(1, "queue.declare", queue="none", passive=True)
                client.send(wire.method(1, "channel.close-ok"))
                if number % 100 == 0:
                    served(broker.address)
        served(broker.address)
        took = broker.stop()
    assert took < patience(5.0), f"a stop took {took:.1f} s"


def late_reader() -> None:
    """A late reader of the pipe receives the number of lost lines, and the last lines."""
    pipe = Pipe()
    with mute(pipe, "--log-level", "debug") as broker:
        for number in range(3000):
            say(broker.address, OPENINGS[0])
        os.close(pipe.writer)
        broker.process.send_signal(signal.SIGTERM)
        log = pipe.read_all()
        assert broker.process.wait(patience(15.0)) == 0
    lines = log.splitlines()
    connections = [line for line in lines if re.search(r"connection \d+: from ", line)]
    missing = [int(count) for count in re.findall(r"(\d+) lines were dropped here", log)]
    print(f"  {len(lines)} lines, missing: {missing}")
    assert missing and sum(missing) + len(connections) >= 3000, f"{missing} and {len(connections)}"
    assert lines[-1].endswith("stopped"), lines[-3:]
    assert sum(left_out(log).values()) == 3000 - LINES_OF_A_KIND, left_out(log)


def last_lines() -> None:
    """The last lines, including the reason of the end, are written in order before the process ends."""
    pipe = Pipe()
    with mute(pipe) as broker:
        broker.stop()
        os.close(pipe.writer)
        lines = pipe.read_all().splitlines()
    order = [at for said in ("listening on", "asked to stop", " stopped") for at, line in enumerate(lines) if said in line]
    assert len(order) == 3 and order == sorted(order) and order[-1] == len(lines) - 1, lines
    pipe = Pipe()
    with mute(pipe) as broker:
        second = Mute(pipe, "--listen", f"127.0.0.1:{broker.address.port}")
        assert second.process.wait(patience(15.0)) == 1
        second.home.cleanup()
        broker.stop()
        os.close(pipe.writer)
        lines = pipe.read_all().splitlines()
    fatal = [at for at, line in enumerate(lines) if line.startswith("leveret: cannot listen on")]
    assert len(fatal) == 1, lines




CASES = [wrong_protocols_and_passwords, many_addresses, closed_channels, closed_connections, report_comes_by_itself,
         strange_names, full_pipe, unread_pipe, late_reader, last_lines]


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args(arguments)
    brokers.raise_on_sigterm()
    suite = Suite("log_limits", options.cases)
    for case in CASES:
        suite.case(case.__name__.replace("_", "-"), case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
