"""System calls of the broker, recorded by strace: when it syncs, and when it sends a confirm."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

from harness import brokers, environment, wire
from harness.suite import patience

from logins import running
from support import (
    KIB, PERSISTENT, SMALL_SEGMENTS, Leveret, body_of, client, confirmed_through, declare, fill, lives, scratch,
    take_all, until,
)

LINE = re.compile(r"^(\d+) +(.*)$")
CALL = re.compile(r"^(\w+)\((.*)$")
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
ACK = wire.encode_method("basic.ack", delivery_tag=0)[:4]
SYNCS = {"fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"}
METADATA = {"ftruncate", "truncate", "fallocate", "rename", "renameat", "renameat2", "unlink", "unlinkat", "creat",
            "mkdir", "mkdirat", "link", "linkat", "symlink", "fchmod", "fchown", "utimensat"}
OPENS = {"open", "openat", "openat2"}
WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2"}
SENDS = {"sendto", "sendmsg", "sendmmsg"}


class Call(NamedTuple):
    """A system call of the broker: its arguments, and the lines of the trace at which it began and ended."""

    name: str
    began: int
    ended: int
    text: str
    path: str
    data: bytes


class Trace:
    """The recorded system calls."""

    def __init__(self, text: str) -> None:
        self.calls: List[Call] = []
        open_calls: Dict[str, Call] = {}
        for number, line in enumerate(text.splitlines()):
            found = LINE.match(line)
            if not found:
                continue
            thread, rest = found.groups()
            resumed, begun = RESUMED.match(rest), CALL.match(rest)
            if resumed and thread in open_calls:
                self._add(open_calls.pop(thread), number, resumed.group(2))
            elif begun:
                call = Call(begun.group(1), number, number, begun.group(2), "", b"")
                if rest.endswith("<unfinished ...>"):
                    open_calls[thread] = call
                else:
                    self._add(call, number, "")
        self.calls.sort(key=lambda call: call.began)

    def _add(self, call: Call, ended: int, more: str) -> None:
        text = call.text + more
        data = b"".join(bytes.fromhex(string.replace("\\x", "")) for string in text.split('"')[1::2])
        path = re.search(r"<([^>]*)>", text[:2000])
        self.calls.append(call._replace(ended=ended, text=text, path=un_hex(path.group(1)) if path else "", data=data))

    def named(self, names: "set[str]") -> List[Call]:
        """Returns the calls of these names in the order in which they began."""
        return [call for call in self.calls if call.name in names]

    def on_segments(self, names: "set[str]") -> List[Call]:
        """The calls on the segment files."""
        return [call for call in self.named(names) if call.path.endswith(".seg")]

    def confirms(self) -> List[Call]:
        """Returns the writes to sockets that contain a basic.ack."""
        sent = [call for call in self.named(WRITES | SENDS) if call.path.startswith("TCP")]
        return [call for call in sent if ACK in call.data]


def have_strace() -> None:
    """Installs strace from apt if the machine has none."""
    if shutil.which("strace") is None:
        environment.apt_install("strace")


@contextlib.contextmanager
def traced(broker: Leveret, result: List[Trace]) -> Iterator[None]:
    """Traces the broker for the length of a `with` block."""
    have_strace()
    names = ",".join(sorted(SYNCS | METADATA | OPENS | WRITES | SENDS))
    with scratch() as folder:
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(broker.process.pid), "-yy", "-xx", "-s", "65536", "-e", f"trace={names}",
             "-o", str(folder / "trace")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True)
        try:
            assert tracer.stderr
            said = tracer.stderr.readline()
            assert "attached" in said, said
            yield
            time.sleep(patience(0.2))
        finally:
            tracer.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(patience(10.0))
            brokers.end(tracer, patience=1.0)
        result.append(Trace((folder / "trace").read_text()))


def un_hex(text: str) -> str:
    """Decodes the paths that `strace -xx` prints in hex."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found.group(1), 16)), text)


def committed(trace: Trace, marker: bytes) -> Optional[Call]:
    """Returns the sync after the write that contains these bytes."""
    for write in trace.on_segments(WRITES):
        if marker in write.data:
            for sync in trace.on_segments({"fdatasync"}):
                if sync.began > write.ended and sync.path == write.path:
                    return sync
    return None


def confirm_follows_sync() -> None:
    """A confirm is sent only after the sync of the commit with its message has returned: without load and under load.
    """
    with lives() as series:
        broker, traces = series.start(), []
        with client(broker) as peer:
            for queue in ("lone", "many"):
                declare(peer, queue)
            fill(peer, "lone", range(3))
            with traced(broker, traces):
                fill(peer, "lone", range(100, 120), window=1)
                fill(peer, "many", range(100), 300, window=25)
        trace, = traces
        confirms = trace.confirms()
        assert len(confirms) >= 20, f"{len(confirms)} confirms in the trace"
        acknowledged = 3
        order = [("lone", number, 100) for number in range(100, 120)] + [("many", number, 300) for number in range(100)]
        for confirm in confirms:
            through = last_tag(confirm.data)
            for queue, number, size in order[acknowledged - 3 : through - 3]:
                sync = committed(trace, body_of(queue, number, size))
                assert sync, f"{queue} {number} was confirmed and never written"
                assert sync.text.endswith("= 0") and sync.ended < confirm.began, f"{queue} {number}: {sync}, {confirm}"
            acknowledged = max(acknowledged, through)
        assert acknowledged == 123, f"{acknowledged} of 123 confirms were seen"


def last_tag(data: bytes) -> int:
    """Returns the highest delivery tag of the basic.acks in these bytes."""
    frames = wire.split_frames(bytearray(data))
    methods = [wire.decode_method(frame.payload) for frame in frames if frame.kind == wire.FRAME_METHOD]
    return max(method.args["delivery_tag"] for method in methods if method.name == "basic.ack")


def lone_confirm() -> None:
    """One small persistent message costs one write of one block and one fdatasync, and nothing else."""
    with lives() as series:
        broker, traces = series.start(), []
        with client(broker) as peer:
            declare(peer, "q")
            fill(peer, "q", range(3), window=1)
            time.sleep(patience(1.0))
            with traced(broker, traces):
                fill(peer, "q", range(10, 20), window=1)
        trace, = traces
        writes, syncs = trace.on_segments(WRITES), trace.named(SYNCS)
        assert len(writes) == 10 and len(syncs) == 10, f"{len(writes)} writes and {len(syncs)} syncs for 10 messages"
        assert all(write.name == "pwrite64" and len(write.data) == 4 * KIB for write in writes), writes[0].text[-100:]
        assert all(sync.name == "fdatasync" and sync.path.endswith(".seg") for sync in syncs), syncs


def idle_disk() -> None:
    """Transient messages, idle time, and persistent messages without a durable queue cause no disk access."""
    with lives() as series:
        broker, traces = series.start(), []
        with client(broker) as peer:
            peer.call(1, "queue.declare", queue="passing")
            peer.call(1, "queue.declare", queue="mine", durable=True, exclusive=True)
            declare(peer, "durable")
            fill(peer, "durable", range(1))
            time.sleep(patience(1.0))
            with traced(broker, traces):
                for queue in ("passing", "mine", "nowhere"):
                    for number in range(50):
                        peer.publish(1, "", queue, body_of(queue, number), props=PERSISTENT)
                peer.publish(1, "", "durable", b"transient")
                peer.sent += 151
                confirmed_through(peer, peer.sent)
                assert len(take_all(peer, "passing")) == len(take_all(peer, "mine")) == 50
                time.sleep(2.0)
        calls = traces[0].named(SYNCS | METADATA) + traces[0].on_segments(WRITES)
        assert not calls, [call.name for call in calls]


def steady_state() -> None:
    """Once the segments are created, a log that is reused changes no file metadata: it only writes data and calls
    fdatasync."""
    with lives(SMALL_SEGMENTS + '[store]\nsettle_window = "50ms"\n') as series:
        broker, traces = series.start(), []
        with client(broker) as peer:
            declare(peer, "q")

            def go_round(first: int) -> None:
                for start in range(first, first + 600, 60):
                    fill(peer, "q", range(start, start + 60), 9_000)
                    assert len(take_all(peer, "q")) == 60

            go_round(0)
            go_round(1000)
            until(lambda: files(series.data_dir) == files(series.data_dir, wait=0.3), "the files keep changing")
            # The number of segments needed at once depends on the speed of the machine. It becomes constant after some
            # rounds.
            for number in range(5):
                before = files(series.data_dir)
                with traced(broker, traces):
                    go_round(2000 + 1000 * number)
                if files(series.data_dir) == before:
                    break
            assert files(series.data_dir) == before, f"{before} became {files(series.data_dir)}"
        trace = traces[-1]
        used = {write.path for write in trace.on_segments(WRITES)}
        assert len(used) > 1, f"only {used} were written to"
        # The header copy of the newest segment exists: each new segment overwrites its one block.
        makes = [call for call in trace.named(OPENS) if "O_CREAT" in call.text and '"newest"' not in un_hex(call.text)]
        changing = trace.named(METADATA) + makes
        assert not changing, [un_hex(call.text) for call in changing]
        assert {call.name for call in trace.named(SYNCS)} == {"fdatasync"}
        for write in trace.on_segments(WRITES):
            place = re.search(r", (\d+), (\d+)(?: <unfinished \.\.\.>)?\) += \1$", write.text)
            assert write.name == "pwrite64" and place, write.text[-80:]
            assert int(place.group(1)) + int(place.group(2)) <= 512 * KIB, write.text[-80:]


def directories() -> None:
    """A new file is synced in its directory, and the data directory in its own, before any confirm. Otherwise a power
    cut could remove them.
    """
    have_strace()
    with scratch() as folder:
        names = ",".join(sorted(SYNCS | METADATA | OPENS | WRITES | SENDS))
        # strace runs as a grandchild, so that the broker is the process that is ended.
        tracer = ["strace", "-D", "-f", "-yy", "-xx", "-s", "65536", "-e", f"trace={names}", "-o", str(folder / "trace")]
        data_dir = folder / "made"
        with running(data_dir, SMALL_SEGMENTS, tracer) as broker:
            with client(broker) as peer:
                declare(peer, "q")
                fill(peer, "q", range(100), 9_000)
            made_by_then = {path.name for path in data_dir.iterdir() if path.is_file()}
        until(lambda: "+++ exited" in (folder / "trace").read_text() or "+++ killed" in (folder / "trace").read_text(),
              "the trace does not end", 10.0)
        trace = Trace((folder / "trace").read_text())
        confirm = trace.confirms()[-1]
        made = {str(data_dir): made_at(trace, {"mkdir", "mkdirat"}, str(data_dir))}
        logged = [name for name in made_by_then if name.endswith(".seg") or name.startswith(("access.", "newest"))]
        assert len(logged) > 4, f"only these files were created: {logged}"
        for name in logged:
            made[str(data_dir / name)] = made_at(trace, OPENS, name)
        for path, call in made.items():
            assert call, f"{path} exists, and the trace has no call that created it"
            above = str(Path(path).parent)
            syncs = [sync for sync in trace.named({"fsync"}) if sync.path == above and sync.began > call.ended]
            # A segment is prepared while messages are confirmed: nothing is written to it before its directory entry is
            # durable.
            used = [write for write in trace.on_segments(WRITES) if write.path == path and write.data.strip(b"\0")]
            by = used[0] if path.endswith(".seg") and used else confirm
            assert syncs or (path.endswith(".seg") and not used), (
                f"{path} was created, and {above} was not synced after it")
            assert not syncs or syncs[0].ended < by.began or path.endswith(".seg") and not used, (
                f"{path}: {above} was synced only after it was in use")


def made_at(trace: Trace, names: "set[str]", name: str) -> Optional[Call]:
    """Returns the call that created a directory or a file of that name."""
    found = [call for call in trace.named(names) if f'"{name}"' in un_hex(call.text)
             and (call.name.startswith("mkdir") or "O_CREAT" in call.text)]
    return found[0] if found else None


def files(data_dir: Path, wait: float = 0.0) -> Dict[str, int]:
    """Returns the names and sizes of the log's files."""
    time.sleep(wait)
    return {path.name: path.stat().st_size for path in sorted(data_dir.iterdir())}


CASES = [confirm_follows_sync, lone_confirm, idle_disk, steady_state, directories]
QUICK_CASES = [confirm_follows_sync, lone_confirm, directories]
