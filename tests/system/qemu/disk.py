"""nbdkit's plug-in for a disk with a volatile write cache: what was not flushed before a cut is lost, torn or kept.

    nbdkit -f -U SOCKET python disk.py disk=IMAGE seed=N log=FILE pid=FILE arm=FILE [keeps=all]

Reads and writes use a private mapping of the image; a flush writes the pending blocks to the image itself. When QEMU
has ended, `close` decides which of the other blocks reach the image, and appends one line of JSON to the log. The
file `arm` contains a number of writes after which the disk itself cuts the power, by killing QEMU. This hits the moment
between a write and its flush, which a cut at a random time rarely does.
"""

import builtins
import json
import mmap
import os
import random
import signal

API_VERSION = 2
SECTOR_BYTES = 512
# Writes are torn between flash pages, not inside one: ext4 with checksums does not mount after a half-written block of
# its own. The simulator, which has no file system, tests torn sectors.
PAGE_BYTES = 4096
# Number of recent writes whose offsets are reported, to tell what was being written at the cut.
REMEMBERED = 256
options = {}


def config(key, value):
    """Handles one argument of the command line."""
    options[key] = value


def config_complete():
    """Checks that all arguments are there."""
    missing = {"disk", "seed", "log", "pid", "arm"} - set(options)
    if missing:
        raise ValueError(f"missing arguments: {missing}")


class Disk:
    """The state of the disk from a start of QEMU to its end."""

    def __init__(self):
        self.file = os.open(options["disk"], os.O_RDWR)
        self.bytes = os.fstat(self.file).st_size
        self.view = mmap.mmap(self.file, self.bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.pending = []
        self.last = []
        self.writes = 0
        self.flushes = 0
        self.left = None
        self.dead = False

    def count_down(self):
        """Cuts the power when the number of writes in `arm` has been reached."""
        if os.path.exists(options["arm"]):
            with builtins.open(options["arm"]) as said:
                self.left = int(said.read())
            os.unlink(options["arm"])
        if self.left is None:
            return
        self.left -= 1
        if self.left <= 0:
            self.dead = True
            with builtins.open(options["pid"]) as said:
                os.kill(int(said.read()), signal.SIGKILL)

    def settle(self):
        """Writes some of the pending blocks to the image, in their order."""
        chance = random.Random(int(options["seed"]))
        kept = torn = lost = 0
        in_time = chance.random()
        for offset, data in self.pending:
            fate = chance.random()
            if options.get("keeps") == "all" or fate < 0.8 * in_time:
                os.pwrite(self.file, data, offset)
                kept += 1
            elif fate < 0.8 * in_time + 0.2:
                for page in range(offset // PAGE_BYTES, (offset + len(data) - 1) // PAGE_BYTES + 1):
                    start, end = max(0, page * PAGE_BYTES - offset), (page + 1) * PAGE_BYTES - offset
                    if chance.random() < 0.5:
                        os.pwrite(self.file, data[start:end], offset + start)
                torn += 1
            else:
                lost += 1
        return {"kept": kept, "torn": torn, "lost": lost}


def open(readonly):
    """Called when QEMU connects."""
    return Disk()


def get_size(disk):
    """Returns the size in bytes."""
    return disk.bytes


def can_write(disk):
    """The disk can be written."""
    return True


def can_flush(disk):
    """The disk has a cache that can be flushed."""
    return True


def can_trim(disk):
    """Trim is not supported."""
    return False


def can_zero(disk):
    """Zeroing is not supported; zeros are written like other data."""
    return False


def can_multi_conn(disk):
    """There is one connection, from one QEMU."""
    return False


def block_size(disk):
    """Returns the sizes of sectors, as cards have them."""
    return (SECTOR_BYTES, 4096, 0xFFFFFFFF)


def pread(disk, buffer, offset, flags):
    """Reads the data written last, flushed or not."""
    buffer[:] = disk.view[offset:offset + len(buffer)]


def pwrite(disk, buffer, offset, flags):
    """Writes to the cache."""
    if disk.dead:
        raise OSError(5, "no power")
    data = bytes(buffer)
    disk.view[offset:offset + len(data)] = data
    disk.writes += 1
    disk.pending.append((offset, data))
    disk.last.append((offset, len(data)))
    del disk.last[:-REMEMBERED]
    disk.count_down()


def flush(disk, flags):
    """Writes the cache to the image."""
    if disk.dead:
        raise OSError(5, "no power")
    for offset, data in disk.pending:
        os.pwrite(disk.file, data, offset)
    disk.pending.clear()
    disk.flushes += 1


def close(disk):
    """Called when QEMU has ended, which is a power cut."""
    report = {"writes": disk.writes, "flushes": disk.flushes, "pending": len(disk.pending), "chosen": disk.dead}
    report.update(disk.settle(), last=disk.last)
    os.close(disk.file)
    with builtins.open(options["log"], "a") as log:
        log.write(json.dumps(report) + "\n")
