"""The results of series of power cuts in `cuts.tsv`, one line each with date and commit, and their sum.

A line counts the cuts after which the board was checked. Each seed is used once.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from cuts import Series  # noqa: E402
from harness import brokers, soak  # noqa: E402

PLACE = Path(__file__).with_name("cuts.tsv")
COLUMNS = ["date", "commit", "system", "seed", "cuts", "died_booting", "with_unflushed", "confirmed", "upstream", "changes",
           "lost", "wrong", "without_sync_lost"]
# The columns that are added up.
SUMMED = COLUMNS[4:]


def rows() -> List[Dict[str, str]]:
    """Returns all lines."""
    lines = PLACE.read_text().splitlines() if PLACE.exists() else []
    return [dict(zip(COLUMNS, line.split("\t"))) for line in lines[1:]]


def next_seed() -> int:
    """Returns a seed that no series has used."""
    return max((int(row["seed"]) for row in rows()), default=0) + 1


def add(system: str, series: Series, without_sync: Series) -> None:
    """Appends the results of a series, and of the cuts without syncs that have to lose something."""
    is_new = not PLACE.exists()
    row = [datetime.date.today(), soak.commit(PLACE), system, series.seed, series.checked, series.died_booting,
           series.disk["pending"], series.kept.publisher.total, series.centre.publisher.total if series.centre else 0,
           series.access.changes, len(series.lost), len(series.wrong), len(without_sync.lost)]
    with PLACE.open("a") as file:
        if is_new:
            file.write("\t".join(COLUMNS) + "\n")
        file.write("\t".join(str(word) for word in row) + "\n")


def told() -> str:
    """Returns the sums for each system and in total."""
    kinds = sorted({row["system"] for row in rows()})
    lines = []
    for kind in [*kinds, "all"]:
        of_it = [row for row in rows() if kind in (row["system"], "all")]
        sums = [f"{name} {sum(int(row[name]) for row in of_it):,}" for name in SUMMED]
        lines.append(f"{kind}: {len(of_it)} series, {', '.join(sums)}")
    return "\n".join(lines) if rows() else f"there is nothing in {PLACE.relative_to(brokers.ROOT)} yet"
