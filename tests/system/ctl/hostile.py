"""The control socket under hostile or slow clients, while other clients are served."""

from __future__ import annotations

import socket as sockets
import time
from typing import List

from harness.brokers import Leveret, leveret
from harness.raw import Client
from harness.suite import chance, patience
from support import good, program, rows

QUEUES = 3000


def connect(broker: Leveret) -> sockets.socket:
    """Connects to the control socket."""
    client = sockets.socket(sockets.AF_UNIX)
    client.settimeout(patience(10))
    client.connect(str(broker.data_dir / "ctl.sock"))
    return client


def talk(broker: Leveret, bytes_: bytes) -> bytes:
    """Sends bytes and returns what the broker sends until it closes or is silent."""
    with connect(broker) as client:
        client.sendall(bytes_)
        client.shutdown(sockets.SHUT_WR)
        answer = b""
        try:
            while part := client.recv(65536):
                answer += part
        except ConnectionError:
            pass
        return answer


def a_huge_listing_beside_traffic() -> None:
    """A listing of thousands of queues is complete while messages flow. A client that never reads does not delay
    others."""
    with leveret() as broker:
        program("many", broker, str(QUEUES))
        before = broker.rss_kib()
        deaf = [connect(broker) for _ in range(3)]
        for client in deaf:
            client.sendall(b"GET /api/queues HTTP/1.1\r\n\r\n" * 100)
        for _ in range(3):
            names = {row[0] for row in rows(broker, "list_queues", "name")}
            assert len(names) == QUEUES, len(names)
            program("hello", broker, "guest", "guest")
            good(broker, "delete_queue", "hello")
        assert broker.rss_kib() < before + 4096, f"{before} KiB, then {broker.rss_kib()} KiB"
        for client in deaf:
            client.close()
        good(broker, "ping")


def any_bytes_get_an_error_or_a_close() -> None:
    """Arbitrary bytes are answered with an error or a close, and the broker keeps running."""
    generator = chance("strange-requests")
    with leveret() as broker:
        strange: List[bytes] = [
            b"\0" * 100_000,
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"PUT /api/users/x HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n",
            b"PUT /api/users/x HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
            b"PUT /api/users/x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /api/ctl/import HTTP/1.1\r\ncontent-length: 60000\r\n\r\n" + b"queues " + b"[" * 59_993,
            b"POST /api/ctl/import HTTP/1.1\r\ncontent-length: 9\r\n\r\nqueues {}",
            b"AMQP\0\0\x09\x01",
            b"GET /api/%ff HTTP/1.1\r\n\r\n",
            b"GET /api/queues?columns=" + b"name," * 2000 + b"name HTTP/1.1\r\n\r\n",
        ]
        strange += [generator.randbytes(generator.randrange(3000)) for _ in range(200)]
        for number, bytes_ in enumerate(strange):
            answer = talk(broker, bytes_)
            assert b" 204 " not in answer and b" 201 " not in answer, (number, answer)
        assert rows(broker, "list_users") == [["guest", "[administrator]"]]
        # Requests in one write and in single bytes have the same result.
        ask = b"GET /api/vhosts?columns=name HTTP/1.1\r\n\r\n"
        whole = talk(broker, ask * 3)
        assert whole.count(b'{"name":"/"}') == 3, whole
        with connect(broker) as client:
            for byte in ask:
                client.sendall(bytes([byte]))
                time.sleep(0.001)
            assert b"200 OK" in client.recv(65536)


def control_connection_limit() -> None:
    """A client that connects when all control connections are in use waits, and is served when one is closed."""
    with leveret() as broker:
        idle = [connect(broker) for _ in range(20)]
        for client in idle[:10]:
            client.close()
        amqp = Client(broker.address)
        amqp.close()
        for client in idle[10:]:
            client.close()
        good(broker, "ping")


CASES = [a_huge_listing_beside_traffic, any_bytes_get_an_error_or_a_close, control_connection_limit]
