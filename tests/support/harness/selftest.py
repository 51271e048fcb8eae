"""Tests of the harness: the codec, the list of differences, verdicts, ends of servers, and the order of steps."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Callable, List

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "compatibility")]

from harness import brokers, environment, runner, steps, wire  # noqa: E402
from harness.budgets import Budgets  # noqa: E402
from harness.quarantine import Quarantine  # noqa: E402
from harness.runner import TESTS  # noqa: E402
from harness.steps import Step  # noqa: E402
from harness.suite import Suite, Verdict, parse, patience  # noqa: E402
from transcript.differences import Differences, Hunk, hunks, show_hunk  # noqa: E402
from transcript.registry import SCENARIOS  # noqa: E402
import transcript.scenarios  # noqa: E402,F401

ROUND_TRIP_VALUES = {
    "octet": 255, "short": 65535, "long": 2**32 - 1, "longlong": 2**64 - 1, "bit": True,
    "shortstr": b"s" * 255, "longstr": b"l" * 300, "table": [(b"a", wire.Field("I", -1))],
}


def codec_methods() -> None:
    """Every method is decoded to what was encoded."""
    for spec in wire.METHODS.values():
        args = {name: ROUND_TRIP_VALUES[kind] for name, kind in spec.args}
        assert wire.decode_method(wire.encode_method(spec.name, **args)) == wire.Method(spec.name, args)


def codec_fields() -> None:
    """Every field type is decoded to what was encoded, also in nested tables."""
    values = [("t", True), ("b", -128), ("B", 255), ("s", -1), ("u", 65535), ("I", -1), ("i", 2**32 - 1), ("l", -1),
              ("L", 1), ("f", 1.5), ("d", 2.5), ("D", (2, 314)), ("S", b"x"), ("x", b"\xff"), ("T", 2**64 - 1),
              ("V", None)]
    pairs = [(kind.encode(), wire.Field(kind, value)) for kind, value in values]
    pairs += [(b"F", wire.Field("F", list(pairs))), (b"A", wire.Field("A", [item for _, item in pairs]))]
    data = wire.table([(name.decode(), item) for name, item in pairs])
    assert wire.Reader(data).table() == pairs


def codec_content() -> None:
    """Bodies are split at the frame size, and empty bodies have no frame."""
    buffer = bytearray(wire.content(1, b"x" * 9000, frame_max=4096))
    assert [len(frame.payload) for frame in wire.split_frames(buffer)] == [14, 4088, 4088, 824]
    assert not buffer
    assert len(list(wire.split_frames(bytearray(wire.content(1, b""))))) == 1
    header = wire.decode_header(wire.encode_header(5, {"headers": {}, "type": b"t"}))
    assert header == wire.Header(60, 0, 5, {"headers": [], "type": b"t"})


def differences() -> None:
    """Listed differences pass, others fail, and a listed difference that does not occur is reported."""
    found = hunks(["a", "b", "c", "d"], ["a", "B", "c", "d", "e"])
    assert found == [Hunk(("b",), ("B",)), Hunk((), ("e",))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        path.write_text("# remark\n" + show_hunk("s", found[0]).replace("reason: ", "reason: because")
                        + "\n" + show_hunk("s", Hunk(("x",), ("y",))).replace("reason: ", "reason: why not"))
        listed = Differences.read(path)
        assert listed.check("s", found) == ([found[1]], [Hunk(("x",), ("y",))])
        assert listed.check("other", found) == (found, [])
        path.write_text(show_hunk("s", found[0]))
        try:
            Differences.read(path)
        except ValueError as why:
            assert "no reason" in str(why)
        else:
            raise AssertionError("an entry without a reason was accepted")


def recordings() -> None:
    """Every scenario has a complete recording, and every recording has a scenario."""
    folder = brokers.ROOT / "tests" / "compatibility" / "transcript" / "recorded"
    assert {path.stem for path in folder.glob("*.txt")} == set(SCENARIOS)
    for path in folder.glob("*.txt"):
        text = path.read_text()
        assert "THE SCRIPT STOPPED" not in text and "DID NOT LET US" not in text, path.name
    listed = Differences.read(folder.parent / "differences.txt").entries
    assert set(listed) <= set(SCENARIOS), "a difference is listed for a scenario that does not exist"


def verdict_lines() -> None:
    """Lines are recognised as verdicts or not."""
    assert parse("PASS a/b (1.0 s)\n") == Verdict("PASS", "a/b", "(1.0 s)")
    assert parse("FAIL a: because: of this") == Verdict("FAIL", "a", "because: of this")
    assert parse("SKIP a: b") == Verdict("SKIP", "a", "b")
    for line in ("PASSED a", " PASS a", "# PASS a", "PASS", "test PASS a"):
        assert parse(line) is None, line


def ending_servers() -> None:
    """A server that ignores SIGTERM is ended together with its children."""
    script = "trap '' TERM; sleep 300 & echo $!; wait; wait"
    child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    brokers.end(child, patience=0.2)
    deadline = time.monotonic() + patience(5)
    while Path(f"/proc/{grandchild}").exists() and "Z" not in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the grandchild still runs"
        time.sleep(0.05)


def stopwatch() -> None:
    """The processor time of a child is recorded, except if the child was already reaped."""
    for taken_away in (False, True):
        child = subprocess.Popen(["sh", "-c", "i=0; while [ $i -lt 99999 ]; do i=$((i+1)); done; exit 3"])
        watch = runner.Stopwatch()
        if taken_away:
            child.wait()
        assert watch.wait_for(child) == 3
        assert (watch.cpu_seconds is None) == taken_away and (watch.cpu_seconds or 1) > 0


def table_of_steps() -> None:
    """Every suite has a row, an invalid row is refused, and a changed file finds the steps that cover it."""
    table = steps.read(TESTS / "steps.toml")
    assert not steps.unlisted(table, TESTS), steps.unlisted(table, TESTS)
    assert not any(step.alone for step in table.values() if step.gate)
    assert all(step.about for step in table.values())
    # The packages of ARM are tested with the binaries that `arm` builds.
    assert table["packages"].after == "arm"
    installs = {name for step in table.values() for name in step.installs}
    assert installs <= set(environment.INSTALLS), installs - set(environment.INSTALLS)
    covering = steps.covering(table.values(), ["src/amqp/frame.rs", "tests/system/tls/listeners.py", "src/server/bridges.rs"])
    assert {"amqp", "layers", "simulator"} <= set(covering["src/amqp/frame.rs"]), covering
    assert "bridge" in covering["src/server/bridges.rs"] and "tls" not in covering["src/server/bridges.rs"], covering
    assert covering["tests/system/tls/listeners.py"] == ["layers", "tls"], covering
    everything = steps.covering(table.values(), ["tests/support/harness/raw.py", "Cargo.lock"])
    gate = {step.name for step in table.values() if step.gate}
    assert all(gate <= set(names) for names in everything.values()), everything
    for wrong in ('[suite.a]\nbinary = "debug"', "[suite.a]\ngate = true\nalone = true", '[suite.a]\nafter = "b"',
                  "[suite.a]\n[cargo.a]", '[suite.a]\nafter = "a"', "[suite.a]\nsecond = 1"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "steps.toml"
            path.write_text(wrong)
            refuses(lambda: steps.read(path), wrong)


def refuses(what: Callable[[], object], about: str) -> None:
    """Checks that a call raises `ValueError`."""
    try:
        what()
    except ValueError:
        return
    raise AssertionError(f"{about} was accepted")


def quarantined(text: str) -> Quarantine:
    """Reads a quarantine file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quarantine.toml"
        path.write_text(text)
        return Quarantine(path)


def quarantine() -> None:
    """The failure of a quarantined case is a skip, its success passes, and an eleventh case is refused."""
    case = '[[case]]\nname = "a/{}"\nreason = "why"\nsince = 2026-01-01\nuntil = 2026-02-01\n'
    tally = runner.Tally(quarantined(case.format("b")))
    tally.add("FAIL", "a/b", "because")
    tally.add("PASS", "a/b")
    assert (tally.passed, tally.failed, tally.skipped) == (1, 0, 1) and "quarantined: why" in tally.notable[0]
    tally.add("FAIL", "a/c")
    assert tally.failed == 1
    assert tally.quarantine.overdue(date(2026, 2, 1)) == [] and tally.quarantine.overdue(date(2026, 2, 2))
    refuses(lambda: quarantined("".join(case.format(number) for number in range(11))), "an eleventh case")
    refuses(lambda: quarantined(case.format("b").replace("2026-02", "2025-02")), "a case that was over before it began")
    Quarantine(TESTS / "quarantine.toml")


def budget() -> None:
    """A cost fails if it exceeds its measured value by more than the slack, or its maximum."""
    budgets = Budgets({"bytes": 100}, {"count": 1_000}, 0.1)
    for name, value in (("bytes", 100), ("count", 1_100), ("count", 10)):
        budgets.judge(name, value)
    for name, value in (("bytes", 101), ("count", 1_101), ("nothing", 1)):
        try:
            budgets.judge(name, value)
        except AssertionError:
            continue
        raise AssertionError(f"{name} of {value} passed")
    Budgets.read()


def outcome(script: str, again: str = "exit 1") -> "tuple[int, int, List[str]]":
    """Runs a suite that executes `script`, or `again` if it gets cases as arguments. Returns the number of passed and
    failed cases, and the lines about them.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "group" / "suite" / "run"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\nif [ $# = 0 ]; then {script}; else {again}; fi\n")
        path.chmod(0o755)
        tests, runner.TESTS = runner.TESTS, Path(folder)
        try:
            run = runner.Runner({}, "gate", quarantined(""))
            with contextlib.redirect_stdout(io.StringIO()):
                run.suite(Step("suite", retry=True, binary="none"))()
        finally:
            runner.TESTS = tests
        return run.tally.passed, run.tally.failed, run.tally.notable


def tried_again() -> None:
    """A case that fails once and then passes is reported as flaky. Any other failure counts, and only once."""
    fails = "echo PASS s/a; echo FAIL s/b: x; exit 1"
    passed, failed, notable = outcome(fails, "echo PASS s/b")
    assert (passed, failed) == (2, 0) and notable[0].startswith("FLAKY s/b"), notable
    for again in ("echo FAIL s/b: x; exit 1", "exit 2", "echo SKIP s/b: no", "echo FAIL s/start: no; exit 1",
                  "echo PASS s/c", "echo PASS s/b; exit 1", "echo PASS s/b; kill -9 $$"):
        assert outcome(fails, again)[:2] == (1, 1), again


def ended_badly() -> None:
    """A suite that breaks off is one more failure, and none of its cases is tried again."""
    good = "echo PASS s/a"
    assert outcome(good)[:2] == (1, 0)
    for script in ("echo PASS s/a; exit 1", "echo PASS s/a; kill -9 $$", "echo PASS s/a; echo ' FAIL s/b'",
                   "echo PASS s/a; echo 'FAIL  s/b: two blanks'"):
        passed, failed, notable = outcome(script, "echo PASS s/a")
        assert (passed, failed) == (1, 1) and notable[0].startswith("FAIL suite: "), (script, notable)
    broken = "echo PASS s/a; echo FAIL s/b: x; echo 'Traceback (most recent call last):'; echo KeyError; exit 1"
    assert outcome(broken, "echo PASS s/b")[:2] == (1, 2)
    assert outcome("echo nothing")[:2] == (0, 1)


def programs_of_cargo() -> None:
    """A test program that dies has failed, whichever test it printed before."""
    result = "test result: FAILED. {} passed; {} failed; 0 ignored"
    for said, status, wanted in (
        ("test result: ok. 2 passed; 0 failed; 0 ignored", 0, (2, 0)),
        ("test result: ok. 0 passed; 0 failed; 0 ignored", 0, (0, 1)),
        ("test b ... FAILED\n" + result.format(1, 1), 101, (1, 1)),
        ("test b ... FAILED", 134, (0, 2)),
        ("test b ... FAILED\n" + result.format(7, 2), 101, (7, 2)),
        ("", 1, (0, 1)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {status}\n")
            program.chmod(0o755)
            run = runner.Runner({}, "gate", quarantined(""))
            run.programs["it"] = runner.Program(str(program), folder)
            with contextlib.redirect_stdout(io.StringIO()):
                run.test_program(Step("it", is_cargo=True, retry=True))()
            assert (run.tally.passed, run.tally.failed) == wanted, (said, run.tally.notable)


def order_of_a_run() -> None:
    """A step fails if its build fails, waits for its predecessor, and runs once."""
    run = runner.Runner({}, "gate", quarantined(""))
    begun: List[str] = []
    lock = threading.Lock()

    def item(name: str, **more: str) -> runner.Item:
        def work() -> None:
            with lock:
                begun.append(name)
            if name.startswith("build"):
                with run.lock:
                    run.built[name[6:]] = name == "build-good"

        return runner.Item(name, work, **more)

    def dies() -> None:
        raise OSError("no space")

    with contextlib.redirect_stderr(io.StringIO()):
        run.work_off([runner.Item("build-ugly", dies), item("waits", needs="ugly")])
    assert [line.split(":")[0] for line in run.tally.notable] == ["FAIL build-ugly", "FAIL waits"], run.tally.notable
    run.tally.notable.clear()
    run.work_off([item("after", after="first"), item("needs", needs="good"), item("lost", needs="bad"),
                  item("build-bad"), item("first"), item("build-good"), item("alone", after="nobody")])
    assert sorted(begun) == ["after", "alone", "build-bad", "build-good", "first", "needs"], begun
    assert begun.index("first") < begun.index("after") and begun.index("build-good") < begun.index("needs")
    assert run.tally.notable == ["FAIL lost: not run, it does not compile"], run.tally.notable


def unreachable_index() -> None:
    """An index that does not answer is distinguished from a failed installation."""
    tries, environment.TRIES = environment.TRIES, 1
    try:
        for text, kind in [("WARNING: Retrying (Retry(total=0))", environment.Unreachable),
                           ("E: Unable to locate package x", environment.CannotInstall)]:
            try:
                environment.attempt(["sh", "-c", f"echo '{text}'; exit 1"], "it")
            except kind:
                continue
            raise AssertionError(f"{text} was not recognised as {kind.__name__}")
    finally:
        environment.TRIES = tries


def help_lists_steps() -> None:
    """`tests/run --help` lists every step with its folder."""
    done = subprocess.run([str(TESTS / "run"), "--help"], stdout=subprocess.PIPE, text=True, check=True)
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.split("suites:")[1].splitlines() if line.startswith("  ")}
    assert rows.keys() == steps.read(TESTS / "steps.toml").keys(), rows.keys()
    missing = [folder for folder in rows.values() if not (brokers.ROOT / folder).exists()]
    assert not missing, missing


def no_install() -> None:
    """With `LEVERET_NO_INSTALL`, apt is not started, and a missing program is a skip that names its package."""
    begun: List[List[str]] = []
    attempt, environment.attempt = environment.attempt, lambda command, *_, **__: begun.append(command)
    os.environ[environment.NO_INSTALL] = "1"
    try:
        environment.have("sh")
        for install in (lambda: environment.have("leveret-no-such-program", "package-x"), lambda: environment.apt_install("package-x")):
            try:
                install()
            except environment.NotInstalled as why:
                assert "package-x" in str(why) and not begun, (why, begun)
                continue
            raise AssertionError("a package was installed")
    finally:
        del os.environ[environment.NO_INSTALL]
        environment.attempt = attempt


def announced_on_the_output() -> None:
    """A line of a suite is on the output of the run at once, and not in another file with the same descriptor number."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as other:
        os.environ[environment.OUTPUT] = environment.described(output.fileno())
        try:
            environment.announce("first")
            os.environ[environment.OUTPUT] = f"{other.fileno()}:" + environment.described(output.fileno()).split(":", 1)[1]
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                environment.announce("second")
        finally:
            del os.environ[environment.OUTPUT]
        assert (os.pread(output.fileno(), 99, 0), os.pread(other.fileno(), 99, 0)) == (b"first\n", b"")
        assert printed.getvalue() == "# second\n"


def main() -> int:
    """Runs all cases."""
    suite = Suite("harness", sys.argv[1:])
    for case in (codec_methods, codec_fields, codec_content, differences, recordings, verdict_lines, ending_servers,
                 stopwatch, table_of_steps, quarantine, budget, tried_again, ended_badly,
                 programs_of_cargo, order_of_a_run, unreachable_index, help_lists_steps, no_install, announced_on_the_output):
        suite.case(case.__name__.replace("_", "-"), case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
