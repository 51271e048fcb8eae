#!/usr/bin/env python3
"""Socket activation (leveret.socket), with `systemd-socket-activate` in place of systemd.

    tests/system/systemd/activation.py [CASE... | --list]

The tool listens, waits for a connection, and then executes the broker, which has to serve that connection. A socket of
an address that the configuration does not name is refused, with a text that says what to do. Each address of the
shipped leveret.socket is in the shipped configuration.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from harness import brokers, raw, suite  # noqa: E402

TOOL = "systemd-socket-activate"
PATIENCE_S = 30.0


class Taken(Exception):
    """Raised when another program took the port before the tool did."""


class Activated:
    """The tool, which executes the broker when the first client connects to one of `ports`."""

    def __init__(self, ports: List[int], configured: List[str]) -> None:
        if shutil.which(TOOL) is None:
            raise suite.Skip(f"{TOOL} is not installed (apt-get install systemd)")
        self.home = tempfile.TemporaryDirectory(prefix="leveret-activation-")
        listened = [word for port in ports for word in ("--listen", f"127.0.0.1:{port}")]
        command = [TOOL, *listened, str(brokers.leveret_binary()), *configured, "--data-dir", f"{self.home.name}/data"]
        self.log = Path(self.home.name, "log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        said = suite.until("the tool listens", lambda: self.listens(len(ports)), PATIENCE_S)
        if said == "taken":
            self.__exit__()
            raise Taken

    def listens(self, count: int) -> str:
        """Returns "yes" if the tool listens on `count` ports, "taken" if another program has one, otherwise an empty
        text."""
        said = self.log.read_text()
        if "Address already in use" in said:
            return "taken"
        return "yes" if said.count("Listening on") == count else ""

    def __enter__(self) -> "Activated":
        return self

    def __exit__(self, *_: object) -> None:
        brokers.end(self.process)
        self.home.cleanup()


def served_once_it_is_there() -> None:
    """A client that connects before the broker runs is served by it, and so are later clients and those of the other
    listener."""
    first, second = brokers.free_port(), brokers.free_port()
    configured = [f"127.0.0.1:{port}" for port in (first, second, 0)]
    with Activated([second, first], [word for at in configured for word in ("--listen", at)]) as activated:
        raw.Client(brokers.Address("127.0.0.1", first), timeout=PATIENCE_S).close()
        pattern = re.compile(r" listening on 127\.0\.0\.1:(\d+)$", re.MULTILINE)
        ports = suite.until("the broker listens on its own port",
                            lambda: set(map(int, pattern.findall(activated.log.read_text()))), PATIENCE_S)
        assert len(ports) == 3 and ports > {first, second}, activated.log.read_text()
        for port in sorted(ports):
            client = raw.Client(brokers.Address("127.0.0.1", port), timeout=PATIENCE_S)
            client.open()
            client.call(1, "queue.declare", queue="q")
            client.close()


def the_management_api_too() -> None:
    """A socket from systemd has the access rules of its address in the configuration."""
    management = brokers.free_port()
    words = ["--listen", "127.0.0.1:0", "--management", f"127.0.0.1:{management}"]
    with Activated([management], words):
        with socket.create_connection(("127.0.0.1", management), suite.patience(PATIENCE_S)) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert peer.recv(5) == b"HTTP/"


def an_unconfigured_socket_is_refused() -> None:
    """A socket for an address that the configuration does not name is refused."""
    stranger = brokers.free_port()
    with Activated([stranger], ["--listen", "127.0.0.1:0"]) as activated:
        # The broker may end and close its sockets before the connection is read here.
        with contextlib.suppress(ConnectionResetError):
            socket.create_connection(("127.0.0.1", stranger), suite.patience(PATIENCE_S)).close()
        assert activated.process.wait(suite.patience(PATIENCE_S)) != 0
        told = f"systemd passes a socket for 127.0.0.1:{stranger}, for which the configuration has no listener"
        assert told in activated.log.read_text(), activated.log.read_text()


def what_is_shipped() -> None:
    """The sockets of the shipped unit are those of the shipped configuration."""
    folder = brokers.ROOT / "systemd"
    listened = re.findall(r"^ListenStream=(.*)$", (folder / "leveret.socket").read_text(), re.MULTILINE)
    configured = re.search(r"^listen = \[(.*)\]$", (folder / "leveret.toml").read_text(), re.MULTILINE)
    assert listened and configured and all(f'"{at}"' in configured[1] for at in listened), (listened, configured)


def with_free_ports(case: Callable[[], None]) -> None:
    """Runs a case with free ports, and again with others if one was taken. The tool cannot choose ports, and the
    broker's configuration must contain them."""
    for _ in range(brokers.PORT_TRIES):
        with contextlib.suppress(Taken):
            return case()
    raise AssertionError("another program took each of the free ports first")


CASES = {case.__name__.replace("_", "-"): case
         for case in (served_once_it_is_there, the_management_api_too, an_unconfigured_socket_is_refused, what_is_shipped)}


def main() -> int:
    """Runs all cases, or those that are named."""
    if sys.argv[1:] == ["--list"]:
        print("\n".join(CASES))
        return 0
    brokers.raise_on_sigterm()
    cases = suite.Suite("systemd", sys.argv[1:])
    for name, case in CASES.items():
        cases.case(name, lambda: with_free_ports(case))
    return cases.status()


if __name__ == "__main__":
    sys.exit(main())
