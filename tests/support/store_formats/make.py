#!/usr/bin/env python3
"""Creates a fixture of this folder: a small store of some version of Leveret, as text.

    tests/support/store_formats/make.py BINARY tests/support/store_formats/1.txt

Each line is a piece of a file that is not zeros: | file | first byte | bytes in hex, or BYTE*COUNT |. A line with the
file's size precedes them. tests/component/storage/format.rs lists the content of the store.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "faults" / "durability"))

from harness.brokers import Leveret  # noqa: E402
from support import PERSISTENT, client, declare  # noqa: E402

# The smallest possible segments: three epochs and a sealed segment need a few pages of text.
CONFIG = """
frame_max = "8KiB"
[limits]
segment_bytes = "512KiB"
commit_bytes_max = "160KiB"
"""
RUN = re.compile(rb"(.)\1{23,}", re.DOTALL)


def publish(peer, queue: str, body: bytes) -> None:  # type: ignore[no-untyped-def]
    """Publishes a message and waits for its confirm."""
    peer.publish(1, "", queue, body, props=PERSISTENT)
    peer.expect("basic.ack")


def make(binary: Path, folder: Path) -> None:
    """Runs two brokers on the store; the second one is killed."""
    broker = Leveret(binary, [], CONFIG, folder)
    with client(broker) as peer:
        for queue in ("first", "second", "gone"):
            declare(peer, queue)
        peer.call(1, "queue.bind", queue="first", exchange="amq.topic", routing_key="a.#")
        peer.call(1, "exchange.declare", exchange="made", type="fanout", durable=True)
        peer.call(1, "confirm.select")
        for n in range(5):
            publish(peer, "first", b"first %d" % n)
        publish(peer, "second", b"x" * 100_000)
        for _ in range(2):
            peer.call(1, "basic.get", queue="first", no_ack=True)
        peer.call(1, "queue.delete", queue="gone")
        for n in range(6):
            publish(peer, "second", b"%d" % n + b"y" * 60_000)
    broker.stop()
    broker = Leveret(binary, [], CONFIG, folder)
    with client(broker) as peer:
        declare(peer, "third")
        peer.call(1, "confirm.select")
        publish(peer, "third", b"last")
    broker.kill()


def lines_of(path: Path) -> "list[str]":
    """Returns a file as text."""
    data = path.read_bytes()
    lines = [f"{path.name} {len(data)}"]

    def say(at: int, piece: bytes) -> None:
        for start in range(0, len(piece), 48):
            lines.append(f"{path.name} {at + start} {piece[start:start + 48].hex()}")

    at = 0
    for run in RUN.finditer(data):
        say(at, data[at:run.start()])
        byte = run.group(1)[0]
        if byte:
            lines.append(f"{path.name} {run.start()} {byte:02x}*{run.end() - run.start()}")
        at = run.end()
    say(at, data[at:])
    return lines


def main() -> None:
    """Creates one fixture."""
    binary, target = (Path(name) for name in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        make(binary.resolve(), Path(folder))
        files = [path for path in sorted(Path(folder).iterdir()) if path.suffix == ".seg" or path.stem == "access"]
        target.write_text("\n".join(line for path in files for line in lines_of(path)) + "\n")


if __name__ == "__main__":
    main()
