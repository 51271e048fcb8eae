"""Damaged segments: the broker starts, reports the damage, and serves no altered message.

After a clean stop, every loss must be reported. After a kill, the loss of the last commits may go unreported if no
block that begins such a commit is left and the file has its full length: a power cut can leave the same state.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple, Union

from logins import inspected, refuses
from harness.suite import patience
from support import (
    KIB, QUICK, SMALL_SEGMENTS, Lives, client, count, declare, fill, lives,
    numbers_of, scratch, seed, take_all, until,
)

CASES_PER_KIND = 10 if QUICK else 300
# Copies are damaged, two at a time. They are in memory if /dev/shm exists.
COPIES = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
# A broker that was killed leaves its sockets behind.
NOT_FILES = shutil.ignore_patterns("*.sock")
QUEUES = ("small", "middle", "large")


def prepare(data_dir: Path, how: str) -> Dict[str, List[int]]:
    """Creates a store of several segments with all kinds of records. Returns its contents."""
    with lives(SMALL_SEGMENTS, data_dir) as series:
        with client(series.start()) as peer:
            for queue in QUEUES:
                declare(peer, queue)
            peer.call(1, "queue.bind", queue="small", exchange="amq.topic", routing_key="#")
            for start in range(0, 300, 50):
                fill(peer, "small", range(start, start + 50), 60)
                fill(peer, "middle", range(start // 5, start // 5 + 10), 9_000)
                fill(peer, "large", range(start // 50, start // 50 + 1), 200_000)
            for _ in range(2):
                peer.call(1, "basic.get", queue="middle", no_ack=True)
            taken = numbers_of(take_some(peer, "small", 40), "small")
            assert taken == list(range(40))
            declare(peer, "afterwards")
        getattr(series.broker, how)()
    return {"small": list(range(40, 300)), "middle": list(range(2, 60)), "large": list(range(6))}


def take_some(peer, queue: str, number: int) -> List:  # type: ignore[no-untyped-def,type-arg]
    """Takes `number` messages from the front of the queue."""
    return [peer.call(1, "basic.get", queue=queue, no_ack=True) for _ in range(number)]


# ---- kinds of damage ----------------------------------------------------------------------


def truncated(data: bytearray, chance: random.Random) -> None:
    """Returns the data cut at a random length, sometimes at 0."""
    del data[chance.choice([0, 1, 4096, chance.randrange(len(data)), chance.randrange(len(data))]) :]


def flipped(data: bytearray, chance: random.Random) -> None:
    """Returns the data with some bits flipped in its non-zero part."""
    used = max(4096, len(data.rstrip(b"\0")))
    for _ in range(chance.choice([1, 1, 2, 5])):
        data[chance.randrange(used)] ^= 1 << chance.randrange(8)


def zeroed(data: bytearray, chance: random.Random) -> None:
    """Returns the data with a random part zeroed, as if it had never been written."""
    size = chance.choice([512, 4096, 16 * KIB, 64 * KIB, len(data)])
    start = chance.randrange(max(1, len(data) - size + 1)) // 512 * 512
    data[start : start + size] = bytes(len(data[start : start + size]))


def overwritten(data: bytearray, chance: random.Random) -> None:
    """Returns the data with one part copied over another: the checksums are right, the place is wrong."""
    size = chance.choice([4096, 8192, 32 * KIB])
    source, target = (chance.randrange((len(data) - size) // 4096 + 1) * 4096 for _ in range(2))
    data[target : target + size] = data[source : source + size]


# ---- one case -----------------------------------------------------------------------------


def one(base: Path, holds: Dict[str, List[int]], kind, number: int) -> int:  # type: ignore[no-untyped-def]
    """Damages a copy, starts a broker on it, drains and compares the queues. Returns the number of lost messages."""
    chance = random.Random(number)
    with scratch(COPIES) as folder:
        shutil.copytree(base, folder / "data", ignore=NOT_FILES)
        segments = sorted((folder / "data").glob("*.seg"))
        newest = max(segments, key=sequence_of)
        # The newest segment is chosen more often: damage at the end of the log resembles a torn write.
        chosen = chance.choice([*segments, newest, newest])
        before = chosen.read_bytes()
        data = bytearray(before)
        kind(data, chance)
        chosen.write_bytes(data)
        is_guess = base.name == "kill" and chosen == newest and looks_unfinished(before, data)
        told = inspected(folder / "data")
        with lives(SMALL_SEGMENTS, folder / "data") as series:
            try:
                return examined(series, holds, again=number % 8 == 0, told=None if is_guess else told)
            except BaseException as accident:
                raise AssertionError(f"{kind.__name__} {chosen.name}, case {number}: {accident}") from accident


def sequence_of(segment: Path) -> int:
    """Returns the sequence number of a segment, 0 if it contains no commit."""
    data = segment.read_bytes()
    return int.from_bytes(data[48:56], "little") if data[4096:].strip(b"\0") else 0


def heads(data: bytes) -> List[int]:
    """Returns the offsets at which commits of a segment begin, as far as their headers are readable."""
    sequence = data[48:56]
    blocks = range(4096, len(data) - 76, 4096)
    return [at for at in blocks if data[at : at + 3] == b"LVC" and data[at + 24 : at + 32] == sequence]


def looks_unfinished(before: bytes, after: bytes) -> bool:
    """Returns whether the destroyed part at the end of the log could also result from a torn write."""
    if len(after) < len(before) or after[:4096] != before[:4096]:
        return False
    ends = [*heads(before)[1:], len(before)]
    hurt = [begin for begin, end in zip(heads(before), ends) if before[begin:end] != after[begin:end]]
    # One header without a complete commit is a torn commit. Two are damage, because the first commit was synced before
    # the second began.
    return bool(hurt) and len([at for at in heads(after) if at >= hurt[0]]) <= 1


def check_told(missed: Set[str], told: "subprocess.CompletedProcess[str]") -> None:
    """Checks that `inspect` reported this number of lost messages before the start, or that it cannot know the number.
    """
    lost = len(missed)
    verdict = told.stdout.splitlines()[:1] or [told.stderr]
    assert told.returncode == 2, f"{lost} messages are lost, and inspect ended with {told.returncode}: {verdict[0]}"
    least = int(re.search(r"lost: (\d+)", verdict[0]).group(1))  # type: ignore[union-attr]
    others = re.search(r"(\d+) records of which nobody knows", verdict[0])
    # Messages of a queue whose definition is lost are in the store, and `inspect` lists them.
    hidden = sum(int(count) for count in re.findall(r"^queue +\d+ +(\d+) .*  \?.*$", told.stdout, re.M))
    most = least + hidden + int(others.group(1) if others else 0)
    is_known = "an unknown number of others" not in verdict[0]
    assert least <= lost and (lost <= most or not is_known), (
        f"{lost} are lost, {hidden} hidden: {sorted(missed)[:9]}...; inspect said: "
        + "\n".join(re.findall(r"^(?:damage|tail|bodies|verdict).*", told.stdout, re.M))
    )


def examined(
    series: Lives, holds: Dict[str, List[int]], again: bool,
    told: "Optional[subprocess.CompletedProcess[str]]",
) -> int:
    """Checks that the served messages are a part of the stored ones, that the broker reports the lost ones (unless
    `told` is None), and that new confirms are kept.
    """
    broker = series.start()
    # Users are also stored beside the log, so damage to the log does not prevent their logins.
    lost: Set[str] = set()
    with client(broker) as peer:
        for queue in QUEUES:
            declare(peer, queue)
            served = numbers_of(take_all(peer, queue), queue)
            assert served == sorted(set(served)), f"{queue}: out of order or twice: {served}"
            assert is_possible(served, holds[queue]), (
                f"{queue}: served {served[:5]}..., which was never published to it")
            assert count(peer, queue) == 0, f"{queue}: {count(peer, queue)} messages are not delivered"
            lost |= {f"{queue} {number}" for number in set(holds[queue]) - set(served)}
        if lost and told is not None:
            check_told(lost, told)
            # The log is written by another thread, so its lines may come later.
            until(lambda: "ERROR" in broker.log() or "WARN" in broker.log(),
                  f"{len(lost)} lost messages are not reported", 5.0)
        if again:
            fill(peer, "small", range(1000, 1010))
    if again:
        series.again("kill")
        with client(series.broker) as peer:
            served = numbers_of(take_all(peer, "small"), "small")
            assert served[-10:] == list(range(1000, 1010)), f"confirmed after the damage, but lost: {served}"
    return len(lost)


def is_possible(served: List[int], held: List[int]) -> bool:
    """Returns whether all served messages were published. If settlements were damaged, settled messages may be served
    again."""
    return not served or served[-1] <= held[-1]


def many(kind, known: Sequence[int] = ()) -> None:  # type: ignore[no-untyped-def]
    """Runs many cases of one kind of damage on a store that was stopped and on one that was killed. The seeds in
    `known` found errors before; they run on both."""
    chance = seed(kind.__name__)
    with scratch() as folder, ThreadPoolExecutor(2) as pool:
        bases = [(folder / how, prepare(folder / how, how)) for how in ("stop", "kill")]
        numbers = [number for number in known for _ in bases]
        numbers += [chance.randrange(1 << 32) for _ in range(CASES_PER_KIND)]
        running = [pool.submit(one, *bases[at % 2], kind, number) for at, number in enumerate(numbers)]
        try:
            costs = [case.result() for case in running]
        finally:
            for case in running:
                case.cancel()
        hurt = [cost for cost in costs if cost]
        print(f"# {kind.__name__}: {len(costs)} cases, {len(hurt)} of them lost messages, {max(costs)} at most")


def truncated_segments() -> None:
    """Segments are truncated."""
    # In the padding of a commit. The process ended with an error there.
    many(truncated, known=[2060326945, 1094994029, 325889542, 3635622387, 2215820997])


def flipped_bits() -> None:
    """Segments have flipped bits."""
    many(flipped)


def zeroed_pieces() -> None:
    """Parts of segments are zeroed."""
    many(zeroed)


def misplaced_pieces() -> None:
    """Parts of segments are overwritten with other parts of them."""
    # Whole commits were copied over others, and `inspect` took them for valid.
    many(overwritten, known=[3309371709, 2943386934, 456053774, 2049725600, 884585951])


def missing_segment() -> None:
    """Each file of the log is deleted once."""
    with scratch() as folder:
        holds = prepare(folder / "base", "kill")
        segments = sorted((folder / "base").glob("*.seg"))
        for name in [path.name for path in segments]:
            shutil.copytree(folder / "base", folder / name, ignore=NOT_FILES)
            (folder / name / name).unlink()
            told = inspected(folder / name)
            with lives(SMALL_SEGMENTS, folder / name) as series:
                try:
                    examined(series, holds, again=True, told=told)
                except BaseException as accident:
                    raise AssertionError(f"without {name}: {accident}") from accident


# Byte ranges to zero, the length to truncate to, or None for a deleted file.
Hurt = Union[List[Tuple[int, int]], int, None]


def small(data_dir: Path, how: str) -> Dict[str, List[int]]:
    """Creates a store of one segment with 100 confirmed messages."""
    with lives(SMALL_SEGMENTS, data_dir) as series:
        with client(series.start()) as peer:
            declare(peer, "small")
            for number in range(100):
                fill(peer, "small", range(number, number + 1), 60)
        getattr(series.broker, how)()
    return {"small": list(range(100)), "middle": [], "large": []}


def one_segment() -> None:
    """The only segment loses its beginning, its end, or is deleted. The store is never taken for a new or an undamaged
    one."""
    with scratch() as folder:
        complaints: List[str] = []
        for how in ("kill", "stop"):
            holds = small(folder / how, how)
            first = folder / how / "00000000.seg"
            whole = first.read_bytes()
            places = heads(whole)
            middle, last = places[len(places) // 2], places[-1]
            kinds: Dict[str, Hurt] = {
                "header": [(0, 4096)],
                "beginning": [(0, places[20])],
                "beginning-to-last-quarter": [(0, places[80])],
                "half-of-the-last": [(last + 60, last + 90)],
                "last-two": [(places[-2] + 80, places[-2] + 90), (last + 80, last + 90)],
                "cut-in-the-middle": middle,
                "cut-before-the-last": last,
                "cut-to-nothing": 0,
                "gone": None,
            }
            if how == "stop":
                kinds |= {"last": [(last, len(whole))], "end": [(middle, len(whole))]}
            for name, hurt in kinds.items():
                try:
                    cost = one_hurt(folder / how, holds, name, hurt, is_guess=f"{how} {name}" == "kill half-of-the-last")
                    print(f"# {how}, {name}: {cost} messages lost")
                except AssertionError as accident:
                    complaints.append(f"{how}, {name}: {accident}")
        assert not complaints, "\n".join(complaints)


def one_hurt(base: Path, holds: Dict[str, List[int]], name: str, hurt: Hurt, is_guess: bool) -> int:
    """Damages the only segment of a store and starts a broker on it. Returns the number of lost messages."""
    data_dir = base.with_name(f"{base.name}-{name}")
    shutil.copytree(base, data_dir, ignore=NOT_FILES)
    file = data_dir / "00000000.seg"
    data = bytearray(file.read_bytes())
    if hurt is None:
        file.unlink()
    elif isinstance(hurt, int):
        file.write_bytes(data[:hurt])
    else:
        for start, end in hurt:
            data[start:end] = bytes(end - start)
        file.write_bytes(data)
    told = inspected(data_dir)
    if hurt is None:
        refuses(data_dir, "require_store", config="[store]\nrequire_store = true\n")
    assert is_guess or told.returncode == 2, f"inspect says {told.stdout[-300:]}{told.stderr}"
    with lives(SMALL_SEGMENTS, data_dir) as series:
        cost = examined(series, holds, again=True, told=None if is_guess else told)
        log = series.broker.log()
        assert ": a new store" not in log, "it was formatted anew"
        return cost


def defined_twice() -> None:
    """No queue is lost after the loss of any single block, once the settle window is over."""
    queues = [f"q{number}" for number in range(4)]
    with lives(SMALL_SEGMENTS + '\n[store]\nsettle_window = "200ms"\n') as series:
        with client(series.start()) as peer:
            for queue in queues:
                declare(peer, queue)
                fill(peer, queue, range(3), 100)
            # The second copies of definitions are written within the window.
            time.sleep(patience(1.0))
        assert series.broker
        series.broker.kill()
        blocks = 0
        for segment in sorted(series.data_dir.glob("*.seg")):
            data = segment.read_bytes()
            for at in range(0, len(data), 4096):
                if any(data[at : at + 4096]):
                    blocks += 1
                    check_queues(series.data_dir, segment.name, at, queues)
        assert blocks > 8, blocks


def check_queues(data_dir: Path, name: str, at: int, queues: List[str]) -> None:
    """Checks that a copy of the store with this block zeroed still has all queues."""
    with scratch(COPIES) as folder:
        copy = folder / "data"
        shutil.copytree(data_dir, copy, ignore=NOT_FILES)
        data = bytearray((copy / name).read_bytes())
        data[at : at + 4096] = bytes(4096)
        (copy / name).write_bytes(data)
        with lives(SMALL_SEGMENTS, copy) as series:
            with client(series.start()) as peer:
                for queue in queues:
                    assert peer.call(1, "queue.declare", queue=queue, passive=True), f"{queue}: {name} at {at}"


CASES = [defined_twice, one_segment, truncated_segments, flipped_bits, zeroed_pieces, misplaced_pieces, missing_segment]
QUICK_CASES = CASES
