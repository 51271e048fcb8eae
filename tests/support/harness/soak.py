"""Searches with new random numbers: the simulator, kills and damage, the fuzz targets, planted mistakes.

    tests/run --soak MINUTES

It is not a gate: the exit code is 0 if it ran. Each line of `tests/soak.tsv` is the result of a part. Seeds that fail are
added to `tests/simulation/simulator/known.txt`, and the gate skips them. A fix removes the seed and adds a directed case.
Every round plants a mistake that takes some hundred seeds to find. A round that does not find it is reported as blind.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

from harness import brokers
from harness.steps import suite_of

ROOT = brokers.ROOT
LEDGER = ROOT / "tests" / "soak.tsv"
KNOWN = ROOT / "tests" / "simulation" / "simulator" / "known.txt"
HEADER = "date\tcommit\tpart\trange\truns\tfailures\tremark\n"
# Greater than all seeds that were used before.
FIRST_SEED = 1_000_000
SEEDS_A_ROUND = 1_000
# All seeds up to here were run before this search began.
FIRST_TENANTS, TENANTS_A_ROUND = 30_001, 5_000
CANARY_SEEDS = 600
FUZZ_SECONDS = 10
SIMULATOR = ["cargo", "test", "-q", "--profile", "checked", "--locked", "--test", "simulator", "--",
             "nothing_is_lost", "--nocapture"]
TENANTS = ["cargo", "test", "-q", "--profile", "checked", "--locked", "-p", "leveret-broker", "--test", "broker", "--", "tenants"]
KILLS = ["pika-under-kills", "bench-under-kills", "settled-stays-settled", "flipped-bits", "zeroed-pieces",
         "misplaced-pieces", "missing-segment"]
FAILED_SEED = re.compile(r"^seed (\d+) fails: (.*)$", re.MULTILINE)
REPLAY = re.compile(r"replay with: LEVERET_SEED=(\d+)")


class Row(NamedTuple):
    """A line of `tests/soak.tsv`."""

    part: str
    range: str
    runs: int
    failures: int
    remark: str


def commit(*ledgers: Path) -> str:
    """Returns the commit, with a mark if files differ from it that the search itself does not write."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    written = [f":!{path.relative_to(ROOT)}" for path in (LEDGER, KNOWN, *ledgers)]
    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".", *written) else "")


def next_number(part: str, first: int) -> int:
    """Returns the first number that no earlier search of this kind has used."""
    rows = [line.split("\t") for line in LEDGER.read_text().splitlines()[1:]]
    ends = [int(row[3].rsplit("..", 1)[1]) for row in rows if row[2] == part and ".." in row[3]]
    return max([first, *ends])


def run(command: List[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end with a low priority."""
    told = {name: value for name, value in os.environ.items() if name == "LEVERET_CACHE" or not name.startswith("LEVERET_")}
    return subprocess.run(["nice", "-n", "19", *command], cwd=ROOT, env={**told, **variables}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")


def canary() -> Row:
    """Searches for a planted mistake."""
    done = run(SIMULATOR, LEVERET_CANARY="1", LEVERET_SEED=f"1..{CANARY_SEEDS + 1}")
    found = FAILED_SEED.search(done.stdout)
    remark = f"found by seed {found[1]}" if found else "BLIND: the planted mistake was not found"
    return Row("canary", f"1..{CANARY_SEEDS + 1}", 1, 0 if found else 1, remark)


def seeds() -> Row:
    """Runs new seeds. Seeds that fail are added to the known ones."""
    first = next_number("seeds", FIRST_SEED)
    last = first + SEEDS_A_ROUND
    done = run(SIMULATOR, LEVERET_SEED=f"{first}..{last}", LEVERET_FAILURES="50")
    failed = FAILED_SEED.findall(done.stdout)
    if failed:
        today, where = datetime.date.today().isoformat(), commit()
        with KNOWN.open("a") as file:
            file.writelines(f"{seed}\t{where}\t{today}\t{what[:160].replace(chr(9), ' ') or '?'}\n" for seed, what in failed)
    is_whole = done.returncode == 0 or failed
    remark = ", ".join(seed for seed, _ in failed) if is_whole else "did not run: " + done.stdout[-200:].replace("\n", " ")
    return Row("seeds", f"{first}..{last}", SEEDS_A_ROUND if is_whole else 0, len(failed), remark)


def tenants() -> Row:
    """Runs new seeds of several tenants with the broker alone."""
    first = next_number("tenants", FIRST_TENANTS)
    last = first + TENANTS_A_ROUND
    done = run(TENANTS, LEVERET_SEED=f"{first}..{last}")
    failed = REPLAY.findall(done.stdout)
    is_whole = done.returncode == 0 or failed
    remark = ", ".join(failed) if is_whole else "did not run: " + done.stdout[-200:].replace("\n", " ")
    return Row("tenants", f"{first}..{last}", TENANTS_A_ROUND if is_whole else 0, len(failed), remark)


def suite(name: str, *words: str, **variables: str) -> Tuple[int, int, str]:
    """Runs a suite. Returns the numbers of its verdicts and failures, and the names of the failures."""
    done = run([str(suite_of(ROOT / "tests", name)), *words], LEVERET_TEST_MODE="full", **variables)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASS ", "FAIL "))]
    failed = [line[5:120].replace("\t", " ") for line in lines if line.startswith("FAIL ")]
    return len(lines), len(failed), "; ".join(failed) or ("" if lines else "gave no verdict")


def kills() -> Row:
    """Runs the cases with `kill -9` and damaged blocks with a new seed."""
    number = next_number("kills", 2)
    program = str(ROOT / "target" / "checked" / "leveret")
    found = suite("durability", *KILLS, LEVERET_BIN=program, LEVERET_CHANCE_SEED=str(number), LEVERET_PATIENCE="6")
    return Row("kills", f"{number}..{number + 1}", *found)


def fuzz() -> Row:
    """Runs every fuzz target for some seconds. Its corpus is kept."""
    return Row("fuzz", f"{FUZZ_SECONDS} s a target", *suite("fuzz", "--seconds", str(FUZZ_SECONDS)))


def mutants() -> Row:
    """Searches for all planted mistakes."""
    return Row("mutants", "all", *suite("mutants"))


PARTS = [canary, seeds, kills, tenants, canary, seeds, fuzz, canary, seeds, mutants]


def note(row: Row, searched: str) -> None:
    """Appends a result to `tests/soak.tsv`."""
    line = "\t".join([datetime.date.today().isoformat(), searched, *map(str, row)])
    print(line, flush=True)
    with LEDGER.open("a") as file:
        file.write(line + "\n")


def search(minutes: float, parts: Optional[list] = None) -> int:
    """Searches for some minutes. A part that has begun is completed."""
    until = time.monotonic() + minutes * 60
    if not LEDGER.exists():
        LEDGER.write_text(HEADER)
    built = run(["cargo", "build", "--profile", "checked", "--locked"])
    if built.returncode != 0:
        print(built.stdout)
        return 1
    ran = 0
    while time.monotonic() < until:
        for part in parts or PARTS:
            if time.monotonic() < until:
                searched = commit()
                note(part(), searched)
                ran += 1
    print(f"\n{ran} parts ran; the results are in {LEDGER.relative_to(ROOT)}")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(search(float(sys.argv[1])))
