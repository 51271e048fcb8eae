"""A program that a suite starts, reads and kills. It is a process that is ended by its id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import Dict, List

from harness.suite import patience

PATIENCE = 20.0


class Program:
    """A running program and what it has printed."""

    def __init__(self, name: str, command: List[str], environment: Dict[str, str]) -> None:
        self.name = name
        self.lines: List[str] = []
        self.news = threading.Condition()
        self.over = False
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line.rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.over = True
            self.news.notify_all()

    def count(self, text: str) -> int:
        """Returns the number of lines that contain the text."""
        return sum(text in line for line in self.lines)

    def wait(self, text: str, times: int = 1, patience_s: float = PATIENCE) -> str:
        """Waits until `times` lines contain the text. Returns the last of them. All timeouts here are multiplied by the
        patience.
        """
        with self.news:
            self.news.wait_for(lambda: self.count(text) >= times or self.over, patience(patience_s))
            if self.count(text) < times:
                raise AssertionError(f"{self.name} did not print {text!r} {times} times:\n" + self.text())
            return [line for line in self.lines if text in line][times - 1]

    def asks(self, number: int, patience_s: float) -> str:
        """Returns line number `number` of those that begin with `please` or `ok`. Raises if the program ends before."""
        with self.news:
            self.news.wait_for(lambda: len(self._asked()) > number or self.over, patience(patience_s))
            if len(self._asked()) <= number:
                raise AssertionError(f"{self.name} failed:\n" + self.text())
            return self._asked()[number]

    def _asked(self) -> List[str]:
        return [line for line in self.lines if line.startswith(("please ", "ok "))]

    def answer(self) -> None:
        """Waits until the program has done what was requested."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self, patience_s: float = PATIENCE) -> List[str]:
        """Waits until the program ends with status 0. Returns all its lines."""
        status = self.process.wait(patience(patience_s))
        self.reader.join(patience(5.0))
        assert status == 0, f"{self.name} ended with status {status}:\n" + self.text()
        return self.lines

    def text(self) -> str:
        """Returns the whole output."""
        return "\n".join("    " + line for line in self.lines)

    def kill(self) -> None:
        """Kills the program with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
