"""Functions that the cases share: the command line, and programs with pika."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

from harness import brokers, environment
from harness.brokers import Leveret
from harness.suite import patience

HERE = Path(__file__).resolve().parent


class Done(NamedTuple):
    """The exit code and output of a command."""

    status: int
    out: str
    err: str


def ctl(broker: Leveret, *words: str, stdin: str = "", prefix: Optional[List[str]] = None) -> Done:
    """Runs `leveret ctl` for a broker."""
    command = (prefix or []) + [str(brokers.leveret_binary()), "ctl", "--data-dir", str(broker.data_dir), *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=patience(120))
    return Done(done.returncode, done.stdout, done.stderr)


def good(broker: Leveret, *words: str, stdin: str = "") -> str:
    """Runs a command that must succeed. Returns its output."""
    done = ctl(broker, *words, stdin=stdin)
    assert done.status == 0, f"{words} ended with {done.status}: {done.out}{done.err}"
    return done.out


def rows(broker: Leveret, *words: str) -> List[List[str]]:
    """Returns the rows of a listing, without banner and header."""
    return [line.split("\t") for line in good(broker, "-s", *words).splitlines()]


def command_of(name: str, port: int, *words: str) -> List[str]:
    """Returns the command that starts a program of programs.py with pika."""
    return [str(environment.pika_python(environment.PIKA_NEW)), str(HERE / "programs.py"), name, str(port), *words]


def program(name: str, broker: Leveret, *words: str) -> str:
    """Runs a program of this folder, which must succeed."""
    command = command_of(name, broker.address.port, *words)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def start_program(name: str, broker: Leveret, *words: str) -> "subprocess.Popen[bytes]":
    """Starts one of the programs of this folder. The caller ends it."""
    command = command_of(name, broker.address.port, *words)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(is_so: Callable[[], bool], otherwise: str, patience_s: float = 30.0) -> None:
    """Waits until `is_so` returns true."""
    end = time.monotonic() + patience(patience_s)
    while not is_so():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


def counts(broker: Leveret, vhost: str = "/") -> Dict[str, int]:
    """Returns the number of messages by queue."""
    return {name: int(count) for name, count in rows(broker, "list_queues", "-p", vhost, "name", "messages")}
