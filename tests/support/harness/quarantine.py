"""Cases that fail for a reason that is known and is not of the change: `tests/quarantine.toml` names them.

Such a failure is told as `SKIP NAME: quarantined: REASON`. There are at most ten, so that it stays an exception; one
that is past its date is told loudly, and still skipped, for the same commit has the same verdict on every day.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Dict, List, NamedTuple

CASES_MAX = 10


class Case(NamedTuple):
    """One of them."""

    name: str
    reason: str
    since: datetime.date
    until: datetime.date


class Quarantine:
    """All of them by name."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            cases = [Case(**case) for case in tomllib.load(file).get("case", [])]
        if len(cases) > CASES_MAX:
            raise ValueError(f"{path.name}: {len(cases)} cases are more than {CASES_MAX}: mend one first")
        for case in cases:
            if not case.reason or case.until < case.since:
                raise ValueError(f"{path.name}: {case.name} needs a reason, and a date to be mended by")
            if "/" not in case.name:
                raise ValueError(f"{path.name}: {case.name} is a whole step; only one of its cases can be quarantined")
        self.cases: Dict[str, Case] = {case.name: case for case in cases}

    def overdue(self, today: datetime.date) -> List[str]:
        """What is to be said of those that should be mended by now."""
        return [f"{case.name} is quarantined since {case.since} and was to be mended by {case.until}: {case.reason}"
                for case in self.cases.values() if case.until < today]
