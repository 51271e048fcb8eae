"""Common tasks of an operator: users, virtual hosts, permissions, queues and stopping; and refused users."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import time
import tempfile
from pathlib import Path
from typing import Iterator

from harness import brokers
from harness.brokers import leveret
from harness.raw import Client
from harness.suite import Skip, patience
from support import counts, ctl, good, program, rows, start_program, until


def virtual_hosts_are_separate() -> None:
    """Queues with the same name exist in two virtual hosts, and users without permission cannot open them."""
    with leveret() as broker:
        for vhost in ("one", "two"):
            good(broker, "add_vhost", vhost)
        for user in ("ann", "ben", "cyd"):
            good(broker, "add_user", user, stdin=f"{user}-secret\n")
        good(broker, "set_permissions", "-p", "one", "ann", ".*", ".*", ".*")
        good(broker, "set_permissions", "-p", "two", "ann", ".*", ".*", ".*")
        good(broker, "set_permissions", "-p", "one", "ben", "^ben-", "^ben-", "^ben-")
        program("vhosts", broker)
        assert counts(broker, "one")["tasks"] == 1 and counts(broker, "two")["tasks"] == 2
        log = broker.log()
        assert not any(f"{user}-secret" in log for user in ("ann", "ben", "cyd")), log


def an_operators_day() -> None:
    """Users, permissions, virtual hosts, lists, stopping and starting."""
    home = Path(tempfile.mkdtemp(prefix="leveret-ctl-"))
    try:
        with brokers.Leveret(brokers.leveret_binary(), [], data_dir=home / "data") as broker:
            good(broker, "add_user", "bob", "secret")
            good(broker, "set_permissions", "-p", "/", "bob", ".*", ".*", ".*")
            good(broker, "add_vhost", "plant")
            program("hello", broker, "bob", "secret")
            assert counts(broker) == {"hello": 1}
            assert good(broker, "authenticate_user", "bob", stdin="secret\n").endswith("Success\n")
            assert ctl(broker, "authenticate_user", "bob", "Secret").status == 65
            digest = good(broker, "-q", "hash_password", "secret").strip()
            raw = base64.b64decode(digest)
            assert raw[4:] == hashlib.sha256(raw[:4] + b"secret").digest(), digest
            stopped = ctl(broker, "stop")
            assert stopped.status == 0, stopped
            assert broker.process.wait(patience(10)) == 0
            gone = ctl(broker, "list_queues")
            assert gone.status == 69 and "no broker answers" in gone.err, gone
        with brokers.Leveret(brokers.leveret_binary(), [], data_dir=home / "data") as broker:
            assert sorted(rows(broker, "list_users")) == [["bob", "[]"], ["guest", "[administrator]"]]
            assert sorted(rows(broker, "list_vhosts")) == [["/"], ["plant"]]
            assert ["bob", ".*", ".*", ".*"] in rows(broker, "list_permissions")
            assert good(broker, "authenticate_user", "bob", "secret").endswith("Success\n")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def wrong_arguments() -> None:
    """An unknown command, an unknown column or a missing argument prints a suggestion and exits with 64."""
    with leveret() as broker:
        typo = ctl(broker, "listqueue")
        assert typo.status == 64
        assert "Command 'listqueue' not found. \nDid you mean 'list_queues'?" in typo.err, typo.err
        for name in ("bridges", "list_bridges", "list_bridge", "bridge_list"):
            said = ctl(broker, name)
            assert said.status == 64 and "Did you mean 'bridge_status'?" in said.err, said
        for name in ("shovels", "list_shovels", "shovel", "list-shovels"):
            said = ctl(broker, name)
            assert said.status == 64 and "Did you mean 'shovel_status'?" in said.err, said
        for name in ("reset", "force_reset"):
            said = ctl(broker, name)
            assert said.status == 64 and "use stop" not in said.err, said
            assert "mv /var/lib/leveret /var/lib/leveret.old" in said.err and "are lost" in said.err, said
        column = ctl(broker, "list_queues", "nosuch")
        assert column.status == 64 and "Info key(s) nosuch are not supported" in column.err
        assert "not enough arguments" in ctl(broker, "set_permissions", "x").err


def called_as_leveretctl() -> None:
    """A link named leveretctl acts as `leveret ctl`, and LEVERET_SOCKET selects the broker."""
    with leveret() as broker:
        link = broker.home / "leveretctl"
        link.symlink_to(brokers.leveret_binary())
        environment = dict(os.environ, LEVERET_SOCKET=str(broker.data_dir / "ctl.sock"))
        done = subprocess.run([str(link), "ping"], env=environment, capture_output=True, text=True, timeout=patience(60))
        assert done.returncode == 0 and "Ping succeeded" in done.stdout, done


def only_root_and_its_own_user() -> None:
    """Other users are refused by the mode of the control socket; if the mode is relaxed, by the peer credentials."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        raise Skip("needs root and setpriv, to run as another user")
    somebody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with leveret() as broker:
        socket = broker.data_dir / "ctl.sock"
        assert socket.stat().st_mode & 0o777 == 0o600, oct(socket.stat().st_mode)
        for folder in (broker.home, broker.data_dir):
            folder.chmod(0o755)
        binary = broker.home / "leveret"
        shutil.copy(brokers.leveret_binary(), binary)
        binary.chmod(0o755)
        ask = somebody + [str(binary), "ctl", "--data-dir", str(broker.data_dir), "list_users"]
        refused = subprocess.run(ask, capture_output=True, text=True, timeout=patience(60))
        assert refused.returncode == 77, refused
        socket.chmod(0o777)
        refused = subprocess.run(ask, capture_output=True, text=True, timeout=patience(60))
        assert refused.returncode == 69 and "guest" not in refused.stdout, refused
        good(broker, "ping")
        # The log is written by another thread, possibly after the answer.
        end = time.monotonic() + patience(10)
        while "leveret ctl is only for root and user 0" not in broker.log():
            assert time.monotonic() < end, broker.log()
            time.sleep(0.02)


def a_data_directory_that_cannot_be_used() -> None:
    """A start and `check` refuse an unusable data directory with the same error, which contains the command that helps;
    the command does help."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        raise Skip("needs root and setpriv, to run as another user")
    somebody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    home = Path(tempfile.mkdtemp(prefix="leveret-ctl-"))
    try:
        home.chmod(0o755)
        binary = home / "leveret"
        shutil.copy(brokers.leveret_binary(), binary)
        binary.chmod(0o755)
        (home / "plain").write_text("")
        for folder, mode in (("closed", 0o700), ("closed/within", 0o755), ("theirs", 0o755), ("made", 0o755)):
            (home / folder).mkdir(mode=mode)
        own = "65534:65534"
        wanted = [
            ("plain", "it is not a directory; move it away", None),
            ("plain/below", "a part of its path is not a directory", None),
            ("closed/within", f"has no access to {home}/closed: Permission denied", f"chmod o+x {home}/closed"),
            ("theirs", "(it belongs to 0:0); make the broker its owner", f"chown -R {own} {home}/theirs"),
            ("made/new", "it does not exist", f"mkdir {home}/made/new && chown {own} {home}/made/new"),
        ]
        for folder, why, remedy in wanted:
            said = []
            for command in ([], ["check"]):
                line = somebody + [str(binary), *command, "--listen", "127.0.0.1:0", "--data-dir", str(home / folder)]
                done = subprocess.run(line, capture_output=True, text=True, timeout=patience(60))
                said.append((done.returncode, done.stderr.splitlines()[-1]))
            assert said[0] == said[1] and said[0][0] == 1 and why in said[0][1], (folder, said)
            if remedy:
                assert f"({remedy})" in said[0][1].replace("as root: ", ""), (folder, said)
                subprocess.run(["sh", "-c", remedy], check=True)
                again = subprocess.run(line, capture_output=True, text=True, timeout=patience(60))
                was_closed = folder.startswith("closed")
                assert again.returncode == (1 if was_closed else 0), (folder, again.stderr)
                assert not was_closed or "make the broker its owner" in again.stderr, again.stderr
    finally:
        shutil.rmtree(home, ignore_errors=True)


def connections_are_closed() -> None:
    """One connection is closed by its pid, then all others. Their programs receive the reason."""
    with leveret() as broker:
        told = program("closed", broker, str(brokers.leveret_binary()), str(broker.data_dir))
        assert "320 go away" in told and "320 all of you" in told, told


FULL = """
frame_max = "16KiB"
[limits]
segment_bytes = "512KiB"
commit_bytes_max = "160KiB"
[store]
disk_limit = "4MiB"
"""


QUEUES_TO_FILL = 64


def commands_on_a_full_disk() -> None:
    """With a full disk, permissions can still be changed, and the change survives a power cut."""
    home = Path(tempfile.mkdtemp(prefix="leveret-ctl-"))
    try:
        with brokers.Leveret(brokers.leveret_binary(), [], FULL, home / "data") as broker:
            good(broker, "add_user", "thief", "secret")
            good(broker, "set_permissions", "thief", ".*", ".*", ".*")
            with contextlib.ExitStack() as stack:
                # A queue may hold at most four times the free space without an eighth of the disk. That eighth is for
                # queues with at most 1/128 of it each. So one queue after the other is filled until all is taken.
                # The queues are declared before, because a full disk refuses definitions.
                filling: list[subprocess.Popen[bytes]] = []
                with Client(broker.address) as client:
                    client.open()
                    for number in range(QUEUES_TO_FILL):
                        client.call(1, "queue.declare", queue=f"deep-{number}", durable=True)

                def fill_another() -> None:
                    """Fills a further queue when the publishers of all others wait."""
                    states = [row[0] for row in rows(broker, "list_connections", "state")]
                    if states == ["blocked"] * len(filling) and len(filling) < QUEUES_TO_FILL:
                        filling.append(stack.enter_context(publisher(broker, f"deep-{len(filling)}")))

                names = (f"vhost-{number}" for number in itertools.count())
                refusals: list[str] = []

                def is_full() -> bool:
                    """Returns whether a new virtual host is refused. A second virtual host would reserve a part of the
                    disk for itself."""
                    name = next(names)
                    answer = ctl(broker, "add_vhost", name)
                    if answer.status == 69:
                        refusals.append(answer.err)
                        return True
                    good(broker, "delete_vhost", name)
                    fill_another()
                    return False

                until(is_full, "the disk did not get full")
                for number in range(20):
                    good(broker, "add_user", f"user-{number}", "secret")
                    good(broker, "set_permissions", f"user-{number}", ".*", ".*", "")
                good(broker, "change_password", "user-7", "better")
                good(broker, "clear_permissions", "user-8")
                good(broker, "delete_user", "thief")
                # The compactor may free space at any moment, which the publishers fill again.
                until(is_full, "the disk did not stay full")
                assert "disk_limit" in refusals[-1], refusals
                assert all(each.poll() is None for each in filling)
                # The publishers may still be filling the space that the compactor freed last.
                until(lambda: "disk" in good(broker, "list_alarms"), "there is no alarm of the full disk")
                print(f"# {len(filling)} queues were filled")
                broker.kill()
        with brokers.Leveret(brokers.leveret_binary(), [], FULL, home / "data") as broker:
            users = {row[0] for row in rows(broker, "list_users")}
            assert users == {"guest"} | {f"user-{number}" for number in range(20)}, users
            good(broker, "authenticate_user", "user-7", "better")
            assert rows(broker, "list_user_permissions", "user-8") == [[""]], "the permission is still there"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def publisher(broker: brokers.Leveret, queue: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Starts a program that publishes more than the disk accepts."""
    process = start_program("publish", broker, queue, "100000")
    try:
        yield process
    finally:
        process.kill()
        process.wait(patience(20))


def a_report_has_everything_but_secrets() -> None:
    """`report` prints all listings of every virtual host in one text, without passwords and messages."""
    config = """[[bridge]]
name = "plant"
upstream = ["amqp://edge:not-for-print@127.0.0.1:1/%2f"]
[[bridge.forward]]
queue = "readings"
to_queue = "readings"
"""
    with leveret(config=config) as broker:
        good(broker, "add_vhost", "attic")
        good(broker, "add_user", "ann", stdin="ann-secret\n")
        good(broker, "set_permissions", "-p", "attic", "ann", "^ann-only", ".*", ".*")
        with Client(broker.address, user="ann", password="ann-secret", vhost="attic") as client:
            client.open()
            client.call(1, "queue.declare", queue="ann-only.boxes", arguments={"x-max-length": 77})
            client.call(1, "basic.consume", queue="ann-only.boxes", consumer_tag="looker")
            client.publish(1, "", "ann-only.boxes", b"words of a message")
            client.expect("basic.deliver")
            told = good(broker, "report")
            for words in ("OS PID: ", "memory_limit", "list_queues --vhost attic", "ann-only.boxes", "x-max-length",
                          "77", "looker", "^ann-only", "amq.topic", "plant", "list_queues --vhost /", "MemTotal"):
                assert words in told, f"{words!r} is not in the report:\n{told}"
            for secret in ("not-for-print", "ann-secret", "words of a message"):
                assert secret not in told, f"the report contains {secret!r}"
            assert "Error" not in told, told
        good(broker, "stop")
        assert ctl(broker, "report").status == 69
        assert ctl(broker, "await_startup", "--timeout", "1").status == 69


def a_script_waits_for_the_start() -> None:
    """`await_startup` can be called before the data directory exists, and succeeds when the broker answers."""
    with tempfile.TemporaryDirectory(prefix="leveret-ctl-") as home:
        data = Path(home) / "data"
        command = [str(brokers.leveret_binary()), "ctl", "--data-dir", str(data), "await_startup"]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert waiting.stdout is not None and "Waiting" in waiting.stdout.readline()
            assert waiting.poll() is None
            with brokers.Leveret(brokers.leveret_binary(), [], data_dir=data) as broker:
                said = waiting.communicate(timeout=patience(30))
                assert waiting.returncode == 0, said
        finally:
            brokers.end(waiting, patience=1.0)


CASES = [
    commands_on_a_full_disk,
    virtual_hosts_are_separate,
    an_operators_day,
    wrong_arguments,
    called_as_leveretctl,
    only_root_and_its_own_user,
    a_data_directory_that_cannot_be_used,
    connections_are_closed,
    a_report_has_everything_but_secrets,
    a_script_waits_for_the_start,
]
