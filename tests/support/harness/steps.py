"""The suites and test programs in `tests/steps.toml`, and the paths that each covers."""

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
    # Its subject, in one line.
    about: str = ""
    # Whether it is a Cargo test program. Otherwise it is a folder with an executable `run`.
    is_cargo: bool = False
    # Whether it belongs to the gate, or the cases that do.
    gate: Union[bool, List[str]] = False
    # Cases that do not belong to the gate, although the others do.
    gate_without: List[str] = []
    # The build of the program that the suite runs.
    binary: str = "checked"
    # Whether it measures time: it runs alone, after all others.
    alone: bool = False
    # Whether a failed case is tried once more, and reported as FLAKY if it passes then.
    retry: bool = False
    # The step that has to end before this one begins.
    after: str = ""
    # Names of `environment.INSTALLS`, installed before any step.
    installs: List[str] = []
    # Duration on two processors. The longest steps begin first.
    seconds: int = 0
    # Paths that it tests.
    covers: List[str] = []

    def cases_in_gate(self) -> List[str]:
        """Returns the arguments of its `run` in the gate. No arguments mean all cases."""
        return self.gate if isinstance(self.gate, list) else []


def read(path: Path) -> Dict[str, Step]:
    """Reads the table. Raises `ValueError` if a row is invalid."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    try:
        steps = [Step(name=name, is_cargo=kind == "cargo", **row) for kind in ("cargo", "suite")
                 for name, row in table.get(kind, {}).items()]
    except TypeError as wrong:
        raise ValueError(f"{path.name}: {wrong}") from wrong
    found = {step.name: step for step in steps}
    if len(found) != len(steps):
        raise ValueError(f"{path.name}: a name occurs twice")
    for step in steps:
        if step.binary not in BINARIES:
            raise ValueError(f"{path.name}: {step.name}: binary must be one of {', '.join(BINARIES)}")
        if step.alone and step.gate:
            raise ValueError(f"{path.name}: {step.name} measures time, so it cannot be in the gate")
        if step.after and (step.after not in found or found[step.after].after):
            raise ValueError(f"{path.name}: {step.name} comes after {step.after}, which does not exist or comes after another one")
    return found


def suite_of(tests: Path, name: str) -> Path:
    """Returns the program of a suite: `run` in the folder with its name, in any group."""
    found = list(tests.glob(f"*/{name}/run"))
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} suites with the name {name}")
    return found[0]


def folder_of(root: Path, step: Step) -> Path:
    """Returns the folder of a step; for the unit tests of a package, that of the package."""
    tests = root / "tests"
    if step.is_cargo and step.name.startswith("leveret-"):
        return root / "src" / step.name.removeprefix("leveret-")
    found = [*tests.glob(f"*/{step.name}"), *tests.glob(f"*/{step.name}.rs")]
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} folders for {step.name}")
    return found[0]


def unlisted(steps: Dict[str, Step], tests: Path) -> List[str]:
    """Returns suites and Cargo test programs without a row, rows without a folder, and files outside of a group."""
    suites = {path.parent.name for path in tests.glob("*/*/run") if os.access(path, os.X_OK)}
    # The files of tests/support are one library.
    programs = {path.stem for path in tests.glob("*/*.rs") if path.parent.name != "support"}
    programs |= {path.parent.name for name in ("main.rs", "Cargo.toml") for path in tests.glob(f"*/*/{name}")}
    programs |= {str(path.relative_to(tests)) for name in ("*.rs", "*/run") for path in tests.glob(name)}
    rows: Set[str] = set(steps)
    units = {name for name, step in steps.items() if step.is_cargo and name.startswith("leveret")}
    return sorted((suites | programs) - rows) + sorted(rows - suites - programs - units)


def changed_files(root: Path, base: str) -> List[str]:
    """Returns the files that differ from a commit, including changes that are not committed."""
    def listed(*words: str) -> List[str]:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(done.stderr.strip())
        return done.stdout.splitlines()

    return sorted({*listed("-c", "core.quotePath=false", "diff", "--name-only", base), *listed("ls-files", "--others", "--exclude-standard")})


def covering(steps: Iterable[Step], files: List[str]) -> Dict[str, Optional[List[str]]]:
    """Returns the names of the steps that cover each file: its own folder is covered by a step as well."""
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
