"""TLS with common clients and tools.

Each case starts a broker with certificates created for it. The cases check which clients are accepted, which are
refused with which text, and which messages arrive. They do not check durations.

Suite lines: `PASS tls/NAME` and so on.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "support"), str(HERE)]
sys.dont_write_bytecode = True

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402


def prepare() -> str:
    """Returns why the suite cannot run here; empty if it can. Starts itself again with an interpreter that has pika."""
    try:
        import pika  # noqa: F401
    except ImportError:
        try:
            python = environment.pika_python(environment.PIKA_NEW)
        except Skip as why:
            return str(why)
        os.execv(python, [str(python), *sys.argv])
    if not shutil.which("openssl"):
        try:
            environment.apt_install("openssl")
        except Skip as why:
            return str(why)
    return ""


def main() -> int:
    """Runs the cases named on the command line, or all of them."""
    brokers.raise_on_sigterm()
    suite = Suite("tls", sys.argv[1:])
    why = prepare()
    if why:
        suite.skip("all", why)
        return 0
    import bodies
    import certificates
    import crowds
    import listeners
    import management
    import reloading
    import tools
    import unauthenticated

    with tempfile.TemporaryDirectory(prefix="leveret-tls-") as folder:
        for module in (certificates, listeners, management, reloading, bodies, crowds, unauthenticated, tools):
            for name, run in module.CASES.items():
                place = Path(folder) / name
                place.mkdir()
                suite.case(name, lambda: run(place))
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
