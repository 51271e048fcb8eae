"""Runs the guide's commands on a board and on a sensor beside it.

The commands are read from the guide. Only placeholders, the architecture and `sudo` are replaced.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "support"), str(Path(__file__).resolve().parents[1] / "packages")]

import readme  # noqa: E402
from board import Board, until  # noqa: E402
from harness import brokers, environment  # noqa: E402
from harness.suite import patience  # noqa: E402

BOARDS_PART = "Debian and Raspberry Pi OS"
SENSORS_PART = "A sensor on another machine"
PASSWORD = "secret of its own"
CONFIG = "/etc/leveret/leveret.toml"
# The memory limit of qemu-virt's unit in bytes: the value of the guide's table, minus a few connections because of the
# packaged configuration.
TABLE = (brokers.ROOT / "systemd/guide/configuration.md").read_text()
TABLED = re.search(r"^\| `qemu-virt` \|.* ([\d.]+) MB \|$", TABLE, re.MULTILINE)
assert TABLED, "the guide has no row for qemu-virt"
MEMORY_MAX = range(int(float(TABLED[1]) * 1e6) - 1_500_000, int(float(TABLED[1]) * 1e6) + 1)
HOME = "/root"
SUDO = "printf '#!/bin/sh\\nexec \"$@\"\\n' >/usr/bin/sudo && chmod 755 /usr/bin/sudo"


def indented(title: str) -> List[str]:
    """Returns the indented code blocks of a section."""
    found = re.findall(r"(?:^    .*\n)+", readme.section(title), re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def the_one(title: str, has: str) -> str:
    """Returns the block of the section that contains this text."""
    block, = (block for block in indented(title) if has in block)
    return block


def package(board: Board, deb: Path) -> None:
    """Installs the package and receives a first message with two lines of the guide."""
    board.sh(SUDO)
    lines = the_one(BOARDS_PART, "sudo apt install ./").replace("armhf", "arm64").replace("-u leveret -f", "-u leveret -n 5")
    name = re.search(r"\./(\S+)", lines)
    assert name and name[1] == deb.name, f"the guide installs {name and name[1]}, not {deb.name}"
    board.put(deb, f"{HOME}/{deb.name}")
    began = time.monotonic()
    said = board.sh(f"cd {HOME}; set -e\n{lines}")
    installed = time.monotonic()
    assert "Runtime" in said, f"leveretctl status shows no status: {said[-1000:]}"
    until("the first message goes through",
          lambda: "every message checked" in board.ask("leveret-bench --url amqp://127.0.0.1 --messages 1", b"", 60.0).text)
    print(f"# apt install and status took {installed - began:.1f} s, the first message {time.monotonic() - began:.1f} s",
          flush=True)
    auto_is_taken(board)


def auto_is_taken(board: Board) -> None:
    """With the packaged `board = "auto"` the broker detects the profile of this machine, and the generator sets the unit's
    memory."""
    assert 'board = "auto"\n' in board.sh(f"cat {CONFIG}")
    assert 'board = "qemu-virt"  # auto' in board.sh(f"leveret check --config {CONFIG}")
    assert serves_as(board) == "qemu-virt"
    assert memory_max(board) in MEMORY_MAX, memory_max(board)
    assert int(board.sh("cat /sys/fs/cgroup/system.slice/leveret.service/memory.max")) == memory_max(board)
    warned = [line for line in board.sh("journalctl -b --no-pager").splitlines() if "Unknown key" in line]
    assert not warned, f"systemd does not know these settings: {warned}"
    board.sh(f"sed -i '1i memory_limit = \"40MB\"' {CONFIG}; systemctl daemon-reload; systemctl restart leveret")
    assert 60_000_000 <= memory_max(board) < 100_000_000, memory_max(board)
    assert serves_as(board) == "qemu-virt", "another memory limit changes the detected board"
    board.sh(f"sed -i 1d {CONFIG}")
    folder = "/etc/systemd/system/leveret.service.d"
    board.sh(f"mkdir -p {folder}; printf '[Service]\\nMemoryMax=150M\\n' >{folder}/10-fleet.conf; systemctl daemon-reload")
    assert memory_max(board) == 150 << 20, "a drop-in of the user does not override the generator's"
    board.sh(f"rm -r {folder}; systemctl daemon-reload; systemctl restart leveret")


def serves_as(board: Board) -> str:
    """Returns the profile that the broker detected inside its control group."""
    said = board.sh("journalctl -b --no-pager -u leveret")
    return re.findall(r"with the profile of board (\S+) ", said)[-1]


def memory_max(board: Board) -> int:
    """Returns the memory limit of the unit in bytes."""
    return int(board.sh("systemctl show -P MemoryMax leveret"))


def sensor(board: Board) -> None:
    """Creates certificates, configuration and a user on the board, and sends a message from this machine over TLS."""
    certificates, user = readme.blocks(SENSORS_PART, "sh")
    config, = readme.blocks(SENSORS_PART, "toml")
    program, = readme.blocks(SENSORS_PART, "python")
    board.sh(f"cd {HOME}; set -e\n{certificates}")
    listen, section = config.split("\n\n", 1)
    board.sh(f"{{ cat <<'END'\n{listen}\nEND\ncat {CONFIG}; cat <<'END'\n\n{section}\nEND\n}} >/tmp/both; cat /tmp/both >{CONFIG}")
    for line in user.splitlines():
        board.sh(f"echo '{PASSWORD}' | {line}\n")
        until("the broker serves", lambda: board.ask("leveretctl ping", b"", 30.0).status == 0)
    authority = board.sh(f"cat {HOME}/ca.pem")
    python = environment.pika_python(environment.PIKA_NEW)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ca.pem").write_text(authority + "\n")
        port = board.address("amqps").port
        here = program.replace('ConnectionParameters("broker.local", 5671', f'ConnectionParameters("127.0.0.1", {port}')
        assert here != program
        subprocess.run([str(python), "-c", here.replace("the password", PASSWORD)], cwd=folder, check=True,
                       timeout=patience(60))
        stranger = subprocess.run([str(python), "-c", here], cwd=folder, check=False, timeout=patience(60),
                                  capture_output=True, text=True)
        assert "ProbableAuthenticationError" in stranger.stderr or "ACCESS_REFUSED" in stranger.stderr, stranger.stderr
    assert board.sh("leveretctl -s list_queues name messages").split() == ["readings", "1"]


def socket(board: Board) -> None:
    """Tests socket activation with the guide's commands."""
    board.sh(the_one(BOARDS_PART, "enable --now leveret.socket"))
    board.sh("systemctl is-active leveret.socket leveret")
    board.sh("systemctl disable --now leveret.socket; systemctl stop leveret")


def purged(board: Board) -> None:
    """Removes and purges the package with the guide's commands: the data stays, and then it is deleted."""
    board.sh("apt remove -y leveret </dev/null && ls /var/lib/leveret/00000000.seg /etc/leveret/leveret.toml")
    # Files in the folder that are not the broker's stay.
    board.sh("apt purge -y leveret </dev/null && ! ls /var/lib/leveret && ls /etc/leveret/server.pem && rm -r /etc/leveret")


def by_hand(board: Board, binary: Path) -> None:
    """Installs without a package by the guide's lines, and uninstalls."""
    lines = the_one(BOARDS_PART, "systemd-sysusers leveret.conf")
    place, = re.findall(r"target/\S+/leveret", lines)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "systemd.tar"
        subprocess.run(["tar", "-C", str(brokers.ROOT), "--exclude=packages", "-cf", str(archive), "systemd"], check=True)
        board.put(archive, f"{HOME}/systemd.tar")
    board.sh(f"cd {HOME}; tar -xf systemd.tar; mkdir -p {Path(place).parent}")
    board.put(binary, f"{HOME}/{place}")
    board.sh(f"cd {HOME}; set -e\n{lines}")
    until("the broker serves", lambda: board.ask("leveretctl ping", b"", 30.0).status == 0)
    assert memory_max(board) in MEMORY_MAX, memory_max(board)
    board.sh("systemctl disable --now leveret; ! systemctl is-active leveret")
