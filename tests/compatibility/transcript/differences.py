"""The list of accepted differences between RabbitMQ and Leveret.

An entry has the name of the scenario, a reason, and the exact lines: `-` as recorded from RabbitMQ, `+` from Leveret.
Entries are used in the order of the file. An entry that does not occur any more is a failure, so that the list stays
current.

    == scenario-name
    reason: one sentence
    - a recorded line
    + the line of Leveret in its place
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple


class Hunk(NamedTuple):
    """Recorded lines, and the lines of the tested broker in their place."""

    recorded: Tuple[str, ...]
    ours: Tuple[str, ...]


def hunks(recorded: List[str], ours: List[str]) -> List[Hunk]:
    """Returns the differences between two transcripts, in order."""
    matcher = difflib.SequenceMatcher(None, recorded, ours, autojunk=False)
    return [
        Hunk(tuple(recorded[a:b]), tuple(ours[c:d]))
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]


def show_hunk(scenario: str, hunk: Hunk) -> str:
    """Returns a difference in the format of the list, to be copied there with a reason."""
    lines = [f"== {scenario}", "reason: "]
    lines += [f"- {line}" for line in hunk.recorded]
    lines += [f"+ {line}" for line in hunk.ours]
    return "\n".join(lines)


class Differences:
    """The allowed differences, by scenario."""

    def __init__(self, entries: Dict[str, List[Hunk]]) -> None:
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> "Differences":
        """Reads the list from the file."""
        entries: Dict[str, List[Hunk]] = {}
        scenario, reason = "", ""
        recorded: List[str] = []
        ours: List[str] = []

        def finish() -> None:
            if scenario and not (recorded or ours):
                raise ValueError(f"{path}: the entry for {scenario} has no lines")
            if scenario and not reason:
                raise ValueError(f"{path}: the entry for {scenario} has no reason")
            if scenario:
                entries.setdefault(scenario, []).append(Hunk(tuple(recorded), tuple(ours)))

        for line in path.read_text().splitlines() if path.exists() else []:
            if line.startswith("== "):
                finish()
                scenario, reason, recorded, ours = line[3:].strip(), "", [], []
            elif line.startswith("reason:"):
                reason = line[7:].strip()
            elif line.startswith("- "):
                recorded.append(line[2:])
            elif line.startswith("+ "):
                ours.append(line[2:])
            elif line.strip() and not line.startswith("#"):
                raise ValueError(f"{path}: cannot read {line!r}")
        finish()
        return cls(entries)

    def check(self, scenario: str, found: List[Hunk]) -> Tuple[List[Hunk], List[Hunk]]:
        """Returns the differences that are not listed, and the listed ones that did not occur."""
        left = list(self.entries.get(scenario, []))
        surprising = []
        for hunk in found:
            if hunk in left:
                left.remove(hunk)
            else:
                surprising.append(hunk)
        return surprising, left
