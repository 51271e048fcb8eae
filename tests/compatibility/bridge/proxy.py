"""A TCP proxy between a bridge and its upstream that simulates network faults: it closes, stalls, resets and slows
connections."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import List, Tuple

from harness.brokers import Address
from harness.suite import patience


def answers_http() -> socket.socket:
    """Listens and answers every connection with HTTP, until it is closed."""
    web = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                client, _ = web.accept()
            except OSError:
                return
            client.recv(100)
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

    threading.Thread(target=answer, daemon=True).start()
    return web


class Proxy:
    """Listens on a port and forwards bytes to `upstream` until it is stopped."""

    def __init__(self, upstream: Address) -> None:
        self.upstream = upstream
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self.listener.getsockname()[1])
        self.pairs: List[Tuple[socket.socket, socket.socket]] = []
        self.refuses = False
        self.stalled = False
        self.down_stalled = False
        self.delay_s = 0.0
        self.taken = 0
        self.connections = 0
        self.ends = False
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.ends:
            with self.lock:
                pairs = list(self.pairs)
            sockets = [end for pair in pairs for end in pair]
            try:
                ready, _, _ = select.select([self.listener, *sockets], [], [], 0.02)
            except (OSError, ValueError):
                continue
            if self.listener in ready:
                self._accept()
            for client, server in pairs:
                if client in ready and not self.stalled:
                    self._hand_on(client, server)
                if server in ready and not self.stalled and not self.down_stalled:
                    self._hand_on(server, client)
            if self.stalled or self.down_stalled:
                time.sleep(0.02)
            elif self.delay_s:
                time.sleep(self.delay_s)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        self.connections += 1
        if self.refuses:
            client.close()
            return
        try:
            server = socket.create_connection(self.upstream, 5)
        except OSError:
            client.close()
            return
        with self.lock:
            self.pairs.append((client, server))

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if data:
                target.sendall(data)
                self.taken += len(data)
                return
        except OSError:
            pass
        self._forget(source, target)

    def _forget(self, *ends: socket.socket) -> None:
        with self.lock:
            self.pairs = [pair for pair in self.pairs if not set(pair) & set(ends)]
        for end in ends:
            with contextlib.suppress(OSError):
                end.close()

    def cut(self) -> None:
        """Closes all connections."""
        for pair in list(self.pairs):
            self._forget(*pair)

    def reset(self) -> None:
        """Resets all connections, which discards data on the way."""
        for pair in list(self.pairs):
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._forget(*pair)

    def close(self) -> None:
        """Stops the proxy."""
        self.ends = True
        self.thread.join(patience(5))
        self.cut()
        self.listener.close()
