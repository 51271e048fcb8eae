"""mosquitto_pub and mosquitto_sub with each version of MQTT, and with TLS."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, List

from clients.program import Program
from harness.suite import patience

from mqtt_broker import PATIENCE, MqttBroker, mqtt_broker
from office import Office

VERSIONS = ["mqttv31", "mqttv311", "mqttv5"]
MESSAGES = 20


def options(broker: MqttBroker, version: str) -> List[str]:
    """Returns the options that both programs need."""
    return ["-h", "127.0.0.1", "-p", str(broker.port), "-V", version, "-u", "guest", "-P", "guest"]


def publish(broker: MqttBroker, version: str, topic: str, text: str, *more: str) -> None:
    """Publishes a message. mosquitto_pub returns 0 when the message is acknowledged."""
    done = subprocess.run(["mosquitto_pub", *options(broker, version), "-t", topic, "-m", text, *more],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(PATIENCE))
    assert done.returncode == 0, f"mosquitto_pub {topic}: status {done.returncode}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def subscriber(*words: str) -> Iterator[Program]:
    """Runs a mosquitto_sub during a `with` block. It prints QoS, topic and payload of each message."""
    command = ["stdbuf", "-oL", "mosquitto_sub", "-d", *words, "-F", "message %q %t %p"]
    program = Program("mosquitto_sub", command, dict(os.environ))
    try:
        yield program
    finally:
        program.kill()


def received(program: Program) -> List[str]:
    """Returns QoS, topic and payload of each received message."""
    return [line.removeprefix("message ") for line in program.lines if line.startswith("message ")]


def live(version: str, home: Path) -> None:
    """Connected subscribers with QoS 0 and 1 get what their filters match, with the lower QoS of both sides."""
    filters = ["-t", "plant/+/temperature", "-t", "alarm/#"]
    with mqtt_broker(home) as broker, \
            subscriber(*options(broker, version), *filters, "-q", "0") as at_most_once, \
            subscriber(*options(broker, version), *filters, "-q", "1") as at_least_once:
        for program in (at_most_once, at_least_once):
            program.wait("Subscribed (mid: 1)")
        for topic in ("plant/1/temperature", "plant/1/pressure", "plant/1/2/temperature", "alarm", "alarm/fire/1",
                      "plant/v1.5/temperature"):
            for qos in ("0", "1"):
                publish(broker, version, topic, f"with {qos}", "-q", qos)
        publish(broker, version, "alarm/end", "end", "-q", "1")
        topics = ["plant/1/temperature", "alarm", "alarm/fire/1", "plant/v1.5/temperature"]
        for program, granted in ((at_most_once, 0), (at_least_once, 1)):
            program.wait("alarm/end end")
            wanted = [f"{min(qos, granted)} {topic} with {qos}" for topic in topics for qos in (0, 1)]
            assert received(program) == [*wanted, f"{granted} alarm/end end"], received(program)


def kept_session(version: str, home: Path) -> None:
    """A session that is kept gets after a kill what was published and acknowledged before it."""
    with mqtt_broker(home) as broker:
        session = [*options(broker, version), "-c", "-i", f"kept-{version}", "-q", "1", "-t", "kept/+/x"]
        subprocess.run(["mosquitto_sub", *session, "-E"], check=True, stdin=subprocess.DEVNULL,
                       timeout=patience(PATIENCE))
        for number in range(MESSAGES):
            publish(broker, version, f"kept/{number % 3}/x", str(number), "-q", "1")
            publish(broker, version, "kept/other", str(number), "-q", "1")
            if number % 7 == 6:
                broker.kill()
        broker.kill()
        with subscriber(*session) as program:
            program.wait(f"kept/{(MESSAGES - 1) % 3}/x {MESSAGES - 1}")
            wanted = [f"1 kept/{number % 3}/x {number}" for number in range(MESSAGES)]
            assert received(program) == wanted, received(program)
            # The broker is killed under the connected client, which connects again by itself.
            program.wait("sending PUBACK", MESSAGES)
            broker.kill()
            program.wait("Subscribed", 2)
            publish(broker, version, "kept/0/x", "after the kill", "-q", "1")
            program.wait("kept/0/x after the kill")
        broker.kill()
        # A clean session discards it.
        clean = [word for word in session if word != "-c"]
        with subscriber(*clean) as program:
            program.wait("Subscribed")
            publish(broker, version, "kept/0/x", "to a clean session", "-q", "1")
            program.wait("to a clean session")
            assert received(program) == ["1 kept/0/x to a clean session"], received(program)


def retained(version: str, home: Path) -> None:
    """Retained messages are there after kills, with the last content that was acknowledged, for new subscribers only."""
    with mqtt_broker(home) as broker:
        for number in range(MESSAGES):
            publish(broker, version, f"state/{number % 4}", str(number), "-q", str(1 + number % 2), "-r")
            if number % 7 == 6:
                broker.kill()
        publish(broker, version, "state/0", "not retained", "-q", "1")
        # An empty payload deletes the retained message.
        publish(broker, version, "state/1", "", "-q", "1", "-r")
        broker.kill()
        with subscriber(*options(broker, version), "-q", "2", "-t", "state/+") as program:
            program.wait("Subscribed")
            publish(broker, version, "state/end", "end", "-q", "1")
            wanted = [f"{1 + number % 2} state/{number % 4} {number}" for number in (16, 18, 19)] + ["1 state/end end"]
            for line in wanted:
                program.wait(line)
            assert sorted(received(program)) == sorted(wanted), received(program)


def will(version: str, home: Path) -> None:
    """A will arrives when its client is killed, and after a kill of the broker when the client does not come back."""
    with mqtt_broker(home) as broker:
        watch = [*options(broker, version), "-c", "-i", "watcher", "-q", "1", "-t", "will/#"]
        words = [*options(broker, version), "-t", "nothing", "-k", "5", "--will-topic", "will/x", "--will-qos", "1"]
        with subscriber(*watch) as watcher:
            watcher.wait("Subscribed")
            for number, session in enumerate((["-i", "clean"], ["-c", "-i", "kept"])):
                with subscriber(*words, *session, "--will-payload", f"killed {number}") as client:
                    client.wait("Subscribed")
                watcher.wait(f"message 1 will/x killed {number}")
            with subscriber(*words, "-c", "-i", "kept", "--will-payload", "lost with the broker") as client:
                client.wait("Subscribed")
                with subscriber(*words, "-c", "-i", "back", "--will-payload", "not lost") as back:
                    back.wait("Subscribed")
                    client.kill()
                    broker.kill()
                    back.wait("Subscribed", 2)
                    watcher.wait("will/x lost with the broker")
                    assert not any("not lost" in line for line in received(watcher)), received(watcher)
            watcher.wait("not lost")
            wanted = ["killed 0", "killed 1", "lost with the broker", "not lost"]
            # With QoS 1, a will that was sent just before the kill may arrive once more.
            once = list(dict.fromkeys(received(watcher)))
            assert once == [f"1 will/x {text}" for text in wanted], received(watcher)
            assert len(received(watcher)) <= len(wanted) + 1, received(watcher)


def large(version: str, home: Path) -> None:
    """A message of 300,000 bytes arrives unchanged, also from a kept session after a kill."""
    content = bytes(number * 7 % 251 for number in range(300_000))
    (home / "content").write_bytes(content)
    with mqtt_broker(home) as broker:
        session = [*options(broker, version), "-c", "-i", "large", "-q", "1", "-t", "large"]
        subprocess.run(["mosquitto_sub", *session, "-E"], check=True, stdin=subprocess.DEVNULL,
                       timeout=patience(PATIENCE))
        subprocess.run(["mosquitto_pub", *options(broker, version), "-t", "large", "-q", "1", "-f",
                        str(home / "content")], check=True, stdin=subprocess.DEVNULL, timeout=patience(PATIENCE))
        broker.kill()
        done = subprocess.run(["mosquitto_sub", *session, "-C", "1", "-N"], check=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=patience(PATIENCE))
        assert done.stdout == content, f"{len(done.stdout)} other bytes arrived"


def tls(home: Path) -> None:
    """mosquitto_pub and mosquitto_sub with --cafile; a client that does not trust the authority fails."""
    office, others = Office(home / "office"), Office(home / "others", "another authority")
    with mqtt_broker(home, paper=office.server()) as broker:
        for version in VERSIONS:
            words = ["-h", "localhost", "-p", str(broker.tls_port), "-V", version, "-u", "guest", "-P", "guest", "-t",
                     f"over/{version}"]
            trusting = [*words, "--cafile", str(office.authority)]
            with subscriber(*trusting, "-q", "1") as program:
                program.wait("Subscribed (mid: 1)")
                subprocess.run(["mosquitto_pub", *trusting, "-q", "1", "-m", "over TLS"], check=True,
                               stdin=subprocess.DEVNULL, timeout=patience(PATIENCE))
                program.wait(f"message 1 over/{version} over TLS")
            failed = subprocess.run(["mosquitto_pub", *words, "--cafile", str(others.authority), "-m", "no"],
                                    stdin=subprocess.DEVNULL, capture_output=True, timeout=patience(PATIENCE))
            assert failed.returncode != 0, "a client without trust in the authority published"


def cases(_kills: int) -> Dict[str, Callable[[Path], None]]:
    """Returns the cases by name."""
    found: Dict[str, Callable[[Path], None]] = {}
    for version in VERSIONS:
        for run in (live, kept_session, retained, will):
            found[f"mosquitto-{run.__name__.replace('_', '-')}-{version}"] = \
                lambda home, run=run, version=version: run(version, home)
    found["mosquitto-large"] = lambda home: large("mqttv5", home)
    found["mosquitto-tls"] = tls
    return found
