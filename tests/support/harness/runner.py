"""Runs steps: Cargo test programs and the suites in `tests/steps.toml`.

A suite is an executable `tests/GROUP/NAME/run`. It runs in the root of the project. Its arguments are the cases to run;
without arguments it runs all. Its environment:

    LEVERET_TEST_MODE   gate or full
    LEVERET_BIN         the program under test
    LEVERET_PATIENCE    the factor of all timeouts
    LEVERET_LEFT_OUT    cases that it leaves out if it has no arguments
    LEVERET_NO_INSTALL  if set, apt must not be used

It prints one line per case:

    PASS name
    FAIL name: why
    SKIP name: what was not tested, and why

Other lines are remarks. A suite without a verdict, or with an exit code other than 0 and no FAIL line, has failed.

Some workers run the steps. A step begins when the program that it needs is compiled. Steps that measure time are not in
the gate; they run one at a time after all others.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from harness import brokers, cache, environment
from harness.quarantine import Quarantine
from harness.steps import Step, suite_of
from harness.suite import Skip, Verdict, parse

ROOT = brokers.ROOT
TESTS = ROOT / "tests"
TARGET = (ROOT / os.environ.get("CARGO_TARGET_DIR", "target")).resolve()
# One more than the number of processors: one worker usually waits for a disk, a timer or a browser.
WORKERS = 3
# A busy machine needs longer timeouts; a hang is still detected.
PATIENCE = "6"
# Environment variables of tests that a run inherits, and the prefix of all of them.
HEEDED = ["LEVERET_PATIENCE", "LEVERET_CACHE", environment.NO_INSTALL]
NOT_HEEDED = ("LEVERET_", "PROPTEST_", "RUST_LOG", "RUST_TEST", "RUST_BACKTRACE", "PYTHON", "GIT_", "TRANSACTION_MESSAGES",
              "CARGO_BUILD_TARGET")
# Maximum number of cases that may need a second attempt before the run fails.
FLAKY_MAX = 5
CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
# Matches a failure that is not in the format of a verdict.
UNREAD = re.compile(r"^\W*FAIL\b")
CARGO_FAILED = re.compile(r"^test (.+?) \.\.\. FAILED$", re.MULTILINE)
STEP_LIMIT_S = {"gate": 20 * 60, "full": 60 * 60}


class Tally:
    """The numbers of verdicts, and the names of cases that did not pass."""

    def __init__(self, quarantine: Quarantine) -> None:
        self.lock = threading.Lock()
        self.quarantine = quarantine
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.flakies = 0
        self.notable: List[str] = []

    def add(self, kind: str, name: str, detail: str = "", count: int = 1) -> None:
        """Adds one verdict, or `count` verdicts."""
        with self.lock:
            if kind == "PASS":
                self.passed += count
                return
            if kind == "FAIL" and name in self.quarantine.cases:
                kind, detail = "SKIP", f"quarantined: {self.quarantine.cases[name].reason}"
            if kind == "FAIL":
                self.failed += count
            else:
                self.skipped += count
            self.notable.append(f"{kind} {name}" + (f": {detail}" if detail else ""))

    def flaky(self, name: str) -> None:
        """Adds a case that passed at its second attempt."""
        with self.lock:
            self.passed += 1
            self.flakies += 1
            self.notable.append(f"FLAKY {name}: it passed when it was tried once more")

    def close(self) -> int:
        """Prints the summary. Returns the exit status."""
        if self.flakies > FLAKY_MAX:
            self.add("FAIL", "flaky", f"{self.flakies} cases needed a second try, more than {FLAKY_MAX}")
        overdue = self.quarantine.overdue(datetime.date.today())
        for line in [*self.notable, *(f"OVERDUE {line}" for line in overdue)]:
            print(line)
        print()
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        return 1 if self.failed or not self.passed else 0


class Stopwatch:
    """The duration of a step, and its processor time, which does not depend on the load of the machine."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.cpu_seconds: Optional[float] = None

    def wait_for(self, child: "subprocess.Popen[str]") -> int:
        """Waits for a child and returns its exit status. Records its processor time with that of its children, unless
        it has already been reaped.
        """
        with contextlib.suppress(ChildProcessError, FileNotFoundError, ProcessLookupError):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            # utime, stime, cutime and cstime: fields 14 to 17 of proc(5); the third is the first here.
            took = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            self.cpu_seconds = took + (self.cpu_seconds or 0.0)
        return child.wait()

    def seconds(self) -> float:
        """Returns the duration so far."""
        return time.monotonic() - self.began

    def __str__(self) -> str:
        clock = f"{self.seconds():.0f} s"
        return clock if self.cpu_seconds is None else f"{clock}, {self.cpu_seconds:.0f} s of a processor"


class Done(NamedTuple):
    """The result of a command: exit status and output."""

    status: int
    said: str
    is_late: bool


class Item(NamedTuple):
    """A piece of work for a worker. It begins when its build exists and its predecessor has ended."""

    name: str
    work: Callable[[], None]
    needs: str = "none"
    after: str = ""


class Program(NamedTuple):
    """A Cargo test program, and the folder that it runs in."""

    path: str
    folder: str


class Runner:
    """One run of some steps."""

    def __init__(self, steps: Dict[str, Step], mode: str, quarantine: Quarantine) -> None:
        self.steps = steps
        self.mode = mode
        self.began = time.monotonic()
        self.tally = Tally(quarantine)
        # A variable that was set for an investigation does not change a verdict.
        heeded = HEEDED if mode == "gate" else [*HEEDED, "LEVERET_CHANCE_SEED"]
        kept = {name: value for name, value in os.environ.items() if name in heeded or not name.startswith(NOT_HEEDED)}
        local = ",".join(filter(None, [kept.get("no_proxy", ""), "127.0.0.1,localhost"]))
        self.environment = {
            **kept, "LEVERET_TEST_MODE": mode, "PYTHONDONTWRITEBYTECODE": "1", "CARGO_TERM_COLOR": "never",
            "CARGO_TARGET_DIR": str(TARGET), "no_proxy": local, "NO_PROXY": local,
        }
        self.environment.setdefault("LEVERET_PATIENCE", PATIENCE)
        # The same seed in every run. Property tests read it from the variable of their library.
        chance = self.environment.setdefault("LEVERET_CHANCE_SEED", "1")
        self.environment["PROPTEST_RNG_SEED"] = chance
        # The library would otherwise record failed cases and repeat them first, in this folder only.
        self.environment["PROPTEST_DISABLE_FAILURE_PERSISTENCE"] = "1"
        # Suites announce installations on the output of this run.
        self.output = os.dup(1)
        self.environment[environment.OUTPUT] = environment.described(self.output)
        self.built: Dict[str, bool] = {"none": True}
        self.programs: Dict[str, Program] = {}
        self.times: List[str] = []
        self.children: List["subprocess.Popen[str]"] = []
        self.lock = threading.Condition()
        self.printing = threading.Lock()
        self.stopping = False

    # -- commands

    def run(self, command: List[str], watch: Stopwatch, limit_s: float = 3600.0, cwd: Optional[Path] = None,
            **variables: str) -> Done:
        """Runs a command to its end. It is ended with this run, or when it exceeds its time limit."""
        if self.stopping:
            raise InterruptedError("the run has ended")
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = subprocess.Popen(command, cwd=cwd or ROOT, env={**self.environment, **variables}, text=True,
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                     start_new_session=True, pass_fds=[self.output])
            self.children.append(child)
            is_late = threading.Event()

            def give_up() -> None:
                is_late.set()
                brokers.end(child, patience=60.0)

            late = threading.Timer(limit_s, give_up)
            late.start()
            try:
                status = watch.wait_for(child)
            finally:
                late.cancel()
                self.children.remove(child)
                # An interrupted suite ends its servers; it needs the time to do so.
                brokers.end(child, patience=60.0)
            log.seek(0)
            return Done(status, log.read(), is_late.is_set())

    def tell(self, name: str, lines: List[str], watch: Stopwatch) -> None:
        """Prints the output of a step in one piece."""
        if self.stopping:
            return
        minute = (time.monotonic() - self.began) / 60
        with self.printing:
            print(f"\n== {name} ({watch}; minute {minute:.0f})")
            for line in lines:
                print(line)
            self.times.append(f"{watch.seconds():6.0f} s  {watch.cpu_seconds or 0:6.0f} s of a processor  {name}")
            # Output is visible at once.
            print(end="", flush=True)

    def verdict(self, kind: str, name: str, detail: str = "") -> str:
        """Counts a verdict of the runner, and returns its line."""
        self.tally.add(kind, name, detail)
        return f"{kind} {name}" + (f": {detail}" if detail else "")

    # -- cargo

    def checked_by(self, name: str, command: List[str], component: str = "") -> Callable[[], None]:
        """Returns a step that runs one Cargo command. A component that is not installed is a skip."""
        def work() -> None:
            watch = Stopwatch()
            if component and self.run(["cargo", component, "--version"], watch).status != 0:
                why = f"cargo {component} is not installed; {name} was not checked"
                return self.tell(name, [self.verdict("SKIP", name, why)], watch)
            done = self.run(command, watch)
            if done.status == 0:
                return self.tell(name, [self.verdict("PASS", name)], watch)
            self.tell(name, [done.said, self.verdict("FAIL", name, " ".join(command))], watch)

        return work

    def build(self, profile: str, command: List[str]) -> Callable[[], None]:
        """Returns a step that compiles a profile, which other steps wait for."""
        def work() -> None:
            watch = Stopwatch()
            done = self.run(command, watch)
            is_built = done.status == 0
            lines = [] if is_built else [line for line in done.said.splitlines() if not line.startswith("{")]
            if is_built and "json" in command[-1]:
                self.note_programs(done.said)
            name = f"build-{profile}"
            lines.append(self.verdict("PASS" if is_built else "FAIL", name, "" if is_built else " ".join(command)))
            self.tell(name, lines, watch)
            with self.lock:
                self.built[profile] = is_built

        return work

    def note_programs(self, said: str) -> None:
        """Records the test programs that Cargo built: the name of a test program, or of the package of unit tests."""
        for line in said.splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("executable") and message["profile"]["test"]:
                is_test = "test" in message["target"]["kind"]
                name = message["target"]["name"] if is_test else message["target"]["name"].replace("_", "-")
                self.programs[name] = Program(message["executable"], str(Path(message["manifest_path"]).parent))

    def test_program(self, step: Step) -> Callable[[], None]:
        """Returns a step that runs a Cargo test program and counts each test."""
        def work() -> None:
            watch = Stopwatch()
            program = self.programs.get(step.name)
            if program is None:
                return self.tell(step.name, [self.verdict("FAIL", step.name, "cargo made no such program")], watch)
            options = ["--include-ignored"] if self.mode == "full" else []
            done = self.run([program.path, *options], watch, STEP_LIMIT_S[self.mode], Path(program.folder))
            results = CARGO_RESULT.findall(done.said)
            passed, failed, ignored = (sum(int(result[at]) for result in results) for at in range(3))
            names = CARGO_FAILED.findall(done.said)
            self.tally.add("PASS", step.name, count=passed)
            lines = [] if done.status == 0 else [done.said]
            # If the program died, that is more important than the failed test.
            why = ""
            if done.is_late:
                why = f"no end after {STEP_LIMIT_S[self.mode]} s"
            elif done.status not in (0, 101) or not results or failed != len(names):
                why = f"it ended with status {done.status}, {len(results)} results and {len(names)} named failures"
            elif not passed and not failed:
                why = "no test was run"
            if why:
                lines.append(self.verdict("FAIL", step.name, why))
            for name in names:
                if step.retry and not why and self.passes_now(program, name, watch):
                    self.tally.flaky(f"{step.name}/{name}")
                    lines.append(f"FLAKY {step.name}/{name}")
                else:
                    lines.append(self.verdict("FAIL", f"{step.name}/{name}"))
            beyond = f", {ignored} are for --full" if ignored else ""
            self.tell(step.name, [*lines, f"{step.name}: {passed} passed, {failed} failed{beyond}"], watch)

        return work

    def passes_now(self, program: Program, name: str, watch: Stopwatch) -> bool:
        """Runs a failed test once more. Returns whether it passes."""
        command = [program.path, "--exact", name, "--include-ignored"]
        done = self.run(command, watch, STEP_LIMIT_S["gate"], Path(program.folder))
        return done.status == 0 and [result[0] for result in CARGO_RESULT.findall(done.said)] == ["1"]

    # -- suites

    def suite(self, step: Step, command: Optional[List[str]] = None) -> Callable[[], None]:
        """Returns a step that runs a suite and counts its verdicts."""
        def work() -> None:
            watch = Stopwatch()
            cases = step.cases_in_gate() if self.mode == "gate" else []
            path = command or [str(suite_of(TESTS, step.name))]
            lines, verdicts, why = self.verdicts_of(step, [*path, *cases], watch)
            failed = {verdict.name: verdict for verdict in verdicts if verdict.kind == "FAIL"}
            again = sorted({name.rsplit("/", 1)[-1] for name in failed}) if step.retry and not why and not command else []
            passed_now = set()
            if again:
                _, tried, still = self.verdicts_of(step, [*path, *again], watch)
                # A case that did not report PASS by its name, in a run that otherwise passed, did not pass.
                passed_now = {verdict.name for verdict in tried if verdict.kind == "PASS" and not still}
            for verdict in verdicts:
                if verdict.name in failed and verdict.name in passed_now:
                    self.tally.flaky(verdict.name)
                    lines.append(f"FLAKY {verdict.name}")
                else:
                    self.tally.add(verdict.kind, verdict.name, verdict.detail)
            if why:
                lines.append(self.verdict("FAIL", step.name, why))
            self.tell(step.name, lines, watch)

        return work

    def verdicts_of(self, step: Step, command: List[str], watch: Stopwatch) -> Tuple[List[str], List[Verdict], str]:
        """Runs a suite. Returns its output, its verdicts, and an error if it ended in an invalid way."""
        binary = str(TARGET / step.binary / "leveret") if step.binary != "none" else ""
        without = " ".join(step.gate_without) if self.mode == "gate" else ""
        done = self.run(command, watch, STEP_LIMIT_S[self.mode], LEVERET_BIN=binary, LEVERET_LEFT_OUT=without)
        lines = done.said.splitlines()
        parsed = [parse(line) for line in lines]
        verdicts = [verdict for verdict in parsed if verdict]
        has_failed = any(verdict.kind == "FAIL" for verdict in verdicts)
        last = max((at for at, verdict in enumerate(parsed) if verdict), default=-1)
        unread = [line for line, verdict in zip(lines, parsed) if not verdict and UNREAD.match(line)]
        if done.is_late:
            why = f"no end after {STEP_LIMIT_S[self.mode]} s"
        elif not verdicts:
            why = f"it gave no verdict on anything, and ended with status {done.status}"
        elif unread:
            why = f"no such verdict can be read: {unread[0]}"
        elif any(line.startswith("Traceback (most recent call last)") for line in lines[last + 1:]):
            why = f"it broke off: {lines[-1]}"
        elif done.status < 0 or (done.status != 0 and not has_failed):
            why = f"it ended with status {done.status}"
        else:
            why = ""
        return lines, verdicts, why

    def oracle(self) -> None:
        """Compares RabbitMQ itself with the recordings, and runs the tutorial programs against it."""
        watch = Stopwatch()
        try:
            environment.have_rabbitmq()
        except Skip as why:
            return self.tell("oracle", [self.verdict("SKIP", "oracle", f"RabbitMQ: {why}; nothing was compared")], watch)
        except environment.CannotInstall as why:
            return self.tell("oracle", [self.verdict("FAIL", "oracle", str(why))], watch)
        for name in ("transcript", "clients", "permissions"):
            self.suite(Step(f"oracle-{name}"), [str(suite_of(TESTS, name)), "--rabbitmq"])()

    def install(self, wanted: List[str]) -> None:
        """Installs what the steps need. A suite reports a `SKIP` for each case that lacks something."""
        watch = Stopwatch()
        lines = []
        for name in wanted:
            try:
                environment.INSTALLS[name]()
            except (Skip, environment.CannotInstall) as why:
                lines.append(f"# {name}: {why}")
        self.tell("install", lines, watch)

    # -- the order of steps

    def work_off(self, items: List[Item]) -> None:
        """Runs the items with some workers. Each takes the first item that can begin, until none is left."""
        left, done = list(items), set()

        def pick() -> Optional[Item]:
            with self.lock:
                while left and not self.stopping:
                    for item in left:
                        if item.needs in self.built and (not item.after or item.after in done):
                            left.remove(item)
                            return item
                    self.lock.wait()
                return None

        def worker() -> None:
            while item := pick():
                try:
                    if self.built[item.needs]:
                        item.work()
                    else:
                        self.tally.add("FAIL", item.name, "not run, it does not compile")
                except Exception as error:  # an exception of a thread would be lost
                    self.tally.add("FAIL", item.name, f"the runner ended with {error!r}")
                    traceback.print_exc()
                with self.lock:
                    done.add(item.name)
                    if item.name.startswith("build-"):
                        self.built.setdefault(item.name[len("build-"):], False)
                    self.lock.notify_all()

        # A step whose predecessor is not in this run need not wait.
        names = {item.name for item in items}
        left = [item if item.after in names else item._replace(after="") for item in items]
        workers = [threading.Thread(target=worker) for _ in range(WORKERS)]
        try:
            for thread in workers:
                thread.start()
            for thread in workers:
                thread.join()
        except BaseException:
            with self.lock:
                self.stopping = True
                self.lock.notify_all()
            for child in list(self.children):
                brokers.end(child, patience=60.0)
            for thread in workers:
                thread.join()
            raise

    def items(self, wanted: List[Step], extras: List[str]) -> List[Item]:
        """Returns the items for these steps and extras (fmt, clippy, doc, oracle)."""
        steps = sorted((step for step in wanted if not step.alone), key=lambda step: -step.seconds)
        locked = ["--locked", "--profile", "checked"]
        needs = {"checked" if step.is_cargo else step.binary for step in wanted}
        programs = [step for step in wanted if step.is_cargo]
        items = []
        if "checked" in needs or {"clippy", "doc"} & set(extras):
            # Without its tests the program is compiled in a third of the time.
            command = ["cargo", "build", *locked] if not programs else ["cargo", "test", *locked, "--workspace", "--no-run"]
            items.append(Item("build-checked", self.build("checked", [*command, "--message-format=json"])))
        if "release" in needs:
            items.append(Item("build-release", self.build("release", ["cargo", "build", "--locked", "--release"])))
        if "fmt" in extras:
            items.append(Item("fmt", self.checked_by("fmt", ["cargo", "fmt", "--all", "--check"], "fmt")))
        items += [Item(step.name, self.test_program(step), "checked", step.after) for step in steps if step.is_cargo]
        if "clippy" in extras:
            # After the build, because cargo runs only one command in a folder at a time.
            command = ["cargo", "clippy", *locked, "--workspace", "--all-targets", "--", "-D", "warnings"]
            items.append(Item("clippy", self.checked_by("clippy", command, "clippy"), "checked"))
        if "doc" in extras:
            command = ["cargo", "test", *locked, "--doc", "--package", "leveret-storage"]
            items.append(Item("doc", self.checked_by("doc", command), "checked", "clippy"))
        items += [Item(step.name, self.suite(step), step.binary, step.after) for step in steps if not step.is_cargo]
        if "oracle" in extras:
            items.append(Item("oracle", self.oracle))
        return items

    def fetch(self) -> bool:
        """Downloads the crates. Returns whether they are complete; without them nothing can be tested."""
        watch = Stopwatch()
        for number in range(environment.TRIES):
            done = self.run(["cargo", "fetch", "--locked"], watch)
            if done.status == 0:
                return True
            time.sleep(5 * (number + 1))
        if self.run(["cargo", "fetch", "--locked", "--offline"], watch).status == 0:
            return True
        if any(sign in done.said for sign in (*environment.UNREACHABLE_SIGNS, "failed to download", "spurious")):
            line = self.verdict("SKIP", "everything", "the crate registry did not answer; nothing was built")
        else:
            line = self.verdict("FAIL", "cargo-fetch", "cargo fetch --locked")
        self.tell("fetch", [done.said, line], watch)
        return False

    def close(self) -> int:
        """Prints the longest steps and the summary."""
        print(f"\n== the longest steps (in total {(time.monotonic() - self.began) / 60:.1f} minutes)")
        for line in sorted(self.times, reverse=True)[:12]:
            print(line)
        print()
        return self.tally.close()

    def work(self, wanted: List[Step], extras: List[str]) -> int:
        """Runs everything. Returns the exit status."""
        if not self.fetch():
            return self.close()
        objects, has_come = cache.Objects(ROOT, TARGET), False
        with cache.costs_only_time():
            has_come = objects.bring()
        print("compiled dependencies: " + ("from the cache" if has_come else "those in the target folder, or none"))
        installs = sorted({name for step in wanted for name in step.installs})
        if installs:
            self.install(installs)
        self.work_off(self.items(wanted, extras))
        for step in wanted:
            if step.alone and self.built.get(step.binary):
                self.suite(step)()
            elif step.alone:
                self.tally.add("FAIL", step.name, "not run, it does not compile")
        strange = sorted(set(self.programs) - set(self.steps)) if self.mode == "gate" else []
        for name in strange:
            self.tally.add("FAIL", name, "cargo made this program of tests, and tests/steps.toml has no row for it")
        with cache.costs_only_time():
            if self.built.get("checked") and self.built.get("release"):
                objects.keep(own_packages())
        return self.close()


def own_packages() -> List[str]:
    """Returns the names of the packages of the workspace."""
    said = subprocess.run(["cargo", "metadata", "--offline", "--no-deps", "--format-version", "1"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
    return [package["name"] for package in json.loads(said)["packages"]]
