"""Installs what the suites need: Debian packages with apt, and Python packages in virtual environments of the cache.

Each installation by apt is announced in one line before it begins. `tests/run --no-install` sets `LEVERET_NO_INSTALL`;
then apt is not used, and what needs a missing package is skipped. A package index that does not answer is a `Skip`
(`Unreachable`). Any other error is a failure (`CannotInstall`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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
RABBITMQADMIN = "2.35.0"
MQTTJS = "5.16.0"
# The newest release for the Node.js of Debian 12.
NODE_RED = "4.1.8"
# Newer releases need a newer Node.js.
ZIGBEE2MQTT = "2.2.1"
MQTT_PACKAGES = [f"pika=={PIKA_NEW}", "paho-mqtt==2.1.0", "aiomqtt==2.3.0"]
# With the libraries that the modules of its collection community.rabbitmq use.
ANSIBLE_PACKAGES = ["ansible==12.3.0", "requests==2.32.5", f"pika=={PIKA_NEW}"]
# Home Assistant by release of Python, with the MQTT library that its integration names, and what this imports besides.
HOME_ASSISTANT = {
    (3, 11): ["homeassistant==2024.3.3", "paho-mqtt==1.6.1", "janus==1.0.0", "numpy==1.26.0", "PyTurboJPEG==1.7.1",
               "ha-av==10.1.1"],
    (3, 13): ["homeassistant==2025.4.4", "paho-mqtt==2.1.0", "numpy==2.2.2", "PyTurboJPEG==1.7.5", "av==13.1.0"],
}
PAGE_PACKAGES = [f"pika=={PIKA_NEW}", "playwright==1.65.2", "axe-playwright-python==0.1.8"]
TRIES = 3
# The longest time of one attempt; a compilation takes longer than a download.
ATTEMPT_S, COMPILATION_S = 600, 3600
# Where the Go packages of Debian are, and the MQTT library among them.
GO_PATH = Path("/usr/share/gocode")
GO_MQTT = GO_PATH / "src" / "github.com" / "eclipse" / "paho.mqtt.golang"
# Set to forbid installations by apt.
NO_INSTALL = "LEVERET_NO_INSTALL"
# The output of `tests/run`, as `described` returns it. A suite announces installations there.
OUTPUT = "LEVERET_OUTPUT"
UNREACHABLE_SIGNS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "Read timed out", "Temporary failure", "ProxyError",
    "Connection refused", "Could not resolve", "Failed to fetch", "Unable to connect", "Connection failed",
    "Connection timed out", "Retrying (", "Service Unavailable", "Bad Gateway", "failed to download",
    "failed to query replaced source",
)


class Unreachable(Skip):
    """A package index did not answer."""


class NotInstalled(Skip):
    """Something is missing, and may not be installed: only root may use apt, and `--no-install` forbids it."""


class CannotInstall(Exception):
    """An installation failed although the index answered."""


def need_permission(*packages: str) -> None:
    """Checks that apt may install these packages, and announces it. Raises `NotInstalled` if it may not."""
    names = " ".join(packages)
    if os.environ.get(NO_INSTALL):
        raise NotInstalled(f"not installed: {names} (--no-install is given)")
    if os.geteuid() != 0:
        raise NotInstalled(f"not installed: {names} (only root may install them)")
    announce(f"installing Debian packages: {names} (--no-install prevents this)")


def announce(line: str) -> None:
    """Prints a line at once, also from a suite, whose own output `tests/run` prints when the suite has ended."""
    descriptor = os.environ.get(OUTPUT, "")
    with contextlib.suppress(OSError, ValueError):
        number = int(descriptor.split(":")[0])
        # A child of a suite does not inherit it, and may have opened something else with its number.
        if described(number) == descriptor:
            os.write(number, f"{line}\n".encode())
            return
    print(f"# {line}", flush=True)


def described(number: int) -> str:
    """Returns the number of a file descriptor with the identity of its file."""
    status = os.fstat(number)
    return f"{number}:{status.st_dev}:{status.st_ino}"


def attempt(command: List[str], what: str, timeout: float = ATTEMPT_S, **options: object) -> None:
    """Runs a command that installs something, up to `TRIES` times."""
    output = ""
    for number in range(TRIES):
        if number:
            time.sleep(5 * number)
        try:
            done = subprocess.run(  # type: ignore[call-overload]
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=timeout, **options)
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
    """Returns the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Holds a lock, because suites run at the same time, and apt and unfinished environments allow only one user."""
    with (cache.folder("env") / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pika_python(version: str) -> Path:
    """Returns the interpreter of a virtual environment with this version of pika. The first call creates it."""
    return python_with(f"pika-{version}", f"pika=={version}")


def mqtt_python() -> Path:
    """Returns the interpreter of a virtual environment with MQTT clients and pika. The first call creates it."""
    return python_with("mqtt", *MQTT_PACKAGES)


def ansible_python() -> Path:
    """Returns the interpreter of a virtual environment with Ansible. The first call creates it."""
    return python_with("ansible", *ANSIBLE_PACKAGES)


def home_assistant_python() -> Path:
    """Returns the interpreter of a virtual environment with Home Assistant. The first call creates it."""
    release = sys.version_info[:2]
    if release not in HOME_ASSISTANT:
        raise Skip(f"no release of Home Assistant is known to run with Python {release[0]}.{release[1]}")
    return python_with("home-assistant", *HOME_ASSISTANT[release])


def have_mosquitto() -> None:
    """Installs mosquitto_pub and mosquitto_sub if they are missing."""
    have("mosquitto_sub", "mosquitto-clients")


def python_with(name: str, *packages: str) -> Path:
    """Returns the interpreter of the virtual environment `name` with these packages. The first call creates it."""
    home = cache.folder("env") / name
    python, done = home / "bin" / "python", home / "complete"
    with one_at_a_time(name):
        # Another release of Python looks for packages in another folder.
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
    """Creates a virtual environment. On Debian this may need the package python3-venv."""
    command = [sys.executable, "-m", "venv", str(home)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return
    apt_install("python3-venv")
    attempt(command, "a virtual environment")


def apt_install(*packages: str) -> None:
    """Installs Debian packages without starting their services."""
    need_permission(*packages)
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
    with one_at_a_time("apt"):
        # An installation that was killed prevents all others until dpkg has completed it.
        attempt(["dpkg", "--configure", "-a"], "dpkg --configure -a", env=quiet)
        attempt(["apt-get", "-o", "DPkg::Lock::Timeout=300", "update", "-q"], "apt-get update", env=quiet)
        attempt(["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends",
                 *packages], " ".join(packages), env=quiet)


def have(program: str, package: str = "") -> None:
    """Installs the Debian package of a program if the program is missing. The default package has its name."""
    if shutil.which(program) is None:
        apt_install(package or program)


def have_puppet() -> None:
    """Installs puppet with its module for RabbitMQ if the module is missing. Its service stays disabled."""
    if not Path("/usr/share/puppet/modules/rabbitmq").exists():
        apt_install("puppet-module-puppetlabs-rabbitmq")


def mqttjs() -> Path:
    """Returns a folder with MQTT.js for Node.js. The first call installs it."""
    return npm_folder("mqttjs", "mqtt", MQTTJS)


def node_red() -> Path:
    """Returns a folder with Node-RED. The first call installs it."""
    return npm_folder("node-red", "node-red", NODE_RED)


def zigbee2mqtt() -> Path:
    """Returns a folder with Zigbee2MQTT. The first call installs it."""
    return npm_folder("zigbee2mqtt", "zigbee2mqtt", ZIGBEE2MQTT)


def npm_folder(name: str, package: str, version: str) -> Path:
    """Returns a folder with this npm package, without optional dependencies and install scripts. The first call installs
    it.
    """
    home = cache.folder("env") / f"{name}-{version}"
    with one_at_a_time("npm"):
        if not shutil.which("npm"):
            apt_install("nodejs", "npm")
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            attempt(["npm", "install", "--silent", "--ignore-scripts", "--omit=optional", "--no-audit", "--prefix",
                     str(home), f"{package}@{version}"], f"{package} {version}")
            (home / "complete").write_text("")
    return home


def rabbitmqadmin() -> Path:
    """Returns the rabbitmqadmin that is written in Rust. The first call compiles it, which takes some minutes."""
    home = cache.folder("env") / f"rabbitmqadmin-{RABBITMQADMIN}"
    program = home / "bin" / "rabbitmqadmin"
    with one_at_a_time("rabbitmqadmin"):
        if not program.exists():
            # Without optimisation, because the suite only starts it. A folder of its own keeps it away from Leveret's.
            settings = {"CARGO_TARGET_DIR": str(home / "objects"), "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
                        "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
            attempt(["cargo", "install", "rabbitmqadmin", "--version", RABBITMQADMIN, "--locked", "--root", str(home)],
                    f"rabbitmqadmin {RABBITMQADMIN}", env=dict(os.environ, **settings), cwd=str(home.parent),
                    timeout=COMPILATION_S)
            shutil.rmtree(home / "objects", ignore_errors=True)
    return program


def have_go_mqtt() -> None:
    """Installs the Go compiler and the MQTT library paho.mqtt.golang if one of them is missing."""
    have("go", "golang-go")
    if not GO_MQTT.is_dir():
        apt_install("golang-github-eclipse-paho.mqtt.golang-dev")


def go_mqtt_program(source: Path) -> Path:
    """Returns the built program of a Go file that uses paho.mqtt.golang. The first call for this content builds it."""
    home = cache.folder("go")
    program = home / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    with one_at_a_time("go"):
        if not program.exists():
            have_go_mqtt()
            # `GO111MODULE=off`: packages come from `GO_PATH`, never from the network.
            settings = dict(os.environ, GO111MODULE="off", GOPATH=str(GO_PATH), GOCACHE=str(home / "objects"),
                            CGO_ENABLED="0", GOFLAGS="")
            unfinished = home / "unfinished"
            done = subprocess.run(["go", "build", "-o", str(unfinished), str(source)], env=settings, text=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                raise CannotInstall(f"go build of {source.name} failed:\n{done.stdout}")
            unfinished.rename(program)
    return program


def have_rabbitmq() -> None:
    """Installs RabbitMQ if it is missing. Its service is not started."""
    with one_at_a_time("rabbitmq"):
        if rabbitmq_sbin() is None:
            install_rabbitmq()


def install_rabbitmq() -> None:
    """Installs the package of RabbitMQ without starting its service."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists() and os.geteuid() == 0 and not os.environ.get(NO_INSTALL)
    if ours:  # Debian calls this program to ask whether an installation may start services
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
    "mqtt": lambda: (mqtt_python(), have_mosquitto(), mqttjs(), node_red()),
    "go": have_go_mqtt,
    "node": lambda: have("node", "nodejs"),
    "openssl": lambda: have("openssl"),
    "valgrind": lambda: have("valgrind"),
    "strace": lambda: have("strace"),
    "rabbitmq": have_rabbitmq,
    "rabbitmqadmin": rabbitmqadmin,
    "ansible": ansible_python,
    "puppet": have_puppet,
}
