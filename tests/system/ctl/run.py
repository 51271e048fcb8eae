"""`leveret ctl` as operators use it, compared with `rabbitmqctl` 3.10.8 on a node of its own.

Suite lines: `PASS ctl/NAME` and so on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

import alike  # noqa: E402
import as_json  # noqa: E402
import backups  # noqa: E402
import defined  # noqa: E402
import folders  # noqa: E402
import hostile  # noqa: E402
import looks  # noqa: E402
import operator_cases  # noqa: E402
import orphans  # noqa: E402
from harness import brokers  # noqa: E402
from harness.suite import Suite  # noqa: E402

GROUPS = [operator_cases, looks, hostile, backups, folders, defined, orphans, alike, as_json]


def main() -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="run only these cases")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    suite = Suite("ctl", args.case)
    for group in GROUPS:
        for case in group.CASES:
            suite.case(case.__name__.replace("_", "-"), case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
