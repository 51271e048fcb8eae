"""The web page in real headless Chromium, with the files that the release binary contains.

The cases use what the page shows (labels, roles, keys), and check the effect with pika. A message on the browser's
console, a script error or a report of the content security policy fails the case.

Suite lines: `PASS page/NAME` and so on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "support"), str(HERE)]
sys.dont_write_bytecode = True

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402


def prepare() -> str:
    """Returns why the suite cannot run here; empty if it can. Starts itself again with an interpreter that has the
    packages."""
    try:
        import axe_playwright_python  # noqa: F401
        import pika  # noqa: F401
    except ImportError:
        try:
            python = environment.python_with("page", *environment.PAGE_PACKAGES)
        except Skip as why:
            return str(why)
        os.execv(python, [str(python), *sys.argv])
    if not shutil.which("chromium"):
        try:
            environment.apt_install("chromium")
        except Skip as why:
            return str(why)
    return ""


def scripts_parse() -> None:
    """Every script of the page is a valid module. A browser would only show an empty page otherwise."""
    environment.have("node", "nodejs")
    with tempfile.TemporaryDirectory() as folder:
        scripts = sorted((brokers.ROOT / "src" / "management" / "web").glob("*.js"))
        assert scripts, "the page has no scripts"
        for script in scripts:
            module = shutil.copy(script, Path(folder) / f"{script.stem}.mjs")
            done = subprocess.run(["node", "--check", module], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            assert done.returncode == 0, f"{script.name}: {done.stderr}"


def main() -> int:
    """Runs the cases named on the command line, or all of them."""
    brokers.raise_on_sigterm()
    suite = Suite("page", sys.argv[1:])
    why = prepare()
    suite.case("scripts-parse", scripts_parse)
    if why:
        suite.skip("all", why)
        return suite.status()
    import browser
    import cases
    import looks
    import views

    brokers.watchdog(600)
    with browser.Chromium() as chromium:
        for name, run in {**cases.CASES, **views.CASES, **looks.CASES}.items():
            suite.case(name, lambda: run(chromium), chromium.log)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
