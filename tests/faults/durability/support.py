"""Code that the cases share: a data directory with successive brokers, file systems in images, messages with checksums,
and programs with pika.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

from harness import brokers, environment, suite, wire
from harness.brokers import Leveret
from harness.raw import Client, Closed, Content, name_of
from harness.suite import Skip, patience

HERE = Path(__file__).resolve().parent
QUICK = os.environ.get("LEVERET_TEST_MODE") == "gate"
KIB, MIB = 1 << 10, 1 << 20
PERSISTENT = {"delivery_mode": 2}
# The smallest sizes, so that a few hundred messages fill several segments.
SMALL_SEGMENTS = """
frame_max = "16KiB"
[limits]
segment_bytes = "512KiB"
commit_bytes_max = "160KiB"
"""


def seed(name: str) -> random.Random:
    """Returns random numbers of a case. They follow from LEVERET_CHANCE_SEED, which is printed when the case fails."""
    return suite.chance(name)


def until(ready: Callable[[], bool], complaint: str, patience_s: float = 20.0) -> None:
    """Waits until `ready` returns true, and fails with the complaint after `patience_s`."""
    patience_s = patience(patience_s)
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"{complaint} in {patience_s:.0f} s"
        time.sleep(0.01)


def wait_until_still(data_dir: Path) -> None:
    """Waits until no file of the store was written to for a second, longer on a slow machine."""
    while time.time() - max(found.stat().st_mtime for found in data_dir.iterdir()) < patience(1.0):
        time.sleep(0.1)


def side_by_side(check: Callable[..., Any], cases: Iterable[Sequence[Any]], at_once: int = 6) -> List[Any]:
    """Runs `check` for all cases, several at a time, because each mostly waits. Stops at the first failure."""
    with ThreadPoolExecutor(at_once) as pool:
        checks = [pool.submit(check, *case) for case in cases]
        try:
            return [done.result() for done in checks]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


# ---- brokers ------------------------------------------------------------------------------


class Lives:
    """A data directory, and the brokers that run on it one after the other."""

    def __init__(self, data_dir: Path, config: str = "", args: Optional[List[str]] = None) -> None:
        self.data_dir = data_dir
        self.config = config
        self.args = args or []
        self.broker: Optional[Leveret] = None

    def start(self, config: Optional[str] = None) -> Leveret:
        """Starts the next broker."""
        self.end()
        self.broker = Leveret(
            brokers.leveret_binary(), self.args, self.config if config is None else config, self.data_dir
        )
        return self.broker

    def again(self, how: str) -> Leveret:
        """Ends the broker cleanly (`stop`) or with SIGKILL (`kill`), and starts the next one."""
        assert self.broker
        getattr(self.broker, how)()
        return self.start()

    def end(self) -> None:
        """Ends the running broker, if any."""
        if self.broker:
            self.broker.close()
            self.broker = None

    def log(self) -> str:
        """Returns the end of the log of the current broker."""
        return self.broker.log()[-6000:] if self.broker else ""


@contextlib.contextmanager
def lives(config: str = "", data_dir: Optional[Path] = None, args: Optional[List[str]] = None) -> Iterator[Lives]:
    """Provides a `Lives` on a new or the given directory for a `with` block. A failure prints the log of the last
    broker."""
    with scratch() as folder:
        series = Lives(data_dir or folder / "data", config, args)
        try:
            yield series
        except BaseException:
            print(series.log())
            raise
        finally:
            series.end()


@contextlib.contextmanager
def scratch(within: Optional[Path] = None) -> Iterator[Path]:
    """Provides a temporary directory for the length of a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="leveret-durability-", dir=within))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def client(broker: Leveret, timeout: float = 20.0) -> Iterator[Client]:
    """Returns a client with channel 1 open."""
    with Client(broker.address, timeout=timeout) as made:
        made.open()
        yield made


def refused(series: Lives, *words: str) -> str:
    """Starts a broker that must refuse to start, with one error line that contains all these words. Returns its log."""
    try:
        series.start()
    except brokers.BrokerError as why:
        log = str(why)
    else:
        raise AssertionError(f"it started:\n{series.log()}")
    last = log.strip().splitlines()[-1]
    assert "status 1:" in log and all(word in last for word in words), log
    assert "panicked" not in log, log
    return last


# ---- file systems -------------------------------------------------------------------------


def system(*command: str) -> str:
    """Runs a command and raises if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=patience(60))
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout.strip()}"
    return done.stdout


def need_root_to_mount() -> None:
    """Skips the case if it does not run as root."""
    if os.geteuid() != 0:
        raise Skip("needs root, to mount a file system of its own")


@contextlib.contextmanager
def ext4(mib: int, image_dir: Optional[Path] = None) -> Iterator[Path]:
    """Mounts an ext4 file system of this size from an image for the length of a `with` block."""
    need_root_to_mount()
    with scratch() as folder:
        image, mount = (image_dir or folder) / "image", folder / "mount"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(mib * MIB)
        system("mkfs.ext4", "-q", "-F", str(image))
        system("mount", "-o", "loop", str(image), str(mount))
        try:
            yield mount
        finally:
            unmount(mount)


@contextlib.contextmanager
def btrfs(mib: int) -> Iterator[Path]:
    """Mounts a btrfs (a copy-on-write file system) of this size, at least 114 MiB, from an image."""
    need_root_to_mount()
    if "btrfs" not in Path("/proc/filesystems").read_text():
        raise Skip("the kernel has no btrfs: the case of a full copy-on-write file system was not run")
    if not shutil.which("mkfs.btrfs"):
        environment.apt_install("btrfs-progs")
    with scratch() as folder:
        image, mount = folder / "image", folder / "mount"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(mib * MIB)
        system("mkfs.btrfs", "-q", str(image))
        system("mount", "-o", "loop", str(image), str(mount))
        try:
            yield mount
        finally:
            unmount(mount)


@contextlib.contextmanager
def f2fs(mib: int) -> Iterator[Path]:
    """Mounts an f2fs (a file system for flash) of this size from an image."""
    need_root_to_mount()
    if "f2fs" not in Path("/proc/filesystems").read_text():
        raise Skip("the kernel has no f2fs: its cases were not run")
    if not shutil.which("mkfs.f2fs"):
        environment.apt_install("f2fs-tools")
    with scratch() as folder:
        image, mount = folder / "image", folder / "mount"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(mib * MIB)
        system("mkfs.f2fs", "-q", str(image))
        system("mount", "-o", "loop", str(image), str(mount))
        try:
            yield mount
        finally:
            unmount(mount)


@contextlib.contextmanager
def tmpfs(mib: int) -> Iterator[Path]:
    """Mounts a file system in memory for the length of a `with` block."""
    need_root_to_mount()
    with scratch() as mount:
        system("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(mount))
        try:
            yield mount
        finally:
            unmount(mount)


def unmount(mount: Path) -> None:
    """Unmounts a file system. A process that was just killed may use it for another moment."""
    for _ in range(round(patience(50))):
        if subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    system("umount", "-l", str(mount))


# ---- messages -----------------------------------------------------------------------------


def body_of(stream: str, number: int, size: int = 0) -> bytes:
    """Returns a body of at least 24 bytes with the stream, the number and a checksum."""
    head = struct.pack(">8sI", stream.encode()[:8], number)
    seedling = zlib.crc32(head)
    pattern = struct.pack(">I", seedling) * ((max(0, size - 16) + 3) // 4)
    rest = head + pattern[: max(0, size - 16)]
    return struct.pack(">I", zlib.crc32(rest)) + rest


def number_in(body: bytes, stream: str) -> int:
    """Returns the number in a body, and checks that it is unaltered and of this stream."""
    assert len(body) >= 16, f"{len(body)} bytes are too few for a message of {stream}"
    checksum, name, number = struct.unpack(">I8sI", body[:16])
    assert zlib.crc32(body[4:]) == checksum, f"altered: {len(body)} bytes that state {name!r} {number}"
    assert name.rstrip(b"\0") == stream.encode()[:8], f"{name!r} in the queue of {stream}"
    return number


def declare(peer: Client, queue: str, **options: Any) -> None:
    """Declares a durable queue."""
    peer.call(1, "queue.declare", queue=queue, **dict({"durable": True}, **options))


def count(peer: Client, queue: str) -> int:
    """Returns the number of ready messages in a queue."""
    return peer.call(1, "queue.declare", queue=queue, passive=True).args["message_count"]


def confirmed_through(peer: Client, last: int) -> None:
    """Waits until everything up to this delivery tag is confirmed."""
    done, ahead = getattr(peer, "confirmed", 0), getattr(peer, "ahead", set())
    while done < last:
        item = peer.expect("basic.ack", "basic.nack")
        assert item.name == "basic.ack", item
        tag = item.args["delivery_tag"]
        if item.args["multiple"]:
            done = max(done, tag)
        else:
            ahead.add(tag)
        while done + 1 in ahead:
            done += 1
            ahead.discard(done)
    peer.confirmed, peer.ahead = done, ahead  # type: ignore[attr-defined]


def persistent(_number: int) -> Dict[str, Any]:
    """Returns the properties of a persistent message."""
    return PERSISTENT


def fill(peer: Client, queue: str, numbers: range, size: int = 100,
         props: Callable[[int], Dict[str, Any]] = persistent, window: int = 200) -> None:
    """Publishes messages and waits for their confirms. Puts the channel into confirm mode first if necessary."""
    if not hasattr(peer, "sent"):
        peer.call(1, "confirm.select")
        peer.sent = 0  # type: ignore[attr-defined]
    for number in numbers:
        peer.publish(1, "", queue, body_of(queue, number, size), props=props(number))
        peer.sent += 1  # type: ignore[attr-defined]
        if peer.sent % window == 0:  # type: ignore[attr-defined]
            confirmed_through(peer, peer.sent)  # type: ignore[attr-defined]
    confirmed_through(peer, peer.sent)  # type: ignore[attr-defined]


def take_all(peer: Client, queue: str, ahead: int = 32, patience_s: float = 20.0) -> List[Content]:
    """Gets all messages of the queue without acknowledgement, with many pipelined requests."""
    ask = wire.method(1, "basic.get", queue=queue, no_ack=True)
    peer.send(ask * ahead)
    asked, found, is_empty = ahead, [], False
    while asked:
        item = peer.expect("basic.get-ok", "basic.get-empty", timeout=patience(patience_s))
        asked -= 1
        if name_of(item) == "basic.get-empty":
            is_empty = True
            continue
        assert not is_empty, f"{queue}: a message after get-empty"
        found.append(item)
        if len(found) % ahead == 0:
            peer.send(ask * ahead)
            asked += ahead
    if not is_empty:
        return found + take_all(peer, queue, ahead)
    return found


def numbers_of(messages: List[Content], stream: str) -> List[int]:
    """Returns the numbers of the messages, and checks each body."""
    return [number_in(message.body, stream) for message in messages]


def all_written(series: Lives) -> bool:
    """Waits until all log entries appended so far are durable, by a durable change behind them."""
    with client(series.broker) as peer:
        declare(peer, "afterwards")
        peer.call(1, "queue.delete", queue="afterwards")
    return True


class Publisher:
    """Publishes persistent messages from a thread, with a window of unconfirmed ones, until it is stopped."""

    def __init__(self, broker: Leveret, queue: str, size: int = 1000, first: int = 0, window: int = 20,
                 last: int = 1 << 40) -> None:
        self.peer = Client(broker.address)
        self.peer.open()
        self.peer.call(1, "confirm.select")
        self.queue, self.size, self.first, self.window, self.last = queue, size, first, window, last
        self.sent = self.confirmed = first
        self.blocked = self.blocked_ever = False
        self.accident: Optional[BaseException] = None
        self.patience = float("inf")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            while not self.stopping.is_set() or self.confirmed < self.sent and time.monotonic() < self.patience:
                is_stopping = self.stopping.is_set()
                if self.sent - self.confirmed < self.window and self.sent < self.last and not is_stopping:
                    self.peer.publish(1, "", self.queue, body_of(self.queue, self.sent, self.size), props=PERSISTENT)
                    self.sent += 1
                else:
                    self._listen()
        except (OSError, Closed) as accident:
            self.accident = accident

    def _listen(self) -> None:
        try:
            item = self.peer.recv(0.1)
        except TimeoutError:
            return
        if name_of(item) == "basic.ack":
            tag = self.first + item.args["delivery_tag"]
            # Messages become durable in order, so confirms come in order: a tag confirms everything before it.
            assert tag > self.confirmed, f"{tag} confirmed after {self.confirmed}"
            self.confirmed = tag
        elif name_of(item) in ("connection.blocked", "connection.unblocked"):
            self.blocked = name_of(item) == "connection.blocked"
            self.blocked_ever |= self.blocked
        else:
            self.accident = AssertionError(f"{name_of(item)} to a publisher")

    def wait_blocked(self) -> None:
        """Publishes until the client receives connection.blocked. Earlier messages may still wait for their confirm."""

        def is_told() -> bool:
            self.window += 1
            time.sleep(0.02)
            return self.blocked or self._broken()

        until(is_told, "connection.blocked did not arrive")
        self._check()

    def wait_confirmed(self, through: int, patience_s: float = 20.0) -> None:
        """Waits until all messages up to number `through` are confirmed."""
        until(lambda: self.confirmed >= through or self._broken(),
              f"{self.queue}: {through} messages were not confirmed", patience_s)
        self._check()

    def _broken(self) -> bool:
        return self.accident is not None or not self.thread.is_alive()

    def _check(self) -> None:
        assert not self._broken(), f"the publisher to {self.queue} ended: {self.accident!r}"

    def stop(self) -> None:
        """Stops publishing and waits until everything is confirmed."""
        self.patience = time.monotonic() + patience(20.0)
        self.stopping.set()
        self.thread.join(patience(30.0))
        assert not self.accident, f"the publisher to {self.queue} ended: {self.accident!r}"
        assert self.confirmed == self.sent, f"{self.queue}: {self.confirmed} of {self.sent} were confirmed"

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopping.set()
        self.peer.drop()


# ---- programs -----------------------------------------------------------------------------


def pika_program(name: str, broker: Leveret, *args: str) -> "subprocess.Popen[str]":
    """Starts a program of `programs/`, which uses pika, against a broker."""
    python = environment.pika_python(environment.PIKA_NEW)
    told = dict(os.environ, AMQP_HOST=broker.address.host, AMQP_PORT=str(broker.address.port),
                PYTHONPATH=str(HERE.parents[1] / "support"))
    return subprocess.Popen(
        [str(python), "-u", str(HERE / "programs" / f"{name}.py"), *args], env=told, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )
