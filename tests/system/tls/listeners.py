"""Connections with the wrong protocol, the Unix socket, and certificate files that cannot be used."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Callable, Dict

from harness import brokers, wire
from harness.raw import Client
from harness.suite import Skip, chance, patience

from office import Office
from support import Broker, context, raw_client, wait_for


def say(port: int, words: bytes) -> bytes:
    """Sends bytes, and returns the answer until the peer closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience(20)) as peer:
        peer.sendall(words)
        heard = b""
        try:
            while data := peer.recv(4096):
                heard += data
        except ConnectionResetError:
            pass
        return heard


def wrong_protocols(folder: Path) -> None:
    """AMQP to a TLS listener, TLS to an AMQP listener, and HTTP to either: the log says for each what to change."""
    office = Office(folder)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for is_tls, words, answer, logged in [
        (True, b"AMQP\0\0\x09\x01", b"", "refused: plain AMQP on the port for TLS: use amqps://"),
        (True, request, b"HTTP/1.1 400 Bad Request\r\n", "refused: HTTP on the port for AMQP over TLS"),
        (True, b"\0\1\2\3 who is there", b"", "refused: no TLS on the port for TLS"),
        (False, request, b"HTTP/1.1 400 Bad Request\r\n", "refused: HTTP on the port for AMQP:"),
        (False, b"POST /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 400", "refused: HTTP on the port for AMQP:"),
        (False, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", wire.PROTOCOL_HEADER, "refused: TLS on the port for plain AMQP"),
    ]:
        with Broker(office.server()) as broker:
            port = broker.tls_port if is_tls else broker.address.port
            for octets in [words] * 7:
                heard = say(port, octets)
                assert heard.startswith(answer) and (answer or not heard), f"{octets!r} was answered with {heard!r}"
            broker.logged(f"127.0.0.1:\\d+: {logged}")
            # One address may cause five lines at once. The log is written by another thread.
            broker.logged(f"(127.0.0.1:\\d+: {logged}[^\0]*){{5}}")
            count = broker.log().count("refused: ")
            assert count == 5, f"{count} lines of one address at once, not 5"
            raw_client(broker, context(office)).close()
            Client(broker.address).close()


def unix_socket(folder: Path) -> None:
    """Programs of this machine connect over a Unix socket. Its file is created and removed by the broker."""
    path = folder / "amqp.sock"

    def start() -> brokers.Leveret:
        return brokers.Leveret(brokers.leveret_binary(), ["--listen-unix", str(path), "--log-level", "debug"],
                               'listen_unix_mode = "0600"')

    def visit() -> None:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        client = Client(None, connected=peer)
        client.open()
        client.call(1, "queue.declare", queue="local", exclusive=True)
        body = chance("unix-socket").randbytes(3_000_000)
        client.publish(1, "", "local", body)
        got = client.call(1, "basic.get", queue="local", no_ack=True)
        assert got.body == body, "the body was altered"
        client.close()

    broker = start()
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        visit()
        wait_for(lambda: f"process {os.getpid()} of user {os.getuid()}" in broker.log())
        second = subprocess.run([str(brokers.leveret_binary()), "--listen", "127.0.0.1:0", "--listen-unix", str(path),
                                 "--data-dir", str(folder / "d")], stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, timeout=patience(30))
        assert second.returncode == 1 and "another program listens there" in second.stderr, second.stderr
        broker.kill()
        assert path.exists(), "the file is gone after a kill"
    finally:
        broker.close()
    broker = start()
    try:
        visit()
        broker.stop()
        assert not path.exists(), "the file is left after a stop"
    finally:
        broker.close()


def unix_socket_of_a_container(folder: Path) -> None:
    """The broker has its own process namespace, so the kernel reports no process id for the client. The client is
    accepted nevertheless."""
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.getuid() != 0 or subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        raise Skip("only root can create a process namespace")
    path = folder / "amqp.sock"
    broker = brokers.Leveret(brokers.leveret_binary(), ["--listen-unix", str(path), "--log-level", "debug"], prefix=alone)
    try:
        for _ in range(3):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(patience(10.0))
            peer.connect(str(path))
            client = Client(None, connected=peer)
            client.open()
            client.call(1, "queue.declare", queue="local", exclusive=True)
            client.close()
        wait_for(lambda: f"process 0 of user {os.getuid()}" in broker.log())
    finally:
        # The started process is the parent that waits for the broker.
        broker.process.kill()
        broker.close()


def bad_files(folder: Path) -> None:
    """Certificate files that cannot be used: one error line with key and path, and nothing of their content."""
    office = Office(folder)
    good = office.server()
    other = office.server("other")
    secret = folder / "damaged.key"
    secret.write_text(good.key.read_text().replace("MIGH", "M*GH"))
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "locked.key").write_text(
        office.openssl("pkcs8", "-topk8", "-in", str(good.key), "-passout", "pass:x", "-v2", "aes-256-cbc"))
    credentials = folder / "credentials"
    credentials.mkdir()
    for certificate, key, why in [
        ("/no/such/file.pem", good.key, "certificate: /no/such/file.pem does not exist"),
        (folder, good.key, "is not a regular file"),
        ("/dev/zero", good.key, "is not a regular file"),
        (folder / "pipe", good.key, "is not a regular file"),
        (folder / "loop", good.key, "cannot be read"),
        ("../../../../../../etc/passwd", good.key, "contains no certificate"),
        ("..", good.key, "is not a regular file"),
        (good.certificate, other.key, "is not the key of the certificate in"),
        (good.key, good.certificate, "interchanged"),
        (good.certificate, good.certificate, "interchanged"),
        (good.certificate, secret, "contains no private key"),
        (good.certificate, folder / "locked.key", "is encrypted"),
    ]:
        config = folder / "leveret.toml"
        config.write_text('listen = []\nlisten_tls = ["127.0.0.1:0"]\n'
                          f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
        done = subprocess.run(
            [str(brokers.leveret_binary()), "check", "--config", str(config), "--data-dir", str(folder / "d")],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(30),
            env=dict(os.environ, CREDENTIALS_DIRECTORY=str(credentials)))
        told = "\n".join(line for line in done.stdout.splitlines() if line.startswith("# warning: "))
        assert done.returncode == 0 and why in told, f"{certificate}, {key}: {told}"
        assert "[tls]" in told and "M*GH" not in told and "root:" not in told, told
        assert "connections with TLS are refused until the file can be used" in told, told


def credentials_and_modes(folder: Path) -> None:
    """A bare name is a credential of the unit. A key file that all users can read causes a warning."""
    office = Office(folder / "office")
    good = office.server()
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "tls.pem").write_text(good.certificate.read_text())
    (credentials / "tls.key").write_text(good.key.read_text())
    os.chmod(credentials / "tls.key", 0o644)
    os.environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    try:
        paper = good._replace(certificate=Path("tls.pem"), key=Path("tls.key"))
        with Broker(paper) as broker:
            raw_client(broker, context(office)).close()
            broker.logged(r"all users of this machine can read \S*tls.key")
    finally:
        del os.environ["CREDENTIALS_DIRECTORY"]


CASES: Dict[str, Callable[[Path], None]] = {
    "wrong-protocols": wrong_protocols,
    "unix-socket": unix_socket,
    "unix-socket-of-a-container": unix_socket_of_a_container,
    "bad-files": bad_files,
    "credentials-and-modes": credentials_and_modes,
}
