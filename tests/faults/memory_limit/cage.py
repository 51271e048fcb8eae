"""A memory cgroup (version 1 or 2) that limits a broker, or the reason why this machine has none."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Dict, List, Optional

ROOT = Path("/sys/fs/cgroup")


class NoCage(Exception):
    """No memory cgroup can be created. The text names the reason."""


class Cage:
    """A memory cgroup without swap. The kernel ends a process that exceeds the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.path, self.is_v2 = _make()
        try:
            if self.is_v2:
                self._write("memory.max", str(limit_bytes))
                self._write("memory.swap.max", "0", must=False)
            else:
                self._write("memory.limit_in_bytes", str(limit_bytes))
                self._write("memory.memsw.limit_in_bytes", str(limit_bytes), must=False)
                self._write("memory.swappiness", "0", must=False)
        except OSError as why:
            self.close()
            raise NoCage(f"{self.path} accepts no limit: {why}") from why

    def prefix(self) -> List[str]:
        """Returns the command prefix that runs a command in the cgroup."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")]

    def kills(self) -> int:
        """Returns the number of processes in the cgroup that the kernel killed for lack of memory."""
        counts = self._pairs("memory.events" if self.is_v2 else "memory.oom_control")
        return counts.get("oom_kill", 0)

    def peak_bytes(self) -> int:
        """Returns the peak memory in bytes, including page cache and kernel memory; 0 if the kernel does not report it.
        """
        try:
            return int(self._read("memory.peak" if self.is_v2 else "memory.max_usage_in_bytes"))
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        """Removes the cgroup. Its processes must have ended."""
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)

    def _read(self, name: str) -> str:
        return (self.path / name).read_text()

    def _pairs(self, name: str) -> Dict[str, int]:
        lines = (line.split() for line in self._read(name).splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2}

    def _write(self, name: str, value: str, must: bool = True) -> None:
        with contextlib.nullcontext() if must else contextlib.suppress(OSError):
            (self.path / name).write_text(value)


def _make() -> "tuple[Path, bool]":
    """Creates an empty cgroup with a memory controller."""
    problems = []
    for parent, is_v2 in _parents():
        path = parent / f"leveret-caps-{os.getpid()}-{time.monotonic_ns()}"
        try:
            path.mkdir()
        except OSError as why:
            problems.append(f"{parent}: {why.strerror}")
            continue
        if (path / ("memory.max" if is_v2 else "memory.limit_in_bytes")).exists():
            return path, is_v2
        problems.append(f"{parent}: no memory controller below it")
        path.rmdir()
    raise NoCage("; ".join(problems) or f"nothing is mounted at {ROOT}")


def _parents() -> "list[tuple[Path, bool]]":
    """Returns where a cgroup may be created: the root, or what was delegated to this process."""
    found = []
    own: Optional[str] = None
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line[3:].lstrip("/")
    if (ROOT / "cgroup.controllers").exists():
        with contextlib.suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        found.append((ROOT, True))
        if own:
            found.append((ROOT / own, True))
    if (ROOT / "memory").is_dir():
        found.append((ROOT / "memory", False))
    return found
