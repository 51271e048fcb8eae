"""Blocks that the disk refuses to read. Only their content is lost, the broker reports it, and serves everything else.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import List

from logins import BLOCK, RIGHT, SMALL, administered, copied, inspected, running, who_gets_in, written_blocks
from support import QUICK, brokers, numbers_of, scratch, seed, take_all
from harness.brokers import Address
from harness.raw import Client, Closed
from harness.suite import patience

SOURCE = Path(__file__).parent / "refuse.c"
# The messages that `administered` leaves in the queue.
HELD = list(range(30))
# Maximum number of messages of a commit there.
COMMIT = 20


def refusing(library: Path, block: int) -> List[str]:
    """Returns the command prefix that runs a command with one block of the log unreadable."""
    return ["env", f"LD_PRELOAD={library}", f"REFUSE=00000000.seg:{block}"]


def built(folder: Path, source: Path = SOURCE) -> Path:
    """Compiles the library to be preloaded. Returns its path."""
    library = folder / f"{source.stem}.so"
    compiler = shutil.which("cc")
    assert compiler, "there is no C compiler; the crate ring needs one, too"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True, timeout=patience(60))
    return library


def any_block_may_be_refused() -> None:
    """For each unreadable block, the right users can log in, and lost messages are reported."""
    chance = seed("refused")
    with scratch() as folder:
        library, base = built(folder), administered(folder, "stop")
        blocks = written_blocks(base)
        step = 5 if QUICK else 2
        refused = 0
        for at in blocks[chance.randrange(step) :: step]:
            copy = copied(base, folder)
            block = at // BLOCK
            with running(copy, SMALL, refusing(library, block)) as broker:
                found = who_gets_in(broker)
                assert found == RIGHT, f"block {block}: {found} can log in"
                log = broker.log()
                if "refuses to read" not in log:
                    continue
                refused += 1
                served = held(broker.address)
                assert served == sorted(set(served)) and set(served) <= set(HELD), f"block {block}: {served}"
                missing = len(HELD) - len(served)
                assert missing <= COMMIT or not served, f"block {block}: {missing} messages for one block"
                assert not missing or "ERROR" in log, (
                    f"block {block}: {missing} messages are lost, and the log does not report it")
                assert "damage: " in broker.ctl("list_alarms") and "damage: " in broker.ctl("status")
        assert refused > 5, f"only {refused} of {len(blocks)} blocks were read and refused"
        verdict = subprocess.run(
            [*refusing(library, blocks[2] // BLOCK), str(brokers.leveret_binary()), "inspect", str(base)],
            capture_output=True, text=True, timeout=patience(60),
        )
        assert verdict.returncode == 2 and "verdict    damaged" in verdict.stdout, verdict
        assert inspected(base).returncode == 0
        with running(copied(base, folder)) as broker:
            assert "damage: " not in broker.ctl("list_alarms"), "a damage alarm is raised for an undamaged store"


def held(address: Address) -> List[int]:
    """Returns the served messages of the queue; an empty list if its definition was in the block."""
    try:
        with Client(address, user="alice", password="new") as peer:
            peer.open()
            return numbers_of(take_all(peer, "q"), "q")
    except Closed as closed:
        assert "NOT_FOUND" in str(closed), closed
        return []


CASES = [any_block_may_be_refused]
QUICK_CASES = CASES
