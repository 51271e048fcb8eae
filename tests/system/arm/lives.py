"""An emulated broker under kills and with TLS.

A kill at any moment must lose no confirmed message. The ciphers of TLS are written in assembler for each processor. A
message counts as confirmed only when its confirm was read.
"""

import contextlib
import pathlib
import random
import ssl
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))

from harness import brokers, raw  # noqa: E402

PATIENCE_S = 30.0
KILLS = 8
PERSISTENT = {"delivery_mode": 2}
# TLS 1.2 with each of the two kinds of cipher, and TLS 1.3 with the cipher that both sides prefer.
CIPHERS = [None, "ECDHE+CHACHA20", "ECDHE+AESGCM"]


@contextlib.contextmanager
def running_broker(command, port):
    """Runs a broker for the length of a `with` block, and kills it at the end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            # The log is short, so it is read only at the end.
            deadline = time.monotonic() + PATIENCE_S
            while True:
                with contextlib.suppress(OSError, raw.Closed):
                    raw.Client(brokers.Address("127.0.0.1", port), timeout=PATIENCE_S).close()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise RuntimeError(f"the broker does not serve: {process.stderr.read()[-500:]}")
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def kills(command, folder):
    """Publishes with confirms, kills the broker at a random moment, and starts it again. All confirmed messages must be
    there, each once and in order."""
    port, chance = brokers.free_port(), random.Random(7)
    command = [*command, "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder)]
    confirmed, published = 0, 0
    for _ in range(KILLS):
        with running_broker(command, port) as process:
            client = raw.Client(brokers.Address("127.0.0.1", port), timeout=PATIENCE_S)
            client.open()
            client.call(1, "queue.declare", queue="kept", durable=True)
            last = check(client, confirmed, published)
            published = confirmed = last + 1
            client.call(1, "confirm.select")
            tag, first, ends = 0, published, time.monotonic() + chance.uniform(0.1, 0.6)
            while time.monotonic() < ends:
                client.publish(1, "", "kept", b"%d" % published * (1 + published % 90), props=PERSISTENT)
                published, tag = published + 1, tag + 1
                if tag % 5 == 0:
                    confirmed = first + client.expect("basic.ack").args["delivery_tag"]
            process.kill()
            client.drop()
    if confirmed < 20 * KILLS:
        raise RuntimeError(f"{confirmed} messages were confirmed before {KILLS} kills, which is too few for a test")
    with running_broker(command, port):
        client = raw.Client(brokers.Address("127.0.0.1", port), timeout=PATIENCE_S)
        client.open()
        check(client, confirmed, published)
        client.close()
    print(f"# {KILLS} kills, {confirmed} messages confirmed, none lost")


def check(client, confirmed, published):
    """Checks that the queue has all confirmed messages, and of the others the first ones. Returns the number of the
    last message, or -1."""
    client.send(raw.wire.method(1, "basic.consume", queue="kept", consumer_tag="c"))
    client.expect("basic.consume-ok")
    count = client.call(1, "queue.declare", queue="kept", passive=True).args["message_count"]
    count += len([item for item in client.held if raw.name_of(item) == "basic.deliver"])
    for number in range(count):
        body = client.expect("basic.deliver").body
        if body != b"%d" % number * (1 + number % 90):
            raise RuntimeError(f"message {number} is {body[:30]!r}")
    if not confirmed <= count <= published:
        raise RuntimeError(f"the queue has {count} messages; {confirmed} were confirmed, {published} sent")
    client.call(1, "basic.cancel", consumer_tag="c")
    client.call(1, "basic.recover", requeue=True)
    return count - 1


def tls(command, folder):
    """Sends a message through TLS and receives it, with every kind of cipher."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-keyout", str(key), "-out",
                    str(certificate)], check=True, capture_output=True)
    config = folder / "tls.toml"
    port, secured = brokers.free_port(), brokers.free_port()
    config.write_text(f'listen_tls = ["127.0.0.1:{secured}"]\n[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    command = [*command, "--config", str(config), "--listen", f"127.0.0.1:{port}", "--data-dir", str(folder / "data")]
    with running_broker(command, port):
        for cipher in CIPHERS:
            how = ssl.create_default_context(cafile=str(certificate))
            if cipher:
                how.maximum_version = ssl.TLSVersion.TLSv1_2
                how.set_ciphers(cipher)
            plain = raw.socket.create_connection(("127.0.0.1", secured), timeout=PATIENCE_S)
            client = raw.Client(brokers.Address("127.0.0.1", secured), timeout=PATIENCE_S,
                                connected=how.wrap_socket(plain, server_hostname="localhost"))
            client.open()
            client.call(1, "queue.declare", queue="there-and-back")
            body = random.Random(1).randbytes(100_000)
            client.publish(1, "", "there-and-back", body)
            got = client.call(1, "basic.get", queue="there-and-back", no_ack=True).body
            if got != body:
                raise RuntimeError(f"{client.socket.cipher()}: the received body differs from the sent one")
            print(f"# {client.socket.version()} {client.socket.cipher()[0]}")
            client.close()
