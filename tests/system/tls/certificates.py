"""Versions of TLS, and which certificates are accepted."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Callable, Dict, Optional

import pika
import pika.exceptions

from harness import environment
from harness.raw import Client
from harness.suite import chance

from office import Office, Paper
from support import Broker, context, dial, pika_client, raw_client

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def there_and_back(broker: Broker, how: ssl.SSLContext) -> None:
    """Publishes and gets bodies of all sizes with confirms."""
    connection = pika_client(broker, how)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("there", exclusive=True)
    for size in (0, 1, 1000, 16_384, 100_000, 2_000_000):
        body = chance("there-and-back").randbytes(size)
        channel.basic_publish("", "there", body, mandatory=True)
        _, _, got = channel.basic_get("there", auto_ack=True)
        assert (got or b"") == body, f"the body of {size} bytes was altered"
    connection.close()


def refuses(broker: Broker, how: ssl.SSLContext, logged: str) -> None:
    """Checks that a client gets no AMQP, and that the log names the reason."""
    try:
        raw_client(broker, how)
    except (ssl.SSLError, OSError, Exception) as error:
        assert not isinstance(error, AssertionError), error
    else:
        raise AssertionError("the client was accepted")
    broker.logged(logged)


def versions(folder: Path) -> None:
    office = Office(folder)
    with Broker(office.server()) as broker:
        for version in (TLS12, TLS13):
            there_and_back(broker, context(office, version=version))
    with Broker(office.server(), tls='minimum_version = "1.3"') as broker:
        there_and_back(broker, context(office, version=TLS13))
        refuses(broker, context(office, version=TLS12), "TLS handshake failed: .*minimum_version")


def rsa_key(folder: Path) -> None:
    office = Office(folder)
    with Broker(office.server(kind="rsa:2048")) as broker:
        for version in (TLS12, TLS13):
            there_and_back(broker, context(office, version=version))


def mutual(folder: Path) -> None:
    """Client certificates: required, optional, and invalid in every way."""
    office, others = Office(folder / "office"), Office(folder / "others", "another authority")
    meter = office.issue("meter-7", "meter-7", ["DNS:meter-7.example"])
    wrong = others.issue("stranger")
    late = office.issue("late", days=30, starts_in=-60)
    early = office.issue("early", starts_in=400)
    old = office.issue("old", is_version_3=False)
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"'
    with Broker(office.server(), how, extra=["--log-level", "debug"]) as broker:
        for version in (TLS12, TLS13):
            there_and_back(broker, context(office, meter, version))
        broker.logged('certificate of Some\\("meter-7"\\)')
    for paper, why in [
        (None, "the client presented no certificate"),
        (wrong, "the client's certificate is not signed by an authority in \\[tls\\] client_ca"),
        (late, "the client's certificate expired at .*; the clock here shows"),
        (old, "the client's certificate is of X.509 version 1"),
        (early, "the client's certificate is valid from .* on, but the clock here shows .*: check the clock"),
    ]:
        for version in (TLS12, TLS13):
            with Broker(office.server(), how) as broker:
                refuses(broker, context(office, paper, version), f"the TLS handshake failed: {why}")
                raw_client(broker, context(office, meter)).close()
    with Broker(office.server(), how.replace("require", "allow")) as broker:
        there_and_back(broker, context(office))
        there_and_back(broker, context(office, meter))
        refuses(broker, context(office, wrong), "the TLS handshake failed: the client's certificate is not signed")


def external(folder: Path) -> None:
    """SASL EXTERNAL: a client with a valid certificate is the user that it names, without a password."""
    office = Office(folder)
    guest, nobody = office.issue("guest"), office.issue("nobody")
    by_name = office.issue("by-name", "somebody else", ["DNS:guest", "email:guest@example"])
    credentials = pika.credentials.ExternalCredentials
    how = f'client_ca = "{office.authority}"\nclient_certificates = "allow"'

    def log_in(broker: Broker, paper: Optional[Paper]) -> None:
        connection = pika_client(broker, context(office, paper), credentials=credentials())
        connection.channel().queue_declare("external", exclusive=True)
        connection.close()

    def refused(broker: Broker, paper: Optional[Paper]) -> None:
        try:
            log_in(broker, paper)
        except (pika.exceptions.ProbableAuthenticationError, pika.exceptions.AuthenticationError):
            return
        raise AssertionError("the client was accepted")

    with Broker(office.server(), how) as broker:
        log_in(broker, guest)
        refused(broker, nobody)
        refused(broker, by_name)
        refused(broker, None)
        # A client with a certificate can still log in with a password.
        there_and_back(broker, context(office, nobody))
    with Broker(office.server(), how + '\nlogin_from = "subject_alternative_name_dns"') as broker:
        log_in(broker, by_name)
        refused(broker, guest)


def clock_at_1970(folder: Path) -> None:
    """The clock of a board is not set. Clients whose certificates are at least as old as the broker's are accepted,
    because the time cannot be earlier. An expired one is refused, and the log names the clock."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        environment.apt_install("libfaketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    office = Office(folder)
    meter = office.issue("meter", starts_in=-30)
    young = office.issue("young", starts_in=-1)
    late = office.issue("late", days=30, starts_in=-60)
    server = office.server(starts_in=-10)
    how = f'client_ca = "{office.authority}"\nclient_certificates = "require"'
    fake = {"LD_PRELOAD": str(library), "FAKETIME": "@1970-01-02 00:00:00", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    os.environ.update(fake)
    try:
        broker = Broker(server, how)
    finally:
        for name in fake:
            del os.environ[name]
    with broker:
        broker.logged("the clock of this machine shows 1970-01-02 .*: until the clock is set")
        there_and_back(broker, context(office, meter))
        there_and_back(broker, context(office, young))
        refuses(broker, context(office, late), "the client's certificate expired at .*; the clock here shows 1970-01-02")
    early = office.issue("early", starts_in=2)
    os.environ.update(fake)
    try:
        broker = Broker(server, how)
    finally:
        for name in fake:
            del os.environ[name]
    with broker:
        refuses(broker, context(office, early), "the clock here shows 1970-01-02 .*, which is certainly wrong")


def distrustful_client(folder: Path) -> None:
    """A client that does not trust our certificate authority sends an alert, and the log says what to give to the
    client."""
    office, others = Office(folder / "office"), Office(folder / "others", "another authority")
    with Broker(office.server()) as broker:
        try:
            dial(broker, context(others))
        except ssl.SSLCertVerificationError:
            pass
        else:
            raise AssertionError("the client trusted the certificate")
        broker.logged("the TLS handshake failed: the client does not trust the issuer of our certificate")
        Client(broker.address).close()


def by_name(folder: Path) -> None:
    """Of several certificates, the broker uses the one for the requested name."""
    office = Office(folder)
    first, second = office.server(), office.issue("second", names=["DNS:second.example"])
    with Broker(first) as broker:
        text = broker.config_path.read_text()
        text = text.replace(f'"{first.certificate}"', f'["{first.certificate}", "{second.certificate}"]')
        broker.config_path.write_text(text.replace(f'"{first.key}"', f'["{first.key}", "{second.key}"]'))
        os.kill(broker.process.pid, 1)
        broker.logged("certificates were read again")
        for name, shown in [("localhost", "localhost"), ("second.example", "second.example")]:
            how = context(office)
            how.check_hostname = False
            with socket.create_connection(("127.0.0.1", broker.tls_port)) as plain:
                with how.wrap_socket(plain, server_hostname=name) as secure:
                    names = [value for _, value in secure.getpeercert()["subjectAltName"]]
            assert shown in names, f"the client asked for {name} and got the certificate of {names}"


CASES: Dict[str, Callable[[Path], None]] = {
    "versions": versions,
    "rsa-key": rsa_key,
    "mutual": mutual,
    "external": external,
    "clock-at-1970": clock_at_1970,
    "distrustful-client": distrustful_client,
    "by-name": by_name,
}
