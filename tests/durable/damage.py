"""Damaged segments: whatever lies there, it starts, says so, and serves nothing that was altered."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Set

from support import (
    KIB, QUICK, SMALL_SEGMENTS, Leveret, Lives, client, count, declare, fill, lives,
    numbers_of, scratch, seed, take_all, until,
)

CASES_PER_KIND = 10 if QUICK else 300
# Damage is done to copies, two at a time, in memory where there is such a place.
COPIES = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
# A broker that was killed leaves its sockets behind.
NOT_FILES = shutil.ignore_patterns("*.sock")
QUEUES = ("small", "middle", "large")


def prepare(data_dir: Path, how: str) -> Dict[str, List[int]]:
    """A store of several segments with all kinds of records; what it holds."""
    series = Lives(data_dir, SMALL_SEGMENTS)
    try:
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
    finally:
        series.end()
    return {"small": list(range(40, 300)), "middle": list(range(2, 60)), "large": list(range(6))}


def take_some(peer, queue: str, number: int) -> List:  # type: ignore[no-untyped-def,type-arg]
    """So many from the front."""
    return [peer.call(1, "basic.get", queue=queue, no_ack=True) for _ in range(number)]


# ---- kinds of damage ----------------------------------------------------------------------


def truncated(data: bytearray, chance: random.Random) -> None:
    """Cut off somewhere, now and then at nothing."""
    del data[chance.choice([0, 1, 4096, chance.randrange(len(data)), chance.randrange(len(data))]) :]


def flipped(data: bytearray, chance: random.Random) -> None:
    """A few bits, where something is written."""
    used = max(4096, len(data.rstrip(b"\0")))
    for _ in range(chance.choice([1, 1, 2, 5])):
        data[chance.randrange(used)] ^= 1 << chance.randrange(8)


def zeroed(data: bytearray, chance: random.Random) -> None:
    """A piece that was never written, as far as the card is concerned."""
    size = chance.choice([512, 4096, 16 * KIB, 64 * KIB, len(data)])
    start = chance.randrange(max(1, len(data) - size + 1)) // 512 * 512
    data[start : start + size] = bytes(len(data[start : start + size]))


def overwritten(data: bytearray, chance: random.Random) -> None:
    """A piece of the segment over another piece of it: good checksums at the wrong place."""
    size = chance.choice([4096, 8192, 32 * KIB])
    source, target = (chance.randrange((len(data) - size) // 4096 + 1) * 4096 for _ in range(2))
    data[target : target + size] = data[source : source + size]


# ---- one case -----------------------------------------------------------------------------


def one(base: Path, holds: Dict[str, List[int]], kind, number: int) -> int:  # type: ignore[no-untyped-def]
    """Damage a copy, start, drain, compare; how many messages it cost."""
    chance = random.Random(number)
    with scratch(COPIES) as folder:
        shutil.copytree(base, folder / "data", ignore=NOT_FILES)
        segments = sorted((folder / "data").glob("*.seg"))
        newest = max(segments, key=sequence_of)
        chosen = chance.choice(segments)
        data = bytearray(chosen.read_bytes())
        kind(data, chance)
        chosen.write_bytes(data)
        series = Lives(folder / "data", SMALL_SEGMENTS)
        try:
            return examined(series, holds, again=number % 8 == 0, may_be_silent=chosen == newest)
        except BaseException as accident:
            raise AssertionError(f"{kind.__name__} {chosen.name}, case {number}: {accident}\n{series.log()}") from accident
        finally:
            series.end()


def sequence_of(segment: Path) -> int:
    """A segment's place in the log, 0 for one in which there is no commit."""
    data = segment.read_bytes()
    return int.from_bytes(data[48:56], "little") if data[4096:].strip(b"\0") else 0


def examined(
    series: Lives, holds: Dict[str, List[int]], again: bool, may_be_silent: bool = False
) -> int:
    """What is served is a part of what was there; what it lost is said; new promises are kept."""
    broker = series.start()
    # Users lie beside the log, too: no damage to it keeps anybody out.
    lost: Set[str] = set()
    with client(broker) as peer:
        for queue in QUEUES:
            declare(peer, queue)
            served = numbers_of(take_all(peer, queue), queue)
            assert served == sorted(set(served)), f"{queue}: out of order or twice: {served}"
            assert is_possible(served, holds[queue]), f"{queue}: served {served[:5]}..., which it never had"
            assert count(peer, queue) == 0, f"{queue}: {count(peer, queue)} messages do not come"
            lost |= {f"{queue} {number}" for number in set(holds[queue]) - set(served)}
        # A damaged end of the log looks like a commit that was never finished.
        if lost and not may_be_silent:
            # The log is written beside the loop.
            until(lambda: "ERROR" in broker.log() or "WARN" in broker.log(), f"no word about {len(lost)} lost ones", 5.0)
        if again:
            fill(peer, "small", range(1000, 1010))
    if again:
        series.again("kill")
        with client(series.broker) as peer:
            served = numbers_of(take_all(peer, "small"), "small")
            assert served[-10:] == list(range(1000, 1010)), f"confirmed after the damage, and lost: {served}"
    return len(lost)


def is_possible(served: List[int], held: List[int]) -> bool:
    """Everything served was published; with its settlements damaged, what was settled may come again."""
    return not served or served[-1] <= held[-1]


def many(kind) -> None:  # type: ignore[no-untyped-def]
    """Many cases of one kind of damage, on a store that was stopped and on one that was killed."""
    chance = seed(kind.__name__)
    with scratch() as folder, ThreadPoolExecutor(2) as pool:
        bases = [(folder / how, prepare(folder / how, how)) for how in ("stop", "kill")]
        numbers = [chance.randrange(1 << 32) for _ in range(CASES_PER_KIND)]
        running = [pool.submit(one, *bases[at % 2], kind, number) for at, number in enumerate(numbers)]
        try:
            costs = [case.result() for case in running]
        finally:
            for case in running:
                case.cancel()
        hurt = [cost for cost in costs if cost]
        print(f"# {kind.__name__}: {len(costs)} cases, {len(hurt)} of them lost messages, {max(costs)} at most")


def truncated_segments() -> None:
    """Segments that end too early."""
    many(truncated)


def flipped_bits() -> None:
    """Segments with wrong bits."""
    many(flipped)


def zeroed_pieces() -> None:
    """Segments with holes."""
    many(zeroed)


def misplaced_pieces() -> None:
    """Segments with parts of themselves at the wrong place."""
    many(overwritten)


def missing_segment() -> None:
    """A file of the log is gone, each of them once."""
    with scratch() as folder:
        holds = prepare(folder / "base", "kill")
        segments = sorted((folder / "base").glob("*.seg"))
        newest = max(segments, key=sequence_of).name
        for name in [path.name for path in segments]:
            shutil.copytree(folder / "base", folder / name, ignore=NOT_FILES)
            (folder / name / name).unlink()
            series = Lives(folder / name, SMALL_SEGMENTS)
            try:
                examined(series, holds, again=True, may_be_silent=name == newest)
            except BaseException as accident:
                raise AssertionError(f"without {name}: {accident}\n{series.log()}") from accident
            finally:
                series.end()


CASES = [truncated_segments, flipped_bits, zeroed_pieces, misplaced_pieces, missing_segment]
QUICK_CASES = CASES
