"""The cases in `tests/quarantine.toml`, which fail for a known reason that is not the change under test.

Such a failure is reported as `SKIP NAME: quarantined: REASON`. There are at most ten. A case past its date is reported
and still skipped, because the same commit must have the same verdict every day.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Dict, List, NamedTuple

CASES_MAX = 10


class Case(NamedTuple):
    """A quarantined case."""

    name: str
    reason: str
    since: datetime.date
    until: datetime.date


class Quarantine:
    """All quarantined cases by name."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            cases = [Case(**case) for case in tomllib.load(file).get("case", [])]
        if len(cases) > CASES_MAX:
            raise ValueError(f"{path.name}: {len(cases)} cases are more than {CASES_MAX}: fix one first")
        for case in cases:
            if not case.reason or case.until < case.since:
                raise ValueError(f"{path.name}: {case.name} needs a reason, and a date by which it is fixed")
            if "/" not in case.name:
                raise ValueError(f"{path.name}: {case.name} is a whole step; only one of its cases can be quarantined")
        self.cases: Dict[str, Case] = {case.name: case for case in cases}

    def overdue(self, today: datetime.date) -> List[str]:
        """Returns a line for each case that is past its date."""
        return [f"{case.name} is quarantined since {case.since} and was to be mended by {case.until}: {case.reason}"
                for case in self.cases.values() if case.until < today]
