"""Logins after damage to the store. Users that the store can prove can log in. If it can prove none, no user can log
in, and the broker reports that.

A deleted user stays deleted, and a removed permission stays removed, whichever block is damaged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional

from support import (
    MIB, QUICK, Leveret, brokers, client, declare, fill, numbers_of, scratch, seed, side_by_side, system,
    take_all, tmpfs, wait_until_still,
)
from harness.raw import Client, Closed
from harness.suite import Skip, patience

BLOCK = 4096
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
SMALL = '[store]\ndisk_limit = "32MiB"\n'
IN_DOUBT = "users and permissions in the store may be wrong"


class Who(NamedTuple):
    """Credentials, and the virtual host that is opened with them."""

    user: str
    password: str
    vhost: str = "/"


GUEST, ALICE, OLD_ALICE = Who("guest", "guest"), Who("alice", "new"), Who("alice", "old")
BOB, BOB_TWO, CAROL = Who("bob", "bob"), Who("bob", "bob", "two"), Who("carol", "carol")
# Refused passwords come last, because each one is delayed longer.
EVERYBODY = [ALICE, BOB, CAROL, BOB_TWO, GUEST, OLD_ALICE]
ACCESS_FILES = ("access.a", "access.b")
# The expected logins after `administered`: carol was added last; guest, the old password and bob's permission for `two`
# were removed.
RIGHT = {ALICE, BOB, CAROL}


@contextlib.contextmanager
def running(
    data_dir: Path, config: Optional[str] = SMALL, prefix: Optional[List[str]] = None
) -> Iterator[Leveret]:
    """Runs a broker on this directory for the length of a `with` block."""
    binary = brokers.leveret_binary()
    if prefix:
        binary = data_dir.parent / "leveret"
        if not binary.exists():
            shutil.copy(brokers.leveret_binary(), binary)
            binary.chmod(0o755)
    broker = Leveret(binary, [], config, data_dir, prefix)
    try:
        yield broker
    except BaseException:
        print(broker.log()[-4000:])
        raise
    finally:
        broker.close()


def gets_in(broker: Leveret, who: Who) -> bool:
    """Returns whether these credentials open that virtual host."""
    try:
        with Client(broker.address, user=who.user, password=who.password, vhost=who.vhost):
            return True
    except (Closed, ConnectionError, EOFError):
        return False


def who_gets_in(broker: Leveret) -> set:  # type: ignore[type-arg]
    """Returns which of the users can log in."""
    return {who for who in EVERYBODY if gets_in(broker, who)}


def administer(broker: Leveret) -> None:
    """Adds, changes and deletes users, and publishes messages in between."""
    with client(broker) as peer:
        declare(peer, "q")
        fill(peer, "q", range(20))
    broker.ctl("add_user", "alice", "old")
    broker.ctl("set_permissions", "alice", ".*", ".*", ".*")
    broker.ctl("add_vhost", "two")
    broker.ctl("add_user", "bob", "bob")
    for vhost in ("/", "two"):
        broker.ctl("set_permissions", "--vhost", vhost, "bob", ".*", ".*", ".*")
    broker.ctl("clear_permissions", "--vhost", "two", "bob")
    broker.ctl("delete_user", "guest")
    broker.ctl("change_password", "alice", "new")
    with Client(broker.address, user="alice", password="new") as peer:
        peer.open()
        fill(peer, "q", range(20, 30))
    broker.ctl("add_user", "carol", "carol")
    broker.ctl("set_permissions", "carol", ".*", ".*", ".*")


def administered(folder: Path, how: str) -> Path:
    """Creates a store whose users were changed, and stops (`stop`) or kills (`kill`) its broker."""
    data_dir = folder / f"base-{how}"
    with running(data_dir) as broker:
        administer(broker)
        getattr(broker, how)()
    return data_dir


def copied(base: Path, folder: Path) -> Path:
    """Returns a copy of the store that may be damaged."""
    data_dir = folder / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    shutil.copytree(base, data_dir, ignore=shutil.ignore_patterns("*.sock"))
    return data_dir


def without_files(data_dir: Path) -> Path:
    """Deletes the files beside the log that list the users, so that only the log has them."""
    for name in ACCESS_FILES:
        (data_dir / name).unlink()
    return data_dir


def inspected(data_dir: Path) -> "subprocess.CompletedProcess[str]":
    """Returns the output of `inspect`."""
    return subprocess.run([str(brokers.leveret_binary()), "inspect", str(data_dir)], capture_output=True, text=True,
                          timeout=patience(60))


def is_loud(broker: Leveret) -> None:
    """Checks that the log, the alarms and the status report that no user can log in."""
    assert IN_DOUBT in broker.log(), broker.log()
    assert "access: " in broker.ctl("list_alarms") and IN_DOUBT in broker.ctl("status"), broker.ctl("status")


def written_blocks(data_dir: Path) -> List[int]:
    """Returns the offsets of the non-zero blocks of the only segment."""
    data = (data_dir / "00000000.seg").read_bytes()
    return [at for at in range(0, len(data), BLOCK) if data[at : at + BLOCK].strip(b"\0")]


def flip(path: Path, at: int) -> None:
    """Flips one bit."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


def spoil(path: Path, at: int) -> None:
    """Overwrites a whole block. A single wrong bit would lose only the record that contains it."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * BLOCK)


def every_block_loses_a_bit(how: str) -> None:
    """With one flipped bit in any block, exactly the right users can log in.

    In half of the cases only the log lists the users.
    """
    chance = seed(f"every-block-{how}")
    with scratch() as folder:
        base = administered(folder, how)
        blocks = written_blocks(base)
        assert len(blocks) > 15, f"only {len(blocks)} blocks"
        data = (base / "00000000.seg").read_bytes()
        places = []
        for at in blocks[chance.randrange(8) :: 8] if QUICK else blocks:
            # Only the used part of a block: no checksum covers the padding, and it has no meaning.
            used = len(data[at : at + BLOCK].rstrip(b"\0"))
            places += [at + chance.randrange(used)] if QUICK else {at, at + chance.randrange(used)}

        def check(place: int, is_log_alone: bool) -> None:
            with scratch(folder) as own:
                copy = copied(base, own)
                if is_log_alone:
                    without_files(copy)
                flip(copy / "00000000.seg", place)
                with running(copy) as broker:
                    found = who_gets_in(broker)
                    assert found == RIGHT, f"byte {place}: {found} can log in"
                    assert IN_DOUBT not in broker.log()

        side_by_side(check, [(place, chance.random() < 0.5) for place in places])
        print(f"# {len(blocks)} blocks")


def users_survive_the_loss_of_the_log() -> None:
    """Exactly the right users can log in, however much of the log is lost together with one of the files beside it."""
    chance = seed("log-lost")
    with scratch() as folder:
        base = administered(folder, "kill")
        blocks = written_blocks(base)
        for first, filler in ((0, b"\0"), (0, b"\xa5"), (chance.randrange(1, 6), b"\xa5"), (len(blocks) // 2, b"\xff")):
            copy = copied(base, folder)
            with open(copy / "00000000.seg", "r+b") as file:
                for at in blocks[first:]:
                    file.seek(at)
                    file.write(filler * BLOCK)
            flip(copy / chance.choice(ACCESS_FILES), chance.randrange(200))
            for end in ("kill", "stop", "kill"):
                with running(copy) as broker:
                    found = who_gets_in(broker)
                    assert found == RIGHT, f"from block {first} on, {filler!r}: {found} can log in"
                    assert IN_DOUBT not in broker.log() and ": a new store" not in broker.log(), broker.log()
                    if end == "stop":
                        # The store is an ordinary one from then on.
                        broker.ctl("change_password", "alice", "old")
                        broker.ctl("change_password", "alice", "new")
                    getattr(broker, end)()
                # The log contains all users again.
                copy = without_files(copy) if end == "stop" else copy
            assert "access     whole" in inspected(copy).stdout
        copy = copied(base, folder)
        for segment in copy.glob("*.seg"):
            segment.unlink()
        with running(copy) as broker:
            assert who_gets_in(broker) == RIGHT and ": a new store" not in broker.log()


def every_block_after_a_stop() -> None:
    """One bit of each block is flipped after a clean stop."""
    every_block_loses_a_bit("stop")


def every_block_after_a_kill() -> None:
    """One bit of each block is flipped after the broker was killed right after it answered the last change."""
    every_block_loses_a_bit("kill")


def runs_of_blocks_are_lost() -> None:
    """After the loss of several consecutive blocks and the files beside the log, either the right users can log in or
    none.
    """
    chance = seed("runs-of-blocks")
    with scratch() as folder:
        base = administered(folder, "kill")
        blocks = written_blocks(base)
        runs = []
        for count in (2, 3, 5):
            # Each broker takes seconds because refused logins are delayed. Each run of the tests covers another third
            # of the places.
            for start in range(1 + chance.randrange(3), len(blocks) - count + 1, 3):
                runs.append([at + chance.randrange(40) for at in blocks[start : start + count]])

        def check(*places: int) -> bool:
            """Checks that no user can log in."""
            with scratch(folder) as own:
                copy = without_files(copied(base, own))
                for place in places:
                    flip(copy / "00000000.seg", place)
                with running(copy) as broker:
                    found = who_gets_in(broker)
                    assert found in (RIGHT, set()), f"bytes {places}: {found} can log in"
                    if found:
                        assert IN_DOUBT not in broker.log()
                        return False
                    is_loud(broker)
                assert inspected(copy).returncode == 2
                return True

        doubts = sum(side_by_side(check, runs))
        assert doubts, "no case lost the users"
        print(f"# no user could log in in {doubts} cases")


def users_locked_out_until_repair() -> None:
    """No user can log in, however often the broker starts, until root has inspected, repaired and confirmed the store.
    """
    with scratch() as folder:
        data_dir = without_files(administered(folder, "stop"))
        # From the first change of users on. The last commits are left, because they show that something is missing.
        for at in written_blocks(data_dir)[8:-2]:
            spoil(data_dir / "00000000.seg", at)
        for _ in range(3):
            with running(data_dir) as broker:
                assert who_gets_in(broker) == set()
                is_loud(broker)
                broker.stop()
        with running(data_dir) as broker:
            broker.ctl("list_users")
            # A change before the confirmation is stored, but gives no access.
            with contextlib.suppress(brokers.BrokerError):
                broker.ctl("delete_user", "alice")
            broker.ctl("add_user", "dave", "dave")
            broker.ctl("set_permissions", "dave", ".*", ".*", ".*")
            broker.kill()
        with running(data_dir) as broker:
            assert not gets_in(broker, Who("dave", "dave")) and not gets_in(broker, GUEST)
            with contextlib.suppress(brokers.BrokerError):
                broker.ctl("delete_user", "guest")
            broker.ctl("confirm_users")
            assert gets_in(broker, Who("dave", "dave")) and not gets_in(broker, GUEST)
            assert "access: " not in broker.ctl("list_alarms")
            broker.kill()
        with running(data_dir) as broker:
            assert gets_in(broker, Who("dave", "dave")) and not gets_in(broker, GUEST)
            assert IN_DOUBT not in broker.log()
        assert "access     whole" in inspected(data_dir).stdout


def confirming_removes_orphaned_permissions() -> None:
    """The definition of a user is lost and its permission is not. A new user of that name does not get the old
    permission."""
    with scratch() as folder:
        data_dir = folder / "data"
        with running(data_dir) as broker:
            broker.ctl("add_vhost", "two")
            broker.ctl("change_password", "guest", "changed")
            before = len(written_blocks(data_dir))
            broker.ctl("add_user", "bob", "lost")
            # Definitions are written a second time shortly after the answer.
            wait_until_still(data_dir)
            after = len(written_blocks(data_dir))
            broker.ctl("set_permissions", "-p", "two", "bob", ".*", ".*", ".*")
            broker.ctl("set_user_limits", "bob", '{"max-connections": 0}')
            broker.kill()
        without_files(data_dir)
        for at in written_blocks(data_dir)[before:after]:
            spoil(data_dir / "00000000.seg", at)
        with running(data_dir) as broker:
            is_loud(broker)
            assert "bob" not in broker.ctl("list_users") + broker.ctl("list_permissions", "-p", "two")
            broker.ctl("add_user", "bob", "bob")
            broker.ctl("set_permissions", "bob", ".*", ".*", ".*")
            broker.ctl("confirm_users")
            assert gets_in(broker, BOB) and not gets_in(broker, BOB_TWO)
            broker.stop()
        for _ in range(2):
            with running(data_dir) as broker:
                assert "bob" not in broker.ctl("list_permissions", "-p", "two"), "the old permission is valid again"
                assert gets_in(broker, BOB) and not gets_in(broker, BOB_TWO)
                broker.stop()


def a_lost_segment_is_not_taken_for_a_new_store() -> None:
    """The first block of the newest segment, or the whole segment, is lost: guest is not created, and the other users
    can log in."""
    with scratch() as folder:
        base = administered(folder, "kill")
        cases = {"header": range(0, 1), "header and a commit": range(0, 2), "everything": range(0, 10_000)}
        for name, blocks in cases.items():
            for filler in (b"\0", b"\xa5"):
                copy = copied(base, folder)
                written = [at for at in written_blocks(copy) if at // BLOCK in blocks]
                with open(copy / "00000000.seg", "r+b") as file:
                    for at in written:
                        file.seek(at)
                        file.write(filler * BLOCK)
                if name != "everything":
                    without_files(copy)
                with running(copy) as broker:
                    found = who_gets_in(broker)
                    assert found == RIGHT, f"{name}, {filler!r}: {found}"
                    assert ": a new store" not in broker.log(), broker.log()


def damaged_messages_lock_no_user_out() -> None:
    """Damage to messages is reported, and does not change who can log in."""
    with scratch() as folder:
        data_dir = administered(folder, "stop")
        with running(data_dir) as broker, Client(broker.address, user="alice", password="new") as peer:
            peer.open()
            for number in range(30):
                fill(peer, "q", range(30 + 10 * number, 40 + 10 * number))
            broker.stop()
        blocks = written_blocks(data_dir)
        for at in blocks[-20:-10]:
            flip(data_dir / "00000000.seg", at + 30)
        with running(data_dir) as broker:
            assert "cannot be read" in broker.log()
            assert "damage: " in broker.ctl("list_alarms")
            broker.kill()
        # The alarm stays over restarts until it is acknowledged.
        with running(data_dir) as broker:
            assert who_gets_in(broker) == RIGHT
            alarms = broker.ctl("list_alarms")
            assert "damage: " in alarms and "acknowledge_damage" in alarms, alarms
            with Client(broker.address, user="alice", password="new") as peer:
                peer.open()
                assert len(numbers_of(take_all(peer, "q"), "q")) > 200
            broker.ctl("acknowledge_damage")
            assert "damage: " not in broker.ctl("list_alarms")
            broker.kill()
        with running(data_dir) as broker:
            assert "damage: " not in broker.ctl("list_alarms"), "the alarm was acknowledged, and is listed again"
        assert "damage     segment" in inspected(data_dir).stdout


def users_survive_compaction() -> None:
    """Users survive in two places while segments are written and deleted around their entries."""
    tight = '[limits]\nsegment_bytes = "512KiB"\ncommit_bytes_max = "160KiB"\n[store]\ndisk_limit = "4MiB"\n' \
            'settle_window = "100ms"\n'
    chance = seed("cleaner")
    with scratch() as folder:
        data_dir = folder / "base"
        with running(data_dir, 'frame_max = "16KiB"\n' + tight) as broker:
            administer(broker)
            with Client(broker.address, user="alice", password="new") as peer:
                peer.open()
                declare(peer, "kept")
                for start in range(0, 360, 12):
                    fill(peer, "q", range(1000 + start, 1012 + start), 20_000)
                    # Some messages of every segment remain, so that a segment can only be freed by rewriting them.
                    fill(peer, "kept", range(start, start + 2), 20_000)
                    peer.call(1, "queue.purge", queue="q")
            broker.stop()
        for segment in sorted(data_dir.glob("*.seg")):
            data = segment.read_bytes()
            blocks = {at: data[at : at + BLOCK] for at in range(0, len(data), BLOCK)}
            hits = [at for at, block in blocks.items() if b"carol" in block or b"guest" in block]
            print(f"# {segment.name}: {len(hits)} blocks")
            for at in hits:
                copy = copied(data_dir, folder)
                used = len(data[at : at + BLOCK].rstrip(b"\0"))
                flip(copy / segment.name, at + chance.randrange(used))
                with running(copy, 'frame_max = "16KiB"\n' + tight) as broker:
                    found = who_gets_in(broker)
                    assert found == RIGHT, f"{segment.name} byte {at}: {found}"
        assert not (data_dir / "00000000.seg").read_bytes()[48:56].startswith(b"\1\0\0\0\0\0\0\0"), (
            "the first segment was never rewritten")


# ---- mistakes and disks -------------------------------------------------------------------


def refuses(data_dir: Path, *words: str, config: Optional[str] = None, prefix: Optional[List[str]] = None) -> None:
    """Checks that a start ends at once with an error message that contains all these words."""
    try:
        with running(data_dir, config, prefix) as broker:
            raise AssertionError(f"it started:\n{broker.log()}")
    except brokers.BrokerError as why:
        last = str(why).strip().splitlines()[-1]
        assert "status 1:" in str(why) and all(word in last for word in words), str(why)
        print("#", last)


def needs_setpriv() -> None:
    """Skips the case if it cannot run as another user than root."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        raise Skip("needs root and setpriv, to run as another user")


def a_wrong_data_directory_prevents_the_start() -> None:
    """Without permission, parent or directory the start ends with the command that helps, and creates no user guest."""
    needs_setpriv()
    with scratch() as folder:
        folder.chmod(0o755)
        data_dir = folder / "data"
        data_dir.mkdir()
        os.chown(data_dir, 65534, 65534)
        with running(data_dir, None, NOBODY) as broker:
            administer(broker)
            broker.stop()
        for mode in (0o000, 0o500, 0o700):
            os.chown(data_dir, 0, 0)
            data_dir.chmod(mode)
            refuses(data_dir, "chown -R 65534:65534", prefix=NOBODY)
        os.chown(data_dir, 65534, 65534)
        data_dir.chmod(0o700)
        for name in ("lock", "00000000.seg", *ACCESS_FILES):
            os.chown(data_dir / name, 0, 0)
            (data_dir / name).chmod(0o600)
            refuses(data_dir, "chown -R 65534:65534", prefix=NOBODY)
            os.chown(data_dir / name, 65534, 65534)
        with running(data_dir, None, NOBODY) as broker:
            assert who_gets_in(broker) == RIGHT
        refuses(folder / "no" / "such" / "data", "mkdir -p")
        refuses(folder / "new", f"mkdir {folder / 'new'} && chown 65534:65534 {folder / 'new'}", prefix=NOBODY)
        (folder / "file").write_text("")
        refuses(folder / "file", "not a directory")
        refuses(folder / "file" / "data", "not a directory")
        (folder / "loop").symlink_to(folder / "loop")
        refuses(folder / "loop", "cycle of links")
        (folder / "dangling").symlink_to(folder / "nowhere")
        refuses(folder / "dangling", "link")
        assert not (folder / "nowhere").exists() and not (folder / "no").exists()


def a_read_only_disk_without_a_store_gives_no_access() -> None:
    """On a read-only file system without a store no user can log in. With a store, the users in it can log in."""
    if os.geteuid() != 0:
        raise Skip("needs root, to mount")
    with tmpfs(160) as mount, scratch() as folder:
        (mount / "empty").mkdir()
        shutil.copytree(administered(folder, "stop"), mount / "full", ignore=shutil.ignore_patterns("*.sock"))
        blocks = written_blocks(mount / "full")
        lost = {"newest": blocks[-3:], "changes": blocks[3:], "all": blocks}
        for name, gone in lost.items():
            shutil.copytree(mount / "full", mount / name)
            for at in gone:
                flip(mount / name / "00000000.seg", at + 9)
        system("mount", "-o", "remount,ro", str(mount))
        with running(mount / "empty") as broker:
            assert who_gets_in(broker) == set(), "the store cannot be read"
            assert "all logins are refused" in broker.log(), broker.log()
            # Users cannot be confirmed if the confirmation cannot be stored.
            assert "repair the disk and restart the broker" in broker.log() and "confirm_users" not in broker.log(), broker.log()
        with running(mount / "none") as broker:
            assert who_gets_in(broker) == set()
        with running(mount / "full") as broker:
            assert who_gets_in(broker) == RIGHT
            assert "cannot be written" in broker.log()
        for name in lost:
            # The files beside the log prove the users, although they cannot be written into the log again.
            with running(mount / name) as broker:
                assert who_gets_in(broker) == RIGHT, f"{name} blocks of the log are lost"
                assert "cannot be written" in broker.log()


def a_full_disk_without_a_store_gives_no_access() -> None:
    """If the disk has no space for a new store, no user can log in."""
    if os.geteuid() != 0:
        raise Skip("needs root, to mount")
    with tmpfs(1) as mount:
        (mount / "ballast").write_bytes(bytes(MIB - 16384))
        with running(mount / "data", None) as broker:
            assert who_gets_in(broker) == set()
            assert "all logins are refused" in broker.log(), broker.log()


def a_store_can_be_required() -> None:
    """`require_store`: an empty mount point stays empty, and is not formatted as a new store."""
    with scratch() as folder:
        required = "[store]\nrequire_store = true\n"
        (folder / "mount").mkdir()
        refuses(folder / "mount", "require_store", config=required)
        refuses(folder / "none", "require_store", config=required)
        assert not list((folder / "mount").iterdir()) and not (folder / "none").exists()
        with running(folder / "mount", None) as broker:
            broker.stop()
        with running(folder / "mount", required) as broker:
            assert gets_in(broker, GUEST)
            broker.stop()
        segment = folder / "mount" / "00000000.seg"
        without_files(folder / "mount")
        segment.write_bytes(bytes(segment.stat().st_size))
        refuses(folder / "mount", "require_store", config=required)
        assert not segment.read_bytes().strip(b"\0"), "a store was created"


def the_first_user_is_configured() -> None:
    """`default_user` and `default_pass` apply to a new store only. The password is not printed."""
    with scratch() as folder:
        with running(folder / "nobody", "default_user = false\n") as broker:
            assert who_gets_in(broker) == set() and "\n" not in broker.ctl("list_users", "--no-table-headers").strip()
            assert "guest" not in broker.ctl("list_users")
            broker.kill()
        with running(folder / "nobody", None) as broker:
            assert not gets_in(broker, GUEST), "the store is not new, and default_user can log in"
        named = 'default_user = "dave"\ndefault_pass = "s3cr3t-of-dave"\n'
        with running(folder / "named", named) as broker:
            assert gets_in(broker, Who("dave", "s3cr3t-of-dave")) and not gets_in(broker, GUEST)
            assert "administrator" in broker.ctl("list_users")
            config = broker.home / "leveret.toml"
            checked = subprocess.run([str(broker.binary), "check", "--config", str(config)], capture_output=True,
                                     text=True, timeout=patience(60))
            shown = checked.stdout + checked.stderr + broker.log() + broker.ctl("environment") + broker.ctl("status")
            assert checked.returncode == 0 and "dave" in shown and "s3cr3t" not in shown, shown
            broker.ctl("delete_user", "dave")
            broker.kill()
        with running(folder / "named", named) as broker:
            assert not gets_in(broker, Who("dave", "s3cr3t-of-dave")) and not gets_in(broker, GUEST)
        refuses(folder / "half", "default_pass", config='default_user = "dave"\n')
        refuses(folder / "half", "default_pass", config="default_pass = 12345678\n")
        assert not (folder / "half").exists()


CASES = [
    users_survive_the_loss_of_the_log, every_block_after_a_stop, every_block_after_a_kill, runs_of_blocks_are_lost,
    users_locked_out_until_repair,
    confirming_removes_orphaned_permissions, a_lost_segment_is_not_taken_for_a_new_store,
    damaged_messages_lock_no_user_out, users_survive_compaction,
    a_wrong_data_directory_prevents_the_start, a_read_only_disk_without_a_store_gives_no_access, a_full_disk_without_a_store_gives_no_access,
    a_store_can_be_required, the_first_user_is_configured,
]
QUICK_CASES = [case for case in CASES if case not in (every_block_after_a_kill, runs_of_blocks_are_lost)]
