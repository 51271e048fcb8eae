"""Administration tools of other projects, each with the same commands against Leveret and RabbitMQ 3.10.8."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Tuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

from harness import environment  # noqa: E402
from harness.brokers import raise_on_sigterm, watchdog  # noqa: E402
from harness.suite import Suite  # noqa: E402
import admin  # noqa: E402
import playbook  # noqa: E402
import puppet  # noqa: E402
import puppet_module  # noqa: E402
import rabbit_hole  # noqa: E402
from sides import Side, our_side, their_side  # noqa: E402


def on_both(outcome: Callable[[Side], Any]) -> Tuple[Any, Any]:
    """Returns what a tool finds with RabbitMQ and with Leveret. Both run at the same time, because tools start slowly."""
    environment.have_rabbitmq()
    with our_side() as ours, their_side() as theirs, ThreadPoolExecutor() as both:
        futures = [both.submit(outcome, side) for side in (theirs, ours)]
        return futures[0].result(), futures[1].result()


def main() -> int:
    """Runs the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="run only these cases")
    suite = Suite("admin_tools", parser.parse_args().case)
    raise_on_sigterm()
    timer = watchdog(2400)
    suite.case("ansible", lambda: playbook.compare(*on_both(playbook.outcome)))
    suite.case("rabbitmqadmin", lambda: admin.compare(*on_both(admin.answers)))
    suite.case("puppet", lambda: on_both(puppet.check))
    suite.case("puppet-module", lambda: on_both(puppet_module.check))
    suite.case("rabbit-hole", lambda: rabbit_hole.compare(*on_both(rabbit_hole.outcome)))
    timer.cancel()
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
