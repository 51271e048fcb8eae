"""Bridges over TLS: to a RabbitMQ that requires certificates, to another Leveret, and to servers with wrong
certificates."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "system" / "tls"))

from harness import brokers, raw  # noqa: E402
from harness.brokers import Address  # noqa: E402
from harness.suite import chance  # noqa: E402
from office import Office, Paper  # noqa: E402
from proxy import answers_http  # noqa: E402


class Broker(brokers.Leveret):
    """A Leveret with a TLS listener."""

    def __init__(self, paper: Paper, more: str = "", port: int = 0, data_dir: Optional[Path] = None) -> None:
        text = f'[tls]\ncertificate = "{paper.certificate}"\nkey = "{paper.key}"\n{more}\n'
        super().__init__(brokers.leveret_binary(), ["--listen-tls", f"127.0.0.1:{port}"], text, data_dir)
        self.tls_port = self.port_of("listening with TLS")


def rabbitmq_settings(office: Office, server: Paper, port: int) -> str:
    """Returns settings with which RabbitMQ requires client certificates of this certificate authority."""
    options = (f'{{cacertfile, "{office.authority}"}}, {{certfile, "{server.certificate}"}}, {{keyfile, "{server.key}"}}, '
               "{verify, verify_peer}, {fail_if_no_peer_cert, true}")
    return f'{{ssl_listeners, [{{"127.0.0.1", {port}}}]}}, {{ssl_options, [{options}]}}'


def keys(office: Office, paper: Any = None, more: str = "") -> str:
    """Returns the TLS keys of a bridge."""
    own = f'certificate = "{paper.certificate}"\nkey = "{paper.key}"\n' if paper else ""
    return f'ca_file = "{office.authority}"\n{own}{more}'


class OverTls:
    """The cases over TLS. The certificate authorities and certificates are created once."""

    def __init__(self, folder: Path, tools: Any) -> None:
        self.tools = tools
        self.office, self.others = Office(folder / "office"), Office(folder / "others", "another authority")
        self.server = self.office.server()
        self.meter, self.stranger = self.office.issue("meter"), self.others.issue("stranger")
        self.rabbitmq = Address("127.0.0.1", brokers.free_port())

    def settings(self) -> str:
        """Returns the settings of RabbitMQ."""
        return rabbitmq_settings(self.office, self.server, self.rabbitmq.port)

    def config(self, upstream: Address, said: str) -> str:
        """Returns the configuration of a bridge over TLS."""
        return self.tools.config(upstream, said, scheme="amqps")

    def there_and_back(self, place: Any) -> None:
        """Readings and commands arrive, with certificates on both sides, over a connection that is repeatedly closed.
        """
        tools = self.tools
        proxy = tools.Proxy(self.rabbitmq)
        try:
            edge = place.start(self.config(proxy.address, keys(self.office, self.meter)))
            tools.publish(edge.address, "telemetry", 0, 2_000)
            tools.until("the bridge runs", lambda: tools.status(edge)["state"] == "running")
            for turn in range(1, 4):
                proxy.cut()
                tools.publish(edge.address, "telemetry", turn * 2_000, 2_000)
            with raw.Client(place.upstream.address) as client:
                client.open()
                for number in range(100):
                    client.publish(1, "", "commands", chance(f"command-{number}").randbytes(number * 700), props=tools.PERSISTENT)
            tools.until("all readings are upstream", lambda: tools.ready(edge.address, "telemetry") == 0
                        and tools.status(edge)["pending"] == 0)
            tools.until("all commands arrived at the edge", lambda: tools.ready(edge.address, "orders") >= 100)
            tools.check_arrived(tools.drain(place.upstream.address, "telemetry"), 8_000)
            told = tools.status(edge)
            assert told["upstream"].startswith("amqps://") and told["connected"] >= 2, told
            assert (edge.data_dir / "last-known-time").read_text().strip().isdigit()
            print(f"# {edge.rss_kib()} KiB resident", flush=True)
        finally:
            proxy.close()

    def two_hops(self, place: Any) -> None:
        """Readings go over TLS from a hub to a gateway, which is a Leveret, and from there over TLS to the centre. The
        gateway is killed twice with -9 during the transfer. No reading is lost."""
        tools = self.tools
        place.clear()
        count, port = 20_000, 0
        asked = f'client_ca = "{self.office.authority}"\nclient_certificates = "require"'
        # Slower than the readings from the hub arrive, so that the gateway holds messages that it would lose if it did
        # not store them.
        centre = self.config(self.rabbitmq, keys(self.office, self.meter, "drain_rate = 4000\n"))
        home = Path(tempfile.mkdtemp(prefix="leveret-test-"))
        start = lambda: Broker(self.server, asked + "\n" + centre, port, home)  # noqa: E731
        gateway = start()
        port = gateway.tls_port
        try:
            with raw.Client(gateway.address) as client:
                client.open()
                client.call(1, "queue.declare", queue="telemetry", durable=True)
                client.call(1, "queue.declare", queue="commands", durable=True)
            hub = self.config(Address("127.0.0.1", port), keys(self.office, self.meter, "drain_rate = 8000\n"))
            place.edge = edge = brokers.Leveret(brokers.leveret_binary(), [], hub)
            for turn in range(2):
                tools.publish(edge.address, "telemetry", turn * count // 2, count // 2)
                tools.until("messages are being forwarded",
                            lambda: tools.status(edge)["moved"] >= turn * count // 2 + count // 8)
                gateway.kill()
                gateway.close()
                gateway = start()
            tools.until("the hub's queue is empty", lambda: tools.ready(edge.address, "telemetry") == 0
                        and tools.status(edge)["pending"] == 0)
            tools.until("the gateway's queue is empty", lambda: tools.ready(gateway.address, "telemetry") == 0
                        and tools.status(gateway)["pending"] == 0)
            arrived = tools.drain(place.upstream.address, "telemetry")
            repeats = tools.check_arrived(arrived, count, hops=2)
            assert all(b"x-bridge-via" in tools.headers_of(content) for content in arrived)
            assert tools.status(edge)["connected"] == 3, tools.status(edge)
            print(f"# {repeats} repeats", flush=True)
        finally:
            gateway.close()
            shutil.rmtree(home, ignore_errors=True)

    def tls_errors_are_reported(self, place: Any) -> None:
        """Each error of certificates, names and ports causes one state and one log line, and the broker still accepts
        messages."""
        tools = self.tools
        early = self.office.server("early-server", starts_in=400)
        late = self.office.issue("late-server", "localhost", ["IP:127.0.0.1"], days=30, starts_in=-60)
        web = answers_http()
        good = keys(self.office, self.meter)
        with Broker(late) as old, Broker(early) as new:
            for wanted, upstream, said in [
                ("not signed by an authority in ca_file", self.rabbitmq, keys(self.others, self.meter)),
                ("not signed by an authority that this system trusts", self.rabbitmq, ""),
                ("made out to localhost, 127.0.0.1, not to rabbit.example: set server_name", self.rabbitmq,
                 keys(self.office, self.meter, 'server_name = "rabbit.example"\n')),
                ("the upstream requires a client certificate", self.rabbitmq, keys(self.office)),
                ("does not trust the issuer of our certificate", self.rabbitmq, keys(self.office, self.stranger)),
                ("the upstream's certificate expired at", Address("127.0.0.1", old.tls_port), good),
                ("the clock here shows", Address("127.0.0.1", new.tls_port), good),
                ("AMQP without TLS on this port", place.upstream.address, good),
                ("speaks HTTP, not TLS", Address("127.0.0.1", web.getsockname()[1]), good),
                ("ca_file: /nowhere/ca.pem does not exist", self.rabbitmq, 'ca_file = "/nowhere/ca.pem"\n'),
            ]:
                edge = place.start(self.config(upstream, said))
                try:
                    told = tools.until(wanted, lambda: wanted in tools.status(edge)["last_error"] and tools.status(edge))
                    assert told["state"] in ("waiting", "connecting") and told["connected"] == 0, told
                    tools.publish(edge.address, "other", 0, 10)
                    assert edge.log().count(wanted) <= 2, edge.log()
                    print(f"# {told['last_error']}", flush=True)
                finally:
                    edge.close()
                # `leveret check --connect` reports the same without a running broker.
                line, = tools.tried(self.config(upstream, said), 1)
                assert wanted in line[line.index("DOES NOT"):], line
        web.close()

    def renewed(self, place: Any) -> None:
        """A renewed certificate is used by the next connection attempt. A new bridge over TLS is refused until a
        restart if the broker started without memory for TLS."""
        tools = self.tools
        folder = self.office.folder
        for end in ("pem", "key"):
            shutil.copy(getattr(self.stranger, "certificate" if end == "pem" else "key"), folder / f"own.{end}")
        own = Paper(folder / "own.pem", folder / "own.key")
        edge = place.start(self.config(self.rabbitmq, keys(self.office, own)))
        tools.until("the certificate is refused",
                    lambda: "does not trust the issuer" in tools.status(edge)["last_error"])
        for end in ("pem", "key"):
            shutil.copy(getattr(self.meter, "certificate" if end == "pem" else "key"), folder / f"own.{end}")
        tools.until("the bridge runs", lambda: tools.status(edge)["state"] == "running")
        edge.close()
        edge = place.start(tools.config(place.upstream.address, ""))
        (edge.home / "leveret.toml").write_text(self.config(self.rabbitmq, keys(self.office, self.meter)))
        os.kill(edge.process.pid, 1)
        tools.until("the log reports the refused bridge",
                    lambda: "no memory for TLS with upstreams until a restart" in edge.log())
        tools.until("the bridge is not listed",
                    lambda: json.loads(edge.ctl("bridge_status", "--formatter", "json")) == [])

    def cases(self) -> List[Any]:
        """Returns all cases."""
        return [self.there_and_back, self.two_hops, self.tls_errors_are_reported, self.renewed]
