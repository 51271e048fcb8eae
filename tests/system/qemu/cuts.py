"""Power cuts, one after the other: traffic, a cut, a boot, a check.

A series counts what was confirmed and lost. The caller judges it, because some series must lose something to prove that
the test can detect losses.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

import image  # noqa: E402
from board import NEVER, Board, copy, until  # noqa: E402
from harness import suite  # noqa: E402
from harness.brokers import Address  # noqa: E402
from traffic import Access, Centre, Kept, run_together  # noqa: E402

# A cheap card may also damage the erase block next to the written one.
ERASE_BLOCK_BYTES = 64 * 1024
BLOCK_BYTES = 4096
# Without its header a commit is lost as a whole, so lost messages may be this far away from the damage.
COMMIT_BYTES_MAX = 1024 * 1024
# Traffic ends after a random time in this range in seconds, or after a number of disk writes.
TRAFFIC_S = (0.3, 2.5)
WRITES = (2, 160)
# Share of the boots in which the power is cut again after a number of disk writes, while the file system and the log
# recover.
DIES_BOOTING = 0.3
BOOT_WRITES = (1, 40)
LOG_MORE = """sed -i '1i log_level = "debug"' /etc/leveret/leveret.toml && systemctl reload leveret; sleep 1"""
CLEANED = re.compile(r"([\d.]+) MB of it copied by the compactor; .*?(\d+) segments used again")


class Series:
    """Power cuts of one board. The clients' records continue from boot to boot."""

    def __init__(self, board: Board, seed: int, upstream: Optional[Address] = None, spoils: bool = False) -> None:
        self.board = board
        self.chance = random.Random(seed)
        self.seed = seed
        self.kept = Kept()
        self.access = Access(seed)
        self.centre = Centre(upstream) if upstream else None
        self.damage = Damage(board, self.chance) if spoils else None
        self.lost: List[int] = []
        self.wrong: List[str] = []
        # The reason why it could not continue, for series in which that is allowed.
        self.broken = ""
        self.boots = 0
        # All cuts, those before the broker served, and those after which everything was checked.
        self.cuts = 0
        self.died_booting = 0
        self.checked = 0
        # Megabytes that the compactor rewrote before the last, clean shutdown, and the number of reused segments.
        self.cleaned = (0.0, 0)
        self.disk = dict.fromkeys(("chosen", "pending", "kept", "torn", "lost"), 0)

    def run(self, count: int, until_lost: bool = False) -> None:
        """Cuts the power this many times, and checks the last run. With `until_lost` it stops at the first loss."""
        while self.cuts < count:
            self.boot()
            if until_lost and self.lost:
                return
            self.live_and_be_cut()
        self.boot()
        if not until_lost:
            self.live_and_end()

    def live_and_be_cut(self) -> None:
        """Runs traffic until the power is cut."""
        stop, threads, mistakes = self.traffic()
        stop.wait(self.chance.uniform(*TRAFFIC_S))
        if self.chance.random() < 0.7:
            self.board.drives[-1].arm(self.chance.randint(*WRITES))
            for _ in range(100):
                if not self.board.is_on():
                    break
                stop.wait(0.05)
        report = self.board.cut()
        stop.set()
        ended(threads, mistakes)
        self.wrong += mistakes
        self.account(report)
        if self.damage:
            self.damage.done(report)

    def live_and_end(self) -> None:
        """Runs traffic, and shuts down cleanly. No write is left unflushed, and the file system is intact."""
        stop, threads, mistakes = self.traffic()
        stop.wait(TRAFFIC_S[1])
        stop.set()
        ended(threads, mistakes)
        self.wrong += mistakes + self.crashes()
        if centre := self.centre:
            until("all readings are upstream", lambda: not centre.missing())
            self.wrong += centre.wrong
        # A read-only root keeps its log level, and the log does not report the compactor.
        self.board.ask(LOG_MORE, b"", 30.0)
        said = self.board.sh("systemctl stop leveret; journalctl -b --no-pager -u leveret")
        if found := CLEANED.search(said):
            self.cleaned = (float(found[1]), int(found[2]))
        report = self.board.shut_down()
        assert report["pending"] == 0, f"a clean end left writes unflushed: {report}"
        image.is_whole(self.board.drives[-1].path)

    def traffic(self) -> tuple:
        """Starts a thread for each client. Returns the event that ends them, the threads, and their errors."""
        stop = threading.Event()
        amqp = self.board.address()
        parts = [self.kept.publisher, self.kept.settle, self.access]
        addresses = [amqp, amqp, self.board.address("management")]
        if self.centre:
            parts.append(self.centre.publisher)
            addresses.append(amqp)
        return (stop, *run_together(parts, addresses, stop))

    def account(self, report: Dict[str, Any]) -> None:
        """Counts a cut and what the disk lost."""
        self.cuts += 1
        for name in self.disk:
            self.disk[name] += report[name] if name != "pending" else bool(report[name])

    def boot(self) -> None:
        """Switches the board on and checks its contents. The power may be cut again during the boot."""
        # If the card also destroys a block, the contents are checked after each cut, because the report of a boot is
        # not repeated.
        while not self.comes_up(self.chance.random() < DIES_BOOTING and not self.damage):
            self.account(self.board.gone())
            self.died_booting += 1
        verdict = self.kept.check(self.board.address(), may_come_back=self.damage is not None)
        self.lost += self.explained(verdict.lost)
        self.wrong += verdict.wrong + self.access.check(self.board.address("management")).wrong
        self.wrong += self.crashes()
        if self.centre:
            self.wrong += self.centre.wrong
            self.centre.wrong = []
        self.checked = self.cuts

    def crashes(self) -> List[str]:
        """Returns the number of unexpected ends of the broker since this boot, from the board's systemd."""
        restarts = self.board.sh("systemctl show -P NRestarts leveret")
        return [] if restarts == "0" else [f"the broker ended {restarts} times by itself"]

    def comes_up(self, is_cut: bool) -> bool:
        """Boots once. Returns whether the broker serves in the end; with `is_cut` the power may be cut before."""
        self.boots += 1
        seed = self.seed * 100_000 + self.boots
        if not is_cut:
            self.board.power_on(seed)
            self.board.wait_until_it_serves()
            return True
        data = self.board.drives[-1]
        data.arm(self.chance.randint(*BOOT_WRITES))
        self.board.switch_on(seed)
        until("the broker serves, or the power is cut", lambda: not self.board.is_on() or self.board.serves())
        data.arm(NEVER)
        # A write that is under way may be the last one before the cut.
        time.sleep(0.2)
        return self.board.is_on()

    def explained(self, lost: List[int]) -> List[int]:
        """Returns the lost messages that the damage does not explain."""
        if not self.damage or not lost:
            return lost
        return self.damage.unexplained(lost, self.kept.name, max(self.kept.publisher.confirmed, default=-1))

    def close(self) -> None:
        """Switches the board off and closes the upstream's connections."""
        self.board.close()
        if self.centre:
            self.centre.close()

    def summary(self) -> str:
        """Returns the results as text."""
        disk = self.disk
        told = (f"# {self.cuts} cuts ({disk['chosen']} chosen by the disk, {self.died_booting} died while booting;"
                f" unflushed writes at {disk['pending']}:"
                f" {disk['lost']} lost, {disk['torn']} torn, {disk['kept']} kept);"
                f" {self.kept.publisher.total} confirmed, {self.access.changes} changes of access and queues;"
                f" {len(self.lost)} lost, {len(self.wrong)} wrong; in the last run the compactor copied"
                f" {self.cleaned[0]} MB and {self.cleaned[1]} segments were used again")
        if self.broken:
            told += f"; then {self.broken}"
        if self.centre:
            told += (f"; {self.centre.publisher.total} confirmed for the upstream, {len(self.centre.ids)} there,"
                     f" {self.centre.repeats} repeats, all marked")
        return told


class Damage:
    """A power cut that loses the erase block beside the last written one, as cheap cards do. Only blocks of Leveret's
    segments are damaged, because the file system is not under test.
    """

    def __init__(self, board: Board, chance: random.Random) -> None:
        self.board = board
        self.chance = chance
        self.spoilt = 0
        self.by_damage = 0
        self.told = 0
        self.untold = 0
        # The contents of the last damaged block and its surroundings.
        self.around = b""

    def done(self, report: Dict[str, Any]) -> None:
        """Destroys a block of the image if a block of the segments was written last."""
        path = self.board.drives[-1].path
        owned = self.segments(path)
        written = [offset // ERASE_BLOCK_BYTES for offset, size in report["last"] if offset // BLOCK_BYTES in owned]
        beside = [block for place in written[-1:] for block in (place - 1, place + 1)
                  if all(inner in owned for inner in blocks_of(block))]
        self.around = b""
        if not beside:
            return
        start = self.chance.choice(beside) * ERASE_BLOCK_BYTES
        with path.open("r+b") as card:
            first = max(0, start - COMMIT_BYTES_MAX)
            card.seek(first)
            self.around = card.read(start - first + ERASE_BLOCK_BYTES + COMMIT_BYTES_MAX)
            card.seek(start)
            card.write(self.chance.choice([b"\xff", b"\0"]) * ERASE_BLOCK_BYTES)
        self.spoilt += 1

    @staticmethod
    def segments(path: Path) -> set:
        """Returns the blocks of the file system that belong to segments, after its journal was replayed."""
        replayed = copy(path, path.with_suffix(".replayed"))
        # Exit code 1 means that e2fsck repaired something, such as replaying the journal.
        image.run("sh", "-c", f"e2fsck -fy '{replayed}' || [ $? -le 1 ]")
        where = "/var/lib/leveret"
        names = re.findall(r"\d{8}\.seg", image.run("debugfs", "-R", f"ls -p {where}", replayed))
        owned = set()
        for name in names:
            said = image.run("debugfs", "-R", f"blocks {where}/{name}", replayed)
            owned |= {int(word) for word in said.splitlines()[-1].split()}
        replayed.unlink()
        return owned

    def unexplained(self, lost: List[int], queue: str, newest: int) -> List[int]:
        """Returns lost messages that were not in or beside the damage; all lost messages if nothing was reported.
        Damage at the end of the log is not reported, because it looks like an incomplete commit.
        """
        said = self.board.sh("journalctl -b --no-pager -u leveret")
        near = {number for number in lost if f"{queue} {number:07} ".encode() in self.around}
        if re.search("cannot be read|refuses to read|is not all of it|lost", said):
            self.told += 1
        elif min(lost) > newest:
            self.untold += 1
        else:
            print(f"# {len(near)} messages are lost without a report:\n{said[-1500:]}", flush=True)
            return lost
        self.by_damage += len(near)
        return sorted(set(lost) - near)


def ended(threads: List[threading.Thread], mistakes: List[str]) -> None:
    """Waits until all clients have noticed the end of the board."""
    for thread in threads:
        thread.join(suite.patience(30.0))
        if thread.is_alive():
            mistakes.append("somebody still waits for an answer of a board that is off")


def blocks_of(erase_block: int) -> range:
    """Returns the file system's blocks in an erase block."""
    each = ERASE_BLOCK_BYTES // BLOCK_BYTES
    return range(erase_block * each, (erase_block + 1) * each)
