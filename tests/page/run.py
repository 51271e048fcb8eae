"""The web page in real headless Chromium, over the files that the release binary carries.

What a person does there is done through what the page shows (labels, roles, keys), beside pika, which tells what
became of it. A message on the browser's console, an error of a script or a report of the content security policy
fails whatever case it happens in.

Suite lines: `PASS page/NAME` and so on.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
sys.dont_write_bytecode = True

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402

PACKAGES = [f"pika=={environment.PIKA_NEW}", "playwright==1.65.2", "axe-playwright-python==0.1.8"]


def prepare() -> str:
    """Why the suite cannot run here; empty when it can. It goes on under an interpreter that has what it needs."""
    try:
        import axe_playwright_python  # noqa: F401
        import pika  # noqa: F401
    except ImportError:
        try:
            python = environment.python_with("page", *PACKAGES)
        except Skip as why:
            return str(why)
        os.execv(python, [str(python), *sys.argv])
    if not shutil.which("chromium"):
        try:
            environment.apt_install("chromium")
        except Skip as why:
            return str(why)
    return ""


def main() -> int:
    """Run the cases named on the command line, or all of them."""
    brokers.raise_on_sigterm()
    suite = Suite("page", sys.argv[1:])
    why = prepare()
    if why:
        suite.skip("all", why)
        return 0
    import browser
    import cases

    brokers.watchdog(300)
    with browser.Chromium() as chromium:
        for name, run in cases.CASES.items():
            suite.case(name, lambda: run(chromium), chromium.log)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
