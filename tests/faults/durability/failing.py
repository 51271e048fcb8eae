"""The disk fails while the broker runs: the process ends with an error message, and confirms nothing after the failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from pathlib import Path

from harness.suite import patience
from support import (
    MIB, Lives, Publisher, client, declare, ext4, lives, numbers_of, scratch, system, take_all, tmpfs,
    unmount, wait_until_still,
)

# <linux/fs.h>; EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN have the same number. The file system answers EIO afterwards.
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)


def ends_well(series: Lives, publisher: Publisher) -> int:
    """Checks that the broker ends by itself with status 1 and an error message. Returns the number of confirmed
    messages."""
    broker = series.broker
    assert broker
    try:
        status = broker.process.wait(patience(20.0))
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"the broker continues without a disk: {broker.log()[-1000:]}") from late
    last = broker.log().strip().splitlines()[-1]
    assert status == 1, f"status {status}: {last}"
    assert "cannot write" in last and "panicked" not in broker.log(), broker.log()
    print("#", last)
    publisher.thread.join(patience(10.0))
    return publisher.confirmed


def shut_down() -> None:
    """The file system refuses all writes from one moment on."""
    with scratch() as folder, ext4(48, folder) as mount, lives(data_dir=mount / "data") as series:
        with client(series.start()) as peer:
            declare(peer, "q")
        with Publisher(series.broker, "q", 500) as publisher:
            publisher.wait_confirmed(200)
            directory = os.open(mount, os.O_RDONLY)
            try:
                fcntl.ioctl(directory, SHUTDOWN, NO_LOG_FLUSH)
            finally:
                os.close(directory)
            confirmed = ends_well(series, publisher)
            series.end()
        unmount(mount)
        system("mount", "-o", "loop", str(folder / "image"), str(mount))
        afterwards(series, confirmed, publisher.sent)


def sync_fails() -> None:
    """Writes succeed, but the device under the file system fails the sync."""
    with tmpfs(40) as under, ext4(64, under) as mount, lives(data_dir=mount / "data") as series:
        with client(series.start()) as peer:
            declare(peer, "q")
        with Publisher(series.broker, "q", 500, last=200) as publisher:
            publisher.wait_confirmed(200)
            # The medium reports that it is full. If that happens to a new segment, the disk counts as full and
            # publishers wait. So the next segment must be ready, and the next write must be a message.
            wait_until_still(mount / "data")
            take_away(under, mount / "data")
            publisher.last = 1 << 40
            ends_well(series, publisher)
            series.end()


def take_away(under: Path, data_dir: Path) -> None:
    """Leaves the device no space for the blocks of the segments."""
    image = under / "image"
    for segment in data_dir.glob("*.seg"):
        for line in system("filefrag", "-b4096", "-e", str(segment)).splitlines():
            words = line.replace(":", " ").replace("..", " ").split()
            if len(words) > 5 and words[0].isdigit():
                start, length = int(words[3]), int(words[5])
                system("fallocate", "-p", "-o", str(start * 4096), "-l", str(length * 4096), str(image))
    with contextlib.suppress(OSError), open(under / "ballast", "wb", buffering=0) as ballast:
        while ballast.write(bytes(MIB)):
            pass


def afterwards(series: Lives, confirmed: int, sent: int) -> None:
    """Checks that everything confirmed is there after the next start."""
    with client(series.start()) as peer:
        got = numbers_of(take_all(peer, "q"), "q")
        assert len(got) <= sent and got == list(range(len(got))), "out of order"
        assert len(got) >= confirmed, f"{len(got)} of {confirmed} confirmed messages"


CASES = [shut_down, sync_fails]
QUICK_CASES = CASES
