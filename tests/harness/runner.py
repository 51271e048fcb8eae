"""Runs every test there is and adds up the verdicts.

A *suite* is any executable `tests/NAME/run`. It is called from the root of the repository,
without arguments, with `LEVERET_TEST_MODE` (`quick` or `full`) and `LEVERET_BIN` (the release
binary) in its environment, and prints one line per case:

    PASS name
    FAIL name: why
    SKIP name: what was not tested, and why

Everything else it prints is remarks. A suite that prints no verdict, or that ends with a bad
status without a FAIL line, has failed. A new suite is found by being there.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import List, Optional, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, parse  # noqa: E402

ROOT = brokers.ROOT
TESTS = ROOT / "tests"
CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
CARGO_FAILED = re.compile(r"^test (.+?) \.\.\. FAILED$", re.MULTILINE)
QUICK_SUITES = ["clients", "transcript", "durable", "seeds"]
# Suites that compile, and count what no other program changes. They run beside the others, one after the other and at
# the lowest priority, in the time in which those wait for a disk, a peer or a timer.
BESIDE = ["deny", "instructions", "seeds", "arm", "mutants", "word32", "fuzz"]
ORDER = ["clients", "transcript", "durable", "tls", "hostile"]
SUITE_LIMIT_SECONDS = 25 * 60
# Who runs beside others waits for them.
BESIDE_LIMIT_SECONDS = 45 * 60


class Tally:
    """Counts, and the names of what did not pass, for the end."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.notable: List[str] = []

    def add(self, kind: str, name: str, detail: str = "", count: int = 1) -> None:
        """One verdict, or several of a kind."""
        if kind == "PASS":
            self.passed += count
            return
        if kind == "FAIL":
            self.failed += count
        else:
            self.skipped += count
        self.notable.append(f"{kind}: {name}" + (f": {detail}" if detail else ""))

    def close(self) -> int:
        """The summary; the exit status."""
        if self.notable:
            print("\nNot passed:")
            for line in self.notable:
                print("  " + line)
        print()
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        return 1 if self.failed or not self.passed else 0


class Stopwatch:
    """What a step takes by the clock, and of the processors, which is the same on a busy machine."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.cpu_seconds: Optional[float] = None

    def wait_for(self, child: "subprocess.Popen[str]") -> int:
        """The status of a child that ends, once it has; what it and all below it took is noted before it is gone."""
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        # utime, stime, cutime and cstime: fields 14 to 17 of proc(5); the third is the first here.
        self.cpu_seconds = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return child.wait()

    def __str__(self) -> str:
        clock = f"{time.monotonic() - self.began:.1f} s"
        return clock if self.cpu_seconds is None else f"{clock}, {self.cpu_seconds:.1f} s of a processor"


class Runner:
    """One run: the mode, the tally, and what depends on the build having worked."""

    def __init__(self, quick: bool, only: List[str]) -> None:
        self.quick = quick
        self.only = only
        self.tally = Tally()
        self.environment = dict(os.environ, LEVERET_TEST_MODE="quick" if quick else "full",
                                LEVERET_BIN=str(brokers.leveret_binary()), PYTHONDONTWRITEBYTECODE="1")
        self.built = False
        # Lines come from two threads; a verdict is counted and shown at once.
        self.lock = threading.Lock()
        self.stopping = False
        self.children: List["subprocess.Popen[str]"] = []

    # -- what there is

    def wanted(self, name: str) -> bool:
        """Whether a step was asked for."""
        return not self.only or name in self.only

    def suites(self) -> List[str]:
        """The folders of tests/ that have a `run`."""
        found = sorted(path.parent.name for path in TESTS.glob("*/run") if os.access(path, os.X_OK))
        if self.quick and not self.only:
            found = [name for name in found if name in QUICK_SUITES]
        middle = [name for name in found if name not in ORDER + BESIDE]
        return [name for name in [*ORDER, *middle, *BESIDE] if name in found]

    # -- running

    def heading(self, name: str) -> None:
        """Where a step begins."""
        print(f"\n== {name}", flush=True)

    def verdict(self, kind: str, name: str, began: Stopwatch, detail: str = "") -> None:
        """Print and count one step of our own."""
        print(f"{kind} {name}" + (f": {detail}" if detail else "") + f" ({began})", flush=True)
        self.tally.add(kind, name, detail)

    def captured(self, command: List[str], watch: Optional[Stopwatch] = None) -> "subprocess.CompletedProcess[str]":
        """Run something whose output matters only when it fails. It is ended if we are."""
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, text=True, start_new_session=True)
            try:
                status = (watch or Stopwatch()).wait_for(child)
            finally:
                if child.poll() is None:
                    brokers.end(child, patience=5.0)
            log.seek(0)
            return subprocess.CompletedProcess(command, status, log.read())

    def cargo(self, name: str, command: List[str], component: Optional[str] = None) -> bool:
        """A cargo step with one verdict. A component that is not installed is a skip."""
        if not self.wanted(name):
            return True
        self.heading(name)
        began = Stopwatch()
        if component and self.captured(["cargo", component, "--version"]).returncode != 0:
            self.verdict("SKIP", name, began, f"cargo {component} is not installed; {name} was not checked")
            return True
        done = self.captured(command, began)
        if done.returncode == 0:
            self.verdict("PASS", name, began)
            return True
        print(done.stdout)
        self.verdict("FAIL", name, began, " ".join(command))
        return False

    def fetch(self) -> bool:
        """The crates; a run with none of them cannot test anything."""
        if not {"build", "clippy", "cargo-test"} & set(self.only) and self.only and self.have_binary():
            return True
        for number in range(environment.TRIES):
            done = self.captured(["cargo", "fetch", "--locked"])
            if done.returncode == 0:
                return True
            time.sleep(5 * (number + 1))
        if self.captured(["cargo", "fetch", "--locked", "--offline"]).returncode == 0:
            return True
        print(done.stdout)
        if any(sign in done.stdout for sign in (*environment.UNREACHABLE_SIGNS, "failed to download", "spurious")):
            self.verdict("SKIP", "everything", Stopwatch(), "the crate registry did not answer; nothing was built")
        else:
            self.verdict("FAIL", "cargo-fetch", Stopwatch(), "cargo fetch --locked")
        return False

    def have_binary(self) -> bool:
        """Whether a release binary is there."""
        return Path(self.environment["LEVERET_BIN"]).exists()

    def cargo_test(self) -> None:
        """cargo's own tests, each counted."""
        if not self.wanted("cargo-test"):
            return
        self.heading("cargo-test")
        began = Stopwatch()
        done = self.captured(["cargo", "test", "--profile", "checked", "--locked", "--no-fail-fast"], began)
        results = CARGO_RESULT.findall(done.stdout)
        passed, failed, ignored = (sum(int(result[index]) for result in results) for index in range(3))
        self.tally.add("PASS", "", count=passed)
        names = CARGO_FAILED.findall(done.stdout)
        for name in names:
            self.tally.add("FAIL", f"cargo-test/{name}")
        if ignored:
            self.tally.add("SKIP", "cargo-test", f"{ignored} marked as ignored", ignored)
        if done.returncode != 0:
            print(done.stdout)
            if not names:
                self.tally.add("FAIL", "cargo-test", "did not build, or died")
        elif not passed:
            self.tally.add("FAIL", "cargo-test", "no test was run")
        kind = "PASS" if done.returncode == 0 else "FAIL"
        print(f"{kind} cargo-test: {passed} passed, {failed} failed, {ignored} ignored ({began})", flush=True)

    def suite(self, name: str, command: List[str], label: Optional[str] = None) -> None:
        """Run a suite, show what it prints as it comes, count its verdicts."""
        label = label or name
        self.heading(label)
        self.follow(label, command, sys.stdout, SUITE_LIMIT_SECONDS, 0)

    def suites_beside(self, names: List[str]) -> None:
        """Suites that run while others do; each is shown whole, when it has ended."""
        for name in names:
            if self.stopping:
                return
            said = io.StringIO()
            print(f"\n== {name} (ran beside the others)", file=said)
            self.follow(name, [str(TESTS / name / "run")], said, BESIDE_LIMIT_SECONDS, 19)
            with self.lock:
                print(said.getvalue(), flush=True)

    def follow(self, label: str, command: List[str], out: TextIO, limit_seconds: int, niceness: int) -> None:
        """Runs a suite to its end or its limit: what it prints goes to `out`, its verdicts are counted."""
        began = Stopwatch()
        if niceness:
            command = ["nice", "-n", str(niceness), *command]
        child = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                 start_new_session=True)
        self.children.append(child)
        late = threading.Timer(limit_seconds, brokers.end, (child, 60.0))
        late.start()
        verdicts, failures = 0, 0
        try:
            assert child.stdout is not None
            for line in child.stdout:
                with self.lock:
                    out.write(line)
                    out.flush()
                    found = parse(line)
                    if found:
                        verdicts += 1
                        failures += found.kind == "FAIL"
                        self.tally.add(found.kind, found.name, found.detail)
            status = began.wait_for(child)
        finally:
            overdue = not late.is_alive()
            late.cancel()
            # Whoever is interrupted ends its own servers; it only needs the time to do so.
            brokers.end(child, patience=60.0)
            self.children.remove(child)
        why = ""
        if overdue:
            why = f"not finished after {limit_seconds} s"
        elif status != 0 and not failures:
            why = f"ended with status {status}"
        elif not verdicts:
            why = "it gave no verdict on anything"
        with self.lock:
            if why:
                self.tally.add("FAIL", label, why)
                print(f"FAIL {label}: {why} ({began})", file=out, flush=True)
            else:
                print(f"{label}: {verdicts} verdicts ({began})", file=out, flush=True)

    def every_suite(self) -> None:
        """All suites that are wanted: what needs the processors beside what waits."""
        names = [name for name in self.suites() if self.wanted(name)]
        if not self.built:
            for name in names:
                self.tally.add("FAIL", name, "not run, there is no binary")
            names = []
        beside = [name for name in names if name in BESIDE]
        thread = threading.Thread(target=self.suites_beside, args=(beside,))
        thread.start()
        try:
            for name in names:
                if name not in BESIDE:
                    self.suite(name, [str(TESTS / name / "run")])
            self.oracle()
            thread.join()
        finally:
            self.stopping = True
            for child in list(self.children):
                brokers.end(child, patience=60.0)
            thread.join()

    def oracle(self) -> None:
        """RabbitMQ itself against what was recorded from it, and against the tutorial programs: so
        that what Leveret is held to stays true."""
        if not self.wanted("oracle") or (self.quick and not self.only):
            return
        self.heading("oracle: install RabbitMQ")
        began = Stopwatch()
        try:
            environment.have_rabbitmq()
        except Skip as why:
            for name in ("oracle/transcript", "oracle/clients", "oracle/permissions"):
                self.verdict("SKIP", name, began, f"RabbitMQ: {why}; not compared with a live RabbitMQ")
            return
        except environment.CannotInstall as why:
            self.verdict("FAIL", "oracle", began, str(why))
            return
        self.suite("oracle", [sys.executable, str(TESTS / "transcript" / "run.py"), "--rabbitmq"], "oracle: transcript")
        self.suite("oracle", [sys.executable, str(TESTS / "clients" / "run.py"), "--rabbitmq"], "oracle: clients")
        self.suite("oracle", [sys.executable, str(TESTS / "permissions" / "run.py"), "--rabbitmq"],
                   "oracle: permissions")

    def run(self) -> int:
        """Everything in its order."""
        unknown = set(self.only) - {"fmt", "clippy", "build", "cargo-test", "oracle"} - set(self.suites())
        if unknown:
            print(f"there is no step called {', '.join(sorted(unknown))}")
            return 2
        if shutil.which("cargo") is None:
            self.tally.add("FAIL", "cargo", "Rust is not installed")
            return self.tally.close()
        if not self.fetch():
            return self.tally.close()
        self.cargo("fmt", ["cargo", "fmt", "--check"], "fmt")
        self.cargo("clippy", ["cargo", "clippy", "--profile", "checked", "--locked", "--all-targets", "--", "-D", "warnings"],
                   "clippy")
        self.built = self.cargo("build", ["cargo", "build", "--release", "--locked"]) and self.have_binary()
        self.cargo_test()
        self.every_suite()
        return self.tally.close()


def main() -> int:
    """Read the arguments and do as they say."""
    parser = argparse.ArgumentParser(prog="tests/run", description="Run the tests.")
    parser.add_argument("--quick", action="store_true", help="only what takes a few minutes")
    parser.add_argument("step", nargs="*", help="only these steps or suites")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    runner = Runner(args.quick, args.step)
    try:
        return runner.run()
    except KeyboardInterrupt:
        runner.tally.add("FAIL", "tests/run", "interrupted")
        return runner.tally.close()


if __name__ == "__main__":
    sys.exit(main())
