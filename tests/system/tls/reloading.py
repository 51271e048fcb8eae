"""New certificates without a restart, and other effects of SIGHUP."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, Dict

from harness import brokers
from harness.raw import Client, Closed
from harness.suite import patience

from office import Office, Paper
from support import Broker, context, dial, raw_client, wait_for


class Traffic:
    """A client over TLS that publishes, consumes and counts until it is stopped."""

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
                assert got.body == body, f"received {got.body!r} instead of {body!r}"
                self.count += 1
        except Exception as accident:
            self.accident = accident

    def more(self, count: int = 50) -> None:
        """Waits until `count` more messages have made a round trip."""
        goal = self.count + count
        wait_for(lambda: self.accident or self.count >= goal, lambda: f"it stands at {self.count}")
        assert self.accident is None, self.accident

    def stop(self) -> None:
        self.stopping = True
        self.thread.join(patience(20))
        assert self.accident is None, self.accident
        self.client.close()


def serial(broker: Broker, office: Office) -> str:
    """Returns the serial number of the certificate that a new client receives."""
    with dial(broker, context(office)) as secure:
        return secure.getpeercert()["serialNumber"]


def put(paper: Paper, place: Paper) -> None:
    """Replaces files as tools do: writes a temporary file and renames it."""
    for source, target in zip(paper, place):
        beside = target.with_suffix(".new")
        shutil.copy(source, beside)
        os.replace(beside, target)


def under_traffic(folder: Path) -> None:
    """Certificates are reloaded on SIGHUP and when files change. Invalid files change nothing, and no connection is
    closed.
    """
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
        # Without a signal, clients that connect after a second get the new certificate.
        put(papers[2], place)
        wait_for(lambda: serial(broker, office) == "1002")
        traffic.more()
        # A certificate without its key, and no certificate at all.
        shutil.copy(papers[0].certificate, place.certificate)
        broker_said = lambda: "is not the key of the certificate in" in broker.log()  # noqa: E731
        wait_for(lambda: (serial(broker, office) == "1002" or 1 / 0) and broker_said())
        place.certificate.unlink()
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("in-use.pem does not exist; name the PEM file; the certificates read before stay in use")
        assert serial(broker, office) == "1002"
        traffic.more()
        traffic.stop()
        broker.stop()


def authority(folder: Path) -> None:
    """The authority of client certificates can change. Certificates of the old one are then refused."""
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
            raise AssertionError("a client of the old authority was accepted")


def comes_in(broker: Broker, shown: object, session: object = None) -> bool:
    """Returns whether a client over TLS gets as far as AMQP."""
    try:
        raw = socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20))
        with shown.wrap_socket(raw, server_hostname="localhost", session=session) as secure:
            Client(broker.address, connected=secure).close()
            return True
    except (OSError, Closed):
        return False


def revoked(folder: Path) -> None:
    """A client whose certificate is revoked is refused after SIGHUP, or when the list has changed. It cannot resume an
    earlier session either. An expired list stays in effect."""
    office = Office(folder / "office")
    listed = folder / "crl.pem"
    stolen, other = office.issue("stolen"), office.issue("other")
    office.revocations(listed)
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"\ncrl = "{listed}"'

    with Broker(office.server(), how) as broker:
        mine, others = context(office, stolen), context(office, other)
        traffic = Traffic(broker, others)
        secure = mine.wrap_socket(socket.create_connection(("127.0.0.1", broker.tls_port), timeout=patience(20)),
                                  server_hostname="localhost")
        Client(broker.address, connected=secure)
        ticket = secure.session
        assert comes_in(broker, mine, ticket)
        office.revocations(listed, stolen)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("certificates were read again")
        for session in (ticket, None):
            assert not comes_in(broker, mine, session), "a client with a revoked certificate was accepted"
        broker.logged(r"the TLS handshake failed: the client's certificate was revoked: a list in \[tls\] crl contains its number")
        assert comes_in(broker, others)
        # An expired list, which the broker detects by the changed file.
        office.revocations(listed, days=-2)
        wait_for(lambda: comes_in(broker, others) and "was to be replaced by" in broker.log())
        assert comes_in(broker, others) and not comes_in(broker, mine)
        # An invalid list leaves the old one in use.
        listed.write_text("nothing")
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("crl.pem contains no list in PEM format .*; the certificates read before stay in use")
        assert comes_in(broker, others) and not comes_in(broker, mine)
        traffic.more()
        traffic.stop()
        secure.close()


def other_keys(folder: Path) -> None:
    """SIGHUP changes the log level, names keys that need a restart, and an invalid configuration is not used."""
    office = Office(folder)
    with Broker(office.server(), top='log_level = "warn"', extra=["--log-level", "info"]) as broker:
        text = broker.config_path.read_text()
        broker.config_path.write_text(text.replace("[limits]", "[limits]\nconnections_max = 77"))
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("these need a restart: connections_max\n")
        broker.config_path.write_text("no_such_key = 1")
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("unknown key no_such_key.*; the configuration is unchanged")
        Client(broker.address).close()
    with Broker(office.server()) as broker:
        text = broker.config_path.read_text()
        assert "DEBUG" not in broker.log()
        broker.config_path.write_text('log_level = "debug"\n' + text)
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("the configuration was read again")
        raw_client(broker, context(office)).close()
        broker.logged("DEBUG 127.0.0.1:\\d+: TLS")
        # Many signals at once cause one or a few reloads.
        for _ in range(100):
            os.kill(broker.process.pid, signal.SIGHUP)
        time.sleep(0.2)
        raw_client(broker, context(office)).close()
        broker.stop()


def several_lists(folder: Path) -> None:
    """A certificate on any list of its authority is refused, in any order of the lists. An authority of the same name
    neither revokes the other's certificates nor accepts its own revoked ones."""
    office = Office(folder / "office")
    stolen, other = office.issue("stolen"), office.issue("other")
    old, new, both, wrong = (folder / f"{name}.pem" for name in ("old", "new", "both", "wrong"))
    office.revocations(old)
    office.revocations(new, stolen)
    both.write_text(old.read_text() + new.read_text())
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"\ncrl = '
    for said in (f'"{both}"', f'["{old}", "{new}"]', f'["{new}", "{old}"]'):
        with Broker(office.server(), how + said) as broker:
            assert comes_in(broker, context(office, other)), said
            assert not comes_in(broker, context(office, stolen)), said
    # A new authority with the same name, and the lists of both.
    second = Office(folder / "second")
    theirs, gone = second.issue("theirs"), second.issue("gone")
    second.revocations(folder / "second.pem", gone)
    authorities = folder / "authorities.pem"
    authorities.write_text(office.authority.read_text() + second.authority.read_text())
    how = how.replace(str(office.authority), str(authorities))

    def shown(paper: Paper) -> object:
        return context(office, paper)

    for lists in ((new, folder / "second.pem"), (folder / "second.pem", new), (folder / "second.pem",)):
        said = "[" + ", ".join(f'"{path}"' for path in lists) + "]"
        with Broker(office.server(), how + said) as broker:
            assert comes_in(broker, shown(other)) and comes_in(broker, shown(theirs)), (said, broker.log())
            assert not comes_in(broker, shown(gone)), said
            assert comes_in(broker, shown(stolen)) == (new not in lists), said
    # A list without a valid signature would have no effect, so it is not accepted.
    with Broker(office.server(), f'{how}"{new}"') as broker:
        third = Office(folder / "third")
        third.revocations(wrong)
        new.write_text(wrong.read_text())
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("new.pem is signed by no authority of that name in client_ca.*; the certificates read before stay in use")
        assert not comes_in(broker, shown(stolen)) and comes_in(broker, shown(other))


def useless_files_at_a_start(folder: Path) -> None:
    """An empty or truncated revocation list or certificate, as after a power cut, keeps only the TLS listener closed.
    Log and alarms report it, and a valid file opens the listener without a restart."""
    office = Office(folder)
    stolen, other = office.issue("stolen"), office.issue("other")
    listed = folder / "crl.pem"
    office.revocations(listed, stolen)
    paper = office.server()
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"\ncrl = "{listed}"'
    for file in (listed, paper.certificate):
        whole = file.read_text()
        for text in ("", whole[:-60]):
            file.write_text(text)
            with Broker(paper, how) as broker:
                Client(broker.address).close()
                assert re.search(rf"ERROR .*{file.name} .*; connections with TLS are refused until", broker.log()), broker.log()
                assert not comes_in(broker, context(office, other))
                assert "tls: " in broker.ctl("list_alarms"), broker.ctl("list_alarms")
                file.write_text(whole)
                wait_for(lambda: comes_in(broker, context(office, other)))
                assert not comes_in(broker, context(office, stolen))
                assert "tls: " not in broker.ctl("list_alarms"), broker.ctl("list_alarms")
    # The same if there is no other listener.
    listed.write_text("")
    config = folder / "alone.toml"
    config.write_text(f'listen = []\nlisten_tls = ["127.0.0.1:0"]\ndata_dir = "{folder}/data"\n[tls]\n'
                      f'certificate = "{paper.certificate}"\nkey = "{paper.key}"\n{how}\n')
    with subprocess.Popen([str(brokers.leveret_binary()), "--config", str(config)], stderr=subprocess.PIPE,
                          text=True) as process:
        log = []
        for line in process.stderr or []:
            log.append(line)
            if "listening with TLS on" in line:
                process.terminate()
    assert process.returncode == 0 and any("ERROR" in line and "crl.pem contains no list" in line for line in log), log


def refused_configuration(folder: Path) -> None:
    """An invalid value changes nothing, client certificates included, and an invalid file does not delay anything."""
    office = Office(folder)
    other = office.issue("other")
    with Broker(office.server(), f'client_ca = "{office.authority}"\nclient_certificates = "require"') as broker:
        assert not comes_in(broker, context(office)) and comes_in(broker, context(office, other))
        text = broker.config_path.read_text()
        without = [line for line in text.splitlines() if not line.startswith("client_")]
        broker.config_path.write_text('memory_limit = "1MB"\n' + "\n".join(without))
        os.kill(broker.process.pid, signal.SIGHUP)
        broker.logged("ERROR .*; the configuration is unchanged")
        assert not comes_in(broker, context(office)) and comes_in(broker, context(office, other))
        assert "certificates were read again" not in broker.log()
        for make in (os.mkfifo, os.mkdir):
            count = broker.log().count("is unchanged")
            broker.config_path.rmdir() if broker.config_path.is_dir() else broker.config_path.unlink()
            make(broker.config_path)
            os.kill(broker.process.pid, signal.SIGHUP)
            wait_for(lambda: broker.log().count("is unchanged") > count, broker.log)
            assert "leveret.toml: it is not a regular file" in broker.log(), broker.log()
            assert comes_in(broker, context(office, other))
        broker.stop()


CASES: Dict[str, Callable[[Path], None]] = {
    "reload-under-traffic": under_traffic,
    "reload-authority": authority,
    "reload-other-keys": other_keys,
    "reload-revoked": revoked,
    "several-lists": several_lists,
    "useless-files-at-a-start": useless_files_at_a_start,
    "reload-refused": refused_configuration,
}
