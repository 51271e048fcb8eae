"""Root writes into folders of other users that contain links. Only the requested files are changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Iterator, List

from harness import brokers
from harness.brokers import Leveret, leveret
from harness.suite import Skip, patience
from support import ctl, good

HOSTILE = 65534


@contextlib.contextmanager
def hostile_folder() -> Iterator[Path]:
    """Creates a folder of another user, and beside it `victim`, which belongs to root."""
    if os.geteuid() != 0:
        raise Skip("needs root, to write into a folder of another user")
    home = Path(tempfile.mkdtemp(prefix="leveret-folders-"))
    try:
        home.chmod(0o755)
        (home / "victim").write_text("untouched")
        (home / "victim").chmod(0o600)
        (home / "theirs").mkdir()
        os.chown(home / "theirs", HOSTILE, HOSTILE)
        yield home / "theirs"
        unharmed(home / "victim")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def unharmed(victim: Path) -> None:
    """Checks that the file is unchanged."""
    found = victim.lstat()
    assert victim.read_text() == "untouched", "it was overwritten"
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600), f"its owner or mode was changed: {found}"


def restored(archive: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Returns the output of `restore`, which must not block."""
    command = [str(brokers.leveret_binary()), "restore", str(archive), "--data-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(30))


@contextlib.contextmanager
def backed_up() -> Iterator[Path]:
    """Provides an archive of a store."""
    with leveret() as broker:
        good(broker, "add_user", "bob", "secret")
        good(broker, "backup", str(broker.home / "a.tar"))
        yield broker.home / "a.tar"


def an_export_follows_no_link() -> None:
    """`export_definitions` and `backup` follow no link in place of the file or of its temporary file. An export replaces
    only a regular file."""
    with hostile_folder() as folder, leveret() as broker:
        victim = folder.parent / "victim"
        for name in ("a.json.part", "linked.json"):
            (folder / name).symlink_to(victim)
        os.mkfifo(folder / "pipe.json")
        for name in ("linked.json", "pipe.json", "/dev/null"):
            before = (folder / name).lstat()
            done = ctl(broker, "export_definitions", str(folder / name))
            assert done.status == 65 and "not a regular file" in done.err, done
            assert (folder / name).lstat() == before, name
            if name != "/dev/null":
                (folder / name).unlink()
        (folder / "a.json").write_text("old")
        good(broker, "export_definitions", str(folder / "a.json"))
        found = (folder / "a.json").lstat()
        assert not (folder / "a.json").is_symlink() and found.st_mode & 0o777 == 0o600, found
        assert "guest" in (folder / "a.json").read_text()
        unharmed(victim)
        (folder / "b.tar.part").symlink_to(victim)
        good(broker, "backup", str(folder / "b.tar"))
        (folder / "c.tar").symlink_to(folder.parent / "nowhere")
        assert ctl(broker, "backup", str(folder / "c.tar")).status == 65
        assert not (folder.parent / "nowhere").exists()
        assert sorted(path.name for path in folder.iterdir()) == [
            "a.json", "a.json.part", "b.tar", "b.tar.part", "c.tar",
        ], "temporary files were left"


def a_restore_follows_no_link() -> None:
    """`restore` follows no link, pipe or second hard link in place of its files."""
    with hostile_folder() as folder, backed_up() as archive:
        victim = folder.parent / "victim"
        for name, target in {"00000000.seg": victim, "00000001.seg": folder.parent / "nowhere"}.items():
            (folder / name).symlink_to(target)
            assert restored(archive, folder).returncode != 0, name
            unharmed(victim)
            assert not (folder.parent / "nowhere").exists()
            clear(folder)
        # The folder itself is locked, so whatever is in place of the lock file is not touched.
        for make in (lambda path: path.symlink_to(victim), os.mkfifo):
            make(folder / "lock")
            assert restored(archive, folder).returncode == 0
            unharmed(victim)
            assert not (folder / "lock").is_file() or (folder / "lock").is_symlink()
            clear(folder)
        # The folder itself is a link, which its owner could redirect.
        (folder / "data").symlink_to(folder.parent)
        for path in (folder / "data", f"{folder}/data/"):
            answer = restored(archive, Path(path))
            assert answer.returncode != 0 and "link" in answer.stderr, answer
        assert sorted(path.name for path in folder.parent.iterdir()) == ["theirs", "victim"]
        (folder / "data").unlink()
        os.link(victim, folder / "lock")
        restored(archive, folder)
        unharmed(victim)


def a_restore_follows_no_foreign_links_above_the_folder() -> None:
    """The parent folder belongs to another user, who replaces a name in it by a link: it is not followed. Links of root
    are followed."""
    with hostile_folder() as folder, backed_up() as archive:
        elsewhere = folder.parent / "elsewhere"
        elsewhere.mkdir()
        (folder / "a").symlink_to(elsewhere)
        for owner in (HOSTILE, 0):
            os.chown(folder / "a", owner, owner, follow_symlinks=False)
            answer = restored(archive, folder / "a" / "b" / "data")
            assert answer.returncode != 0 and "is a link that user" in answer.stderr, answer
            assert names(elsewhere) == []
        ours = folder.parent / "ours"
        ours.symlink_to("elsewhere")
        os.chown(ours, HOSTILE, HOSTILE, follow_symlinks=False)
        assert restored(archive, ours / "data").returncode != 0 and names(elsewhere) == []
        os.chown(ours, 0, 0, follow_symlinks=False)
        answer = restored(archive, ours / "b" / "data")
        assert answer.returncode == 0 and (elsewhere / "b" / "data" / "00000000.seg").is_file(), answer
        ours.unlink()
        shutil.rmtree(elsewhere)


def restored_files_belong_to_the_owner() -> None:
    """Restored files, including the lock, belong to the owner of the folder, so the owner's broker can start."""
    if shutil.which("setpriv") is None:
        raise Skip("needs setpriv, to run as another user")
    with hostile_folder() as folder, backed_up() as archive:
        answer = restored(archive, folder)
        assert answer.returncode == 0, answer
        for path in folder.iterdir():
            assert (path.stat().st_uid, path.stat().st_gid) == (HOSTILE, HOSTILE), path
        binary = folder.parent / "leveret"
        shutil.copy(brokers.leveret_binary(), binary)
        binary.chmod(0o755)
        prefix = ["setpriv", f"--reuid={HOSTILE}", f"--regid={HOSTILE}", "--clear-groups"]
        with Leveret(binary, [], None, folder, prefix) as broker:
            assert "bob" in broker.ctl("list_users")
        binary.unlink()


def a_folder_that_changes_meanwhile() -> None:
    """The owner replaces files by links as soon as they are created. The targets of the links never change their owner.
    """
    with hostile_folder() as folder, backed_up() as archive:
        victim, stop = folder.parent / "victim", threading.Event()

        def swap() -> None:
            while not stop.is_set():
                for name in ("00000000.seg", "00000001.seg", "lock"):
                    if (folder / name).is_file() and not (folder / name).is_symlink():
                        with contextlib.suppress(OSError):
                            (folder / name).unlink()
                            (folder / name).symlink_to(victim)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            for _ in range(15):
                restored(archive, folder)
                unharmed(victim)
                clear(folder)
        finally:
            stop.set()
            swapper.join()


def clear(folder: Path) -> None:
    """Empties the folder."""
    for path in list(folder.iterdir()):
        with contextlib.suppress(OSError):
            path.unlink()


def a_backup_follows_no_link() -> None:
    """A file of the store is replaced by a link. Root does not copy the target of the link."""
    with hostile_folder() as folder, leveret() as broker:
        victim = folder.parent / "victim"
        segment = broker.data_dir / "00000000.seg"
        aside = segment.rename(folder.parent / "aside")
        segment.symlink_to(victim)
        assert ctl(broker, "backup", str(folder / "a.tar")).status == 69
        segment.unlink()
        os.link(victim, segment)
        assert ctl(broker, "backup", str(folder / "a.tar")).status == 69
        segment.unlink()
        aside.rename(segment)
        assert names(folder) == []
        good(broker, "backup", str(folder / "a.tar"))


def names(folder: Path) -> List[str]:
    """Returns the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


CASES = [
    an_export_follows_no_link, a_restore_follows_no_link, a_restore_follows_no_foreign_links_above_the_folder,
    restored_files_belong_to_the_owner,
    a_folder_that_changes_meanwhile, a_backup_follows_no_link,
]
