"""The cache folder of the user: compiled dependencies, virtual environments, tools and corpora.

All clones share it. `LEVERET_CACHE` names another folder. Deleting it costs only time.

    CACHE/env/        virtual environments
    CACHE/go/         Go programs of the tests, built, and the objects of their packages
    CACHE/tools/      cargo's own tools: cargo-fuzz, cargo-deny
    CACHE/fuzz/       the corpus of each fuzz target
    CACHE/objects/KEY the dependencies, compiled; KEY: lock file and compiler
    CACHE/clone/      where `tests/run --clone` clones to
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator, List

KEPT = 3
PROFILES = ["checked", "release"]


def folder(*parts: str) -> Path:
    """Returns a folder in the cache, and creates it if necessary."""
    home = os.environ.get("LEVERET_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leveret-tests"
    found = base.joinpath(*parts)
    found.mkdir(parents=True, exist_ok=True)
    return found


class Objects:
    """The compiled dependencies of a clone. They are copied and not shared, because two clones may compile at once."""

    def __init__(self, root: Path, target: Path) -> None:
        self.root = root
        self.target = target

    def place(self) -> Path:
        """Returns the folder for these dependencies and this compiler."""
        said = subprocess.run(["rustc", "-vV"], capture_output=True, check=True).stdout
        # Cargo builds differently with other flags, so they are a part of the key.
        flags = os.environ.get("RUSTFLAGS", "").encode()
        # Cargo itself detects a changed profile or feature, and compiles again.
        found = hashlib.sha256(said + flags + (self.root / "Cargo.lock").read_bytes())
        return folder("objects") / found.hexdigest()[:16]

    def bring(self) -> bool:
        """Copies the dependencies into a clone that has compiled nothing yet."""
        place = self.place()
        missing = [name for name in PROFILES if (place / name).is_dir() and not (self.target / name).exists()]
        if missing:
            # It is the newest now, so it is not removed meanwhile.
            os.utime(place)
        for name in missing:
            new = self.target / f"new-{os.getpid()}-{name}"
            self.target.mkdir(parents=True, exist_ok=True)
            try:
                copy(place / name, new)
                new.rename(self.target / name)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return bool(missing)

    def keep(self, packages: List[str]) -> None:
        """Copies the dependencies into the cache without the packages of the clone, and removes the oldest ones."""
        place = self.place()
        if place.exists() or not all((self.target / name).exists() for name in PROFILES):
            return
        new = Path(tempfile.mkdtemp(dir=place.parent, prefix="new-"))
        try:
            for name in PROFILES:
                copy(self.target / name, new / name)
                command = ["cargo", "clean", "--quiet", "--offline", "--profile", name, "--target-dir", str(new)]
                subprocess.run(command + [word for package in packages for word in ("-p", package)], cwd=self.root,
                               check=True, stdin=subprocess.DEVNULL, capture_output=True)
            new.rename(place)
        except (OSError, subprocess.CalledProcessError):
            shutil.rmtree(new, ignore_errors=True)
        known = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in known[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def costs_only_time() -> Iterator[None]:
    """Prints errors of the cache without a failure, because a missing cache costs only time."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as why:
        print(f"# the cache of compiled dependencies: {why}", flush=True)


def copy(source: Path, target: Path) -> None:
    """Copies a folder with the times of its files, from which Cargo sees whether they are up to date."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
