"""A disk loses all definitions of a queue while the broker runs, and then the power is cut.

Confirmed messages are recovered: in a rebuilt queue if something still names it, otherwise in a queue that an operator
names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

from support import SMALL_SEGMENTS, client, count, declare, fill, lives, numbers_of, take_all


def forget(files: Iterable[Path], name: str) -> int:
    """Flips a bit in every definition of the queue in these files. Returns the number of definitions."""
    key, places = b"\x02\x01/" + bytes([len(name)]) + name.encode(), 0
    for file in files:
        content = file.read_bytes()
        with file.open("r+b") as out:
            at = content.find(key)
            while at >= 0:
                out.seek(at + 3)
                out.write(bytes([content[at + 3] ^ 0x80]))
                places += 1
                at = content.find(key, at + 1)
    return places


def orphans_adopted() -> None:
    """Orphaned messages survive a kill, are adopted, survive another kill, and keep their order."""
    with lives(SMALL_SEGMENTS) as series:
        broker = series.start()
        with client(broker) as peer:
            for queue in ("lost", "kept"):
                declare(peer, queue)
                fill(peer, queue, range(30), 100)
        assert forget(series.data_dir.glob("*.seg"), "lost") >= 1
        broker = series.again("kill")
        assert "orphans: " in broker.ctl("list_alarms")
        listed = broker.ctl("-s", "list_orphans", "incarnation", "messages").split()
        assert len(listed) == 2 and listed[1] == "30", listed
        with client(broker) as peer:
            assert numbers_of(take_all(peer, "kept"), "kept") == list(range(30))
        broker = series.again("kill")
        assert broker.ctl("-s", "list_orphans", "incarnation", "messages").split() == listed
        broker.ctl("adopt_orphan", listed[0], "found")
        broker = series.again("kill")
        assert "orphans: " not in broker.ctl("list_alarms")
        with client(broker) as peer:
            assert count(peer, "found") == 30
            fill(peer, "found", range(10), 100)
            taken = take_all(peer, "found")
            assert numbers_of(taken[:30], "lost") == list(range(30))
            assert numbers_of(taken[30:], "found") == list(range(10))


def queue_rebuilt() -> None:
    """Most messages are in segments whose footers name the queue. The queue is rebuilt without an operator."""
    with lives(SMALL_SEGMENTS) as series:
        broker = series.start()
        with client(broker) as peer:
            declare(peer, "lost")
            declare(peer, "other")
            # The queue's definition is rewritten together with these messages, and may be lost with them.
            fill(peer, "other", range(170), 9_000)
            fill(peer, "lost", range(400), 9_000)
        assert forget(sorted(series.data_dir.glob("*.seg"))[:3], "lost") >= 2
        broker = series.again("kill")
        alarms = broker.ctl("list_alarms")
        assert "rebuilt: " in alarms and "orphans: " not in alarms, alarms
        with client(broker) as peer:
            declare(peer, "lost")
            assert "rebuilt: " not in broker.ctl("list_alarms")
        broker = series.again("kill")
        with client(broker) as peer:
            assert numbers_of(take_all(peer, "lost"), "lost") == list(range(400))


CASES = [orphans_adopted, queue_rebuilt]
QUICK_CASES = CASES
