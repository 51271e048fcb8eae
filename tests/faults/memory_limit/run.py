"""Floods against a memory limit.

Brokers of 16, 24 and 64 MB run in a memory cgroup without swap. Its size is `memory_limit` plus the kernel memory that
`leveret check` states. One broker runs through all floods of its size, one after the other. These are checked during and
after each flood:
- The kernel did not kill the broker, and the resident memory was never above `memory_limit`.
- A well-behaved client in another process (`witness.py`) was served: it published and received, and took from its
  backlog, at least `RATE` messages a second on average and some in each second.
- All messages that the flood left can be consumed, as many as the broker counts, and the memory is freed.

Each flood has to reach minimum counts of answers and accepted bytes (`least` in `floods.py`), and some of its clients
must still be connected at its end. `mistakes.py` tests first that these checks detect mistakes.

A flood and its broker use half a processor, so two rows of sizes run at the same time, each in its own process.
Without a memory cgroup that part is a SKIP, and only the resident memory is checked.

With the argument `pairs`, two floods at a time run in each size.

`plants.py` runs seven plants in one process of 64 MB, each with most of the memory for another kind of object, and one
with 100 clients and a backlog in 16 MB.

Suite lines: `PASS memory_limit/16MB/NAME` and so on. Arguments: names of floods or of sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

from harness import brokers, environment  # noqa: E402
from harness.raw import Client, Closed, name_of  # noqa: E402
from harness.suite import Skip, Suite, patience  # noqa: E402

from cage import Cage, NoCage  # noqa: E402
import plants  # noqa: E402
from floods import FLOODS, PAIRS, Flood, paired  # noqa: E402
from mistakes import MISTAKES, Mistake  # noqa: E402
from site_of_flood import EXCHANGES, QUEUES, Over, Site, limits_of  # noqa: E402
from witness import NAME as WITNESS  # noqa: E402

SECONDS = 6.0
# Minimum number of messages per second that the witness publishes and receives, and that it takes from its backlog, on
# average over a flood. Without a flood it reaches about 90 and 25. The difference allows for a machine with two busy
# processors that delays a process by a second now and then (2 to 6 were seen). A starved client is not served at all.
RATE = 5
RATE_OF_ANY_SECOND = 1
# Time until the broker has recovered from a flood, on a busy machine.
PATIENCE_S = 120.0
# Time until unused memory is returned to the system.
TRIM_S = 8.0


class Size(NamedTuple):
    """The configuration of a broker to flood."""

    name: str
    config: str
    # Memory that may stay in use after a flood: some pages of each pool, the index of the log with deletions (2.1 MB with
    # 64 MB), the buffers for footers of segments (1.6 MB), and gaps of the heap.
    kept_kib: int
    # Whether its memory is large enough for TLS.
    tls: bool = False
    # The floods to run; empty: all.
    only: Tuple[str, ...] = ()


SIZES = [
    Size("16MB", 'board = "router-64"\n[store]\ndisk_limit = "200MB"\n', 4 * 1024),
    Size("24MB", 'board = "router-64"\nmemory_limit = "24MB"\n[store]\ndisk_limit = "200MB"\n', 6 * 1024),
    Size("64MB", 'board = "pi-zero-w"\n[store]\ndisk_limit = "400MB"\n', 12 * 1024, tls=True),
]

# Rows that run at the same time and take about the same time.
ROWS = [["16MB", "plants", "24MB"], ["mistakes", "64MB"]]


class Ward:
    """A broker in its cgroup, for all floods of a size."""

    def __init__(self, size: Size, caged: bool) -> None:
        self.size = size
        self.cage: Optional[Cage] = None
        self.papers = tempfile.TemporaryDirectory(prefix="leveret-memory-limit-")
        self.mqtt_port = brokers.free_port()
        config = f'mqtt = ["127.0.0.1:{self.mqtt_port}"]\n{self.with_tls() if size.tls else size.config}'
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
        for words in (["add_vhost", WITNESS], ["add_user", WITNESS, WITNESS],
                      ["set_permissions", "-p", WITNESS, WITNESS, ".*", ".*", ".*"]):
            self.broker.ctl(*words)
        found = re.search(r"listening with TLS on ([\d.]+):(\d+)", self.broker.log())
        assert bool(found) == size.tls, self.broker.log()
        self.tls_address = brokers.Address(found.group(1), int(found.group(2))) if found else None
        self.idle_kib = self.broker.rss_kib()

    def with_tls(self) -> str:
        """Returns the configuration of a TLS listener with a certificate that clients do not check."""
        key, certificate = (Path(self.papers.name) / name for name in ("key.pem", "certificate.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
                       check=True, capture_output=True)
        listener = 'listen_tls = ["127.0.0.1:0"]\n'
        return f'{listener}{self.size.config}[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'

    def close(self) -> None:
        """Stops the broker, then removes its cgroup."""
        if hasattr(self, "broker"):
            self.broker.close()
        if self.cage:
            self.cage.close()
        self.papers.cleanup()

    def log_end(self) -> str:
        """Returns the last lines of the log."""
        return self.broker.log()[-4000:]

    # -- checks

    def check_alive(self) -> None:
        """Checks that the broker runs, kept its memory limit, and that the kernel killed nothing."""
        kills = self.cage.kills() if self.cage else 0
        assert not kills, f"the kernel killed the broker for lack of memory ({kills} times)"
        assert self.broker.alive(), "the broker ended"
        peak, most = self.broker.peak_kib() * 1024, self.limits["memory_limit"]
        assert peak <= most, f"the peak memory was {peak:,} bytes, of {most:,}"

    def standing(self) -> Dict[str, int]:
        """Returns the number of available messages in the flood's queues. Messages delivered to closed clients may be
        missing for some minutes.
        """
        said = self.broker.ctl("-s", "list_queues", "name", "messages_ready")
        rows = (line.split("\t") for line in said.splitlines())
        return {name: int(count) for name, count in rows if name in QUEUES}

    def left(self) -> str:
        """Returns a description of the remaining connections and messages."""
        columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
        queues, connections = (self.broker.ctl("-s", *words) for words in (
            ("list_queues", *columns), ("list_connections", "name", "vhost", "state", "channels")))
        return f"{queues!r} {connections!r}"

    def drain(self) -> int:
        """Consumes everything that the flood left, including messages that are accepted only now. Returns the number of
        messages."""
        drained: Dict[str, int] = {}
        deadline = time.monotonic() + patience(PATIENCE_S)
        with self.fresh() as client:
            standing = self.standing()
            for queue in standing:
                client.call(1, "basic.consume", queue=queue, consumer_tag=queue, no_ack=True)
            quiet = 0
            while True:
                before = sum(drained.values())
                with contextlib.suppress(TimeoutError):
                    while True:
                        item = client.expect("basic.deliver", timeout=0.1)
                        queue = item.method.args["consumer_tag"].decode()
                        drained[queue] = drained.get(queue, 0) + 1
                        assert item.body.count(item.body[:1]) == len(item.body), f"{queue}: a message was altered"
                # Blocked publishers are closed by now, but messages that they had sent are accepted as soon as there is
                # memory.
                is_quiet = sum(drained.values()) == before and not sum(self.standing().values())
                quiet = quiet + 1 if is_quiet else 0
                if quiet == 3:
                    break
                assert time.monotonic() < deadline, f"messages of the flood are not delivered: {self.left()}"
            for queue, count in standing.items():
                assert drained.get(queue, 0) >= count, (
                    f"{queue}: {drained.get(queue)} of {count} messages were delivered")
                assert not client.call(1, "queue.delete", queue=queue).args["message_count"]
            late = [item for item in client.held if name_of(item) == "basic.deliver"]
            assert not late, f"{len(late)} messages were delivered from empty queues"
            for exchange in EXCHANGES:
                client.call(1, "exchange.delete", exchange=exchange)
            # The broker accepts and delivers messages like a new one.
            client.call(1, "queue.declare", queue="after", exclusive=True)
            client.call(1, "confirm.select")
            for number in range(100):
                client.publish(1, "", "after", b"%d" % number)
            for number in range(100):
                assert client.call(1, "basic.get", queue="after", no_ack=True).body == b"%d" % number
        return sum(drained.values())

    def fresh(self) -> Client:
        """Opens a new connection. Those of the flood may not all be closed yet."""
        deadline = time.monotonic() + patience(PATIENCE_S)
        while True:
            with contextlib.suppress(OSError, Closed):
                client = Client(self.broker.address, timeout=PATIENCE_S)
                client.open()
                return client
            assert time.monotonic() < deadline, "no connection can be opened after the flood"
            time.sleep(0.2)

    def check_memory_returns(self) -> int:
        """Checks that memory was freed after the flood. Returns the resident memory in KiB."""
        most = self.idle_kib + self.size.kept_kib
        deadline = time.monotonic() + patience(TRIM_S)
        while (kept := self.broker.rss_kib()) > most:
            assert time.monotonic() < deadline, f"{kept} KiB are still resident, of {self.idle_kib} KiB when idle"
            time.sleep(0.2)
        return kept


@contextlib.contextmanager
def witness(ward: Ward) -> Iterator[Dict[str, Dict]]:
    """Runs the witness for a `with` block and judges its results at the end."""
    address = ward.broker.address
    child = subprocess.Popen([sys.executable, str(HERE / "witness.py"), address.host, str(address.port)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    seen: Dict[str, Dict] = {}
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", "the witness could not start"
        yield seen
        assert child.stdin is not None
        said, _ = child.communicate("\n", timeout=patience(PATIENCE_S + 60))
        seen.update(json.loads(said))
    finally:
        brokers.end(child, patience=1.0)
    for name, work in seen.items():
        assert not work["accident"], f"the witness's {name} was not served: {work['accident']}"


def check_served(seen: Dict[str, Dict], began: float, ended: float) -> Dict[str, int]:
    """Checks that echo and backlog were served in every second of the flood. Returns the minimum number of rounds a
    second, by kind."""
    fewest = {}
    for name in ("echo", "backlog"):
        rounds = [at for at in seen[name]["ended"] if began <= at < ended]
        seconds = [sum(second <= at - began < second + 1 for at in rounds) for second in range(int(ended - began))]
        fewest[name] = min(seconds)
        is_served = min(seconds) >= RATE_OF_ANY_SECOND and sum(seconds) >= RATE * len(seconds)
        assert is_served, f"the witness's {name} was starved; rounds by second: {seconds}"
    assert any(at >= ended for at in seen["echo"]["ended"]), "the witness's echo did not continue after the flood"
    return fewest


def let_loose(ward: Ward, flood: Flood, seconds: float = SECONDS) -> None:
    """Runs one flood and all checks."""
    with witness(ward) as seen:
        site = Site(ward.broker.address, ward.limits, seconds, ward.mqtt_port, ward.tls_address)
        began = time.monotonic()
        try:
            with contextlib.suppress(Over):
                flood.run(site)
            ended = time.monotonic()
            ward.check_alive()
            site.note_bytes_in()
        finally:
            site.end()
        gone = time.monotonic()
        for remove in site.at_end:
            remove()
        site.count("drained", ward.drain())
        drained = time.monotonic() - gone
        time.sleep(0.2)
    print(f"# {ended - began:.1f} s: {site.story()}")
    site.prove(flood.least, flood.cut_off)
    fewest = check_served(seen, began, ended)
    ward.check_alive()
    kept = ward.check_memory_returns()
    peak = f", {ward.cage.peak_bytes():,} with the kernel's" if ward.cage else ""
    print(f"# drained in {drained:.1f} s; {kept} KiB remain; peak {ward.broker.peak_kib() * 1024:,} bytes{peak}; "
          f"echo: at least {fewest['echo']} a second, slowest {seen['echo']['slowest_s']:.2f} s; "
          f"backlog: at least {fewest['backlog']} a second, slowest {seen['backlog']['slowest_s']:.2f} s")


def try_cage(suite: Suite) -> bool:
    """Returns whether a memory cgroup can be created, and reports a skip if not."""
    try:
        Cage(64 << 20).close()
        return True
    except NoCage as why:
        suite.skip("cgroup",
                   f"no memory cgroup can be created ({why}): only the resident memory was checked against the limit")
        return False


def main() -> int:
    """Runs what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help="run only these floods or sizes")
    names = parser.parse_args().name
    brokers.raise_on_sigterm()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = 0
    if not shutil.which("openssl"):
        try:
            environment.apt_install("openssl")
        except Skip as why:
            Suite("memory_limit").skip("all", f"openssl, for the floods through TLS: {why}")
            return 0
    if not names:
        return side_by_side()
    caged = try_cage(Suite("memory_limit"))
    for part, run_part in (("mistakes", mistakes_are_found), ("plants", plants_are_served)):
        if part in names:
            failed += run_part(caged)
            names = [name for name in names if name != part]
            if not names:
                return 1 if failed else 0
    for size in SIZES:
        if {each.name for each in SIZES} & set(names) and size.name not in names:
            continue
        suite = Suite(f"memory_limit/{size.name}")
        kinds = set(names) - {each.name for each in SIZES}
        known = [paired(names) for names in PAIRS] if "pairs" in kinds else FLOODS
        wanted = [flood for flood in known if not kinds - {"pairs"} or flood.name in kinds]
        failed += flood_all(suite, size, wanted, caged)
    return 1 if failed else 0


def side_by_side() -> int:
    """Runs each row in a process, and prints the verdicts as they come."""
    rows = [subprocess.Popen([sys.executable, str(HERE / "run.py"), *row]) for row in ROWS]
    try:
        return 1 if any([row.wait() for row in rows]) else 0
    finally:
        for row in rows:
            if row.poll() is None:
                row.terminate()
                row.wait()


def mistakes_are_found(caged: bool) -> int:
    """The checks detect a flood that is too small, a client that is not served, and a lost message."""
    suite, ward = Suite("memory_limit/mistakes"), Ward(SIZES[0], caged)

    def found(mistake: Mistake) -> None:
        try:
            let_loose(ward, mistake.flood(ward.broker.process.pid), 2.5)
        except AssertionError as why:
            assert mistake.words in str(why), f"the mistake is detected, but with another message: {why}"
        else:
            raise AssertionError(f"no check detected the mistake: {mistake.words}")

    try:
        for mistake in MISTAKES:
            suite.case(mistake.name, lambda mistake=mistake: found(mistake), ward.log_end)
    finally:
        ward.close()
    return suite.status()


def plants_are_served(_: bool) -> int:
    """Seven plants, each with another kind of object, are served by one broker, one after the other."""
    suite = Suite("memory_limit/plants")
    suite.case("one-after-the-other", lambda: print("# resident KiB:", json.dumps(plants.run())))
    suite.case("on-a-router", lambda: print("# resident KiB:", json.dumps(plants.router())))
    return suite.status()


def flood_all(suite: Suite, size: Size, floods: List[Flood], caged: bool) -> int:
    """Runs all floods against one broker. A broker that failed is replaced for the next flood."""
    ward: Optional[Ward] = None
    try:
        fitting = [flood for flood in floods if size.tls or not flood.tls]
        for flood in [flood for flood in fitting if not size.only or flood.name in size.only]:
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
