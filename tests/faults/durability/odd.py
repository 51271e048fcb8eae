"""Files of the store that cannot be opened or are no regular files. Only their content is lost, the broker reports
their names, and it serves everything else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional

from logins import NOBODY, RIGHT, SMALL, administered, copied, inspected, running, who_gets_in
from refused import HELD, held
from support import (
    PERSISTENT, QUICK, SMALL_SEGMENTS, Leveret, Publisher, brokers, btrfs, client, declare, ext4, fill, numbers_of,
    scratch, system, take_all, unmount, until,
)
from harness.raw import Client
from harness.suite import patience

LOG, SPARE = "00000000.seg", "00000001.seg"
NAMES = [SPARE, LOG, "lock", "access.a", "access.b"]


def a_socket(path: Path) -> None:
    """Creates a socket on which nothing listens."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def a_link(path: Path) -> None:
    """Creates a link to a file outside of the store."""
    victim = path.parent.parent / "victim"
    victim.write_bytes(b"victim")
    path.symlink_to(victim)


KINDS: Dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "link": a_link,
    "loop": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "socket": a_socket,
}


def serves(broker: Leveret, name: str, what: str, user: str) -> None:
    """Checks that the right users can log in, that the store accepts messages, and that the log and alarms name the
    file.
    """
    found = who_gets_in(broker)
    assert found == RIGHT, f"{what}: {found} can log in"
    told = [line for line in broker.log().splitlines() if " ERROR " in line and name in line]
    assert told, f"{what}: not reported:\n{broker.log()}"
    alarms = broker.ctl("list_alarms")
    assert "damage: " in alarms, f"{what}: {alarms}"
    with Client(broker.address, user="alice", password="new", timeout=10.0) as peer:
        peer.open()
        declare(peer, "kept")
        peer.call(1, "confirm.select")
        peer.publish(1, "", "kept", b"kept", props=PERSISTENT)
        peer.expect("basic.ack")
    broker.ctl("add_user", user, user)
    assert held(broker.address) == ([] if name == LOG else HELD), f"{what}: the stored messages differ"
    assert broker.process.poll() is None, f"{what}: the broker ended"


def lives_twice(data_dir: Path, name: str, what: str) -> None:
    """Checks that the broker serves, and serves again after a kill, with everything that it accepted in between."""
    with running(data_dir) as broker:
        serves(broker, name, what, "dora")
        broker.kill()
    with running(data_dir) as broker:
        with Client(broker.address, user="alice", password="new", timeout=10.0) as peer:
            peer.open()
            assert peer.call(1, "basic.get", queue="kept", no_ack=True).body == b"kept", what
        assert "dora" in broker.ctl("list_users"), what
        assert name in broker.log(), f"{what}: reported only once"


def something_else_in_place_of_a_file() -> None:
    """A directory, a link, a pipe or a socket stands in place of a file. The broker serves everything else."""
    with scratch() as folder:
        base = administered(folder, "stop")
        for name in NAMES:
            for kind, make in list(KINDS.items())[:: 3 if QUICK else 1]:
                what = f"{name} is a {kind}"
                data_dir = copied(base, folder)
                (data_dir / name).unlink()
                make(data_dir / name)
                if name.endswith(".seg"):
                    look = inspected(data_dir)
                    assert look.returncode == 2 and f" {name}" in look.stdout, f"{what}: {look.stdout}{look.stderr}"
                lives_twice(data_dir, name, what)
                if kind == "link":
                    assert (folder / "victim").read_bytes() == b"victim", what


def damaged_inode() -> None:
    """The file system refuses to open one file, because the inode is damaged."""
    for name in NAMES:
        with scratch() as folder, spoilt(folder, name) as data_dir:
            try:
                (data_dir / name).read_bytes()
            except OSError as why:
                print(f"# {name}: {why}")
            else:
                raise AssertionError(f"the inode of {name} is not damaged")
            lives_twice(data_dir, name, f"{name} cannot be opened")


@contextlib.contextmanager
def spoilt(folder: Path, name: str) -> Iterator[Path]:
    """Creates a store on a file system in which the inode of this file has a wrong checksum."""
    base = administered(folder, "stop")
    with ext4(64, folder) as mount:
        shutil.copytree(base, mount / "data", ignore=shutil.ignore_patterns("*.sock"))
        unmount(mount)
        image = str(folder / "image")
        assert "metadata_csum" in system("dumpe2fs", "-h", image), "this mkfs.ext4 creates no metadata checksums"
        system("debugfs", "-w", "-R", f"set_inode_field /data/{name} checksum 0x12345678", image)
        system("mount", "-o", "loop", image, str(mount))
        yield mount / "data"


def two_brokers_on_one_directory() -> None:
    """A second broker on the directory is refused, whatever happened to the lock file."""
    with scratch() as folder:
        data_dir = administered(folder, "stop")
        spoil: Dict[str, Callable[[Path], Optional[object]]] = {"as it was": lambda path: None, "removed": Path.unlink}
        for what, change in spoil.items():
            with running(data_dir):
                change(data_dir / "lock")
                second = subprocess.run(
                    [str(brokers.leveret_binary()), "--listen", "127.0.0.1:0", "--data-dir", str(data_dir)],
                    capture_output=True, text=True, timeout=patience(20))
                assert second.returncode == 1 and "in use" in second.stderr, f"{what}: {second}"


def removed_while_running() -> None:
    """A file is deleted while the broker runs. The broker ends before it confirms more, because the data would be lost
    with the process. The next start reports the loss."""
    with scratch() as folder:
        data_dir = folder / "data"
        with running(data_dir, SMALL_SEGMENTS) as broker:
            with client(broker) as peer:
                declare(peer, "q")
                fill(peer, "q", range(400), 3000)
            with Publisher(broker, "q", 3000, first=400) as publisher:
                publisher.wait_confirmed(410)
                # All but the first, which is full.
                for path in sorted(data_dir.glob("*.seg"))[1:]:
                    path.unlink()
                until(lambda: broker.process.poll() is not None, "the broker continues without its files")
            said = broker.log().strip().splitlines()[-1]
            assert broker.process.returncode == 1 and "was removed" in said, said
        look = inspected(data_dir)
        assert look.returncode == 2, look.stdout
        with running(data_dir, SMALL_SEGMENTS) as broker:
            with client(broker) as peer:
                got = numbers_of(take_all(peer, "q"), "q")
            assert got == sorted(set(got)) and len(got) < publisher.confirmed, f"{len(got)} of {publisher.confirmed}"
            assert "damage: " in broker.ctl("list_alarms"), broker.log()


def run_once_by_root() -> None:
    """Root ran the broker once by hand in the data directory of the unit's user. That user can still create the control
    socket."""
    with scratch() as folder:
        folder.chmod(0o755)
        data_dir = folder / "data"
        data_dir.mkdir(0o700)
        os.chown(data_dir, 65534, 65534)
        for leaves_it_to_root in (False, True):
            with running(data_dir) as broker:
                assert "guest" in broker.ctl("list_users")
                broker.kill()
            made = (data_dir / "ctl.sock").lstat()
            assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (65534, 65534, 0o600), (
                "the control socket belongs to root")
            if leaves_it_to_root:
                os.chown(data_dir / "ctl.sock", 0, 0)  # as older versions did
            with running(data_dir, None, NOBODY) as broker:
                assert "guest" in broker.ctl("list_users")
                broker.kill()


def a_misaligned_partition_is_reported() -> None:
    """If the partition does not begin at an erase block, the first start and every inspection report it."""
    with scratch() as folder:
        data_dir = folder / "data"
        device = os.stat(folder).st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        for start, is_told in ((63, True), (8192, False)):
            # A simulated card whose partition begins there, in a mount namespace of the broker.
            card = (f"mount -t tmpfs none /sys/dev/block && mkdir -p /sys/dev/block/{name} /sys/dev/block/device && "
                    f"echo {start} > /sys/dev/block/{name}/start && "
                    "echo 4194304 > /sys/dev/block/device/preferred_erase_size && exec \"$@\"")
            prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", card, "sh"]
            shutil.rmtree(data_dir, ignore_errors=True)
            for run in range(2):
                with running(data_dir, SMALL, prefix) as broker:
                    found = "is not a multiple of its erase block" in broker.log()
                    assert found == (is_told and run == 0), f"begins at {start}, run {run}: {broker.log()}"
                    broker.kill()
            look = subprocess.run([*prefix, str(brokers.leveret_binary()), "inspect", str(data_dir)],
                                  capture_output=True, text=True, timeout=patience(60))
            assert ("is not a multiple of its erase block" in look.stdout + look.stderr) == is_told, look


def copy_on_write_is_reported() -> None:
    """On btrfs the segments are written in place and uncompressed, also if the directory is set up otherwise. A store
    that was copied there is not, and every inspection reports it."""
    def told(data_dir: Path) -> bool:
        return "preallocated space may not be usable" in inspected(data_dir).stdout

    with btrfs(160) as mount:
        data_dir, copy = mount / "data", mount / "copy"
        data_dir.mkdir()
        system("chattr", "+c", str(data_dir))
        with running(data_dir, SMALL) as broker:
            assert "preallocated space" not in broker.log(), broker.log()
            broker.kill()
        look = subprocess.run(["lsattr", str(data_dir / LOG)], capture_output=True, text=True, check=True, timeout=patience(60))
        flags = look.stdout.split()[0]
        assert "C" in flags and "c" not in flags, f"{LOG} has the flags {flags}"
        assert not told(data_dir), "reported, although it is written in place"
        shutil.copytree(data_dir, copy, ignore=shutil.ignore_patterns("*.sock"))
        assert told(copy), "not reported, although it is copy-on-write"


CASES = [a_misaligned_partition_is_reported, copy_on_write_is_reported, something_else_in_place_of_a_file, damaged_inode, two_brokers_on_one_directory, removed_while_running,
         run_once_by_root]
QUICK_CASES = [a_misaligned_partition_is_reported, something_else_in_place_of_a_file, two_brokers_on_one_directory, removed_while_running,
               run_once_by_root]
