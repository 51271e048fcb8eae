"""Full disks: the file system, `disk_limit` or the share of a queue is used up. Publishers are blocked, all other work
continues, and nothing is lost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Iterator, List

from harness import brokers, wire
from harness.raw import Client
from harness.suite import patience

from logins import running
from support import (
    KIB, MIB, QUICK, SMALL_SEGMENTS, Leveret, Lives, Publisher, btrfs, client, count, declare, ext4, f2fs, fill,
    lives,
    numbers_of, pika_program, scratch, system, take_all, until,
)

SIZE = 20_000
SOURCE = Path(__file__).parent / "full.c"


def limited(limit: str) -> str:
    """Returns the configuration of small segments with this `disk_limit`."""
    return SMALL_SEGMENTS + f'[store]\ndisk_limit = "{limit}"\n'


@contextlib.contextmanager
def small_file_system() -> Iterator[Lives]:
    """Starts a store whose `disk_limit` exceeds its file system."""
    with ext4(24) as mount, lives(limited("200MB"), mount / "data") as series:
        yield series


@contextlib.contextmanager
def small_limit(limit: str = "8MiB") -> Iterator[Lives]:
    """Starts a store with a small `disk_limit` on a large file system."""
    with lives(limited(limit)) as series:
        yield series


def fill_up(series: Lives, queues: List[str]) -> List[Publisher]:
    """Publishes to these queues until each publisher is blocked. Returns the publishers."""
    publishers = [Publisher(series.broker, queue, SIZE, window=5) for queue in queues]
    for publisher in publishers:
        publisher.wait_blocked()
    return publishers


def waits_and_resumes(series: Lives) -> None:
    """Fills the queues until all publishers are blocked, checks that other clients are served, drains, kills the
    broker, and compares the messages."""
    queues = ["a", "b", "c"]
    broker = series.start()
    with client(broker) as peer:
        for queue in [*queues, "beside"]:
            declare(peer, queue)
    publishers = fill_up(series, queues)
    assert "disk" in said(broker, "WARN") + said(broker, "ERROR"), broker.log()
    others_go_on(broker)
    before = {publisher.queue: publisher.confirmed for publisher in publishers}
    taken = {queue: [] for queue in queues}
    with client(broker) as reader:
        deadline = time.monotonic() + patience(60)
        while any(publisher.confirmed < before[publisher.queue] + 500 for publisher in publishers):
            assert time.monotonic() < deadline, [(p.queue, before[p.queue], p.confirmed, p.blocked) for p in publishers]
            for queue in queues:
                taken[queue] += numbers_of(take_all(reader, queue, ahead=16), queue)
    for publisher in publishers:
        publisher.stop()
        publisher.peer.drop()
    series.again("kill")
    with client(series.broker) as peer:
        for publisher in publishers:
            queue = publisher.queue
            rest = numbers_of(take_all(peer, queue), queue)
            # Messages consumed just before the kill may be delivered again.
            complete = sorted(set(taken[queue] + rest))
            assert complete == list(range(publisher.sent)), f"{queue}: {len(complete)} of {publisher.sent}"
            assert rest == sorted(set(rest)) and taken[queue] == sorted(set(taken[queue])), f"{queue}: order"


def said(broker: Leveret, level: str) -> str:
    """Returns the lines of the broker's log with this level."""
    return "\n".join(line for line in broker.log().splitlines() if f" {level} " in line)


def others_go_on(broker: Leveret) -> None:
    """Checks that transient messages, acknowledgements and requests of other clients work while publishers are blocked.
    """
    with client(broker, timeout=5.0) as peer:
        peer.call(1, "queue.declare", queue="passing")
        for number in range(20):
            peer.publish(1, "", "passing", b"%d" % number)
        assert len(take_all(peer, "passing")) == 20
        item = peer.call(1, "basic.get", queue="a")
        assert numbers_of([item], "a") == [0]
        peer.send(wire.method(1, "basic.reject", delivery_tag=item.method.args["delivery_tag"], requeue=True))
        assert count(peer, "a") > 0
        peer.call(1, "queue.delete", queue="passing")


def full_file_system() -> None:
    """The file system is full before `disk_limit` is reached."""
    with small_file_system() as series:
        waits_and_resumes(series)


def full_btrfs() -> None:
    """The file system is full on btrfs, which writes every block to a new place, so that preallocated files reserve no
    space."""
    with btrfs(160) as mount, lives(limited("400MB"), mount / "data") as series:
        waits_and_resumes(series)


def full_f2fs() -> None:
    """The file system is full on f2fs, a file system for flash."""
    with f2fs(128) as mount, lives(limited("400MB"), mount / "data") as series:
        waits_and_resumes(series)


def full_limit() -> None:
    """`disk_limit` is reached before the file system is full."""
    with small_limit() as series:
        waits_and_resumes(series)
        sizes = {path.name: path.stat().st_size for path in series.data_dir.iterdir()}
        beside = sizes.pop("access.a") + sizes.pop("access.b") + sizes.pop("newest")
        assert sum(sizes.values()) <= 8 * MIB, f"{sizes} under a limit of 8 MiB"
        assert beside <= 256 << 10, f"{beside} bytes outside of the log's segments"


def pika_is_notified_of_blocking() -> None:
    """connection.blocked and connection.unblocked arrive at the callbacks of pika."""
    with small_limit() as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, "q")
            program = pika_program("blocked", broker, "q", str(SIZE))
            try:
                assert program.stdout and program.stdout.readline() == "blocked\n", program.stdout.read()
                time.sleep(0.5)
                assert program.poll() is None
                peer.call(1, "queue.purge", queue="q")
                assert program.stdout.readline() == "unblocked\n", program.stdout.read()
                assert program.wait(patience(20)) == 0
            finally:
                brokers.end(program, patience=1.0)


def own_share() -> None:
    """A queue that has used its share of the disk blocks its own publishers and no others."""
    with small_limit("16MiB") as series:
        broker = series.start()
        with client(broker) as peer:
            for queue in ("full", "other"):
                declare(peer, queue)
            full, = fill_up(series, ["full"])
            fill(peer, "other", range(10), SIZE)
            time.sleep(patience(0.5))  # messages that were accepted before connection.blocked
            confirmed = full.confirmed
            fill(peer, "other", range(10, 20), SIZE)
            assert full.confirmed == confirmed and full.blocked, (
                "a message was accepted although the queue's share is full")
            declare(peer, "new")
            peer.call(1, "queue.purge", queue="full")
            full.wait_confirmed(confirmed + 50)
            full.stop()
            full.peer.drop()
        series.again("kill")
        with client(series.broker) as peer:
            assert numbers_of(take_all(peer, "other"), "other") == list(range(20))


def started_while_full() -> None:
    """A broker that is killed repeatedly on a full file system starts each time, and can be drained."""
    with small_file_system() as series:
        starts_while_full(series)


def started_while_full_btrfs() -> None:
    """The same on btrfs."""
    with btrfs(160) as mount, lives(limited("400MB"), mount / "data") as series:
        starts_while_full(series)


def starts_while_full(series: Lives) -> None:
    """Kills, starts and drains the broker on its full file system."""
    with client(series.start()) as peer:
        declare(peer, "a")
    publisher, = fill_up(series, ["a"])
    with contextlib.suppress(OSError), open(series.data_dir.parent / "ballast", "wb", buffering=0) as ballast:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while ballast.write(bytes(size)):
                    pass
    series.broker.kill()
    publisher.thread.join(patience(10.0))
    for loop in range(3 if QUICK else 12):
        series.start()
        with client(series.broker) as peer:
            item = peer.call(1, "basic.get", queue="a")
            assert numbers_of([item], "a") == [0], f"start {loop}"
        series.broker.kill()
    series.start()
    with client(series.broker) as peer:
        got = numbers_of(take_all(peer, "a"), "a")
        assert got[: publisher.confirmed] == list(range(publisher.confirmed)), "confirmed messages are lost"
        until(lambda: resumed(series), "nothing is written although the queue is empty")
    series.again("kill")
    with client(series.broker) as peer:
        assert [n for n in numbers_of(take_all(peer, "a"), "a") if n >= 100_000] == [100_000], (
            "a confirmed message is lost")


def stopped_while_full() -> None:
    """A clean stop does not wait for disk space."""
    with small_file_system() as series:
        with client(series.start()) as peer:
            declare(peer, "a")
        publisher, = fill_up(series, ["a"])
        series.again("stop")
        with client(series.broker) as peer:
            got = numbers_of(take_all(peer, "a"), "a")
            assert got[: publisher.confirmed] == list(range(publisher.confirmed)), "confirmed messages are lost"


def resumed(series: Lives) -> bool:
    """Publishes a persistent message. Returns True once it is confirmed."""
    with client(series.broker) as peer:
        fill(peer, "a", range(100_000, 100_001), SIZE)
    return True


FILE_SYSTEM = "file system of the data directory is full"


def told_of_the_file_system(broker: Leveret) -> None:
    """Checks that alarm, status and log name the file system as the cause, and not `disk_limit`."""
    assert FILE_SYSTEM in said(broker, "WARN"), broker.log()
    assert "under disk_limit" not in broker.log(), broker.log()
    alarms = broker.ctl("list_alarms")
    assert FILE_SYSTEM in alarms and "disk_limit is reached, so" not in alarms, alarms
    assert "under disk_limit" not in alarms and "raise disk_limit" not in alarms, alarms


def goes_on_when_there_is_room() -> None:
    """Another program fills the file system and frees it again. The broker continues without a consumer or a restart.
    """
    with ext4(64) as mount:
        goes_on_in(mount)


def goes_on_when_there_is_room_btrfs() -> None:
    """The same on btrfs."""
    with btrfs(160) as mount:
        goes_on_in(mount)


def goes_on_in(mount: Path) -> None:
    """Fills and frees the file system at `mount` under a running broker."""
    with lives(limited("40MB"), mount / "data") as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, "a")
        ballast = mount / "ballast"
        for loop in range(2):
            fill_file_system(ballast)
            publisher, = fill_up(series, ["a"])
            told_of_the_file_system(broker)
            half = [path.name for path in series.data_dir.glob("*.seg") if path.stat().st_size < 512 * KIB]
            assert not half, f"incomplete segments use disk space: {half}"
            broker.ctl("add_user", f"dora-{loop}", "dora")
            confirmed = publisher.confirmed
            ballast.unlink()
            publisher.wait_confirmed(confirmed + 100, 45.0)
            until(lambda: broker.log().count("has free space again") == loop + 1, f"not reported: {broker.log()}")
            until(lambda: FILE_SYSTEM not in broker.ctl("list_alarms"), "the alarm is not cleared")
            publisher.stop()
            publisher.peer.drop()
            with client(broker) as peer:
                got = numbers_of(take_all(peer, "a"), "a")
                assert got == list(range(publisher.sent)), f"{len(got)} of {publisher.sent}"


def fill_file_system(ballast: Path) -> None:
    """Fills the file system to the last block."""
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        for size in (MIB, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def commits_wait_for_room() -> None:
    """The file system has no space even for a commit. Publishers are blocked, consumers continue, the broker does not
    end, and confirms and acknowledgements are kept."""
    with scratch() as folder:
        library, flag, data_dir = folder / "full.so", folder / "flag", folder / "data"
        system("cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl")
        preloaded = ["env", f"LD_PRELOAD={library}", f"FULL={flag}"]
        with running(data_dir, limited("40MB"), preloaded) as broker:
            with client(broker) as peer:
                declare(peer, "a")
                fill(peer, "a", range(100), SIZE)
                look_at_first(peer)
            flag.touch()
            publisher = Publisher(broker, "a", SIZE, first=100, window=5)
            publisher.wait_blocked()
            told_of_the_file_system(broker)
            with client(broker) as reader:
                for number in range(50):
                    item = reader.call(1, "basic.get", queue="a")
                    assert numbers_of([item], "a") == [number]
                    reader.send(wire.method(1, "basic.ack", delivery_tag=item.method.args["delivery_tag"]))
            time.sleep(3.0)
            assert broker.process.poll() is None, broker.log()
            assert publisher.confirmed == 100 and publisher.blocked, "a message was confirmed without being written"
            flag.unlink()
            publisher.wait_confirmed(200, 45.0)
            assert "has free space again" in broker.log(), broker.log()
            publisher.stop()
            publisher.peer.drop()
            broker.kill()
        with running(data_dir, limited("40MB")) as broker, client(broker) as peer:
            got = numbers_of(take_all(peer, "a"), "a")
            assert got == list(range(50, publisher.sent)), f"{got[:3]} ... {len(got)} of {publisher.sent - 50}"


def look_at_first(peer: Client) -> None:
    """Takes the first message and returns it. The store records beforehand that messages may have been delivered; a
    message that is not recorded is not delivered, because the redelivered flag would be missing later.
    """
    item = peer.call(1, "basic.get", queue="a")
    peer.send(wire.method(1, "basic.nack", delivery_tag=item.method.args["delivery_tag"], requeue=True))


def starts_without_room_for_a_commit() -> None:
    """A broker that is killed and restarted without space for a commit serves clients, and continues when there is
    space."""
    with scratch() as folder:
        library, flag, data_dir = folder / "full.so", folder / "flag", folder / "data"
        system("cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl")
        preloaded = ["env", f"LD_PRELOAD={library}", f"FULL={flag}"]
        with running(data_dir, limited("40MB")) as broker:
            with client(broker) as peer:
                declare(peer, "a")
                fill(peer, "a", range(50), SIZE)
                look_at_first(peer)
            broker.kill()
        flag.touch()
        with running(data_dir, limited("40MB"), preloaded) as broker:
            told_of_the_file_system(broker)
            with client(broker) as peer:
                assert numbers_of(take_all(peer, "a"), "a") == list(range(50))
            flag.unlink()
            with client(broker, timeout=45.0) as peer:
                until(lambda: "has free space again" in broker.log(),
                      f"the broker does not continue: {broker.log()}", 45.0)
                fill(peer, "a", range(50, 60), SIZE)
            broker.kill()
        with running(data_dir, limited("40MB")) as broker, client(broker) as peer:
            assert numbers_of(take_all(peer, "a"), "a") == list(range(50, 60))


CASES = [full_file_system, full_btrfs, full_f2fs, full_limit, pika_is_notified_of_blocking, own_share, started_while_full, started_while_full_btrfs, stopped_while_full,
         goes_on_when_there_is_room, goes_on_when_there_is_room_btrfs, commits_wait_for_room, starts_without_room_for_a_commit]
QUICK_CASES = [full_file_system, pika_is_notified_of_blocking, own_share, goes_on_when_there_is_room, commits_wait_for_room]
