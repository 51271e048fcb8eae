"""A board: QEMU with its disks.

`close` ends everything that was started. When `cut` returns, the disk has lost its unflushed blocks, and its image is
what the next boot finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

import image  # noqa: E402
from harness import brokers, suite  # noqa: E402
from harness.brokers import Address  # noqa: E402

PATIENCE_S = 120.0
# QEMU accepts a connection to a port before a program in the system listens there, so a short timeout is enough at
# first. On a busy machine an answer may take longer.
PROBE_S = 0.4
PROBE_S_MAX = 5.0
PORTS = {"shell": 7000, "amqp": 5672, "amqps": 5671, "management": 15672}
# More writes than there ever are between two boots.
NEVER = 1 << 40


class Done(NamedTuple):
    """The exit status and output of a script in the system."""

    status: int
    text: str


class Drive:
    """A disk image, and the nbdkit server that gives the disk a volatile cache, from a start of QEMU to its end."""

    def __init__(self, path: Path, folder: Path, keeps: str = "some") -> None:
        """`keeps`: whether `some` or `all` of the unflushed blocks reach the image at a power cut."""
        self.path = path
        self.folder = folder
        self.keeps = keeps
        self.socket = folder / f"{path.name}.sock"
        self.log = folder / f"{path.name}.log"
        self.arms = folder / f"{path.name}.arm"
        self.reports: List[Dict[str, Any]] = []
        self.server: Optional[subprocess.Popen] = None

    def power_on(self, pid_file: Path, seed: int) -> None:
        """Serves the image."""
        self.socket.unlink(missing_ok=True)
        words = [f"disk={self.path}", f"seed={seed}", f"log={self.log}", f"pid={pid_file}", f"arm={self.arms}",
                 f"keeps={self.keeps}"]
        with open(self.folder / f"{self.path.name}.said", "ab") as said:
            self.server = subprocess.Popen(
                ["nbdkit", "-f", "--exit-with-parent", "-U", str(self.socket), "python", str(Path(__file__).with_name("disk.py")), *words],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        until("the disk server has started", lambda: self.socket.exists() or self.ended())

    def ended(self) -> bool:
        """Returns whether the server has ended, which it must not do by itself."""
        assert self.server is None or self.server.poll() is None, f"nbdkit ended: {self.said()}"
        return self.server is None

    def said(self) -> str:
        """Returns the errors of the disk server."""
        path = self.folder / f"{self.path.name}.said"
        return path.read_text(errors="replace")[-1000:] if path.exists() else ""

    def power_off(self) -> Dict[str, Any]:
        """Waits until the server has decided which unflushed writes reach the image. QEMU must have ended."""
        self.arms.unlink(missing_ok=True)
        until("the disk server has written its report", lambda: len(self.logged()) > len(self.reports) or self.ended())
        self.reports = self.logged()
        self.close()
        return self.reports[-1]

    def logged(self) -> List[Dict[str, Any]]:
        """Returns the server's reports of all power cycles so far."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def arm(self, writes: int) -> None:
        """Makes the disk cut the power after this number of writes; with NEVER it does not."""
        part = self.arms.with_suffix(".part")
        part.write_text(str(writes))
        part.rename(self.arms)

    def close(self) -> None:
        """Ends the server."""
        if self.server is not None:
            brokers.end(self.server)
            self.server = None


class Board:
    """A machine that can be switched on and off."""

    def __init__(self, folder: Path, root: Path, data: Optional[Path] = None, memory_mb: int = 256, words: str = "",
                 keeps: str = "some", kernel: str = "cloud", machine: Sequence[str] = ()) -> None:
        """`words` are added to the kernel's command line; those that begin with `rig.` are explained in image.py.
        `kernel` is one of image.KERNELS, `machine` are more options of QEMU."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.memory_mb = memory_mb
        self.words = words
        self.kernel = kernel
        self.machine = machine
        self.drives = [Drive(path, folder, keeps) for path in (root, data) if path]
        self.console = folder / "console"
        self.pid_file = folder / "pid"
        self.qemu: Optional[subprocess.Popen] = None
        self.ports: Dict[str, int] = {}
        self.probe_s = PROBE_S

    def power_on(self, seed: int = 0) -> None:
        """Boots until the system executes commands."""
        self.switch_on(seed)
        until("the system answers", self.answers)

    def switch_on(self, seed: int) -> None:
        """Starts the boot without waiting."""
        self.probe_s = PROBE_S
        self.ports = {name: brokers.free_port() for name in PORTS}
        self.pid_file.unlink(missing_ok=True)
        for number, drive in enumerate(self.drives):
            drive.power_on(self.pid_file, seed * 2 + number)
        self.qemu = self.start()

    def start(self) -> subprocess.Popen:
        """Starts QEMU."""
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{self.ports[name]}-:{port}" for name, port in PORTS.items())
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", str(self.memory_mb), "-nographic",
                   "-no-reboot", "-monitor", "none", "-serial", f"file:{self.console}", "-pidfile", str(self.pid_file),
                   "-kernel", str(image.kernel(self.kernel)), "-initrd", str(image.initrd(self.kernel)),
                   "-append", f"console=ttyAMA0 quiet net.ifnames=0 panic=-1 {self.words}",
                   "-netdev", f"user,id=n,{forwards}", "-device", "virtio-net-device,netdev=n", *self.machine]
        # The virt machine fills its slots from the last, so the disk that is named last is the first that Linux finds.
        for number, drive in reversed(list(enumerate(self.drives))):
            disk = f"file=nbd+unix:///?socket={drive.socket},format=raw,if=none,id=d{number},cache=writeback"
            command += ["-drive", disk, "-device", f"virtio-blk-device,drive=d{number}"]
        with open(self.folder / "qemu", "ab") as said:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
                                    preexec_fn=end_with_parent)

    def answers(self) -> bool:
        """Returns whether the shell in the system answers."""
        assert self.is_on(), f"QEMU ended: {(self.folder / 'qemu').read_text(errors='replace')[-1000:]}"
        with contextlib.suppress(OSError, ValueError):
            return self.ask("true", b"", 5.0).status == 0
        return False

    def is_on(self) -> bool:
        """Whether QEMU runs."""
        return self.qemu is not None and self.qemu.poll() is None

    def ask(self, script: str, stdin: bytes, patience_s: float) -> Done:
        """Runs a script in the system. Raises ValueError if the connection broke."""
        said = bytearray()
        text = script.encode()
        with socket.create_connection(("127.0.0.1", self.ports["shell"]), PROBE_S) as connection:
            connection.settimeout(patience_s)
            connection.sendall(f"{len(text)}\n".encode() + text + stdin)
            while data := connection.recv(65536):
                said += data
        told = said.decode(errors="replace")
        body, _, status = told.rstrip("\n").rpartition("\nstatus ")
        return Done(int(status), body)

    def sh(self, script: str, stdin: bytes = b"", patience_s: float = PATIENCE_S) -> str:
        """Runs a script that must succeed. Returns its output."""
        done = self.ask(script, stdin, patience_s)
        assert done.status == 0, f"in the system: {script}: status {done.status}: {done.text[-2000:]}"
        return done.text.strip()

    def put(self, path: Path, place: str) -> None:
        """Copies a file of this machine into the system."""
        data = path.read_bytes()
        self.sh(f"head -c {len(data)} >{place}", data)

    def address(self, name: str = "amqp") -> Address:
        """Returns the local address of a port of the system."""
        return Address("127.0.0.1", self.ports[name])

    def serves(self) -> bool:
        """Returns whether the broker in the system answers."""
        self.probe_s = min(1.2 * self.probe_s, PROBE_S_MAX)
        with contextlib.suppress(OSError):
            with socket.create_connection(self.address(), PROBE_S) as probe:
                probe.settimeout(self.probe_s)
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        return False

    def wait_until_it_serves(self) -> None:
        """Waits until the broker has started by itself."""
        until("the broker serves", self.serves)

    def cut(self) -> Dict[str, Any]:
        """Cuts the power, unless the disk has already done so. Returns the reports of the first and the second disk."""
        if self.is_on():
            os.kill(self.qemu.pid, signal.SIGKILL)
        return self.gone()

    def shut_down(self) -> Dict[str, Any]:
        """Shuts the system down cleanly."""
        with contextlib.suppress(OSError, ValueError):  # it may end before it has answered
            self.ask("systemctl --no-block poweroff", b"", 20.0)
        until("the system shuts down", lambda: not self.is_on())
        return self.gone()

    def gone(self) -> Dict[str, Any]:
        """Returns the report of the disks after the end of QEMU. Of several, that of the last one, which has the data.
        """
        assert self.qemu is not None
        self.qemu.wait(10.0)
        self.qemu = None
        return [drive.power_off() for drive in self.drives][-1]

    def close(self) -> None:
        """Ends everything that still runs."""
        if self.qemu is not None:
            brokers.end(self.qemu, 0.1)
            self.qemu = None
        for drive in self.drives:
            drive.close()

    def diagnosis(self) -> str:
        """Returns the output of the console and the broker, for a failure."""
        said = self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""
        with contextlib.suppress(OSError, ValueError):
            said += self.ask("journalctl -b --no-pager -n 60; systemctl status leveret", b"", 20.0).text
        return said


def end_with_parent() -> None:
    """Makes the kernel end this process when its parent has ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def until(what: str, holds: Any, patience_s: float = PATIENCE_S) -> Any:
    """Waits until `holds` returns true, and names `what` if it does not."""
    return suite.until(what, holds, patience_s)


def copy(master: Path, to: Path) -> Path:
    """Copies an image, so that it can be changed."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(to, ignore_errors=True)
    image.run("cp", "--sparse=always", master, to)
    return to
