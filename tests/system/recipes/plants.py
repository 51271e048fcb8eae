"""The page of the guide on limits for plants: each configuration, and real runs of three."""

from __future__ import annotations

import contextlib
import re
import ssl
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Set, Tuple

from harness import brokers, suite
from harness.mqtt_raw import PUBACK, SUBACK, connect, packet, receive_packet, text

PAGE = brokers.ROOT / "systemd" / "guide" / "limits.md"
ROW = re.compile(r"^\| \[(.+?)\]\(#(\S+)\) \| `(\S+)` \| (.+?) \|$", re.MULTILINE)
# Packets in flight: less than the sockets' buffers, so that no side waits for the other.
WINDOW = 50


def blocks() -> Dict[str, str]:
    """Returns the configuration of each plant by the anchor of its section."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        block, = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        found[re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")] = block
    return found


@contextlib.contextmanager
def certificates(make: Callable[[Path, str], None]) -> Iterator[Path]:
    """Makes a folder with an authority and a certificate, as `/etc/leveret` has them."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), "127.0.0.1")
        yield Path(folder)


def set_keys(block: str) -> Set[str]:
    """Returns the keys of `[limits]` and `[store]` in a configuration."""
    _, *sections = re.split(r"^\[(?:limits|store)\]\n", block, maxsplit=1, flags=re.MULTILINE)
    return set(re.findall(r"^(\w+) =", "".join(sections), re.MULTILINE))


def accepted(make: Callable[[Path, str], None]) -> None:
    """`leveret check` accepts each configuration without a warning, and the table states the same profile and keys."""
    rows = ROW.findall(PAGE.read_text())
    configurations = blocks()
    assert len(rows) >= 5 and [row[1] for row in rows] == list(configurations), (rows, list(configurations))
    keys_before: Set[str] = set()
    with certificates(make) as folder:
        for plant, anchor, profile, keys in rows:
            block = configurations[anchor]
            assert f'board = "{profile}"\n' in block, (plant, profile)
            file = folder / "leveret.toml"
            file.write_text(block.replace("/etc/leveret", str(folder)))
            done = subprocess.run([str(brokers.leveret_binary()), "check", "--config", str(file), "--data-dir",
                                   str(folder / "data")], capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            assert done.returncode == 0 and "warning" not in said, f"{plant}: {said}"
            stated = keys_before if keys == "the same" else set(re.findall(r"`(\w+)`", keys))
            keys_before = stated
            assert stated == set_keys(block), (plant, stated, block)


@contextlib.contextmanager
def plant(anchor: str, has_limits: bool, folder: Optional[Path] = None) -> Iterator[Tuple[brokers.Leveret, int]]:
    """Runs a broker with the configuration of a plant, with or without its limits. Yields it and its port for MQTT."""
    said = blocks()[anchor].replace("/etc/leveret", str(folder)).replace("0.0.0.0", "127.0.0.1")
    if not has_limits:
        said = said.split("[limits]")[0]
    port = int(re.findall(r'^mqtt(?:_tls)? = \["127\.0\.0\.1:(\d+)"\]', said, re.MULTILINE)[0])
    with brokers.leveret(config=said) as broker:
        yield broker, port


def tls_gateway(make: Callable[[Path, str], None]) -> None:
    """500 sensors over TLS with kept sessions connect."""
    with certificates(make) as folder:
        tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        with plant("a-gateway-with-500-sensors-over-tls", True, folder) as (broker, port), \
                contextlib.ExitStack() as stack:
            codes = []
            while len(codes) < 500 and not any(codes):
                peer, code = connect(port, f"sensor-{len(codes)}", tls)
                stack.enter_context(contextlib.closing(peer))
                codes.append(code)
            sessions = broker.ctl("-s", "list_mqtt_sessions").count("sensor-")
            assert codes == [0] * 500 and sessions == 500, (len(codes), codes[-1], sessions)


def retained_and_subscribed(port: int, retained: int, size: int, filters: List[str]) -> int:
    """Publishes retained messages with QoS 1, and subscribes to filters. Returns the number of refused subscriptions."""
    with contextlib.closing(connect(port, "publisher")[0]) as peer:
        for first in range(0, retained, WINDOW):
            numbers = range(first, min(first + WINDOW, retained))
            peer.sendall(b"".join(packet(0x33, text(f"homeassistant/sensor/{number}/config")
                                         + struct.pack(">H", number + 1) + b"x" * size) for number in numbers))
            assert [receive_packet(peer)[0] for _ in numbers] == [PUBACK] * len(numbers)
    with contextlib.closing(connect(port, "home-assistant")[0]) as peer:
        codes: List[int] = []
        for first in range(0, len(filters), WINDOW):
            names = filters[first:first + WINDOW]
            peer.sendall(b"".join(packet(0x82, struct.pack(">H", first + place) + text(name) + b"\x01")
                                  for place, name in enumerate(names, 1)))
            for _ in names:
                kind, body = receive_packet(peer)
                assert kind == SUBACK, kind
                codes += body[2:]
    return codes.count(0x80)


def home_assistant() -> None:
    """All entities of Home Assistant and of Zigbee2MQTT are retained, and all subscriptions are accepted with the page's limit.
    """
    for anchor, retained, size, subscriptions in [
        ("home-assistant-with-1500-entities", 1500, 700, 3000),
        ("a-pi-zero-with-zigbee2mqtt-and-100-devices", 1000, 1000, 200),
    ]:
        for has_limits in (False, True):
            with plant(anchor, has_limits) as (broker, port):
                filters = [f"zigbee2mqtt/device-{number}/state" for number in range(subscriptions)]
                refused = retained_and_subscribed(port, retained, size, filters)
                kept = broker.ctl("-s", "list_retained", "topic").count("homeassistant/")
                # The page says so.
                assert refused == (0 if has_limits else subscriptions - 100), (anchor, refused)
                assert kept == retained, (anchor, kept)
