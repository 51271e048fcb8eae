"""A proxy between a publisher and its broker: it forwards both directions and records which messages were confirmed.

The checks do not rely on the client's own records, which may be wrong or lost with it. A message is *sent* once its
bytes were passed to the broker's socket, and *confirmed* once the broker's acknowledgement was read.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Dict, List, Set

from harness import wire
from harness.brokers import Address
from harness.suite import patience

PUBLISH, ACK, NACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"


class Message:
    """A message that was sent."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.body = bytearray()
        self.is_confirmed = False


class Line:
    """One connection through the proxy. All its publishes are on one channel, so delivery tags count them."""

    def __init__(self, peer: socket.socket, address: Address) -> None:
        self.peer = peer
        self.broker = socket.create_connection(address, 10.0)
        self.broker.settimeout(None)
        self.sent: List[Message] = []
        self.confirmed_through = 0
        self.accident = ""
        self.threads = [threading.Thread(target=self._run, args=(*ends, note), daemon=True)
                        for *ends, note in ((peer, self.broker, self._up), (self.broker, peer, self._down))]
        for thread in self.threads:
            thread.start()

    def _run(self, source: socket.socket, to: socket.socket, note) -> None:
        buffer = bytearray()
        is_begun = source is self.broker
        try:
            while data := source.recv(1 << 16):
                buffer += data
                if not is_begun and len(buffer) >= len(wire.PROTOCOL_HEADER):
                    del buffer[: len(wire.PROTOCOL_HEADER)]
                    is_begun = True
                if is_begun:
                    for frame in wire.split_frames(buffer):
                        note(frame)
                to.sendall(data)
        except OSError:
            pass  # one side has closed, as expected in this test
        except Exception as accident:
            self.accident = repr(accident)
        finally:
            for end in (source, to):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _up(self, frame: wire.Frame) -> None:
        if frame.kind == wire.FRAME_METHOD and frame.payload[:4] == PUBLISH:
            key = wire.decode_method(frame.payload).args["routing_key"]
            self.sent.append(Message(key.decode() if isinstance(key, bytes) else key))
        elif frame.kind == wire.FRAME_BODY:
            self.sent[-1].body += frame.payload

    def _down(self, frame: wire.Frame) -> None:
        if frame.kind != wire.FRAME_METHOD or frame.payload[:4] not in (ACK, NACK):
            return
        assert frame.payload[:4] == ACK, "the broker refused a message"
        args = wire.decode_method(frame.payload).args
        tag = args["delivery_tag"]
        assert 0 < tag <= len(self.sent), f"tag {tag} is confirmed, and {len(self.sent)} messages were sent"
        first = self.confirmed_through if args["multiple"] else tag - 1
        for message in self.sent[first:tag]:
            assert not message.is_confirmed, f"tag {tag} is confirmed twice"
            message.is_confirmed = True
        if args["multiple"]:
            self.confirmed_through = tag
        while self.confirmed_through < len(self.sent) and self.sent[self.confirmed_through].is_confirmed:
            self.confirmed_through += 1


class Tap:
    """A listening socket in front of a broker that forwards all bytes."""

    def __init__(self, address: Address) -> None:
        self.broker = address
        self.lines: List[Line] = []
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self.door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.lines.append(Line(self.door.accept()[0], self.broker))

    def confirmed(self) -> int:
        """Returns the number of messages confirmed so far."""
        return sum(message.is_confirmed for line in list(self.lines) for message in list(line.sent))

    def close(self) -> None:
        """Closes the proxy after all bytes on their way were recorded."""
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        for line in self.lines:
            for thread in line.threads:
                thread.join(patience(10.0))
                assert not thread.is_alive(), "a connection through the proxy does not end"
            line.peer.close()
            line.broker.close()
            assert not line.accident, f"in the proxy: {line.accident}"

    def bodies(self, confirmed: bool) -> Dict[str, Set[bytes]]:
        """Returns the bodies of all sent messages, or only of the confirmed ones, by queue. Each body is sent once."""
        found: Dict[str, Set[bytes]] = {}
        for line in self.lines:
            for message in line.sent:
                if message.is_confirmed or not confirmed:
                    bodies = found.setdefault(message.key, set())
                    assert bytes(message.body) not in bodies, "two messages with the same body"
                    bodies.add(bytes(message.body))
        return found
