"""What the suites need and install themselves: virtual environments with pika, RabbitMQ from apt.

An index that does not answer is not our failure but must be said loudly (`Unreachable`);
whatever else goes wrong is a failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List

from . import cache
from .brokers import rabbitmq_sbin
from .suite import Skip

PIKA_NEW, PIKA_OLD = "1.4.4", "0.13.1"
PAGE_PACKAGES = [f"pika=={PIKA_NEW}", "playwright==1.65.2", "axe-playwright-python==0.1.8"]
TRIES = 3
UNREACHABLE_SIGNS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "Read timed out", "Temporary failure", "ProxyError",
    "Connection refused", "Could not resolve", "Failed to fetch", "Unable to connect", "Connection failed",
    "Connection timed out", "Retrying (", "Service Unavailable", "Bad Gateway",
)


class Unreachable(Skip):
    """A package index did not answer."""


class NoRoot(Skip):
    """It would have to be installed, and we may not."""


class CannotInstall(Exception):
    """Installing failed although the index answered."""


def is_root() -> bool:
    """Whether apt may be used."""
    return os.geteuid() == 0


def attempt(command: List[str], what: str, **options: object) -> None:
    """Run an installing command, some times if need be."""
    output = ""
    for number in range(TRIES):
        if number:
            time.sleep(5 * number)
        try:
            done = subprocess.run(  # type: ignore[call-overload]
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=600, **options)
        except subprocess.TimeoutExpired as late:
            output = f"no end after {late.timeout} s; Read timed out"
            continue
        if done.returncode == 0:
            return
        output = done.stdout
    if any(sign in output for sign in UNREACHABLE_SIGNS):
        raise Unreachable(f"{what}: the package index did not answer ({last_line(output)})")
    raise CannotInstall(f"{what} failed: {' '.join(command)}\n{output}")


def last_line(text: str) -> str:
    """The last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Suites run side by side, and neither apt nor a half-made environment is for two."""
    with (cache.folder("env") / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pika_python(version: str) -> Path:
    """The interpreter of a virtual environment that has this pika, made on first use."""
    return python_with(f"pika-{version}", f"pika=={version}")


def python_with(name: str, *packages: str) -> Path:
    """The interpreter of a virtual environment of this name that has these packages, made on first use."""
    home = cache.folder("env") / name
    python, done = home / "bin" / "python", home / "complete"
    with one_at_a_time(name):
        # Another release of Python would look for them in another folder.
        wanted = " ".join([sys.version, *packages])
        if python.exists() and done.exists() and done.read_text() == wanted:
            return python
        shutil.rmtree(home, ignore_errors=True)
        make_venv(home)
        attempt([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
                " ".join(packages))
        done.write_text(wanted)
        return python


def make_venv(home: Path) -> None:
    """A virtual environment; on Debian that may need a package of its own."""
    command = [sys.executable, "-m", "venv", str(home)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return
    if not is_root():
        raise NoRoot("python3-venv is not installed, and only root may install it")
    apt_install("python3-venv")
    attempt(command, "a virtual environment")


def apt_install(*packages: str) -> None:
    """Debian packages, without starting any service they bring."""
    if not is_root():
        raise NoRoot(f"{' '.join(packages)} not installed, and only root may install it")
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
    with one_at_a_time("apt"):
        # An installation that was killed half-way prevents all others.
        attempt(["dpkg", "--configure", "-a"], "dpkg --configure -a", env=quiet)
        attempt(["apt-get", "-o", "DPkg::Lock::Timeout=300", "update", "-q"], "apt-get update", env=quiet)
        attempt(["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends",
                 *packages], " ".join(packages), env=quiet)


def have(program: str, package: str = "") -> None:
    """A program of a Debian package, which has its name as a rule."""
    if shutil.which(program) is None:
        apt_install(package or program)


def have_rabbitmq() -> None:
    """RabbitMQ's files on this machine. The package's own service is stopped if it came up."""
    with one_at_a_time("rabbitmq"):
        if rabbitmq_sbin() is None:
            install_rabbitmq()


def install_rabbitmq() -> None:
    """The package, and nothing started."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists() and is_root()
    if ours:  # Debian's way of saying: install, but start nothing
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        apt_install("rabbitmq-server")
    finally:
        if ours:
            policy.unlink()


# The names that a row of tests/steps.toml may use.
INSTALLS: Dict[str, Callable[[], object]] = {
    "pika": lambda: pika_python(PIKA_NEW),
    "browser": lambda: (python_with("page", *PAGE_PACKAGES), have("chromium")),
    "node": lambda: have("node", "nodejs"),
    "openssl": lambda: have("openssl"),
    "valgrind": lambda: have("valgrind"),
    "strace": lambda: have("strace"),
    "rabbitmq": have_rabbitmq,
}
