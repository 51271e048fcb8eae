"""New certificates without a restart, and what SIGHUP does besides."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Dict

from harness.raw import Client, Closed

from office import Office, Paper
from support import Broker, context, dial, raw_client, wait_for


class Traffic:
    """A client over TLS that publishes and consumes until it is told to stop, and counts."""

    def __init__(self, broker: Broker, how: object) -> None:
        self.client = raw_client(broker, how)
        self.client.open()
        self.client.call(1, "queue.declare", queue="traffic", exclusive=True)
        self.client.call(1, "basic.consume", queue="traffic", consumer_tag="t", no_ack=True)
        self.count = 0
        self.accident: object = None
        self.stopping = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            while not self.stopping:
                body = b"%d" % self.count
                self.client.publish(1, "", "traffic", body)
                got = self.client.expect("basic.deliver")
                assert got.body == body, f"{got.body!r} came instead of {body!r}"
                self.count += 1
        except Exception as accident:
            self.accident = accident

    def more(self, count: int = 50) -> None:
        """Waits until so many more have gone round."""
        goal = self.count + count
        wait_for(lambda: self.accident or self.count >= goal, lambda: f"it stands at {self.count}")
        assert self.accident is None, self.accident

    def stop(self) -> None:
        self.stopping = True
        self.thread.join(20)
        assert self.accident is None, self.accident
        self.client.close()


def serial(broker: Broker, office: Office) -> str:
    """The serial number of the certificate a new client is shown."""
    with dial(broker, context(office)) as secure:
        return secure.getpeercert()["serialNumber"]


def put(paper: Paper, place: Paper) -> None:
    """Replaces files the way tools do: beside, then over."""
    for source, target in zip(paper, place):
        beside = target.with_suffix(".new")
        shutil.copy(source, beside)
        os.replace(beside, target)


def under_traffic(folder: Path) -> None:
    """On SIGHUP and when the files change; bad ones change nothing; nobody is disconnected."""
    office = Office(folder)
    place = Paper(folder / "in-use.pem", folder / "in-use.key")
    papers = [office.server(f"server-{number}") for number in range(3)]
    put(papers[0], place)
    with Broker(place) as broker:
        traffic = Traffic(broker, context(office))
        traffic.more()
        assert serial(broker, office) == "1000"
        put(papers[1], place)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("certificates were read again")
        assert serial(broker, office) == "1001"
        traffic.more()
        # Without a signal, the next to connect after a second gets the new ones.
        put(papers[2], place)
        wait_for(lambda: serial(broker, office) == "1002")
        traffic.more()
        # A certificate that came without its key, and no certificate at all.
        shutil.copy(papers[0].certificate, place.certificate)
        broker_said = lambda: "is not the key of the certificate in" in broker.log()  # noqa: E731
        wait_for(lambda: (serial(broker, office) == "1002" or 1 / 0) and broker_said())
        place.certificate.unlink()
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("in-use.pem does not exist; name the PEM file; what was read before stays in use")
        assert serial(broker, office) == "1002"
        traffic.more()
        traffic.stop()
        broker.stop()


def authority(folder: Path) -> None:
    """Who signs clients' certificates can change too: whom the old one signed is not known any more."""
    old, new = Office(folder / "old"), Office(folder / "new", "new authority")
    trusted = folder / "clients.pem"
    shutil.copy(old.authority, trusted)
    meter = old.issue("meter")
    how = f'client_ca = "{trusted}"\nclient_certificates = "require"'
    with Broker(old.server(), how) as broker:
        shown = context(old, meter)
        raw_client(broker, shown).close()
        shutil.copy(new.authority, trusted)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("certificates were read again")
        try:
            raw_client(broker, shown)
        except Exception:
            broker.logged("not signed by an authority in")
        else:
            raise AssertionError("the old authority's client was let in")


def revoked(folder: Path) -> None:
    """A client whose certificate is revoked comes in until the list says so: from SIGHUP on, or when the file
    changes. Nor does it come in by the ticket of an earlier session, and a list that is out of date goes on counting."""
    office = Office(folder / "office")
    listed = folder / "crl.pem"
    stolen, other = office.issue("stolen"), office.issue("other")
    office.revocations(listed)
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"\ncrl = "{listed}"'

    def comes_in(shown: object, session: object = None) -> bool:
        raw = socket.create_connection(("127.0.0.1", broker.tls_port), timeout=20)
        try:
            with shown.wrap_socket(raw, server_hostname="localhost", session=session) as secure:
                Client(broker.address, connected=secure).close()
                return True
        except (OSError, Closed):
            return False

    with Broker(office.server(), how) as broker:
        mine, others = context(office, stolen), context(office, other)
        traffic = Traffic(broker, others)
        secure = mine.wrap_socket(socket.create_connection(("127.0.0.1", broker.tls_port), timeout=20),
                                  server_hostname="localhost")
        Client(broker.address, connected=secure)
        ticket = secure.session
        assert comes_in(mine, ticket)
        office.revocations(listed, stolen)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("certificates were read again")
        for session in (ticket, None):
            assert not comes_in(mine, session), "whose certificate was revoked"
        broker.logged(r"the handshake of TLS failed: its certificate was revoked: a list in \[tls\] crl names it")
        assert comes_in(others)
        # A list whose time is over; nobody says so to the broker but the file.
        office.revocations(listed, days=-2)
        wait_for(lambda: comes_in(others) and "was to be replaced by" in broker.log())
        assert comes_in(others) and not comes_in(mine)
        # What is no list leaves the old one in use.
        listed.write_text("nothing")
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("crl.pem holds no list in PEM form .*; what was read before stays in use")
        assert comes_in(others) and not comes_in(mine)
        traffic.more()
        traffic.stop()
        secure.close()


def other_keys(folder: Path) -> None:
    """SIGHUP changes the log level, names what needs a restart, and survives a configuration that is none."""
    office = Office(folder)
    with Broker(office.server(), top='log_level = "warn"', extra=["--log-level", "info"]) as broker:
        text = broker.config_path.read_text()
        broker.config_path.write_text(text.replace("[limits]", "[limits]\nqueues_max = 77"))
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("these need a restart: queues_max\n")
        broker.config_path.write_text("no_such_key = 1")
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("unknown key no_such_key.*; the configuration stays as it was")
        Client(broker.address).close()
    with Broker(office.server()) as broker:
        text = broker.config_path.read_text()
        assert "DEBUG" not in broker.log()
        broker.config_path.write_text('log_level = "debug"\n' + text)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("the configuration was read again")
        raw_client(broker, context(office)).close()
        broker.logged("DEBUG 127.0.0.1:\\d+: TLS")
        # Many at once are one or a few, and do no harm.
        for _ in range(100):
            os.kill(broker.process.pid, signal.SIGHUP)
        time.sleep(0.2)
        raw_client(broker, context(office)).close()
        broker.stop()


CASES: Dict[str, Callable[[Path], None]] = {
    "reload-under-traffic": under_traffic,
    "reload-authority": authority,
    "reload-other-keys": other_keys,
    "reload-revoked": revoked,
}
