"""A mosquitto, the packets of MQTT 3.1.1, and the memory of a process, for the benchmarks beside mosquitto."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Iterator

from harness import brokers

SETTLE_S = 3.0


def resident(pid: int) -> int:
    """Returns the resident memory of a process in bytes, once it is stable."""
    last = -1
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024
        if abs(now - last) <= max(now, 1) // 200:
            return now
        last = now
        time.sleep(SETTLE_S)


class Mosquitto:
    """A running mosquitto."""

    def __init__(self, binary: str, keys: str = "") -> None:
        """Starts a mosquitto. `keys` are further lines of its configuration."""
        self.address = brokers.Address("127.0.0.1", brokers.free_port())
        self.home = Path(tempfile.mkdtemp(prefix="mosquitto-"))
        # The default configuration, except for the limit of queued messages and anonymous access.
        config = f"listener {self.address.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n{keys}"
        (self.home / "conf").write_text(config)
        command = [binary, "-c", str(self.home / "conf")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.home
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
                return
            time.sleep(0.05)
        self.close()
        raise brokers.BrokerError("mosquitto did not start")

    def close(self) -> None:
        """Stops mosquitto and removes its files."""
        brokers.end(self.process)
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def mosquitto(keys: str = "") -> Iterator[Mosquitto]:
    """Runs a mosquitto for the length of a `with` block."""
    broker = Mosquitto(shutil.which("mosquitto") or "/usr/sbin/mosquitto", keys)
    try:
        yield broker
    finally:
        broker.close()


def text(value: str) -> bytes:
    """Encodes an MQTT string."""
    return struct.pack(">H", len(value)) + value.encode()


def packet(kind: int, payload: bytes) -> bytes:
    """Encodes a packet of MQTT 3.1.1, shorter than 16 KiB."""
    length = len(payload)
    size = bytes([length]) if length < 128 else bytes([length % 128 | 128, length // 128])
    return bytes([kind]) + size + payload


def session(address: brokers.Address, name: str, clean: bool) -> socket.socket:
    """Connects a client with this name."""
    link = socket.create_connection(address, 20)
    link.sendall(packet(0x10, text("MQTT") + bytes([4, 2 if clean else 0, 0, 0]) + text(name)))
    expect(link, 4)
    return link


def expect(link: socket.socket, count: int) -> None:
    """Reads `count` bytes."""
    while count > 0:
        got = len(link.recv(count))
        if got == 0:
            raise brokers.BrokerError("the broker closed the connection")
        count -= got
