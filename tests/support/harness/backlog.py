"""A fast client that publishes and drains backlogs of millions of small messages.

The messages of a queue differ only in a number, so their bytes are made once. Received frames are read without an
object for each.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, List

from . import wire
from .brokers import Leveret
from .raw import Client

# Messages between two waits for confirms.
WINDOW = 20_000
# Deliveries that one acknowledgement covers, if the prefetch allows as many.
ACK_EVERY = 200
PERSISTENT = 2
NUMBER = struct.Struct(">Q")
HEAD = struct.Struct(">BHI")
BASIC_DELIVER, BASIC_ACK = (60, 60), (60, 80)


def fill(peer: Client, queues: List[str], total: int, size: int) -> None:
    """Publishes `total` persistent messages of `size` bytes to the queues in turn, and waits for all confirms."""
    peer.call(1, "confirm.select")
    templates = []
    for queue in queues:
        whole = wire.publish(1, "", queue, bytes(size), props={"delivery_mode": PERSISTENT})
        templates.append((whole[:-size - 1], whole[-size - 1 + NUMBER.size:]))
    for start in range(0, total, WINDOW):
        end = min(start + WINDOW, total)
        out = bytearray()
        for count in range(start, end):
            before, behind = templates[count % len(queues)]
            out += before + NUMBER.pack(count // len(queues)) + behind
        peer.send(bytes(out))
        confirmed = 0
        while confirmed < end:
            confirmed = max(confirmed, peer.expect("basic.ack").args["delivery_tag"])


def drain(peer: Client, queues: List[str], total: int, size: int, prefetch: int) -> None:
    """Consumes all queues together, and checks the order of each."""
    peer.call(1, "basic.qos", prefetch_count=prefetch)
    for queue in queues:
        peer.send(wire.method(1, "basic.consume", queue=queue, consumer_tag=queue, nowait=True))
    following: Dict[bytes, int] = {queue.encode(): 0 for queue in queues}
    # The last queues with messages may be so few that their prefetch together is less than ACK_EVERY.
    ack_every = min(ACK_EVERY, prefetch)
    received, buffer, tag, queue = 0, bytearray(), 0, b""
    while received < total:
        try:
            buffer += peer.socket.recv(1 << 20)
        except TimeoutError:
            behind = {name.decode(): count for name, count in following.items() if count < total // len(queues)}
            raise AssertionError(f"{received} of {total} messages arrived; not all messages of {behind}") from None
        at, length = 0, len(buffer)
        while at + HEAD.size <= length:
            kind, _, payload = HEAD.unpack_from(buffer, at)
            if at + HEAD.size + payload + 1 > length:
                break
            start = at + HEAD.size
            if kind == wire.FRAME_METHOD:
                assert struct.unpack_from(">HH", buffer, start) == BASIC_DELIVER, "not a delivery"
                name = buffer[start + 4]
                queue = bytes(buffer[start + 5:start + 5 + name])
                tag = NUMBER.unpack_from(buffer, start + 5 + name)[0]
            elif payload == size and kind == wire.FRAME_BODY:
                number = NUMBER.unpack_from(buffer, start)[0]
                assert number == following[queue], f"{queue!r}: {number} instead of {following[queue]}"
                following[queue] += 1
                received += 1
                if received % ack_every == 0:
                    peer.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))
            at = start + payload + 1
        del buffer[:at]
    peer.send(wire.method(1, "basic.ack", delivery_tag=tag, multiple=True))
    assert sum(following.values()) == total


def file_bytes_read(broker: Leveret) -> int:
    """Returns the number of bytes that the process has read from files since its start, including the page cache but
    not sockets.
    """
    text = Path(f"/proc/{broker.process.pid}/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["rchar"])
