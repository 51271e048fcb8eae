"""Starts brokers for tests: Leveret from its binary, and RabbitMQ for comparison.

Every server is a child in a session of its own and is always ended by its own process id. Its files are in a temporary
directory, and it listens on loopback only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

from . import suite

ROOT = Path(__file__).resolve().parents[3]
RABBITMQ_HOME = Path("/usr/lib/rabbitmq/lib")
READY = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
# Number of attempts to start a server that cannot use port 0, each with another free port.
PORT_TRIES = 4
IN_USE = re.compile(r"eaddrinuse|address already in use|address in use", re.IGNORECASE)


# Exit statuses of a Rust program that panicked: by unwinding, or with SIGABRT.
PANICKED = (101, -6)


class BrokerError(Exception):
    """A broker did not start, or ended by itself."""


class Address(NamedTuple):
    """The address of a broker."""

    host: str
    port: int


def free_port() -> int:
    """Returns a loopback port that is free now, for programs that cannot use port 0. The caller must be able to try
    again.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listener(port: int) -> int:
    """Returns the process that listens on a port of this machine."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return int(process.name)
    raise BrokerError(f"no process listens on port {port}")


class Nobody:
    """An address on which nothing listens, reserved until it is closed."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self.socket.getsockname()[1])

    def close(self) -> None:
        """Releases the port."""
        self.socket.close()


def listening_port(process_id: int) -> Optional[int]:
    """Returns the loopback port on which a process listens, if any, for a process whose log cannot be read."""
    inodes = set()
    for file in Path(f"/proc/{process_id}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(file))
    for line in Path(f"/proc/{process_id}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[1].startswith("0100007F:") and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1][9:], 16)
    return None


def end(process: subprocess.Popen, patience: Optional[float] = None) -> None:
    """Ends a child and its children, first with SIGTERM."""
    asked = suite.patience(10.0) if patience is None else patience
    for sign, wait in ((signal.SIGTERM, asked), (signal.SIGKILL, suite.patience(5.0))):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise an exception as Ctrl-C does, so that `finally` ends the servers."""

    def handler(signum: int, _frame: object) -> None:
        raise KeyboardInterrupt(f"signal {signum}")

    signal.signal(signal.SIGTERM, handler)


class Leveret:
    """A running Leveret: its address, process id and log."""

    def __init__(
        self, binary: Path, args: List[str], config: Optional[str] = None, data_dir: Optional[Path] = None,
        prefix: Optional[List[str]] = None,
    ) -> None:
        """Starts a broker. A given `data_dir` is kept at the end; otherwise a temporary one is used. `prefix` is a
        command that runs the broker by exec.
        """
        if not binary.exists():
            raise BrokerError(f"{binary} does not exist: build it with cargo build --release")
        self.binary = binary
        self.home = Path(tempfile.mkdtemp(prefix="leveret-test-"))
        self.log_path = self.home / "log"
        self.data_dir = data_dir or self.home / "data"
        command = [*(prefix or []), str(binary), "serve", "--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir)]
        if config is not None:
            (self.home / "leveret.toml").write_text(config)
            command += ["--config", str(self.home / "leveret.toml")]
        self._log = open(self.log_path, "wb")
        self.process = subprocess.Popen(
            command + args,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self.home,
        )
        self.address = Address("127.0.0.1", self._wait_ready())

    def _wait_ready(self) -> int:
        patience_s = suite.patience(30.0)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = READY.search(self.log())
            if found:
                return int(found.group(1))
            if self.process.poll() is not None:
                log = self.log()
                self.close()
                raise BrokerError(f"leveret ended with status {self.process.returncode}:\n{log}")
            time.sleep(0.002)
        log = self.log()
        self.close()
        raise BrokerError(f"leveret printed no ready line in {patience_s:.0f} s:\n{log}")

    def log(self) -> str:
        """Returns the log so far."""
        return self.log_path.read_text(errors="replace")

    def port_of(self, what: str) -> int:
        """Returns the port that the log names for `management API`, `metrics without a login` or `listening with TLS`.
        """
        pattern = re.compile(re.escape(what) + r" on (?:http://)?127\.0\.0\.1:(\d+)")
        return int(suite.until(f"the log has {what}", lambda: pattern.search(self.log()), 30.0)[1])

    def ctl(self, *args: str) -> str:
        """Returns the output of `leveret ctl` for this broker. Raises an error if it fails."""
        command = [str(self.binary), "ctl", "-q", "--socket", str(self.data_dir / "ctl.sock"), *args]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=suite.patience(60), check=False)
        if done.returncode != 0:
            raise BrokerError(f"leveret ctl {args[0]}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def alive(self) -> bool:
        """Returns whether the process still runs."""
        return self.process.poll() is None

    def rss_kib(self) -> int:
        """Returns the resident memory now."""
        return self._status("VmRSS")

    def peak_kib(self) -> int:
        """Returns the largest resident memory so far."""
        return self._status("VmHWM")

    def _status(self, key: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
        raise BrokerError("leveret has ended")

    def kill(self) -> None:
        """Ends the broker with SIGKILL."""
        self.process.kill()
        self.process.wait(suite.patience(10.0))

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.terminate()

    def stop(self) -> None:
        """Ends the broker with SIGTERM, and checks that it ends cleanly."""
        self.terminate()
        status = self.process.wait(suite.patience(15.0))
        if status != 0:
            raise BrokerError(f"after SIGTERM leveret ended with status {status}:\n{self.log()}")

    def close(self) -> None:
        """Ends the broker and removes its files."""
        end(self.process)
        self._log.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> "Leveret":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def leveret(
    binary: Optional[Path] = None, args: Optional[List[str]] = None, config: Optional[str] = None
) -> Iterator[Leveret]:
    """Runs a Leveret on a free port during a `with` block."""
    with Leveret(binary or leveret_binary(), args or [], config) as broker:
        yield broker
        end(broker.process)
        if broker.process.returncode in PANICKED:
            raise BrokerError(f"leveret ended with status {broker.process.returncode}:\n{broker.log()}")


def leveret_binary() -> Path:
    """Returns the release binary that Cargo built."""
    if os.environ.get("LEVERET_BIN"):
        return Path(os.environ["LEVERET_BIN"])
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "leveret"


def bench_command(address: Address, *options: str) -> List[str]:
    """Returns a command that measures a broker. Cargo puts leveret-bench beside the broker."""
    program = leveret_binary().with_name("leveret-bench")
    return [str(program), "--url", f"amqp://guest:guest@{address.host}:{address.port}/%2f", *options]


def rabbitmq_sbin() -> Optional[Path]:
    """Returns the folder of the scripts of Debian's RabbitMQ package, or None if it is not installed."""
    found = sorted(RABBITMQ_HOME.glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    return found[-1].parent if found else None


class PortMapper:
    """An `epmd` in the foreground on a port of its own. A node would start one as a daemon that stays."""

    def __init__(self) -> None:
        epmd = next(iter(sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))), None) or shutil.which("epmd")
        if epmd is None:
            raise BrokerError("erlang's epmd is not installed")
        for _ in range(PORT_TRIES):
            self.port = free_port()
            self.process = subprocess.Popen(
                [str(epmd), "-port", str(self.port), "-address", "127.0.0.1"], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            if self._listens():
                return
            end(self.process)
        raise BrokerError("epmd did not start")

    def _listens(self) -> bool:
        """Returns whether this process listens. It ends if another program has the port."""
        deadline = time.monotonic() + suite.patience(10.0)
        while self.process.poll() is None and time.monotonic() < deadline:
            listening = Path(f"/proc/{self.process.pid}/net/tcp").read_text()
            if f"0100007F:{self.port:04X} 00000000:0000 0A" in listening:
                # Another process may listen there. Then this broker is about to end.
                time.sleep(0.1)
                return self.process.poll() is None
            time.sleep(0.01)
        return False

    def close(self) -> None:
        """Ends the port mapper."""
        end(self.process)


class RabbitMq:
    """A RabbitMQ node with its own port mapper in a temporary directory. Debian's service is not touched."""

    def __init__(self, settings: str = "", name: str = "oracle", others: Optional["RabbitMq"] = None,
                 lines: str = "", plugins: str = "") -> None:
        """Prepares a node. `settings` are terms for the application `rabbit`, as in advanced.config, and `lines` those
        of rabbitmq.conf. `plugins` are the names of plug-ins, separated by commas. A node with `others` shares their port mapper and cookie, and its caller calls `wait`.
        """
        sbin = rabbitmq_sbin()
        if sbin is None:
            raise BrokerError("rabbitmq-server is not installed")
        self.sbin = sbin
        self.node = f"{name}@localhost"
        self.home = Path(tempfile.mkdtemp(prefix="leveret-oracle-"))
        self.settings, self.lines, self.plugins = settings, lines, plugins
        self.child: Optional[subprocess.Popen] = None
        self.log_path = self.home / "console"
        self.own_mapper = None if others else PortMapper()
        self.mapper = others.mapper if others else self.own_mapper
        self.cookie = others.cookie if others else secrets.token_hex(10).upper()
        try:
            for number in range(1, PORT_TRIES + 1):
                self.address = Address("127.0.0.1", free_port())
                self.environment = self._environment()
                self.start()
                if others:
                    break
                try:
                    self.wait()
                    break
                except BrokerError as why:
                    if number == PORT_TRIES or not IN_USE.search(str(why)):
                        raise
                    self._forget()
        except BaseException:
            self.close()
            raise

    def _environment(self) -> Dict[str, str]:
        home = self.home
        config = home / "rabbitmq.conf"
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.address.port}\n"
            "log.file.level = warning\n"
            f"log.console = false\n{self.lines}"
        )
        (home / "advanced.config").write_text(f"[{{rabbit, [{self.settings}]}}].\n")
        (home / "enabled_plugins").write_text(f"[{self.plugins}].\n")
        (home / "env.conf").write_text("")
        cookie = home / ".erlang.cookie"
        cookie.write_text(self.cookie)
        cookie.chmod(0o400)
        keep = {key: value for key, value in os.environ.items() if not key.startswith("RABBITMQ_")}
        keep.update(
            HOME=str(home),
            ERL_EPMD_PORT=str(self.mapper.port),
            ERL_EPMD_ADDRESS="127.0.0.1",
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_CONFIG_FILE=str(config),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(home / "advanced.config"),
            RABBITMQ_CONF_ENV_FILE=str(home / "env.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(home / "enabled_plugins"),
            RABBITMQ_MNESIA_BASE=str(home / "mnesia"),
            RABBITMQ_LOG_BASE=str(home / "log"),
            RABBITMQ_PID_FILE=str(home / "pid"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
        )
        return keep

    def _forget(self) -> None:
        """Ends a start that found a port in use, and removes its files."""
        assert self.child
        end(self.child, patience=suite.patience(20.0))
        for folder in ("mnesia", "log"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        for name in ("pid", "console", ".erlang.cookie"):
            (self.home / name).unlink(missing_ok=True)
        if self.own_mapper and self.own_mapper.process.poll() is not None:
            self.own_mapper = self.mapper = PortMapper()

    def start(self) -> None:
        """Begins to start, also after an end."""
        with open(self.log_path, "ab") as log:
            self.child = subprocess.Popen(
                [str(self.sbin / "rabbitmq-server")], env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=self.home)

    def wait(self) -> None:
        """Waits until the node answers clients."""
        deadline = time.monotonic() + suite.patience(90)
        while time.monotonic() < deadline:
            if not self.alive():
                raise BrokerError(f"RabbitMQ or its port mapper ended by itself:\n{self.log()}")
            if self._answers():
                return
            time.sleep(0.2)
        raise BrokerError(f"RabbitMQ did not start in time:\n{self.log()}")

    def rabbitmqctl(self, words: List[str]) -> "subprocess.CompletedProcess[str]":
        """Runs RabbitMQ's rabbitmqctl on this node. Returns its result even if it failed."""
        command = [str(self.sbin / "rabbitmqctl"), "-n", self.node, *words]
        return subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=suite.patience(120)
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(self.address, 1) as probe:
                probe.settimeout(2)
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def log(self) -> str:
        """Returns what the node printed and logged."""
        texts = [self.log_path.read_text(errors="replace")] if self.log_path.exists() else []
        for path in sorted((self.home / "log").glob("*.log")):
            texts.append(path.read_text(errors="replace"))
        return "\n".join(texts)[-20000:]

    def ctl(self, *args: str) -> str:
        """Returns the output of rabbitmqctl. Raises an error if it fails."""
        command = [str(self.sbin / "rabbitmqctl"), "-q", "-n", self.node, *args]
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=suite.patience(120), check=False)
        if done.returncode != 0:
            raise BrokerError(f"rabbitmqctl {args[0]}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def terminate(self) -> None:
        """Sends SIGTERM to the node."""
        os.kill(self.process_id(), signal.SIGTERM)

    def process_id(self) -> int:
        """Returns the process id of the node, which is a child of this process's child."""
        return int((self.home / "pid").read_text())

    def kill(self) -> None:
        """Ends the node and its children with SIGKILL."""
        os.kill(self.process_id(), signal.SIGKILL)
        if self.child:
            end(self.child, patience=suite.patience(5.0))

    def alive(self) -> bool:
        """Returns whether node and port mapper still run."""
        return all(process is not None and process.poll() is None for process in (self.child, self.mapper.process))

    def close(self) -> None:
        """Ends the node and its port mapper, and removes their files."""
        if self.child:
            end(self.child, patience=suite.patience(20.0))
        if self.own_mapper:
            self.own_mapper.close()
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def rabbitmq(settings: str = "") -> Iterator[RabbitMq]:
    """Runs a RabbitMQ on a free port during a `with` block."""
    broker = RabbitMq(settings)
    try:
        yield broker
    finally:
        broker.close()


def watchdog(seconds: float, process_id: Optional[int] = None) -> threading.Timer:
    """Interrupts this process if a suite exceeds its maximum duration, multiplied by the patience."""
    timer = threading.Timer(suite.patience(seconds), os.kill, (process_id or os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    return timer
