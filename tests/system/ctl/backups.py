"""Backups of a running broker contain everything that was confirmed before, and can be restored."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import FrozenSet, List, Optional, Tuple

from harness import brokers
from harness.brokers import BrokerError, Leveret, leveret
from harness.suite import Skip, patience
from support import counts, ctl, good, program, rows

SMALL = """
frame_max = "16KiB"
[limits]
segment_bytes = "512KiB"
commit_bytes_max = "160KiB"
"""


def a_backup_under_traffic_comes_back() -> None:
    """A restored backup has messages, definitions and users: everything confirmed before it, and of later changes an
    unbroken beginning."""
    with leveret(config=SMALL) as broker:
        good(broker, "add_user", "bob", "secret")
        program("publish", broker, "before", "2000")
        stop = threading.Event()
        traffic = threading.Thread(target=keep_publishing, args=(broker, stop))
        traffic.start()
        try:
            for number in range(3):
                good(broker, "backup", str(broker.home / f"{number}.tar"))
        finally:
            stop.set()
            traffic.join()
        for number in range(3):
            restored = broker.home / f"restored-{number}"
            restore(broker.home / f"{number}.tar", restored)
            with living(restored) as copy:
                assert counts(copy)["before"] == 2000
                assert ["bob", "[]"] in rows(copy, "list_users")
                assert good(copy, "authenticate_user", "bob", "secret").endswith("Success\n")
                assert program("in_order", copy, "during").strip() == "unbroken"


def keep_publishing(broker: Leveret, stop: threading.Event) -> None:
    """Publishes, consumes and acknowledges until told to stop, so that segments are filled, emptied and reused."""
    while not stop.is_set():
        program("publish", broker, "during", "300")
        program("churn", broker, "600")


class living:  # noqa: N801
    """Runs a broker on a data directory for the length of a `with` block."""

    def __init__(self, data_dir: Path) -> None:
        self.broker = Leveret(brokers.leveret_binary(), [], SMALL, data_dir)

    def __enter__(self) -> Leveret:
        return self.broker

    def __exit__(self, *_: object) -> None:
        self.broker.close()


def restore(archive: Path, folder: Path, status: int = 0) -> str:
    """Runs `leveret restore`."""
    command = [str(brokers.leveret_binary()), "restore", str(archive), "--data-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == status, done
    return done.stdout + done.stderr


def a_restore_touches_no_store() -> None:
    """`restore` refuses a folder with a store or a running broker, a damaged archive and an invalid one."""
    with leveret() as broker:
        program("publish", broker, "q", "10")
        archive = broker.home / "a.tar"
        good(broker, "backup", str(archive))
        assert archive.stat().st_mode & 0o777 == 0o600
        assert ctl(broker, "backup", str(archive)).status == 65
        assert "a broker uses it" in restore(archive, broker.data_dir, 1)
        folder = broker.home / "restored"
        restore(archive, folder)
        assert "contains a store already" in restore(archive, folder, 1)
        damaged = broker.home / "damaged.tar"
        bytes_ = bytearray(archive.read_bytes())
        bytes_[bytes_.index(b"x" * 100)] ^= 1
        damaged.write_bytes(bytes_)
        empty = broker.home / "empty"
        assert "damaged" in restore(damaged, empty, 1)
        assert not empty.exists(), "a failed restore left its folder"
        cut = broker.home / "cut.tar"
        cut.write_bytes(archive.read_bytes()[:100_000])
        assert "is incomplete" in restore(cut, empty / "deep" / "er", 1)
        assert not empty.exists(), "a failed restore left the parent folders that it created"
        # The last byte of the block with a segment's header, which has no meaning: the store is valid, but the archive
        # is not what was written.
        bytes_ = bytearray(archive.read_bytes())
        bytes_[512 + 4095] ^= 1
        damaged.write_bytes(bytes_)
        said = restore(damaged, empty, 1)
        assert "sha256sum" in said and "does not end" not in said, said
        empty.mkdir()
        crooked = broker.home / "crooked.tar"
        with tarfile.open(crooked, "w") as tar:
            for name in ("../escaped.seg", "/tmp/escaped.seg", "lock", "00000000.seg.x"):
                tar.addfile(tarfile.TarInfo(name))
        assert "no store" in restore(crooked, empty, 1)
        assert not (broker.home / "escaped.seg").exists()
        assert sorted(path.name for path in empty.iterdir()) == ["lock"]


def a_file_that_is_no_backup_is_refused_in_words() -> None:
    """`restore` of another file says that it is no backup and what makes one; a cut backup is still "incomplete". No
    folder is left."""
    with leveret() as broker:
        archive, home = broker.home / "a.tar", broker.home
        program("publish", broker, "q", "10")
        good(broker, "backup", str(archive))
        good(broker, "export_definitions", str(home / "definitions.json"))
        (home / "empty").write_bytes(b"")
        (home / "short.json").write_text('\ufeff {"users": []}')
        (home / "a.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
        (home / "notes.txt").write_text("buy a new SD card\n" * 100)
        (home / "zeros").write_bytes(bytes(100_000))
        (home / "file").write_bytes(b"y" * 5000)
        for name, kind in (("other.tar", tarfile.GNU_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
            with tarfile.open(home / name, "w", format=kind) as tar:
                tar.add(home / "file", "ü" * 90)
        (home / "cut-other.tar").write_bytes((home / "other.tar").read_bytes()[:3000])
        (home / "cut-head.tar").write_bytes((home / "other.tar").read_bytes()[:400])
        fifo = home / "fifo"
        os.mkfifo(fifo)
        feeder = threading.Thread(target=lambda: fifo.write_bytes(b'{"users": []}'), daemon=True)
        feeder.start()
        for name, why in {
                "definitions.json": "import_definitions", "short.json": "import_definitions", "empty": "it is empty",
                "a.tar.gz": "gunzip", ".": "it is a directory", "notes.txt": "not a tar archive",
                "zeros": "not a tar archive", "other.tar": "contains no store", "pax.tar": "contains no store",
                "cut-other.tar": "of other files", "cut-head.tar": "of other files",
                "fifo": "import_definitions"}.items():
            folder = home / "never"
            said = restore(home / name, folder, 1)
            assert f"{home / name} is no backup: " in said and why in said, said
            assert "nothing was restored" in said and "leveretctl backup" in said, said
            assert len(said.splitlines()) == 1 and not folder.exists(), said
        feeder.join()
        for length in (100, 400, 512, 20_000, archive.stat().st_size - 600):
            (home / "cut.tar").write_bytes(archive.read_bytes()[:length])
            said = restore(home / "cut.tar", home / "never", 1)
            assert "is incomplete" in said and "is no backup" not in said, (length, said)


def a_damaged_store_comes_back_as_it_was() -> None:
    """Damage that the store already had is reported, and the same messages are lost after the restore."""
    with leveret(config=SMALL) as broker:
        program("publish", broker, "q", "300")
        broker.kill()
        segment = sorted(broker.data_dir.glob("*.seg"))[0]
        data = bytearray(segment.read_bytes())
        assert any(data[200_000:204_096]), "this part of the segment is unused"
        data[200_000:204_096] = bytes(4_096)
        segment.write_bytes(data)
        with living(broker.data_dir) as damaged:
            archive, folder = broker.home / "a.tar", broker.home / "restored"
            good(damaged, "backup", str(archive))
            said = restore(archive, folder)
            assert "already damaged at the time of the backup" in said and "leveret inspect" in said, said
            with living(folder) as copy:
                assert counts(copy) == counts(damaged)


def a_changed_byte_of_a_backup_is_detected() -> None:
    """A backup with zeroed or flipped bytes, as from a failing USB stick, is not restored."""
    with leveret(config=SMALL) as broker:
        program("publish", broker, "q", "100")
        good(broker, "delete_user", "guest")
        archive, changed, folder = (broker.home / name for name in ("a.tar", "b.tar", "folder"))
        good(broker, "backup", str(archive))
        whole = archive.read_bytes()
        step = len(whole) // 97
        changes = [(at, bytes([whole[at] ^ 4])) for at in [*range(300, len(whole), step), len(whole) - 1]]
        changes += [(at, bytes(len(whole) - at)) for at in range(512, len(whole) - 1024, step)]
        changes.append((len(whole), b"more"))
        for at, instead in changes:
            changed.write_bytes(whole[:at] + instead + whole[at + len(instead):])
            restore(changed, folder, 1)
            assert not list(folder.glob("*.seg")), at
        restore(archive, folder)
        home = broker.home / "untarred"
        home.mkdir()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(home)], check=True, timeout=patience(60))
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=home, check=True, timeout=patience(60))


def a_restore_brings_its_own_users() -> None:
    """After a restore into a folder that only has the files beside the log, the users are those of the backup."""
    with leveret(config=SMALL) as broker:
        good(broker, "add_user", "bob", "old")
        archive = broker.home / "a.tar"
        good(broker, "backup", str(archive))
        good(broker, "delete_user", "bob")
        good(broker, "add_user", "eve", "eve")
        broker.stop()
        for segment in broker.data_dir.glob("*.seg"):
            segment.unlink()
        assert (broker.data_dir / "access.a").exists()
        restore(archive, broker.data_dir)
        with living(broker.data_dir) as copy:
            assert good(copy, "authenticate_user", "bob", "old").endswith("Success\n")
            assert "eve" not in good(copy, "list_users")


CUTS = "renameat,renameat2,unlinkat,mkdirat,pwrite64,fsync,fdatasync,fchown"


def cut_short(archive: Path, folder: Path, number: int) -> bool:
    """Runs `leveret restore` and kills it at its call number `number` that changes or syncs something. Returns whether
    it was still running."""
    command = ["strace", "-f", "-o", str(folder.parent / "trace"), "-e", f"trace={CUTS}", "-e",
               f"inject={CUTS}:signal=KILL:when={number}", str(brokers.leveret_binary()), "restore", str(archive),
               "--data-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode in (0, -9, 137), done
    return done.returncode != 0


def knows(broker: Leveret, user: str, password: str) -> bool:
    """Returns whether a login succeeds."""
    return ctl(broker, "authenticate_user", user, password).status == 0


def let_in(folder: Path) -> Tuple[bool, FrozenSet[str], bool]:
    """Returns whether a broker has the backup's messages, which users can log in, and whether it reports doubt. If it
    does not start because of the files of a restore, no user can log in.
    """
    try:
        with living(folder) as copy:
            has_log = bool(counts(copy).get("before"))
            users = frozenset(name for name in ("guest", "early", "bob", "eve")
                              if knows(copy, name, {"bob": "old"}.get(name, name)))
            return has_log, users, "InDoubt" in copy.log() or "all logins are refused" in copy.log()
    except BrokerError as error:
        if "a restore into it was interrupted" not in str(error):
            raise
        return False, frozenset(), True


def an_interrupted_restore_gives_no_access() -> None:
    """A restore replaces a newer store whose segments were removed, and is killed at every step. The log of the backup
    is never combined with other users: those of the newer store, an older state, or a new store."""
    if shutil.which("strace") is None:
        raise Skip("needs strace, to kill a program at a system call")
    with leveret(config=SMALL) as broker:
        archive, template = broker.home / "a.tar", broker.home / "template"
        good(broker, "add_user", "early", "early")
        program("publish", broker, "before", "3000")
        good(broker, "delete_user", "early")
        good(broker, "add_user", "bob", "old")
        program("publish", broker, "before", "3000")
        good(broker, "delete_user", "guest")
        good(broker, "backup", str(archive))
        good(broker, "delete_user", "bob")
        good(broker, "add_user", "eve", "eve")
        broker.stop()
        assert len(list(broker.data_dir.glob("*.seg"))) > 2, "too few segments to interrupt the restore between them"
        shutil.copytree(broker.data_dir, template, ignore=shutil.ignore_patterns("*.seg", "*.sock"))
        seen = set()
        for number in range(1, 200, 3 if os.environ.get("LEVERET_TEST_MODE") == "gate" else 1):
            folder = broker.home / f"cut-{number}"
            shutil.copytree(template, folder)
            was_cut = cut_short(archive, folder, number)
            has_log, users, is_doubted = let_in(folder)
            shutil.rmtree(folder)
            seen.add((has_log, users, is_doubted))
            fine = not users - {"bob"} if has_log else not users - {"eve"}
            assert fine or is_doubted, (
                f"after {number} steps: the log is restored: {has_log}; these users can log in: {set(users)}")
            if not was_cut:
                assert (has_log, users) == (True, frozenset({"bob"})), (has_log, users)
                break
        else:
            raise AssertionError("the restore never finished")
        print(f"# {number - 1} interruptions: "
              f"{sorted((has_log, sorted(users), doubt) for has_log, users, doubt in seen)}")
        assert number > 10, "too few steps were interrupted"


def tar_alone_restores() -> None:
    """An archive is a standard tar file. Unpacked by tar, it is a store."""
    with leveret() as broker:
        program("publish", broker, "q", "10")
        archive = broker.home / "a.tar"
        good(broker, "backup", str(archive))
        home = Path(tempfile.mkdtemp(prefix="leveret-untar-"))
        try:
            subprocess.run(["tar", "-xf", str(archive), "-C", str(home)], check=True, timeout=patience(60))
            with living(home) as copy:
                assert counts(copy) == {"q": 10}
        finally:
            shutil.rmtree(home, ignore_errors=True)


def abandoned_backup() -> None:
    """A client that requests a backup and disconnects releases the files that were kept for it."""
    with leveret(config=SMALL) as broker:
        program("publish", broker, "q", "500")
        for _ in range(6):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(patience(10))
                client.connect(str(broker.data_dir / "ctl.sock"))
                client.sendall(b"POST /api/ctl/backup HTTP/1.1\r\n\r\n")
                answer = client.recv(65536)
                assert b"200 OK" in answer, answer
                files = json.loads(answer.split(b"\r\n\r\n", 1)[1])["files"]
                assert files, answer
        program("churn", broker, "2000")
        good(broker, "backup", str(broker.home / "b.tar"))


def a_backup_waits_for_the_one_before() -> None:
    """With two backups at once, the second begins when the first client ends, also without traffic."""
    with leveret(config=SMALL) as broker, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        for client in (first, second):
            client.settimeout(patience(10))
            client.connect(str(broker.data_dir / "ctl.sock"))
            client.sendall(b"POST /api/ctl/backup HTTP/1.1\r\n\r\n")
            if client is first:
                assert b"200 OK" in client.recv(65536)
        assert not select.select([second], [], [], 0.3)[0], "both clients receive a backup at the same time"
        first.close()
        assert b"200 OK" in second.recv(65536)


def on_terminal(command: List[str], given: bytes = b"", pause_s: float = 0.0, is_terminal: bool = True,
                fifo: Optional[Path] = None, held: Optional[int] = None) -> Tuple[bytes, bytes, float]:
    """Runs a command whose standard error is a terminal, or a pipe. Its input and output wait for `pause_s` seconds, so
    that it takes longer than that. `given` is its standard input, or the content of `fifo`. The process `held` is stopped
    for that time, from the first line of output on. Returns standard error, standard output and duration.
    """
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown: List[bytes] = []
    is_held = threading.Event()

    def read() -> None:
        # A terminal without a process ends with an error.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown.append(part)

    def feed() -> None:
        with process.stdin if fifo is None else fifo.open("wb") as out:
            if held is not None:
                is_held.wait(patience(30))
            out.write(given[:100_000])
            out.flush()
            if fifo is not None:
                time.sleep(pause_s)
            out.write(given[100_000:])

    threads = [threading.Thread(target=read), threading.Thread(target=feed)]
    for thread in threads:
        thread.start()
    first = b""
    if held is not None:
        first = process.stdout.readline()
        os.kill(held, signal.SIGSTOP)
        is_held.set()
    time.sleep(pause_s)
    if held is not None:
        os.kill(held, signal.SIGCONT)
    out, status = first + process.stdout.read(), process.wait(patience(120))
    took_s = time.monotonic() - began
    for thread in threads:
        thread.join()
    process.stdout.close()
    os.close(ours)
    assert status == 0, (command, status, shown)
    return b"".join(shown), out, took_s


def progress_is_shown_on_a_terminal_only() -> None:
    """Backup, restore, import and export show a line on a terminal if they take more than half a second, and remove it.
    Otherwise they write no byte of it.
    """
    leveret_program = str(brokers.leveret_binary())
    with leveret(config=SMALL) as broker:
        program("publish", broker, "q", "2000")
        ctl_command = [leveret_program, "ctl", "--data-dir", str(broker.data_dir)]
        # Several batches, so that the import goes on after the broker has answered.
        queues = [{"name": f"{number:0200}", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
                  for number in range(250)]
        definitions = json.dumps({"queues": queues}).encode()
        quick = broker.home / "quick.tar"
        shown, out, took_s = on_terminal([*ctl_command, "backup", str(quick)])
        assert took_s > 0.5 or shown == b"", shown
        archive = on_terminal([*ctl_command, "backup", "-"])[1]
        fifo = broker.home / "archive"
        os.mkfifo(fifo)
        megabytes = rb"\d+\.\d MB"
        rate = rb", " + megabytes + rb"/s(, \d+:\d\d left)? *"
        works: List[Tuple[List[str], bytes, Optional[Path], bytes]] = [
            ([*ctl_command, "backup", "-"], b"", None, rb"Backup: " + megabytes + rb" of " + megabytes + rate),
            ([*ctl_command, "import_definitions", "-"], definitions, None,
             rb"Import: " + megabytes + rb" of " + megabytes + rate),
            ([leveret_program, "restore", str(fifo), "--data-dir", "NEW"], archive, fifo,
             rb"Restore: " + megabytes + rate),
            ([leveret_program, "inspect", str(broker.data_dir), "--export", "-"], b"", None,
             rb"Export: [\d,]+ of 2,000 messages, " + megabytes + rate),
        ]
        for number, (command, given, pipe, line) in enumerate(works):
            for is_terminal in (True, False):
                target = str(broker.home / f"restored-{number}-{is_terminal}")
                words = [target if word == "NEW" else word for word in command]
                held = broker.process.pid if given == definitions else None
                shown, out, took_s = on_terminal(words, given, 0.8, is_terminal, pipe, held)
                lines = [part for part in shown.split(b"\r") if re.match(rb"\w+: .* MB", part)]
                if not is_terminal:
                    assert b"\r" not in shown and lines == [], shown
                    assert b"export" in words[-2].encode() or shown == b"", shown
                    continue
                assert lines and all(re.fullmatch(line, part) for part in lines), (words, shown)
                assert len(lines) <= took_s * 4 + 1, (took_s, lines)
                # Blanks overwrite the last line, before anything else is printed.
                rest = shown[shown.rindex(lines[-1]) + len(lines[-1]):]
                assert re.match(rb"(\r\w+: \w+ \.\.\. *)?\r +\r", rest), (words, shown)
        assert len(rows(broker, "list_queues")) == 251


CASES = [
    progress_is_shown_on_a_terminal_only,
    a_backup_under_traffic_comes_back,
    a_restore_touches_no_store,
    a_file_that_is_no_backup_is_refused_in_words,
    a_damaged_store_comes_back_as_it_was,
    a_changed_byte_of_a_backup_is_detected,
    a_restore_brings_its_own_users,
    an_interrupted_restore_gives_no_access,
    tar_alone_restores,
    abandoned_backup,
    a_backup_waits_for_the_one_before,
]
