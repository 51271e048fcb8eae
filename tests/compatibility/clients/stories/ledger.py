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
    """Returns all lines."""
    try:
        with open(os.environ["LEDGER"], encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def numbers():
    """Returns the first word of each line, which is a number."""
    return {int(line.split()[0]) for line in lines()}


def until(ready, what):
    """Waits until `ready` returns true. Durations are not tested."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"not {what}: {lines()}"
        time.sleep(0.05)


def please(what):
    """Requests a kill of `worker` or `broker`, and returns when it is done and both run again."""
    print("please", what, flush=True)
    sys.stdin.readline()
