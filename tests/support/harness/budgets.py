"""What the program may cost: `tests/budgets.toml`, which is written anew by `tests/run --bless costs`.

A cost has the most that was promised for it, or what was seen of it, or both. Red is what is more than the most, or more
than what was seen by the slack: a budget is there to find what got out of hand, not the last kilobyte.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Callable, Dict

PATH = Path(__file__).resolve().parents[2] / "budgets.toml"


class Budgets:
    """The file, as it is read."""

    def __init__(self, most: Dict[str, int], seen: Dict[str, int], slack: float) -> None:
        self.most = most
        self.seen = seen
        self.slack = slack

    @classmethod
    def read(cls, is_other_compiler: Callable[[str], bool] = lambda _: False) -> "Budgets":
        """Another compiler makes other code of the same sources: then there is twice the slack."""
        with PATH.open("rb") as file:
            table = tomllib.load(file)
        slack = table["slack"] * (2 if is_other_compiler(table["compiler"]) else 1)
        return cls(table["most"], table["seen"], slack)

    def judge(self, name: str, value: int) -> None:
        """Tells what was seen beside its budget; an error beyond that."""
        known = self.seen.get(name)
        most = min(self.most.get(name, 1 << 62), round((known or 1 << 62) * (1 + self.slack)))
        compared = f", {value / known - 1:+.1%} against {known:,}" if known else ""
        print(f"# {name}: {value:,} of at most {most:,}{compared}")
        if name not in self.most and not known:
            raise AssertionError(f"{name} has no budget: tests/run --bless costs")
        if value > most:
            raise AssertionError(f"{name} is {value:,}, more than {most:,}")

    def write(self, seen: Dict[str, int], compiler: str) -> None:
        """Puts what is seen where numbers of that name stand under [seen]; what is new goes to the end."""
        text = re.sub(r'^compiler = ".*"$', f'compiler = "{compiler}"', PATH.read_text(), flags=re.MULTILINE)
        head, tail = text.split("[seen]\n", 1)
        for name, value in seen.items():
            if name in self.most and name not in self.seen:
                continue
            line = f"{name} = {value:_}"
            tail, found = re.subn(rf"^{re.escape(name)} = [0-9_]+$", line, tail, flags=re.MULTILINE)
            tail += "" if found else line + "\n"
        PATH.write_text(head + "[seen]\n" + tail)
