"""`accept` fails although a connection waits. Connections in the kernel's queue are accepted later."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator

from harness import brokers
from harness.raw import Client
from harness.suite import patience

SOURCE = Path(__file__).parent / "accept_fails.c"
# Errors of accept() about the new connection, and about the system.
OF_NEWCOMER = (errno.EPROTO, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.EINTR)
OF_SYSTEM = (errno.ENOBUFS, errno.ENOMEM)
# The spare descriptor is used up, too, if the second accept() fails.
FAILURES = {**dict.fromkeys((*OF_NEWCOMER, *OF_SYSTEM), 1), errno.EMFILE: 2}
# Maximum number of polls per second while the system allows no accept().
LOOKS_PER_SECOND = 30


def built(folder: Path) -> Path:
    """Compiles the library to be preloaded. Returns its path."""
    library = folder / "accept_fails.so"
    compiler = shutil.which("cc")
    assert compiler, "there is no C compiler; the crate ring needs one, too"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=patience(60))
    return library


@contextlib.contextmanager
def broker_of(library: Path, what: int, count: int, log: Path) -> Iterator[brokers.Leveret]:
    """Starts a broker whose `accept` fails `count` times with the error `what`."""
    prefix = ["env", f"LD_PRELOAD={library}", f"ACCEPT_FAILS={what}:{count}", f"ACCEPT_LOG={log}"]
    with brokers.Leveret(brokers.leveret_binary(), [], prefix=prefix) as broker:
        yield broker


def served_after_a_failure() -> None:
    """After an error of `accept` and without new connections, waiting clients and the operator are accepted."""
    with tempfile.TemporaryDirectory() as folder:
        library = built(Path(folder))
        for what, count in FAILURES.items():
            log = Path(folder) / f"log-{what}"
            with broker_of(library, what, count, log) as broker:
                with Client(broker.address, timeout=10.0) as client:
                    client.open()
                assert log.read_text() == "." * count, f"{errno.errorcode[what]}: accept did not fail {count} times"
            log.unlink()
            with broker_of(library, what, count, log) as broker:
                assert "guest" in broker.ctl("list_users"), f"{errno.errorcode[what]}: at the operator's socket"
                assert log.read_text() == "." * count, f"{errno.errorcode[what]}: accept did not fail {count} times"


def waits_while_nothing_can_be_accepted() -> None:
    """While the system has no resources for accept(), the broker retries at intervals and does not spin."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with broker_of(built(Path(folder)), errno.ENOBUFS, 1_000_000, log) as broker:
            with socket.create_connection(broker.address, timeout=patience(10.0)):
                began = time.monotonic()
                time.sleep(2.0)
                looks = len(log.read_text())
                seconds = time.monotonic() - began
            assert 2 <= looks <= LOOKS_PER_SECOND * (seconds + 1.0), f"{looks} polls in {seconds:.1f} s"


def cases() -> Dict[str, Callable[[], None]]:
    """Returns the cases by name."""
    return {
        "served-after-a-failed-accept": served_after_a_failure,
        "waits-while-nothing-can-be-accepted": waits_while_nothing_can_be_accepted,
    }
