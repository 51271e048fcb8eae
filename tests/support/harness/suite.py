"""How a suite reports results: a line `PASS name`, `FAIL name: why` or `SKIP name: why` for each case."""

from __future__ import annotations

import os
import random
import re
import sys
import time
import traceback
from typing import Any, Callable, List, NamedTuple, Optional, Set

# Factor of all timeouts that only detect hangs; more than 1 on busy machines.
PATIENCE = float(os.environ.get("LEVERET_PATIENCE") or 1)
# The seed of all random choices. It is the same in each run unless another one is given.
CHANCE_SEED = os.environ.get("LEVERET_CHANCE_SEED") or "1"
LINE = re.compile(r"^(PASS|FAIL|SKIP) (\S+?)(?::? (.*))?$")


class Verdict(NamedTuple):
    """A result line."""

    kind: str
    name: str
    detail: str


def parse(line: str) -> Optional[Verdict]:
    """Returns the verdict in a line of a suite's output, if there is one."""
    found = LINE.match(line.rstrip("\n"))
    return Verdict(found.group(1), found.group(2).rstrip(":"), found.group(3) or "") if found else None


class Skip(Exception):
    """Raised by a case that cannot be run here."""


def patience(seconds: float) -> float:
    """Returns a timeout that only a hanging broker exceeds."""
    return seconds * PATIENCE


def chance(name: str) -> random.Random:
    """Returns random numbers for a purpose, which follow from LEVERET_CHANCE_SEED."""
    return random.Random(f"{CHANCE_SEED} {name}")


def until(what: str, holds: Callable[[], Any], patience_s: float) -> Any:
    """Waits until `holds` returns a true value, and returns that. Otherwise raises an error that names `what` did not
    happen.
    """
    patience_s = patience(patience_s)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s:.0f} s: {what}")


def left_out() -> Set[str]:
    """Returns the cases that this run leaves out unless they are named: those that the row of the suite excludes from
    the gate."""
    return set(os.environ.get("LEVERET_LEFT_OUT", "").split())


class Suite:
    """Runs cases one after the other and prints their verdicts. A failed case prints its traceback."""

    def __init__(self, prefix: str, only: Optional[List[str]] = None) -> None:
        self.prefix = prefix
        self.only = only or []
        self.unknown = set(self.only)
        self.failed = 0

    def case(self, name: str, run: Callable[[], None], log: Callable[[], str] = lambda: "") -> None:
        """Runs a case. `log` returns more to print if it fails."""
        if name not in self.only if self.only else name in left_out():
            return
        self.unknown.discard(name)
        began = time.monotonic()
        try:
            run()
        except Skip as reason:
            self.skip(name, str(reason))
        except Exception as accident:
            self.failed += 1
            traceback.print_exc(file=sys.stdout)
            print(log())
            print(f"# LEVERET_CHANCE_SEED={CHANCE_SEED}")
            seconds = time.monotonic() - began
            why = f"{type(accident).__name__}: {accident}".splitlines()[0]
            print(f"FAIL {self.prefix}/{name}: {why} ({seconds:.1f} s)", flush=True)
        else:
            print(f"PASS {self.prefix}/{name} ({time.monotonic() - began:.1f} s)", flush=True)

    def skip(self, name: str, why: str) -> None:
        """Reports a case that was not run."""
        print(f"SKIP {self.prefix}/{name}: {why}", flush=True)

    def status(self) -> int:
        """Returns the exit status. A requested case that does not exist is a failure."""
        for name in sorted(self.unknown):
            self.failed += 1
            print(f"FAIL {self.prefix}/{name}: there is no such case", flush=True)
        return 1 if self.failed else 0
