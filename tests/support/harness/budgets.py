"""The budgets of the program in `tests/budgets.toml`. `tests/run --bless costs` writes the measured values again.

A cost has a maximum, a measured value, or both. It fails if it exceeds the maximum, or the measured value by more than
the slack.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Callable, Dict

PATH = Path(__file__).resolve().parents[2] / "budgets.toml"


class Budgets:
    """The contents of the file."""

    def __init__(self, most: Dict[str, int], seen: Dict[str, int], slack: float) -> None:
        self.most = most
        self.seen = seen
        self.slack = slack

    @classmethod
    def read(cls, is_other_compiler: Callable[[str], bool] = lambda _: False) -> "Budgets":
        """Reads the file. With another compiler than the recorded one, the slack is doubled."""
        with PATH.open("rb") as file:
            table = tomllib.load(file)
        slack = table["slack"] * (2 if is_other_compiler(table["compiler"]) else 1)
        return cls(table["most"], table["seen"], slack)

    def judge(self, name: str, value: int) -> None:
        """Prints a value beside its budget. Raises an error if it exceeds the budget."""
        known = self.seen.get(name)
        most = min(self.most.get(name, 1 << 62), round((known or 1 << 62) * (1 + self.slack)))
        compared = f", {value / known - 1:+.1%} against {known:,}" if known else ""
        print(f"# {name}: {value:,}, maximum {most:,}{compared}")
        if name not in self.most and not known:
            raise AssertionError(f"{name} has no budget: run tests/run --bless costs")
        if value > most:
            raise AssertionError(f"{name} is {value:,}, more than {most:,}")

    def write(self, seen: Dict[str, int], compiler: str) -> None:
        """Writes measured values to [seen]. New names are appended."""
        text = re.sub(r'^compiler = ".*"$', f'compiler = "{compiler}"', PATH.read_text(), flags=re.MULTILINE)
        head, tail = text.split("[seen]\n", 1)
        for name, value in seen.items():
            if name in self.most and name not in self.seen:
                continue
            line = f"{name} = {value:_}"
            tail, found = re.subn(rf"^{re.escape(name)} = [0-9_]+$", line, tail, flags=re.MULTILINE)
            tail += "" if found else line + "\n"
        PATH.write_text(head + "[seen]\n" + tail)
