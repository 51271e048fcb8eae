"""A broker with an MQTT listener that keeps its ports and data over a kill, and common steps of the cases."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Iterator, Optional

import pika

from harness import brokers
from harness.suite import patience, until

from office import Paper

# Seconds until a wait fails. Only a lost message or a hanging broker exceeds it.
PATIENCE = 20.0


def reserved_port() -> socket.socket:
    """Returns a socket that is bound to a free port. While it is open, no other program gets the port, not even for an
    outgoing connection. The broker can listen on it, because both set SO_REUSEADDR and this socket does not listen.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


class MqttBroker:
    """A Leveret that can be killed and started again. Its MQTT ports and its data stay the same."""

    def __init__(self, home: Path, keys: str = "", paper: Optional[Paper] = None, tls: str = "") -> None:
        """Starts a broker. `keys` are lines of the configuration before the first section. With a certificate it also
        listens for MQTT with TLS, and `tls` are further lines of that section.
        """
        self.home = home
        self.keys = keys
        self.paper = paper
        self.tls = tls
        self.reservations = [reserved_port(), reserved_port()]
        self.port, self.tls_port = (reservation.getsockname()[1] for reservation in self.reservations)
        self.past_logs = ""
        # Set while the broker runs.
        self.is_listening = threading.Event()
        self._start()

    def _start(self) -> None:
        config = f'mqtt = ["127.0.0.1:{self.port}"]\n{self.keys}\n'
        if self.paper:
            config += (f'mqtt_tls = ["127.0.0.1:{self.tls_port}"]\n[tls]\ncertificate = "{self.paper.certificate}"\n'
                       f'key = "{self.paper.key}"\n{self.tls}\n')
        self.process = brokers.Leveret(brokers.leveret_binary(), [], config, data_dir=self.home / "data")
        self._wait_for("listening on", self.port)
        if self.paper:
            self._wait_for("listening with TLS on", self.tls_port)
        self.is_listening.set()

    def _wait_for(self, text: str, port: int) -> None:
        line = f"{text} 127.0.0.1:{port} for MQTT"
        until(f"the log has '{line}'", lambda: line in self.process.log(), 30.0)

    def kill(self) -> None:
        """Kills the broker with SIGKILL, and starts it again."""
        assert self.process.alive(), "the broker had ended before it was killed:\n" + self.log()
        self.is_listening.clear()
        self.process.kill()
        self._start_again("killed")

    def restart(self) -> None:
        """Stops the broker with SIGTERM, and starts it again."""
        self.is_listening.clear()
        self.process.stop()
        self._start_again("stopped")

    def _start_again(self, what: str) -> None:
        self.past_logs += self.process.log() + f"--- {what} ---\n"
        self.process.close()
        self._start()

    def log(self) -> str:
        """Returns the log of all processes so far."""
        # A process that could not be started again has no log, and that of the process before is in `past_logs`.
        return self.past_logs + (self.process.log() if self.process.log_path.exists() else "")

    def close(self) -> None:
        """Ends the broker, and releases its ports."""
        self.process.close()
        for reservation in self.reservations:
            reservation.close()

    def amqp(self, user: str = "guest", password: str = "guest") -> pika.BlockingConnection:
        """Returns a pika connection."""
        host, port = self.process.address
        return pika.BlockingConnection(pika.ConnectionParameters(
            host, port, credentials=pika.PlainCredentials(user, password), heartbeat=0,
            blocked_connection_timeout=patience(PATIENCE), socket_timeout=patience(PATIENCE)))


@contextlib.contextmanager
def mqtt_broker(home: Path, keys: str = "", paper: Optional[Paper] = None, tls: str = "") -> Iterator[MqttBroker]:
    """Runs a broker during a `with` block. A failure prints its log."""
    broker = MqttBroker(home, keys, paper, tls)
    try:
        yield broker
        assert broker.process.alive(), "the broker ended"
    except Exception:
        print(broker.log()[-6000:])
        raise
    finally:
        broker.close()
