"""Functions that the programs of a case share: a file of completed tasks that survives kills, and a request for a kill.
"""

import os
import sys
import time

PATIENCE = 60 * float(os.environ.get("LEVERET_PATIENCE") or 1)


def write(*words):
    """Writes a line that survives a kill."""
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


def lines():
    """All of them."""
    try:
        with open(os.environ["LEDGER"], encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def numbers():
    """The first words, which are numbers."""
    return {int(line.split()[0]) for line in lines()}


def until(ready, what):
    """Wait for it; it is never about how long."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"never {what}: {lines()}"
        time.sleep(0.05)


def please(what):
    """Ask for a kill, `worker` or `broker`, and go on when it has happened and all is up again."""
    print("please", what, flush=True)
    sys.stdin.readline()
