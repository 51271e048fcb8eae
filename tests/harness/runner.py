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
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Callable, List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, parse  # noqa: E402

ROOT = brokers.ROOT
TESTS = ROOT / "tests"
CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
CARGO_FAILED = re.compile(r"^test (.+?) \.\.\. FAILED$", re.MULTILINE)
QUICK_SUITES = ["clients", "transcript", "durable", "seeds"]
QUICK_LIVES = "1..151"
# Suites that compile, and count what no other program changes. With cargo's tests they run beside the others, two at a
# time and at the lowest priority, in the time in which those wait for a disk, a peer or a timer; the longest first, so
# that none of them is left over at the end. Those that stand together share what they install.
BESIDE = [["arm", "word32"], ["fuzz"], ["mutants"], ["deny"], ["instructions"], ["seeds"]]
ORDER = ["clients", "transcript", "tls", "hostile"]
# Suites that wait for disks, restarts and RabbitMQ for minutes: each row one after the other, while the other rows and
# the front go on.
WAITING = [["durable"], ["bridge", "ctl", "management", "page"], ["oracle"]]
# A machine in the machine has watchdogs of its own: it is not put off as those beside the others are, and has one
# processor as soon as the front and those that wait are over, while what is left beside shares the other.
BEHIND = ["qemu"]
# Who judges by how often somebody is served has the machine to itself, when all else is over: compilers beside it, at
# whatever priority, keep its brokers from the disk for a second and more.
LAST = ["shares", "caps"]
SUITE_LIMIT_SECONDS = 25 * 60
# Who runs beside others waits for them, and so does a machine in the machine.
BESIDE_LIMIT_SECONDS = 45 * 60


class Tally:
    """Counts, and the names of what did not pass, for the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.notable: List[str] = []

    def add(self, kind: str, name: str, detail: str = "", count: int = 1) -> None:
        """One verdict, or several of a kind."""
        with self.lock:
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
        """The status of a child that ends, once it has; what it and all below it took is noted before it is gone,
        unless somebody who ended it was faster."""
        with contextlib.suppress(ChildProcessError, FileNotFoundError, ProcessLookupError):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            # utime, stime, cutime and cstime: fields 14 to 17 of proc(5); the third is the first here.
            took = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            self.cpu_seconds = took + (self.cpu_seconds or 0.0)
        return child.wait()

    def __str__(self) -> str:
        clock = f"{time.monotonic() - self.began:.1f} s"
        return clock if self.cpu_seconds is None else f"{clock}, {self.cpu_seconds:.1f} s of a processor"


class Lane:
    """Where the lines of one step after the other go: at once; or held until the step has ended, when steps run side
    by side and each is to be read whole."""

    def __init__(self, lock: threading.Lock, niceness: int = 0, holds: bool = False) -> None:
        self.lock = lock
        self.niceness = niceness
        self.holds = holds
        self.held: List[str] = []

    def say(self, text: str) -> None:
        """One line or several."""
        if self.holds:
            self.held.append(text)
            return
        with self.lock:
            print(text, flush=True)

    def release(self) -> None:
        """The step has ended."""
        with self.lock:
            for text in self.held:
                print(text, flush=True)
        self.held.clear()


def step_back(child: "subprocess.Popen[str]", niceness: int) -> None:
    """Lets others go before a child that leads a session. Its niceness alone says nothing to them where the kernel
    groups processes by session (sched(7), autogroup) and shares the processors out among the groups."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{child.pid}/autogroup").write_text(str(niceness))


class Runner:
    """One run: the mode, the tally, and what depends on the build having worked."""

    def __init__(self, quick: bool, only: List[str]) -> None:
        self.quick = quick
        self.only = only
        self.began = time.monotonic()
        self.tally = Tally()
        self.environment = dict(os.environ, LEVERET_TEST_MODE="quick" if quick else "full",
                                LEVERET_BIN=str(brokers.leveret_binary()), PYTHONDONTWRITEBYTECODE="1")
        if quick:
            # The simulator's first lives find most of what 2,000 find, and those are minutes.
            self.environment.setdefault("LEVERET_SEED", QUICK_LIVES)
        self.built = False
        self.front = Lane(threading.Lock())
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
        later = [name for row in [*WAITING, BEHIND, LAST, *BESIDE] for name in row]
        middle = [name for name in found if name not in ORDER + later]
        return [name for name in [*ORDER, *middle, *later] if name in found]

    # -- running

    def heading(self, name: str, lane: Lane) -> None:
        """Where a step begins, and how far the run is."""
        beside = " beside the others" if lane.holds else ""
        lane.say(f"\n== {name}{beside} (minute {(time.monotonic() - self.began) / 60:.0f})")

    def verdict(self, kind: str, name: str, began: Stopwatch, detail: str = "", lane: Optional[Lane] = None) -> None:
        """Print and count one step of our own."""
        (lane or self.front).say(f"{kind} {name}" + (f": {detail}" if detail else "") + f" ({began})")
        self.tally.add(kind, name, detail)

    def captured(self, command: List[str], watch: Optional[Stopwatch] = None,
                 niceness: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run something whose output matters only when it fails. It is ended if we are."""
        if niceness:
            command = ["nice", "-n", str(niceness), *command]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, text=True, start_new_session=True)
            self.children.append(child)
            if niceness:
                step_back(child, niceness)
            try:
                status = (watch or Stopwatch()).wait_for(child)
            finally:
                self.children.remove(child)
                if child.poll() is None:
                    brokers.end(child, patience=5.0)
            log.seek(0)
            return subprocess.CompletedProcess(command, status, log.read())

    def cargo(self, name: str, command: List[str], component: Optional[str] = None,
              lane: Optional[Lane] = None) -> bool:
        """A cargo step with one verdict. A component that is not installed is a skip."""
        lane = lane or self.front
        if not self.wanted(name):
            return True
        self.heading(name, lane)
        began = Stopwatch()
        if component and self.captured(["cargo", component, "--version"]).returncode != 0:
            self.verdict("SKIP", name, began, f"cargo {component} is not installed; {name} was not checked", lane)
            return True
        done = self.captured(command, began, lane.niceness)
        if done.returncode == 0:
            self.verdict("PASS", name, began, lane=lane)
            return True
        lane.say(done.stdout)
        self.verdict("FAIL", name, began, " ".join(command), lane)
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

    def cargo_test(self, lane: Lane) -> None:
        """cargo's own tests, each counted."""
        if not self.wanted("cargo-test"):
            return
        self.heading("cargo-test", lane)
        began = Stopwatch()
        command = ["cargo", "test", "--profile", "checked", "--locked"]
        self.captured([*command, "--no-run"], began, lane.niceness)
        compiled = str(began)
        done = self.captured([*command, "--no-fail-fast"], began, lane.niceness)
        results = CARGO_RESULT.findall(done.stdout)
        passed, failed, ignored = (sum(int(result[index]) for result in results) for index in range(3))
        self.tally.add("PASS", "", count=passed)
        names = CARGO_FAILED.findall(done.stdout)
        for name in names:
            self.tally.add("FAIL", f"cargo-test/{name}")
        if ignored:
            self.tally.add("SKIP", "cargo-test", f"{ignored} marked as ignored", ignored)
        if done.returncode != 0:
            lane.say(done.stdout)
            if not names:
                self.tally.add("FAIL", "cargo-test", "did not build, or died")
        elif not passed:
            self.tally.add("FAIL", "cargo-test", "no test was run")
        kind = "PASS" if done.returncode == 0 else "FAIL"
        lane.say(f"{kind} cargo-test: {passed} passed, {failed} failed, {ignored} ignored (compiled in {compiled}; "
                 f"in all {began})")

    def suite(self, name: str, command: List[str], lane: Lane) -> None:
        """Run a suite, show what it prints, count its verdicts."""
        self.heading(name, lane)
        began = Stopwatch()
        limit_seconds = BESIDE_LIMIT_SECONDS if lane.niceness or name in BEHIND else SUITE_LIMIT_SECONDS
        if lane.niceness:
            command = ["nice", "-n", str(lane.niceness), *command]
        child = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                 start_new_session=True)
        self.children.append(child)
        if lane.niceness:
            step_back(child, lane.niceness)
        late = threading.Timer(limit_seconds, brokers.end, (child, 60.0))
        late.start()
        verdicts, failures = 0, 0
        try:
            assert child.stdout is not None
            for line in child.stdout:
                lane.say(line.rstrip("\n"))
                found = parse(line)
                if found:
                    verdicts += 1
                    failures += found.kind == "FAIL"
                    self.tally.add(found.kind, found.name, found.detail)
            status = began.wait_for(child)
        finally:
            overdue = not late.is_alive()
            late.cancel()
            self.children.remove(child)
            # Whoever is interrupted ends its own servers; it only needs the time to do so.
            brokers.end(child, patience=60.0)
        if overdue:
            self.verdict("FAIL", name, began, f"not finished after {limit_seconds} s", lane)
        elif status != 0 and not failures:
            self.verdict("FAIL", name, began, f"ended with status {status}", lane)
        elif not verdicts:
            self.verdict("FAIL", name, began, "it gave no verdict on anything", lane)
        else:
            lane.say(f"{name}: {verdicts} verdicts ({began})")

    def suites_together(self, names: List[str]) -> Callable[[Lane], None]:
        """A step of these suites, one after the other."""

        def run(lane: Lane) -> None:
            for name in names:
                if not self.stopping:
                    self.suite(name, [str(TESTS / name / "run")], lane)

        return run

    def step_of(self, name: str) -> Callable[[Lane], None]:
        """The step of this name that waits."""
        return self.oracle if name == "oracle" else self.suites_together([name])

    def steps_beside(self, names: List[str]) -> List[Callable[[Lane], None]]:
        """What needs processors and no clock: cargo's steps, and these suites. The lints come last, for they would wait
        for cargo's tests to be compiled."""
        wanted = [[name for name in together if name in names] for together in BESIDE]
        suites = [self.suites_together(together) for together in wanted if together]
        return [self.cargo_test, *suites, self.clippy]

    def work_off(self, steps: List[Callable[[Lane], None]], lane: Lane) -> None:
        """One step after the other, until none is left; others may take from the same list."""
        while not self.stopping:
            try:
                step = steps.pop(0)
            except IndexError:
                return
            try:
                step(lane)
            except Exception as error:  # nobody waits for what a thread raises
                self.tally.add("FAIL", "tests/run", f"a step beside the others ended with {error!r}")
                lane.say(traceback.format_exc())
            lane.release()

    def all_steps(self) -> None:
        """Every step that is wanted and needs the binary; what needs the processors beside what waits."""
        names = [name for name in self.suites() if self.wanted(name)]
        if not self.built:
            for name in names:
                self.tally.add("FAIL", name, "not run, there is no binary")
            names = []
        elsewhere = {name for row in [*WAITING, BEHIND, LAST, *BESIDE] for name in row}
        steps = self.steps_beside(names)
        beside = [self.worker(steps, niceness=19) for _ in range(2)]
        rows = [[name for name in row if name in [*names, "oracle"]] for row in WAITING]
        waiting = [self.worker([self.step_of(name) for name in row]) for row in rows]
        for thread in beside + waiting:
            thread.start()
        try:
            self.suites_together([name for name in names if name not in elsewhere])(self.front)
            for thread in waiting:
                thread.join()
            self.suites_together([name for name in names if name in BEHIND])(self.front)
            for thread in beside:
                thread.join()
            self.suites_together([name for name in names if name in LAST])(self.front)
        finally:
            self.stopping = True
            for child in list(self.children):
                brokers.end(child, patience=60.0)
            for thread in beside + waiting:
                thread.join()

    def worker(self, steps: List[Callable[[Lane], None]], niceness: int = 0) -> threading.Thread:
        """A lane of its own that works off these steps."""
        return threading.Thread(target=self.work_off, args=(steps, Lane(self.front.lock, niceness, holds=True)))

    def clippy(self, lane: Lane) -> None:
        """Lints of all code, tests included; a quick run does without, for it compiles everything once more."""
        if self.quick and not self.only:
            return
        command = ["cargo", "clippy", "--profile", "checked", "--locked", "--all-targets", "--", "-D", "warnings"]
        self.cargo("clippy", command, "clippy", lane)

    def oracle(self, lane: Lane) -> None:
        """RabbitMQ itself against what was recorded from it, and against the tutorial programs: so
        that what Leveret is held to stays true."""
        if not self.wanted("oracle") or (self.quick and not self.only):
            return
        self.heading("oracle: install RabbitMQ", lane)
        began = Stopwatch()
        try:
            environment.have_rabbitmq()
        except Skip as why:
            for name in ("oracle/transcript", "oracle/clients", "oracle/permissions"):
                self.verdict("SKIP", name, began, f"RabbitMQ: {why}; not compared with a live RabbitMQ", lane)
            return
        except environment.CannotInstall as why:
            self.verdict("FAIL", "oracle", began, str(why), lane)
            return
        for name in ("transcript", "clients", "permissions"):
            self.suite(f"oracle: {name}", [sys.executable, str(TESTS / name / "run.py"), "--rabbitmq"], lane)

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
        self.built = self.cargo("build", ["cargo", "build", "--release", "--locked"]) and self.have_binary()
        self.all_steps()
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
