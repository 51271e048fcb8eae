"""Records the transcript of a broker, or compares a broker with the recording.

Suite lines: `PASS transcript/NAME`, `FAIL transcript/NAME: why`, `SKIP transcript/NAME: why`.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional, Union

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "support")]

from harness import brokers  # noqa: E402
from harness.suite import left_out, patience  # noqa: E402
from harness.wire import PROTOCOL_HEADER  # noqa: E402
from transcript import scenarios  # noqa: E402,F401
from transcript.differences import Differences, hunks, show_hunk  # noqa: E402
from transcript.peer import Script  # noqa: E402
from transcript.registry import SCENARIOS, Own, Scenario  # noqa: E402

Broker = Union[brokers.Leveret, brokers.RabbitMq]
Starter = Callable[[Optional[Own]], Broker]
RECORDED = HERE / "recorded"
RABBITMQ_TRIES = 3


class Target:
    """The broker under test: one that runs already, or a new one, which is replaced when it hangs."""

    def __init__(self, at: Optional[str], start: Optional[Starter]) -> None:
        self.start = start
        self.broker = start(None) if start else None
        if self.broker:
            self.address = self.broker.address
        else:
            host, port = str(at).rsplit(":", 1)
            self.address = brokers.Address(host, int(port))

    def renew(self) -> None:
        """Replaces a broker that does not answer."""
        if self.broker and self.start:
            print(self.broker.log()[-5000:])
            self.close()
            self.broker = self.start(None)
            self.address = self.broker.address

    def close(self) -> None:
        """Stops the broker if it was started here."""
        if self.broker:
            self.broker.close()
            self.broker = None

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def play_all(wanted: List[Scenario], target: Target) -> Dict[str, str]:
    """Returns the transcripts of these scenarios. Slow scenarios run at the same time, then the others in turn. If the
    broker does not answer after a scenario, it is replaced."""
    texts: Dict[str, str] = {scenario.name: play_own(scenario, target) for scenario in wanted if scenario.own}
    wanted = [scenario for scenario in wanted if not scenario.own]
    with ThreadPoolExecutor(16) as pool:
        beside = {s.name: pool.submit(play, s, target.address) for s in wanted if not s.alone}
        texts.update({name: future.result() for name, future in beside.items()})
    if not answers(target.address):
        print("FAIL transcript/alive: the broker did not answer after the concurrent scenarios", flush=True)
        target.renew()
    for scenario in wanted:
        if not scenario.alone:
            continue
        texts[scenario.name] = play(scenario, target.address)
        if not answers(target.address):
            print(f" the broker did not answer after {scenario.name}, and was replaced", file=sys.stderr)
            texts[scenario.name] += "# THE BROKER DID NOT ANSWER ANY MORE\n"
            target.renew()
    return texts


def play_own(scenario: Scenario, target: Target) -> str:
    """Returns the transcript of a scenario with its own broker."""
    if not target.start:
        return recorded(scenario)  # a broker that runs already cannot be configured or stopped here
    broker = target.start(scenario.own)
    try:
        return play(scenario, broker.address, broker)
    finally:
        broker.close()


def answers(address: brokers.Address) -> bool:
    """Returns whether the broker answers a new client."""
    try:
        with socket.create_connection(address, patience(5)) as probe:
            probe.settimeout(patience(5))
            probe.sendall(PROTOCOL_HEADER)
            return probe.recv(1) == b"\x01"
    except OSError:
        return False


def play(scenario: Scenario, address: brokers.Address, own: Optional[Broker] = None) -> str:
    """Runs one scenario. An error in the script becomes part of the transcript."""
    script = Script(address, own)
    began = time.monotonic()
    try:
        scenario.play(script)
    except Exception as accident:  # the transcript up to here shows more than a traceback
        where = traceback.extract_tb(accident.__traceback__)[-1]
        script.note(f"THE SCRIPT STOPPED: {type(accident).__name__}: {accident}"[:300])
        print(f"  {scenario.name} stopped at {where.filename}:{where.lineno}: {accident}", file=sys.stderr)
    try:
        script.cleanup()
    except Exception as accident:
        script.note(f"THE BROKER DID NOT LET US CLEAN UP: {type(accident).__name__}: {accident}"[:300])
    if time.monotonic() - began > 5:
        print(f"  {scenario.name} took {time.monotonic() - began:.1f} s", file=sys.stderr)
    return script.text()


def chosen(names: List[str]) -> List[Scenario]:
    """Returns the named scenarios, or all of them."""
    if not names:
        return list(SCENARIOS.values())
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        raise SystemExit(f"unknown scenarios: {', '.join(sorted(unknown))}")
    return [SCENARIOS[name] for name in names]


def record(wanted: List[Scenario], target: Target) -> int:
    """Records the transcripts of this broker."""
    RECORDED.mkdir(exist_ok=True)
    texts = play_all(wanted, target)
    for scenario in wanted:
        text = texts[scenario.name]
        (RECORDED / f"{scenario.name}.txt").write_text(text)
        print(f"recorded {scenario.name}: {text.count(chr(10))} lines")
    return 0


def repeat(wanted: List[Scenario], target: Target, texts: Dict[str, str]) -> None:
    """Repeats the scenarios in which RabbitMQ differed from the recording. RabbitMQ answers from several processes: on
    a busy machine it may count the messages of a queue before a message that was sent earlier arrives."""
    for _ in range(RABBITMQ_TRIES - 1):
        differing = [scenario for scenario in wanted if texts[scenario.name] != recorded(scenario)]
        for scenario in differing:
            print(f"# {scenario.name}: different from the recording; repeated", flush=True)
        texts.update(play_all(differing, target))


def recorded(scenario: Scenario) -> str:
    """Returns the recording of a scenario; empty if there is no recording."""
    path = RECORDED / f"{scenario.name}.txt"
    return path.read_text() if path.exists() else ""


def compare(wanted: List[Scenario], target: Target, label: str, allowed: Optional[Differences]) -> int:
    """Compares a broker with the recording, except for the allowed differences."""
    failed = 0
    now = [scenario for scenario in wanted if scenario.later is None or allowed is None]
    for scenario in wanted:
        if scenario not in now:
            print(f"  later: {scenario.name}: {scenario.later}", flush=True)
    texts = play_all(now, target)
    if allowed is None:
        repeat(now, target, texts)
    for scenario in now:
        name = f"transcript/{label}/{scenario.name}"
        expected = recorded(scenario)
        if not expected:
            print(f"FAIL {name}: there is no recording", flush=True)
            failed += 1
            continue
        found = hunks(expected.splitlines(), texts[scenario.name].splitlines())
        surprising, missing = (found, []) if allowed is None else allowed.check(scenario.name, found)
        if not surprising and not missing:
            print(f"PASS {name}", flush=True)
            continue
        failed += 1
        for hunk in surprising:
            print(show_hunk(scenario.name, hunk))
        for hunk in missing:
            print("listed as a difference, but no longer different:\n" + show_hunk(scenario.name, hunk))
        print(f"FAIL {name}: {len(surprising)} unexpected differences, {len(missing)} listed ones did not occur",
              flush=True)
    return failed


def start_leveret(own: Optional[Own]) -> Broker:
    """Starts a Leveret, built in release mode."""
    return brokers.Leveret(brokers.leveret_binary(), [], own.leveret if own else None)


def start_rabbitmq(own: Optional[Own]) -> Broker:
    """Starts a RabbitMQ, the reference."""
    return brokers.RabbitMq(own.rabbitmq if own else "")


def main() -> int:
    """Parses the arguments and runs the suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write recorded/ instead of comparing")
    parser.add_argument("--rabbitmq", action="store_true", help="test a RabbitMQ, which is started for it")
    parser.add_argument("--at", metavar="HOST:PORT", help="test a broker that runs already")
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios")
    parser.add_argument("scenario", nargs="*", help="run only these scenarios")
    args = parser.parse_args()
    brokers.raise_on_sigterm()
    wanted = [scenario for scenario in chosen(args.scenario) if args.scenario or scenario.name not in left_out()]
    if args.list:
        for scenario in wanted:
            print(scenario.name + (f"  (later: {scenario.later})" if scenario.later else ""))
        return 0
    if args.record and not (args.rabbitmq or args.at):
        parser.error("only RabbitMQ is recorded: give --rabbitmq or --at")
    start: Optional[Starter] = None
    if not args.at:
        start = start_rabbitmq if args.rabbitmq else start_leveret
    with Target(args.at, start) as target:
        if args.record:
            return record(wanted, target)
        allowed = None if args.rabbitmq else Differences.read(HERE / "differences.txt")
        label = "rabbitmq" if args.rabbitmq else "leveret"
        return 1 if compare(wanted, target, label, allowed) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except brokers.BrokerError as why:
        print(why)
        sys.exit(f"FAIL transcript/start: {str(why).splitlines()[0]}")
