"""The commands of a first hour with Leveret and their output, compared with `transcript.txt`.

    tests/system/first_hour/run [CASE...]  compare
    tests/system/first_hour/run --record   write transcript.txt again; read its diff

The transcript shows every change of a text that new users read. Times, ports, process ids, sizes and paths are replaced by
names, and everything else is compared exactly. The test has a network of its own with two addresses, so that a sensor has
another address than the device. In it, a broker is also configured for addresses that do not exist yet.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, List, Optional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from harness import brokers, environment, suite  # noqa: E402

EXPECTED = HERE / "transcript.txt"
INSIDE = "LEVERET_TEST_INSIDE"
NETWORK = ["unshare", "--user", "--map-root-user", "--net"]
SENSOR = "192.168.77.7"
PORT, TLS_PORT, PIKA = 5672, 5671, environment.PIKA_NEW
CONFIGURATION = f"""listen = ["127.0.0.1", "{SENSOR}:{PORT}"]
listen_tls = "{SENSOR}"
memory_limit = 64

[tls]
certificate = "server.pem"
key = "server.key"
"""
DEFINITIONS = """{"users": [{"name": "old", "password": "in clear", "tags": ""}],
 "queues": [{"name": "alarms", "vhost": "plant", "durable": true, "colour": "red"},
            {"name": "lost", "vhost": "plnt", "durable": true}],
 "exchanges": [{"name": "out", "vhost": "plant", "durable": true}],
 "policies": [{"name": "short", "vhost": "plant"}]}
"""


class Hour:
    """A folder, the commands that were typed in it, and their output."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.said: List[str] = []
        self.broker: Optional["subprocess.Popen[bytes]"] = None
        self.log_path = home / "log"
        self.read = 0

    def note(self, text: str) -> None:
        """Records a heading."""
        self.said.append(f"\n# {text}")

    def type(self, line: str, stdin: str = "", keep: str = "", shown: str = "") -> None:
        """Runs a line in a shell. `keep` is a pattern that selects the recorded output lines."""
        self.said.append(f"$ {shown or line}" + (f"   <<< {stdin.strip()!r}" if stdin else ""))
        done = subprocess.run(["sh", "-c", line], cwd=self.home, input=stdin, text=True, timeout=suite.patience(60), check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment())
        lines = [text for text in done.stdout.splitlines() if re.search(keep, text)]
        self.said += [self.plain(text) for text in lines]
        if done.returncode:
            self.said.append(f"-> {done.returncode}")

    def environment(self) -> dict:
        """Returns the environment of a user's shell."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LEVERET_", "RUST_"))}
        return {**kept, "PATH": f"{self.home}/bin:{kept['PATH']}", "HOME": str(self.home), "LC_ALL": "C.UTF-8"}

    def start(self, line: str) -> None:
        """Starts the broker with this command line, and waits until it listens or ends."""
        self.said.append(f"$ {line} &")
        log = open(self.log_path, "ab")
        with contextlib.closing(log):
            self.broker = subprocess.Popen(line.split(), cwd=self.home, env=self.environment(), stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.log_until(r"listening with TLS on|listening on 127\.0\.0\.1:5672\n.*listening on (?!\[)|^leveret: ")

    def log_until(self, pattern: str) -> None:
        """Waits for a line of the log, and records the lines up to it."""
        until(lambda: re.search(pattern, self.fresh(), re.M | re.S) is not None, lambda: f"{pattern!r}: {self.fresh()}")
        time.sleep(suite.patience(0.1))
        text = self.fresh()
        self.read += len(text)
        self.said += [f"log: {self.plain(line)}" for line in text.splitlines()]

    def fresh(self) -> str:
        """Returns the log lines since the last call."""
        return self.log_path.read_text(errors="replace")[self.read:]

    def stop(self) -> None:
        """Stops the broker with SIGTERM. Returns its last lines."""
        assert self.broker
        self.said.append("$ kill %1")
        self.broker.terminate()
        self.broker.wait(suite.patience(20))
        self.log_until(r"stopped$")

    def end(self) -> None:
        """Ends the broker in any case."""
        if self.broker and self.broker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.broker.pid, signal.SIGKILL)
            self.broker.wait(suite.patience(10))

    def plain(self, text: str) -> str:
        """Returns a line without the parts that differ between runs."""
        text = text.replace(str(self.home), "HOME")
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
        text = re.sub(r"\bleveret \d+\.\d+\.\d+\S*", "leveret VERSION", text)
        text = re.sub(rf"(127\.0\.0\.1|{re.escape(SENSOR)}):(?!567[12]\b)\d+", r"\1:PORT", text)
        text = re.sub(r"(OS PID|Uptime \(seconds\)|Resident|Disk used): \d+", r"\1: N", text)
        text = re.sub(r"\b\d+\.\d MB\b", "N MB", text)
        text = re.sub(r"\b\d+( %|(?= of \d+ \())", r"N\1", text)
        text = re.sub(r"(?<=of )\d{4,}\b", "N", text)
        text = re.sub(r"(messages, |limit |has )\d{3,}\b", r"\1N", text)
        text = re.sub(r"\b\d{4,}( bytes| of disk_limit)", r"N\1", text)
        text = re.sub(r"\bin \d+ messages|\bfor \d+ s\b", lambda found: re.sub(r"\d+", "N", found[0]), text)
        text = re.sub(r"<leveret\.[\d.]+>", "PID", text)
        text = re.sub(r"valid until [-\d]+ [:\d]+", "valid until TIME", text)
        text = re.sub(r"\(\d+ of (\d+|N)\)", "(N of N)", text)
        text = re.sub(r"(?<=Messages ready: )\d{3,}|(?<=bytes, )\d+(?= of them)", "N", text)
        text = re.sub(r"^(queue +)\d{10}( +\d+ +\d+ +)\d+", r"\1N\2N", text)
        text = re.sub(r"= \d{5,}", "= N", text)
        return text.rstrip()


def until(is_so: Callable[[], bool], otherwise: Callable[[], str], patience_s: float = 30.0) -> None:
    """Waits until it is so."""
    patience_s = suite.patience(patience_s)
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience_s:.0f} s: {otherwise()}")
        time.sleep(0.05)


def play(hour: Hour) -> None:
    """Runs all commands."""
    python = environment.pika_python(PIKA)
    run = f"{python} {HERE / 'programs.py'}"

    def program(name: str, *words: str) -> None:
        hour.type(f"{run} {name} {' '.join(words)}", shown=f"python programs.py {name} {' '.join(words)}")

    hour.note("Installed by hand")
    (hour.home / "bin").mkdir()
    shutil.copy(brokers.leveret_binary(), hour.home / "bin" / "leveret")
    hour.type("ln -s leveret bin/leveretctl")
    hour.type("leveret version")
    hour.type("leveret chek")
    hour.type("leveret help restore")

    hour.note("A configuration with mistakes")
    (hour.home / "leveret.toml").write_text(CONFIGURATION)
    hour.type("cat leveret.toml")
    for wrong, right in (('"127.0.0.1",', '"127.0.0.1:5672",'), ("memory_limit = 64", 'memory_limit = "64mb"')):
        hour.type("leveret check --config leveret.toml", keep=r"^leveret|warning")
        file = hour.home / "leveret.toml"
        file.write_text(file.read_text().replace(wrong, right))
    hour.type("leveret check --config leveret.toml", keep=r"^leveret|warning")
    hour.type("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=plant-ca "
              "-keyout ca.key -out ca.pem 2>/dev/null")
    hour.type("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=board -keyout server.key "
              "-out server.csr 2>/dev/null")
    hour.type(f"printf 'subjectAltName=IP:{SENSOR}' > san; openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key "
              "-CAcreateserial -days 825 -extfile san -out server.pem 2>/dev/null")
    hour.type("leveret check --config leveret.toml", keep=r"^leveret|warning")

    hour.note("The first start and the first program")
    hour.start("leveret --config leveret.toml")
    program("hello", "127.0.0.1", str(PORT))
    hour.log_until(r"(?s)connection closed")

    hour.note("A sensor from another address, as guest, and with other protocols")
    program("hello", SENSOR, str(PORT))
    hour.log_until("refused during the handshake")
    hour.type(f"{python} -c \"import socket; s = socket.create_connection(('{SENSOR}', {PORT})); "
              "s.sendall(b'\\x10\\x0c\\0\\x04MQTT'); print(s.recv(4).decode())\"", shown="something that speaks MQTT")
    hour.log_until("MQTT")

    hour.note("A user of its own")
    hour.type("leveretctl add_vhost plant")
    hour.type("leveretctl add_user meter", stdin="\n")
    hour.type("leveretctl add_user meter", stdin="meter-secret\nand more\n")
    hour.type("leveretctl add_user meter", stdin="meter-secret\n")
    hour.type("leveretctl set_permissions -p plnt meter '^meter' '.*' '^meter'")
    hour.type("leveretctl set_permissions -p plant meter '^meter' '.*' '^meter'")
    program("reading", SENSOR, str(TLS_PORT), "meter", "plant", "ca.pem")
    hour.log_until("connection closed")
    hour.type("leveretctl set_permissions -p plant meter '^meter' '^meter' '^meter'")
    program("reading", SENSOR, str(TLS_PORT), "meter", "plant", "ca.pem")
    hour.log_until("connection closed")
    hour.type("leveretctl list_queues -p plant name messages durable")
    hour.type("leveretctl list_queues -p plnt")
    hour.type("leveretctl list_queues -p plant nmae")
    hour.type("leveretctl help list_queues", keep="^Lists")
    hour.type("leveretctl set_parameter shovel s '{}'")
    hour.type("leveretctl restore it")
    (hour.home / "old.json").write_text(DEFINITIONS)
    hour.type("cat old.json")
    hour.type("leveretctl import_definitions old.json")
    hour.type("leveretctl list_queues -p plant name durable auto_delete arguments")

    hour.note("A full queue")
    full = subprocess.Popen([str(python), str(HERE / "programs.py"), "flood", "127.0.0.1", str(PORT)], cwd=hour.home,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        hour.said.append("$ python programs.py flood 127.0.0.1 5672 &")
        hour.log_until("has waited for")
        # Messages that were sent before are removed by the purge. The stopped publisher does not fill the queue again.
        full.send_signal(signal.SIGSTOP)
        hour.type("leveretctl list_alarms")
        hour.type("leveretctl -q status", keep="memory:|Messages|messages:|body_bytes:")
        hour.type("leveretctl purge_queue full")
        hour.log_until("no publisher is blocked any more")
    finally:
        full.kill()
        full.wait(suite.patience(10))
    hour.log_until("disconnected without")

    hour.note("A restart and a backup")
    hour.type("leveretctl delete_queue full", keep="Deleting|Error")
    hour.type("leveretctl backup saved.tar")
    hour.stop()
    hour.type("leveret inspect leveret-data", keep="^verdict|^access|^queue")
    hour.type("leveret restore saved.tar --data-dir leveret-data")
    hour.type("leveret restore saved.tar --data-dir other")
    hour.start("leveret --config leveret.toml --data-dir other")
    hour.type("leveretctl --data-dir other list_queues -p plant name messages")
    hour.stop()


def first_hour() -> None:
    """Runs all commands and compares the transcript."""
    home = Path(tempfile.mkdtemp(prefix="leveret-test-"))
    hour = Hour(home)
    try:
        play(hour)
    finally:
        hour.end()
        shutil.rmtree(home, ignore_errors=True)
    said = "\n".join(hour.said).strip() + "\n"
    if "--record" in sys.argv:
        EXPECTED.write_text(said)
        return
    expected = EXPECTED.read_text()
    if said != expected:
        lines = difflib.unified_diff(expected.splitlines(), said.splitlines(), "transcript.txt", "this run", lineterm="")
        print("\n".join(lines), flush=True)
        raise AssertionError("the output differs from transcript.txt; if the change is intended, use --record")


def before_the_network() -> None:
    """A broker starts before the addresses of its listeners exist. It logs that, and serves them once they exist."""
    addresses = {"192.168.78.8": "192.168.78.8", "fd00:78::8": "[fd00:78::8]", "192.168.78.9": "192.168.78.9"}
    never = "192.168.78.9"
    words = [word for place in addresses.values() for word in ("--listen", f"{place}:{PORT}")]
    with brokers.leveret(args=words) as broker:
        for place in addresses.values():
            warning = f"no interface has the address of {place}:{PORT} now"
            assert warning in broker.log(), f"{warning!r} is not in the log:\n{broker.log()}"
        for address in addresses:
            if address == never:
                continue
            subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)
            with socket.create_connection((address, PORT), timeout=suite.patience(10)) as peer:
                peer.sendall(b"AMQP\0\0\x09\x01")
                assert peer.recv(1) == b"\1", "the answer does not come from a broker"


def main() -> int:
    """Starts this program again in a network namespace."""
    if INSIDE not in os.environ:
        if shutil.which("unshare") is None or subprocess.run([*NETWORK, "true"], check=False,
                                                              stderr=subprocess.DEVNULL).returncode != 0:
            print("SKIP first_hour: no network namespace can be created (unshare --user --net)")
            return 0
        # Installing packages needs a network; without one the case is skipped.
        if "before-the-network" not in sys.argv[1:] or "as-in-the-transcript" in sys.argv[1:]:
            with contextlib.suppress(suite.Skip):
                environment.pika_python(PIKA)
        os.environ[INSIDE] = "1"
        os.execvp(NETWORK[0], [*NETWORK, sys.executable, __file__, *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{SENSOR}/32", "dev", "lo"], check=True)
    cases = suite.Suite("first_hour", [word for word in sys.argv[1:] if word != "--record"])
    cases.case("as-in-the-transcript", first_hour)
    cases.case("before-the-network", before_the_network)
    return cases.status()


if __name__ == "__main__":
    sys.exit(main())
