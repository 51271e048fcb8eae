"""What there is to run, as `tests/steps.toml` says, and which of it a change touches."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Union

BINARIES = ["checked", "release", "none"]
# Paths that every step of the gate depends on.
EVERYTHING = ["Cargo.toml", "Cargo.lock", ".cargo", ".ci", "tests/run", "tests/support/harness", "tests/support/lib.rs",
              "tests/support/Cargo.toml"]


class Step(NamedTuple):
    """One row of the table."""

    name: str
    # A program of cargo's tests, or a folder with a `run`.
    is_cargo: bool = False
    # Whether it belongs to the gate, wholly or with these cases, or without those.
    gate: Union[bool, List[str]] = False
    gate_without: List[str] = []
    # The program that the suite uses, which has to be built.
    binary: str = "checked"
    # It judges the clock: nothing runs beside it, and it comes last.
    alone: bool = False
    # Sockets and processes of others take part: what fails is tried once more, and told as FLAKY if it passes then.
    retry: bool = False
    # Runs after this one, never beside it, for they share what they make.
    after: str = ""
    # What is installed before anything runs.
    installs: List[str] = []
    # Seconds it took once on two processors: the longest begin first.
    seconds: int = 0
    # A change below these paths is covered by it.
    covers: List[str] = []

    def cases_in_gate(self) -> List[str]:
        """What to name on its command line in the gate; nothing for all of it."""
        return self.gate if isinstance(self.gate, list) else []


def read(path: Path) -> Dict[str, Step]:
    """The table by name. A row that says something unknown is refused."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    try:
        steps = [Step(name=name, is_cargo=kind == "cargo", **row) for kind in ("cargo", "suite")
                 for name, row in table.get(kind, {}).items()]
    except TypeError as wrong:
        raise ValueError(f"{path.name}: {wrong}") from wrong
    found = {step.name: step for step in steps}
    if len(found) != len(steps):
        raise ValueError(f"{path.name}: a name stands twice")
    for step in steps:
        if step.binary not in BINARIES:
            raise ValueError(f"{path.name}: {step.name}: binary is one of {', '.join(BINARIES)}")
        if step.alone and step.gate:
            raise ValueError(f"{path.name}: {step.name} judges the clock, and cannot be in the gate")
        if step.after and (step.after not in found or found[step.after].after):
            raise ValueError(f"{path.name}: {step.name} comes after {step.after}, which is not there or comes after others")
    return found


def suite_of(tests: Path, name: str) -> Path:
    """The program of a suite, which lies in a folder of its name, in whichever group."""
    found = list(tests.glob(f"*/{name}/run"))
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} suites called {name}")
    return found[0]


def unlisted(steps: Dict[str, Step], tests: Path) -> List[str]:
    """Folders with a `run`, or with a program of cargo's tests, that have no row; rows of nothing; and what is in
    no group."""
    suites = {path.parent.name for path in tests.glob("*/*/run") if os.access(path, os.X_OK)}
    # The files of tests/support are one library.
    programs = {path.stem for path in tests.glob("*/*.rs") if path.parent.name != "support"}
    programs |= {path.parent.name for name in ("main.rs", "Cargo.toml") for path in tests.glob(f"*/*/{name}")}
    programs |= {str(path.relative_to(tests)) for name in ("*.rs", "*/run") for path in tests.glob(name)}
    rows: Set[str] = set(steps)
    units = {name for name, step in steps.items() if step.is_cargo and name.startswith("leveret")}
    return sorted((suites | programs) - rows) + sorted(rows - suites - programs - units)


def changed_files(root: Path, base: str) -> List[str]:
    """What differs from that commit, with what is not committed yet."""
    def listed(*words: str) -> List[str]:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(done.stderr.strip())
        return done.stdout.splitlines()

    return sorted({*listed("-c", "core.quotePath=false", "diff", "--name-only", base), *listed("ls-files", "--others", "--exclude-standard")})


def covering(steps: Iterable[Step], files: List[str]) -> Dict[str, Optional[List[str]]]:
    """For each file the steps that cover it, by their names: those whose own folder it is in as well."""
    def is_below(file: str, path: str) -> bool:
        return file == path or file.startswith(path.rstrip("/") + "/") or path.endswith("*") and \
            file.startswith(path[:-1])

    def covers(step: Step, file: str) -> bool:
        if step.gate and any(is_below(file, path) for path in EVERYTHING):
            return True
        # tests/GROUP/NAME/... or tests/GROUP/NAME.rs
        parts = file.split("/")
        is_own = parts[0] == "tests" and len(parts) > 2 and parts[2] in (step.name, f"{step.name}.rs")
        return is_own or any(is_below(file, path) for path in step.covers)

    return {file: [step.name for step in steps if covers(step, file)] for file in files}
