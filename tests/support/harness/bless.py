"""Writes generated and measured files again: pictures of the page, budgets, the memory table, RabbitMQ's recordings.

Each is one command here, so that numbers are not edited by hand. Read the diff: it shows what a change costs, or what
it changes for clients.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Callable, Dict, List

from harness import brokers, environment
from harness.steps import suite_of
from harness.suite import Skip

ROOT = brokers.ROOT
GUIDE = ROOT / "systemd" / "guide" / "configuration.md"
MEMORY_TABLE = re.compile(r"^# memory .*?(?=\n```)", re.MULTILINE | re.DOTALL)


def run(*words: object, **variables: str) -> str:
    """Runs a command that must succeed. Returns its output."""
    return subprocess.run([str(word) for word in words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, **variables}).stdout


def release() -> None:
    """Builds the release binary."""
    run("cargo", "build", "--release", "--locked")


def page() -> None:
    """Takes the pictures of the web page in the guide."""
    release()
    run(ROOT / "tests" / "system" / "page" / "run", "pictures", LEVERET_PICTURES=str(ROOT / "systemd" / "guide"))


def costs() -> None:
    """Measures the costs in `tests/budgets.toml`."""
    release()
    run(ROOT / "tests" / "performance" / "costs" / "run", "--bless")


def memory() -> None:
    """Copies the memory table of `leveret check` into the guide. Rows that the guide leaves out are not added."""
    release()
    printed = run(brokers.leveret_binary(), "check", "--board", "pi-zero-w", "--port", "5672").splitlines()
    text = GUIDE.read_text()
    shown = MEMORY_TABLE.search(text)[0].splitlines()  # type: ignore[index]
    titles = {title_of(line) for line in shown}
    GUIDE.write_text(MEMORY_TABLE.sub("\n".join(line for line in printed if title_of(line) in titles), text, count=1))


def title_of(line: str) -> str:
    """Returns a row of the table without its figures."""
    return re.sub(r"[0-9,. ]+", " ", line)


def transcript() -> None:
    """Records the answers of a real RabbitMQ to every scenario. The suite reports differences that no longer occur."""
    environment.have_rabbitmq()
    for name in ("transcript", "permissions", "management"):
        run(suite_of(ROOT / "tests", name), "--rabbitmq", "--record")


WAYS: Dict[str, Callable[[], None]] = {"page": page, "costs": costs, "memory": memory, "transcript": transcript}


def write(names: List[str]) -> int:
    """Writes the named files, or all, and shows what has changed."""
    unknown = set(names) - set(WAYS)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(WAYS)}")
        return 2
    status = 0
    for name in names or WAYS:
        try:
            WAYS[name]()
        except (Skip, environment.CannotInstall, subprocess.CalledProcessError) as why:
            print(f"{name}: not written: {why}")
            status = 1
    subprocess.run(["git", "--no-pager", "diff", "--stat"], cwd=ROOT, stdout=sys.stdout, check=False)
    return status
