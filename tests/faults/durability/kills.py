"""`kill -9` under load, repeatedly: all confirmed messages are recovered, unaltered and in order."""

from __future__ import annotations

import json
import random
import subprocess
import time
from typing import Any, Dict, List, Set

from harness import brokers, wire
from harness.suite import patience

from support import (
    QUICK, Lives, Publisher, all_written, client, count, declare, ext4, fill, lives, numbers_of, pika_program,
    seed, take_all, until,
)
from tap import Tap

LOOPS = 3 if QUICK else 20
CONFIG = '[store]\nsettle_window = "50ms"\ncommit_window = "50ms"\n'


class Stream:
    """The messages that must be in a queue, and those that may be in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.next = 0
        self.must: Set[int] = set()
        self.may: Set[int] = set()
        self.delivered: Set[int] = set()

    def published(self, first: int, confirmed: int, sent: int) -> None:
        """Records that messages from number `first` were sent, and how many of them were confirmed."""
        self.must |= set(range(first, confirmed))
        self.may |= set(range(confirmed, sent))
        self.next = sent

    def taken(self, numbers: List[int], acknowledged: List[int]) -> None:
        """Records that a consumer got these messages. The broker may or may not have received its last
        acknowledgements."""
        self.delivered |= set(numbers)
        self.must -= set(acknowledged)
        self.may |= set(acknowledged)

    def check(self, messages: List[Any]) -> None:
        """Checks the messages in the queue."""
        numbers = numbers_of(messages, self.name)
        assert numbers == sorted(set(numbers)), f"{self.name}: out of order or twice: {disorder(numbers)}"
        lost = sorted(self.must - set(numbers))
        assert not lost, f"{self.name}: {len(lost)} confirmed messages are lost, from {lost[0]} to {lost[-1]}"
        strange = sorted(set(numbers) - self.must - self.may)
        assert not strange, f"{self.name}: {len(strange)} unexpected messages, from {strange[0]} to {strange[-1]}"
        for number, message in zip(numbers, messages):
            is_told = message.method.args["redelivered"]
            assert is_told or number not in self.delivered, (
                f"{self.name}: {number} was delivered before, and is not marked as redelivered")

    def emptied(self, surely: bool, numbers: List[int]) -> None:
        """Records that all messages were acknowledged. `surely`: the acknowledgements are certainly durable."""
        self.must, self.delivered = set(), self.delivered | set(numbers)
        self.may = set() if surely else set(numbers) | self.may


def disorder(numbers: List[int]) -> str:
    """Returns the numbers around the first place that is out of order."""
    at = next((at for at in range(1, len(numbers)) if numbers[at] <= numbers[at - 1]), 0)
    return str(numbers[max(0, at - 3) : at + 3])


def drain(series: Lives, streams: List[Stream], surely: bool) -> None:
    """Takes, checks and acknowledges all messages, and ends the broker. `surely`: ends it so that all acknowledgements
    are durable."""
    taken = {}
    with client(series.broker, timeout=30.0) as peer:
        for stream in streams:
            got = []
            peer.call(1, "basic.consume", queue=stream.name, consumer_tag=stream.name)
            waiting = count(peer, stream.name)
            deadline = time.monotonic() + patience(20)
            while waiting or peer.held:
                if not peer.held and time.monotonic() > deadline:
                    raise AssertionError(f"{stream.name}: {waiting} messages are not delivered")
                waiting = count(peer, stream.name)
                while peer.held:
                    got.append(peer.recv())
            peer.call(1, "basic.cancel", consumer_tag=stream.name)
            while peer.held:
                got.append(peer.recv())
            stream.check(got)
            taken[stream] = numbers_of(got, stream.name)
        peer.send(wire.method(1, "basic.ack", delivery_tag=0, multiple=True))
        for stream in streams:
            assert count(peer, stream.name) == 0
    if surely:
        series.broker.stop()
    else:
        series.broker.kill()
    for stream in streams:
        stream.emptied(surely, taken[stream])


def pika_under_kills() -> None:
    """pika publishes with confirms and transactions and acknowledges, and a raw client uses a window of confirms. The
    broker is killed repeatedly."""
    chance = seed("pika-under-kills")
    streams = {name: Stream(name) for name in ("confirm", "tx", "worked", "window", "large")}
    with ext4(96) as mount, lives(CONFIG, mount / "data") as series:
        with client(series.start()) as peer:
            for name in streams:
                declare(peer, name)
        for loop in range(LOOPS):
            load(series, streams, chance)
            series.broker.kill()
            series.start()
            if chance.random() < 0.3:  # kill it again before any request
                series.again("kill")
            drain(series, list(streams.values()), surely=chance.random() < 0.5)
            series.start()
        total = sum(stream.next for stream in streams.values())
        print(f"# {LOOPS} kills, {total} messages")
        with client(series.broker) as peer:
            for stream in streams.values():
                stream.check(take_all(peer, stream.name))


def load(series: Lives, streams: Dict[str, Stream], chance: random.Random) -> None:
    """Publishes and consumes, and kills the broker at a random moment of it."""
    first = {name: stream.next for name, stream in streams.items()}
    program = pika_program("load", series.broker, f"confirm:confirm:{first['confirm']}", f"tx:tx:{first['tx']}",
                           f"confirm:worked:{first['worked']}", f"work:worked:0")
    try:
        assert program.stdout and program.stdout.readline() == "started\n", program.stdout.read()
        with Publisher(series.broker, "window", 200, first["window"], window=100) as window, \
                Publisher(series.broker, "large", 300_000, first["large"], window=3) as large:
            time.sleep(chance.uniform(0.15, 0.7))
            series.broker.kill()
            for publisher, name in ((window, "window"), (large, "large")):
                publisher.thread.join(patience(10.0))
                streams[name].published(first[name], publisher.confirmed, publisher.sent)
        told = json.loads(program.communicate(timeout=patience(30))[0])
    finally:
        brokers.end(program, patience=1.0)
    for key, what in told.items():
        assert "accident" not in what, f"{key}: {what['accident']}"
        kind, name = key.split(":")
        if kind != "work" and what:
            streams[name].published(first[name], what["confirmed"], what["sent"])
    work = told["work:worked"]
    streams["worked"].taken(work.get("got", []), work.get("acknowledged", []))


def bench_under_kills() -> None:
    """`leveret-bench` finds no lost, altered or reordered message. If the broker is killed during the run, exactly the
    messages whose confirm a proxy saw come back, each once and unaltered."""
    chance = seed("bench-under-kills")
    with ext4(96) as mount, lives(CONFIG, mount / "data") as series:
        for options in (["--queues", "4", "--publishers", "2", "--consumers", "2"], ["--ack", "each", "--size", "3000"]):
            bench = start_bench(series.start().address, "--messages", "3000" if QUICK else "30000", *options)
            output = bench.communicate(timeout=patience(60))[0]
            assert bench.returncode == 0 and "msg_per_s" in output, output
        for _ in range(1 if QUICK else 5):
            counted_under_a_kill(series, chance)


def counted_under_a_kill(series: Lives, chance: random.Random) -> None:
    """Kills the broker under publishers, and then under consumers that have taken half of the recovered messages."""
    tap = Tap(series.start().address)
    bench = start_bench(tap.address, "--consumers", "0", "--publishers", "2", "--queues", "2", "--seconds", "30",
                        "--size", "500", "--rate", "4000")
    try:
        until(lambda: tap.confirmed() > 500, "500 messages are not confirmed")
        time.sleep(chance.uniform(0.0, 0.4))
        series.broker.kill()
        output = bench.communicate(timeout=patience(30))[0]
    finally:
        brokers.end(bench, patience=1.0)
        tap.close()
    # All its connections end; the error of the first one is printed.
    assert bench.returncode == 1 and "closed" in output, output
    sent, confirmed = tap.bodies(confirmed=False), tap.bodies(confirmed=True)
    series.start()
    stored = stored_messages(series)
    with client(series.broker, timeout=30.0) as peer:
        came = {queue: get_all(peer, queue) for queue in sorted(sent)}
        held_against(came, sent, confirmed)
        number = sum(map(len, came.values()))
        assert stored == number, f"the log states {stored} messages, and {number} were served"
        left = {queue: settle_half(peer, messages) for queue, messages in came.items()}
        surely = chance.random() < 0.5
        for queue in came:
            count(peer, queue)
        if surely:
            all_written(series)
        series.broker.kill()
    series.start()
    with client(series.broker, timeout=30.0) as peer:
        again = {queue: get_all(peer, queue) for queue in came}
        all_taken = {queue: {message.body for message in messages} for queue, messages in came.items()}
        # Messages whose acknowledgement is not certain may be delivered again, marked as redelivered.
        held_against(again, left if surely else all_taken, left)
        untold = [message.method for messages in again.values() for message in messages
                  if not message.method.args["redelivered"]]
        assert not untold, (
            f"{len(untold)} messages were delivered again and not marked as redelivered, such as {untold[0]}")
        for queue in came:
            peer.call(1, "queue.delete", queue=queue)
        all_written(series)
    print(f"# {sum(map(len, sent.values()))} sent, {sum(map(len, confirmed.values()))} confirmed, {number} recovered, "
          f"{sum(map(len, again.values()))} delivered again after half were {'certainly ' if surely else ''}settled")


def held_against(came: Dict[str, List[Any]], may: Dict[str, Set[bytes]], must: Dict[str, Set[bytes]]) -> None:
    """Checks that each queue contains all messages of `must` and only messages of `may`, each once, in the order of
    each publisher."""
    for queue, messages in came.items():
        bodies = [message.body for message in messages]
        assert len(set(bodies)) == len(bodies), (
            f"{queue}: {len(bodies) - len(set(bodies))} messages were delivered twice")
        lost, strange = must.get(queue, set()) - set(bodies), set(bodies) - may[queue]
        assert not lost, f"{queue}: {len(lost)} messages are lost, such as {min(lost)[:8].hex()}"
        assert not strange, f"{queue}: {len(strange)} messages were never sent, such as {min(strange)[:8].hex()}"
        # A body begins with the number of its publisher (two octets) and its own number.
        for publisher in {body[:2] for body in bodies}:
            numbers = [body[2:8] for body in bodies if body[:2] == publisher]
            assert numbers == sorted(numbers), f"{queue}: the messages of a publisher are out of order"


def get_all(peer: Any, queue: str) -> List[Any]:
    """Gets all messages of a queue without acknowledging them. basic.get is used because such a queue is deleted with
    its last consumer."""
    found = []
    while True:
        waiting = count(peer, queue)
        if not waiting:
            return found
        peer.send(wire.method(1, "basic.get", queue=queue) * waiting)
        found += [peer.expect("basic.get-ok") for _ in range(waiting)]


def settle_half(peer: Any, messages: List[Any]) -> Set[bytes]:
    """Acknowledges every second message. Returns the bodies of the others."""
    for message in messages[::2]:
        peer.send(wire.method(1, "basic.ack", delivery_tag=message.method.args["delivery_tag"]))
    return {message.body for message in messages[1::2]}


def start_bench(address: brokers.Address, *options: str) -> "subprocess.Popen[str]":
    """Starts leveret-bench against a broker."""
    command = brokers.bench_command(address, "--persistent", "--confirms", "100", "--json", *options)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)


def stored_messages(series: Lives) -> int:
    """Returns the number of messages that the log of the start names."""
    for line in series.broker.log().splitlines():
        if "the store has " in line:
            return int(line.split("the store has ")[1].split()[0])
    raise AssertionError("the log does not state the number of stored messages")


def settled_stays_settled() -> None:
    """A message that was acknowledged before a clean stop is never delivered again, also after a later kill."""
    chance = seed("settled-stays-settled")
    with lives(CONFIG) as series:
        with client(series.start()) as peer:
            declare(peer, "s")
        first = 0
        for loop in range(2 if QUICK else 8):
            with client(series.broker) as peer:
                fill(peer, "s", range(first, first + 1000), chance.choice([50, 2000, 20_000]))
                keep = settle_some(peer, chance, first)
                series.broker.stop()
            for how in ("kill", "stop"):
                series.start()
                with client(series.broker) as peer:
                    assert count(peer, "s") == len(keep), f"{count(peer, 's')} messages, not {len(keep)}"
                getattr(series.broker, how)()
            series.start()
            with client(series.broker) as peer:
                got = take_all(peer, "s")
                assert numbers_of(got, "s") == keep, "the remaining messages are not the unsettled ones"
                all_written(series)
            first += 1000


def settle_some(peer: Any, chance: random.Random, first: int) -> List[int]:
    """Acknowledges, rejects or leaves each of 1,000 messages at random. Returns the numbers of those that remain."""
    peer.call(1, "basic.consume", queue="s", consumer_tag="c")
    keep = []
    for number in range(first, first + 1000):
        item = peer.expect("basic.deliver")
        assert numbers_of([item], "s") == [number]
        method = chance.choice([None, "basic.ack", "basic.ack", "basic.reject"])
        if method:
            peer.send(wire.method(1, method, delivery_tag=item.method.args["delivery_tag"]))
        else:
            keep.append(number)
    count(peer, "s")
    return keep


CASES = [pika_under_kills, bench_under_kills, settled_stays_settled]
QUICK_CASES = CASES
