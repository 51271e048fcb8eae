"""Tests of the test harness: the codec, the list of differences, verdict lines, ending servers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import brokers, environment, runner, wire  # noqa: E402
from harness.suite import Suite, Verdict, parse, patience  # noqa: E402
from transcript.differences import Differences, Hunk, hunks, show_hunk  # noqa: E402
from transcript.registry import SCENARIOS  # noqa: E402
import transcript.scenarios  # noqa: E402,F401

ROUND_TRIP_VALUES = {
    "octet": 255, "short": 65535, "long": 2**32 - 1, "longlong": 2**64 - 1, "bit": True,
    "shortstr": b"s" * 255, "longstr": b"l" * 300, "table": [(b"a", wire.Field("I", -1))],
}


def codec_methods() -> None:
    """Every method comes out as it went in."""
    for spec in wire.METHODS.values():
        args = {name: ROUND_TRIP_VALUES[kind] for name, kind in spec.args}
        assert wire.decode_method(wire.encode_method(spec.name, **args)) == wire.Method(spec.name, args)


def codec_fields() -> None:
    """Every field type, nested too."""
    values = [("t", True), ("b", -128), ("B", 255), ("s", -1), ("u", 65535), ("I", -1), ("i", 2**32 - 1), ("l", -1),
              ("L", 1), ("f", 1.5), ("d", 2.5), ("D", (2, 314)), ("S", b"x"), ("x", b"\xff"), ("T", 2**64 - 1),
              ("V", None)]
    pairs = [(kind.encode(), wire.Field(kind, value)) for kind, value in values]
    pairs += [(b"F", wire.Field("F", list(pairs))), (b"A", wire.Field("A", [item for _, item in pairs]))]
    data = wire.table([(name.decode(), item) for name, item in pairs])
    assert wire.Reader(data).table() == pairs


def codec_content() -> None:
    """Bodies are split at the frame size, empty ones have no frame."""
    buffer = bytearray(wire.content(1, b"x" * 9000, frame_max=4096))
    assert [len(frame.payload) for frame in wire.split_frames(buffer)] == [14, 4088, 4088, 824]
    assert not buffer
    assert len(list(wire.split_frames(bytearray(wire.content(1, b""))))) == 1
    header = wire.decode_header(wire.encode_header(5, {"headers": {}, "type": b"t"}))
    assert header == wire.Header(60, 0, 5, {"headers": [], "type": b"t"})


def differences() -> None:
    """Listed ones pass, others do not, and a listed one that does not occur is told."""
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
            raise AssertionError("an entry without a reason was taken")


def recordings() -> None:
    """Every scenario is recorded to its end, and nothing is recorded that is no scenario."""
    folder = brokers.ROOT / "tests" / "transcript" / "recorded"
    assert {path.stem for path in folder.glob("*.txt")} == set(SCENARIOS)
    for path in folder.glob("*.txt"):
        text = path.read_text()
        assert "THE SCRIPT STOPPED" not in text and "DID NOT LET US" not in text, path.name
    listed = Differences.read(folder.parent / "differences.txt").entries
    assert set(listed) <= set(SCENARIOS), "a difference is listed for a scenario that does not exist"


def verdict_lines() -> None:
    """What counts as a verdict and what does not."""
    assert parse("PASS a/b (1.0 s)\n") == Verdict("PASS", "a/b", "(1.0 s)")
    assert parse("FAIL a: because: of this") == Verdict("FAIL", "a", "because: of this")
    assert parse("SKIP a: b") == Verdict("SKIP", "a", "b")
    for line in ("PASSED a", " PASS a", "# PASS a", "PASS", "test PASS a"):
        assert parse(line) is None, line


def ending_servers() -> None:
    """A server that ignores SIGTERM, and what it started, are gone afterwards."""
    script = "trap '' TERM; sleep 300 & echo $!; wait; wait"
    child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    brokers.end(child, patience=0.2)
    deadline = time.monotonic() + patience(5)
    while Path(f"/proc/{grandchild}").exists() and "Z" not in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.05)


def stopwatch() -> None:
    """What a child took is noted; one that somebody else has already reaped costs only that."""
    for taken_away in (False, True):
        child = subprocess.Popen(["sh", "-c", "i=0; while [ $i -lt 99999 ]; do i=$((i+1)); done; exit 3"])
        watch = runner.Stopwatch()
        if taken_away:
            child.wait()
        assert watch.wait_for(child) == 3
        assert (watch.cpu_seconds is None) == taken_away and (watch.cpu_seconds or 1) > 0


def stepping_back() -> None:
    """Who runs beside others is after them for the kernel too, where it groups processes by session."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=True, text=True)
    try:
        group = Path(f"/proc/{child.pid}/autogroup")
        before = group.read_text() if group.exists() else "nice 19"
        runner.step_back(child, 19)
        after = group.read_text() if group.exists() else before
        assert after.split()[-1] == "19", f"{before.strip()} became {after.strip()}"
    finally:
        brokers.end(child, patience=0.2)


def order_of_a_run() -> None:
    """Every suite is run once; a machine in the machine begins when the front and those that wait are over, who judges
    by how often somebody is served when all else is; and one that is told to stop begins nothing more."""
    run = runner.Runner(quick=False, only=[])
    run.built = True
    begun, ended = [], []
    lock = threading.Lock()
    waiting, beside = ({name for row in rows for name in row} for rows in (runner.WAITING, runner.BESIDE))
    front = set(run.suites()) - waiting - beside - {*runner.BEHIND, *runner.LAST}

    def suite(name: str, _command: object, _lane: object) -> None:
        with lock:
            begun.append((name, list(ended)))
        time.sleep(0.001 if name in front else 0.02)
        with lock:
            ended.append(name)

    run.suite = suite  # type: ignore[method-assign]
    for step in ("oracle", "cargo_test", "clippy"):
        setattr(run, step, lambda *_: None)
    run.all_steps()
    assert sorted(ended) == sorted(run.suites()), f"{ended} is not every suite once"
    for row, awaited in ((runner.BEHIND, front | waiting), (runner.LAST, set(run.suites()) - set(runner.LAST))):
        late = awaited - set(dict(begun)[row[0]]) - {"oracle"}
        assert not late, f"{late} went on beside {row[0]}"
    begun.clear()
    run.all_steps()
    assert not begun, f"{begun} was begun after the end"


def unreachable_index() -> None:
    """An index that does not answer is told apart from an installation that failed."""
    tries, environment.TRIES = environment.TRIES, 1
    try:
        for text, kind in [("WARNING: Retrying (Retry(total=0))", environment.Unreachable),
                           ("E: Unable to locate package x", environment.CannotInstall)]:
            try:
                environment.attempt(["sh", "-c", f"echo '{text}'; exit 1"], "it")
            except kind:
                continue
            raise AssertionError(f"{text} was not taken for {kind.__name__}")
    finally:
        environment.TRIES = tries


def main() -> int:
    """All of them."""
    suite = Suite("harness", sys.argv[1:])
    for case in (codec_methods, codec_fields, codec_content, differences, recordings, verdict_lines, ending_servers,
                 stopwatch, stepping_back, order_of_a_run, unreachable_index):
        suite.case(case.__name__.replace("_", "-"), case)
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
