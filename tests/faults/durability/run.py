"""The store of the built program: real processes on real file systems, killed and restarted.

Suite lines: `PASS durability/NAME` and so on. Random choices follow from LEVERET_CHANCE_SEED, which a failed case
prints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support"), str(HERE.parents[1] / "compatibility")]

import damage  # noqa: E402
import deep  # noqa: E402
import failing  # noqa: E402
import full  # noqa: E402
import kills  # noqa: E402
import logins  # noqa: E402
import odd  # noqa: E402
import orphans  # noqa: E402
import priorities  # noqa: E402
import refused  # noqa: E402
import restarts  # noqa: E402
import stopping  # noqa: E402
import syncs  # noqa: E402
from support import QUICK, brokers  # noqa: E402
from harness.suite import Suite  # noqa: E402

GROUPS = [restarts, stopping, logins, kills, syncs, full, failing, refused, odd, orphans, deep, priorities, damage]


def main() -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    suite = Suite("durability", args.case)
    for group in GROUPS:
        for case in group.QUICK_CASES if QUICK else group.CASES:
            suite.case(case.__name__.replace("_", "-"), case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
