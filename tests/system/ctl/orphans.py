"""Messages whose queue definition was lost: `list_orphans`, `adopt_orphan`, `delete_orphan`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Iterator

from harness.brokers import Leveret, leveret_binary
from harness.raw import Client
from support import ctl, good, rows

NAMES = ("first", "second")


def forget(data_dir: Path, name: str) -> None:
    """Flips a bit in every definition of the queue."""
    key = b"\x02\x01/" + bytes([len(name)]) + name.encode()
    for file in data_dir.glob("*.seg"):
        content = bytearray(file.read_bytes())
        at = content.find(key)
        while at >= 0:
            content[at] ^= 0x80
            at = content.find(key)
        file.write_bytes(content)


def filled(broker: Leveret) -> None:
    """Creates two queues with ten confirmed persistent messages each."""
    with Client(broker.address) as peer:
        peer.open()
        peer.call(1, "confirm.select")
        for name in NAMES:
            peer.call(1, "queue.declare", queue=name, durable=True)
            for number in range(10):
                peer.publish(1, "", name, b"%d" % number, props={"delivery_mode": 2})
                peer.expect("basic.ack")


def orphaned() -> Iterator[Leveret]:
    """Provides a broker that has lost the definitions of both queues, and has their messages."""
    with tempfile.TemporaryDirectory(prefix="leveret-ctl-") as folder:
        data_dir = Path(folder) / "data"
        broker = Leveret(leveret_binary(), [], "", data_dir)
        filled(broker)
        broker.stop()
        broker.close()
        for name in NAMES:
            forget(data_dir, name)
        with Leveret(leveret_binary(), [], "", data_dir) as broker:
            yield broker


def orphans_are_listed_adopted_and_deleted() -> None:
    """Orphans are listed in every format, wrong arguments are refused, and adopted messages are the only ones left."""
    for broker in orphaned():
        assert "orphans: " in good(broker, "list_alarms") and "orphans: " in good(broker, "status")
        listed = rows(broker, "list_orphans", "incarnation", "messages", "vhost", "name")
        assert [row[1:] for row in listed] == [["10", "", ""]] * 2, listed
        told = json.loads(good(broker, "-q", "list_orphans", "--formatter", "json"))
        assert [str(row["incarnation"]) for row in told] == [row[0] for row in listed], told
        assert all(row["messages"] == 10 and row["message_bytes"] > 0 for row in told), told
        assert "incarnation\tmessages\tmessage_bytes\tvhost\tname" in good(broker, "list_orphans")
        one, other = (row[0] for row in listed)
        for words, why in {
            ("adopt_orphan", one): "not enough arguments",
            ("adopt_orphan", one, ""): "use another name",
            ("adopt_orphan", one, "a", "b"): "too many arguments",
            ("adopt_orphan", "-p", "none", one, "a"): "no virtual host 'none'",
            ("adopt_orphan", "0", "a"): "no orphan 0",
            ("delete_orphan", "x1"): "not an incarnation",
            ("list_orphans", "colour"): "not supported",
        }.items():
            done = ctl(broker, *words)
            assert done.status != 0 and why in done.out + done.err, f"{words}: {done}"
        good(broker, "add_vhost", "plant")
        assert "with 10 ready messages" in good(broker, "adopt_orphan", "-p", "plant", one, "found")
        assert "with 10 messages" in good(broker, "delete_orphan", other)
        assert rows(broker, "list_orphans") == []
        assert "orphans: " not in good(broker, "list_alarms")
        assert rows(broker, "list_queues", "-p", "plant") == [["found", "10"]]
        good(broker, "set_permissions", "-p", "plant", "guest", ".*", ".*", ".*")
        with Client(broker.address, vhost="plant") as peer:
            peer.open()
            for number in range(10):
                assert peer.call(1, "basic.get", queue="found", no_ack=True).body == b"%d" % number


CASES = [orphans_are_listed_adopted_and_deleted]
