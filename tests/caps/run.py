"""Floods against a memory cap.

A broker of 16 MB and one of 64 MB, each in a memory cgroup of its `memory_limit` plus the line for the kernel
that `leveret check` states, without swap; and one of 16 MB that lets transient messages leave memory. One broker
lives through all floods of its size, one after the other. Held against it, during each and after it: the kernel
did not end it; its resident size never was above `memory_limit`; a well-behaved client in a process of its own was
served all the while (`witness.py`); and afterwards everything that the flood left can be deleted, and the memory
comes back.

Where no cgroup can be had that is a SKIP of its own, and the resident size is asserted all the same.

Suite lines: `PASS caps/16MB/NAME` and so on. Arguments: names of floods, or of sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from harness import brokers, environment  # noqa: E402
from harness.raw import Client, Closed  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402

from cage import Cage, NoCage  # noqa: E402
from floods import FLOODS, Flood  # noqa: E402
from site_of_flood import EXCHANGES, QUEUES, Over, Site, limits_of  # noqa: E402

QUICK = os.environ.get("LEVERET_TEST_MODE") == "quick"
SECONDS = 2.0 if QUICK else 6.0
# How long the broker may take to be as it was, on a busy machine.
PATIENCE_S = 60.0
# How long until memory that is not needed any more goes back to the system.
TRIM_S = 8.0


class Size(NamedTuple):
    """A broker to flood."""

    name: str
    config: str
    # What may stay of a flood: some pages of each pool for the next, the log's index and its buffers.
    kept_kib: int
    # Whether it has room for TLS.
    tls: bool = False
    # Whether transient messages may leave memory: then only the floods of messages are of interest.
    spilling: bool = False


SIZES = [
    Size("16MB", 'board = "router-64"\n[store]\ndisk_limit = "200MB"\n', 4 * 1024),
    Size("16MB-spilling", 'board = "router-64"\n[store]\ndisk_limit = "200MB"\nspill_transient = true\n', 4 * 1024,
         spilling=True),
    Size("64MB", 'board = "pi-zero-w"\n[store]\ndisk_limit = "400MB"\n', 6 * 1024, tls=True),
]


class Ward:
    """One broker in its cage, over all floods."""

    def __init__(self, size: Size, caged: bool) -> None:
        self.size = size
        self.cage: Optional[Cage] = None
        self.papers = tempfile.TemporaryDirectory(prefix="leveret-caps-")
        config = self.with_tls() if size.tls else size.config
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(config)
            file.flush()
            self.limits = limits_of(str(brokers.leveret_binary()), file.name)
        if caged:
            self.cage = Cage(self.limits["memory_limit"] + self.limits["kernel_bytes"])
        try:
            self.broker = brokers.Leveret(brokers.leveret_binary(), ["--log-level", "info"], config,
                                          prefix=self.cage.prefix() if self.cage else [])
        except BaseException:
            self.close()
            raise
        found = re.search(r"listening with TLS on ([\d.]+):(\d+)", self.broker.log())
        assert bool(found) == size.tls, self.broker.log()
        self.tls_address = brokers.Address(found.group(1), int(found.group(2))) if found else None
        self.idle_kib = self.broker.rss_kib()

    def with_tls(self) -> str:
        """A door for TLS, with a certificate that nobody checks."""
        key, certificate = (Path(self.papers.name) / name for name in ("key.pem", "certificate.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
                       check=True, capture_output=True)
        door = 'listen_tls = ["127.0.0.1:0"]\n'
        return f'{door}{self.size.config}[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'

    def close(self) -> None:
        """End the broker, then take its cage away."""
        if hasattr(self, "broker"):
            self.broker.close()
        if self.cage:
            self.cage.close()
        self.papers.cleanup()

    def log_end(self) -> str:
        """What the broker said last."""
        return self.broker.log()[-4000:]

    # -- what is asserted

    def check_alive(self) -> None:
        """It runs, it was within its limit all the time, and the kernel had no reason to end it."""
        kills = self.cage.kills() if self.cage else 0
        assert not kills, f"the kernel ended it for want of memory ({kills} times)"
        assert self.broker.alive(), "the broker ended"
        peak, most = self.broker.peak_kib() * 1024, self.limits["memory_limit"]
        assert peak <= most, f"it once took {peak:,} bytes, of {most:,}"

    def drain(self) -> None:
        """Everything the flood left goes."""
        with self.fresh() as client:
            for queue in QUEUES:
                client.call(1, "queue.delete", queue=queue)
            for exchange in EXCHANGES:
                client.call(1, "exchange.delete", exchange=exchange)
            # And the broker takes and gives messages like one that was just started.
            client.call(1, "queue.declare", queue="after", exclusive=True)
            client.call(1, "confirm.select")
            for number in range(100):
                client.publish(1, "", "after", b"%d" % number)
            for number in range(100):
                assert client.call(1, "basic.get", queue="after", no_ack=True).body == b"%d" % number

    def fresh(self) -> Client:
        """A new connection; the last of the flood may still be on their way out."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError, Closed):
                client = Client(self.broker.address, timeout=PATIENCE_S)
                client.open()
                return client
            assert time.monotonic() < deadline, "no connection can be made after the flood"
            time.sleep(0.2)

    def check_memory_returns(self) -> int:
        """What is resident afterwards, in KiB."""
        most = self.idle_kib + self.size.kept_kib
        deadline = time.monotonic() + TRIM_S
        while (kept := self.broker.rss_kib()) > most:
            assert time.monotonic() < deadline, f"{kept} KiB are still resident, of {self.idle_kib} KiB when idle"
            time.sleep(0.2)
        return kept


@contextlib.contextmanager
def witness(ward: Ward, flood: Flood) -> Iterator[Dict[str, Dict]]:
    """A well-behaved client beside the flood; what it saw is judged at the end."""
    address = ward.broker.address
    child = subprocess.Popen([sys.executable, str(HERE / "witness.py"), address.host, str(address.port)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    seen: Dict[str, Dict] = {}
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", "the witness could not begin"
        yield seen
        said, _ = child.communicate("\n", timeout=PATIENCE_S + 60)
        seen.update(json.loads(said))
    finally:
        brokers.end(child, patience=1.0)
    for name, work in seen.items():
        assert not work["accident"], f"the witness's {name} was not served: {work['accident']}"
        assert work["rounds"] > 0, f"the witness's {name} did not finish a single round"
    for name in ["backlog"] if flood.fills else ["backlog", "echo"]:
        slowest = seen[name]["slowest_s"]
        assert slowest < 3.0, f"the witness's {name} once waited {slowest:.1f} s for a message"


def let_loose(ward: Ward, flood: Flood) -> None:
    """One flood, and everything that is held against the broker."""
    began = time.monotonic()
    with witness(ward, flood) as seen:
        site = Site(ward.broker.address, ward.limits, SECONDS, ward.tls_address)
        try:
            with contextlib.suppress(Over):
                flood.run(site)
            ward.check_alive()
        finally:
            site.end()
        ended = time.monotonic()
        ward.drain()
        drained = time.monotonic() - ended
    ward.check_alive()
    kept = ward.check_memory_returns()
    peak = f", {ward.cage.peak_bytes():,} with the kernel's" if ward.cage else ""
    print(f"#   {ended - began:.1f} s of it: {site.story()}")
    print(f"#   drained in {drained:.1f} s; {kept} KiB stay; peak {ward.broker.peak_kib() * 1024:,} bytes{peak}; "
          f"echo {seen['echo']['rounds']} rounds, slowest {seen['echo']['slowest_s']:.2f} s, "
          f"backlog {seen['backlog']['rounds']}, slowest {seen['backlog']['slowest_s']:.2f} s")


def try_cage(suite: Suite) -> bool:
    """Whether there are cages here; if not, that is said."""
    try:
        Cage(64 << 20).close()
        return True
    except NoCage as why:
        suite.skip("cgroup", f"no memory cgroup can be made ({why}): only the resident size was held against the limit")
        return False


def main() -> int:
    """Run what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help="only these floods, or sizes")
    names = parser.parse_args().name
    brokers.raise_on_sigterm()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = 0
    if not shutil.which("openssl"):
        try:
            environment.apt_install("openssl")
        except Skip as why:
            Suite("caps").skip("all", f"openssl, for the floods through TLS: {why}")
            return 0
    caged = try_cage(Suite("caps"))
    for size in SIZES:
        if names and {each.name for each in SIZES} & set(names) and size.name not in names:
            continue
        suite = Suite(f"caps/{size.name}")
        kinds = set(names) - {each.name for each in SIZES}
        wanted = [flood for flood in FLOODS if not kinds or flood.name in kinds]
        failed += flood_all(suite, size, wanted, caged)
    return 1 if failed else 0


def flood_all(suite: Suite, size: Size, floods: List[Flood], caged: bool) -> int:
    """All floods against one broker; a broker that did not live through one is replaced for the next."""
    ward: Optional[Ward] = None
    try:
        for flood in [flood for flood in floods if flood.suits(size.tls, size.spilling)]:
            if ward is None or not ward.broker.alive():
                if ward:
                    ward.close()
                ward = Ward(size, caged)
            here = ward
            suite.case(flood.name, lambda: let_loose(here, flood), here.log_end)
    finally:
        if ward:
            ward.close()
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
