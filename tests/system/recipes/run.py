"""The recipes of the guide and the first section of the README, run as they stand.

Each recipe has a folder and a broker of its own, in a network without other machines. Blocks whose first line is a comment
with a file name become files, and blocks of shell commands are typed. Only these are replaced: paths of an installed broker
(`/etc/leveret`, `/var/lib/leveret`, `/media/stick`), names of other machines, the user `leveret`, and the installation of Python packages.
`sudo` and `systemctl` are small scripts.

Suite lines: `PASS recipes/NAME` and so on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
sys.dont_write_bytecode = True

from harness import brokers, environment, suite  # noqa: E402

import plants  # noqa: E402

GUIDE = brokers.ROOT / "systemd" / "guide"
INSIDE = "LEVERET_TEST_INSIDE"
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
PACKAGES = ["celery==5.7.0", f"pika=={environment.PIKA_NEW}"]
FILE_LINE = re.compile(r"(?:#|//) (\S+\.(?:py|toml|yml|ino))\n")
ARDUINO = HERE / "arduino"
SYSTEMCTL = """#!/bin/sh
end() { [ -e pid ] && kill "$(cat pid)" && while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done; rm -f pid; }
begin() {
    file=; [ -e etc/leveret.toml ] && file="--config etc/leveret.toml"
    leveret $file --data-dir var/leveret >>log 2>&1 &
    echo $! >pid
    leveretctl -q await_startup --timeout 60
}
case "$1" in
    start) begin ;;
    stop) end ;;
    restart) end; begin ;;
    reload) kill -HUP "$(cat pid)" ;;
esac
"""


def sections(page: str = "recipes.md") -> Dict[str, List[Tuple[str, str]]]:
    """Returns the blocks of each section of a page by its heading: their languages and texts."""
    found = {}
    for part in re.split(r"^## ", (GUIDE / page).read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        blocks = re.findall(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
        found[title] = [(language, textwrap.dedent(block)) for _, language, block in blocks]
    return found


class Board:
    """A folder with an installed broker, and the recipe that is followed in it."""

    def __init__(self, title: Optional[str], replaced: Dict[str, str]) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="leveret-recipes-"))
        self.replaced = {**replaced, "/etc/leveret": f"{self.home}/etc", "/var/lib/leveret": f"{self.home}/var/leveret",
                         "/media/stick": f"{self.home}/stick", " -o leveret": "", " -g leveret": ""}
        self.blocks = [(language, self.here(text)) for language, text in sections()[title]] if title else []
        for folder in ("bin", "etc", "var", "stick"):
            (self.home / folder).mkdir()
        shutil.copy(brokers.leveret_binary(), self.home / "bin" / "leveret")
        (self.home / "bin" / "leveretctl").symlink_to("leveret")
        if title:
            (self.home / "env").symlink_to(environment.python_with("recipes", *PACKAGES).parents[1])
        self.tool("sudo", '#!/bin/sh\nexec "$@"\n')
        self.tool("systemctl", SYSTEMCTL)
        for language, text in self.blocks:
            if name := FILE_LINE.match(text):
                self.file(name[1], text)

    def here(self, text: str) -> str:
        """Returns a text with the places of this test."""
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def tool(self, name: str, text: str) -> None:
        """Makes a program in the search path."""
        (self.home / "bin" / name).write_text(text)
        (self.home / "bin" / name).chmod(0o755)

    def file(self, name: str, text: str) -> None:
        """Writes a file; a relative name is in the folder of the recipe."""
        (self.home / name).write_text(text)

    def run(self, commands: str, patience_s: float = 120.0) -> str:
        """Types shell commands. Returns their output; an error in one of them ends the case."""
        out = self.home / "out"
        before = out.stat().st_size if out.exists() else 0
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LEVERET_", "RUST_", "PYTHON"))}
        words = {**kept, "PATH": f"{self.home}/bin:{kept['PATH']}", "HOME": str(self.home), "PYTHONUNBUFFERED": "1",
                 "PYTHONDONTWRITEBYTECODE": "1", "LEVERET_SOCKET": f"{self.home}/var/leveret/ctl.sock"}
        with open(out, "ab") as log:
            child = subprocess.Popen(["sh", "-ec", commands], cwd=self.home, env=words, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=log, start_new_session=True)
            self.groups.append(child.pid)
            code = child.wait(suite.patience(patience_s))
        text = out.read_bytes()[before:].decode(errors="replace")
        assert code == 0, f"{commands}\nexit code {code}\n{text}\n{self.log()}"
        return text

    groups: List[int]

    def shell(self, number: int = 0) -> str:
        """Types a block of shell commands. Returns their output."""
        return self.type([text for language, text in self.blocks if language == "sh"][number])

    def type(self, text: str) -> str:
        """Types shell commands without the installations, which need other machines. Returns their output."""
        return self.run(re.sub(r"^(python3 -m venv env|env/bin/pip install .*)\n", "", text, flags=re.MULTILINE))

    def until(self, pattern: str) -> str:
        """Waits until the output of all commands so far matches."""
        return suite.until(pattern, lambda: re.search(pattern, self.output(), re.DOTALL | re.MULTILINE), 60.0)

    def output(self) -> str:
        """Returns the output of all commands so far."""
        out = self.home / "out"
        return out.read_text(errors="replace") if out.exists() else ""

    def log(self) -> str:
        """Returns the broker's log."""
        log = self.home / "log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    def counts(self) -> Dict[str, int]:
        """Returns the number of messages in each queue of this broker."""
        return counts(self.run("leveretctl -s list_queues name messages"))


def counts(text: str) -> Dict[str, int]:
    """Reads the output of `list_queues name messages`."""
    return {name: int(count) for name, count in re.findall(r"^(\S+)\t(\d+)$", text, re.MULTILINE)}


@contextlib.contextmanager
def board(title: Optional[str], **replaced: str) -> Iterator[Board]:
    """Sets up the folder of a recipe. The broker is started by `systemctl`."""
    made = Board(title, replaced)
    made.groups = []
    try:
        yield made
    finally:
        for group in made.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        if str(made.home) not in Path("/proc/self/mountinfo").read_text():
            shutil.rmtree(made.home, ignore_errors=True)


def celery() -> None:
    """A task of Celery is carried out and its result received."""
    with board("Celery") as it:
        it.run("systemctl start leveret")
        assert re.search(r"^8$", it.shell(), re.MULTILINE), it.output()


def work_queue() -> None:
    """Each job is done once. A job of a killed worker is done by the next one."""
    with board("Work queue") as it:
        it.run("systemctl start leveret")
        it.shell()
        it.until("done: first.*done: second.*done: third")
        os.killpg(it.groups[-1], signal.SIGKILL)
        it.run("env/bin/python producer.py fourth; systemctl restart leveret")
        assert it.counts() == {"jobs": 1}
        it.run("env/bin/python worker.py &")
        it.until("done: fourth")


def retry() -> None:
    """A job that fails is tried three times, and then goes to the queue for failed jobs."""
    with board("Retry with delay and dead letters") as it:
        it.run("systemctl start leveret")
        said = it.shell()
        assert re.search(r"good 0\nbad 0\nbad 1\nbad 2\n", said), said
        assert counts(said) == {"orders": 0, "orders.retry": 0, "orders.failed": 1}, said


def rpc() -> None:
    """A question is answered."""
    with board("RPC") as it:
        it.run("systemctl start leveret")
        assert re.search(r"^144$", it.shell(), re.MULTILINE), it.output()


def ring() -> None:
    """The queue keeps the newest messages."""
    with board("Ring buffer of the last readings") as it:
        it.run("systemctl start leveret")
        it.shell(0)
        assert it.shell(1) == "1000 messages\noldest: 500\n", it.output()


def certificate(folder: Path, address: str) -> None:
    """Creates an authority, and a certificate for an address."""
    subprocess.run(["sh", "-ec", f"""
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=plant-ca \
    -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=upstream -keyout server.key -out server.csr
echo subjectAltName=IP:{address} >names
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out server.pem
"""], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def upstream(folder: Path, queues: List[str]) -> Iterator[brokers.Leveret]:
    """Starts an upstream on 127.0.0.2 with and without TLS, with the user `edge` and these queues."""
    certificate(folder, "127.0.0.2")
    config = (f'listen_tls = ["127.0.0.2:5671"]\n[tls]\n'
              f'certificate = "{folder}/server.pem"\nkey = "{folder}/server.key"\n')
    with brokers.leveret(config=config, args=["--listen", "127.0.0.2:5672"]) as broker:
        broker.ctl("add_user", "edge", "secret")
        broker.ctl("set_permissions", "edge", ".*", ".*", ".*")
        definitions = ", ".join(f'{{"name": "{name}", "vhost": "/", "durable": true}}' for name in queues)
        file = folder / "queues.json"
        file.write_text(f'{{"queues": [{definitions}]}}')
        broker.ctl("import_definitions", str(file))
        yield broker


PUBLISH = """
import sys, pika
channel = pika.BlockingConnection(pika.ConnectionParameters("localhost")).channel()
channel.confirm_delivery()
for number in range(int(sys.argv[2])):
    channel.basic_publish("", sys.argv[1], str(number), pika.BasicProperties(delivery_mode=2), mandatory=True)
"""


def mqtt_sensors() -> None:
    """Readings of an MQTT client arrive at the upstream, also those from a time without an upstream."""
    with board("MQTT sensors to a queue in the cloud", **{"rabbit.example.com": "127.0.0.2", "the password": "secret"}) as it, \
            upstream(it.home / "stick", ["readings"]) as there:
        shutil.copy(it.home / "stick" / "ca.pem", it.home / "etc" / "plant-ca.pem")
        binding = {"source": "amq.topic", "vhost": "/", "destination": "readings", "destination_type": "queue",
                   "routing_key": "plant.#", "arguments": {}}
        file = it.home / "stick" / "binding.json"
        file.write_text(json.dumps({"bindings": [binding]}))
        there.ctl("import_definitions", str(file))
        it.shell()
        publish = "mosquitto_pub -u meter -P secret -i meter-7 -q 1 -m 22"
        # Without permission for the topic, the broker closes the connection of a client of MQTT 3.1.1.
        it.run(f"leveretctl pause_bridge cloud; {publish} -t plant/meter-7/later; ! {publish} -t plant/other/x")
        assert it.counts()["sensors"] == 1
        it.run("leveretctl resume_bridge cloud")
        suite.until("both readings are at the upstream", lambda: counts(
            there.ctl("-s", "list_queues", "name", "messages")) == {"readings": 2}, 60.0)


def readings_to_tasks() -> None:
    """A reading becomes a task, also after a task was not confirmed. A reading in Celery's own queue is lost."""
    with board("MQTT readings to Celery tasks") as it:
        it.shell()
        it.until(r"stored plant/meter-7/temperature 21\.5")
        publish = "mosquitto_pub -u guest -P guest -i meter-7 -q 1 -t plant/meter-7/temperature -m"
        # A full queue refuses the second task. The program must then not acknowledge its reading.
        followed = it.groups[-1]
        suite.until("reading and task are acknowledged", lambda: {"celery": 0, "mqtt-readings": 0}.items()
                    <= it.counts().items(), 60.0)
        it.run("systemctl stop leveret")
        os.killpg(followed, signal.SIGKILL)
        it.run("systemctl start leveret; leveretctl set_policy --apply-to queues full '^celery$' "
               """'{"max-length": 1, "overflow": "reject-publish"}'""")
        it.run(f"env/bin/python readings_to_tasks.py & {publish} 22.5; {publish} 23.5")
        it.until("MessageNacked")
        suite.until("the program ended with the task refused", lambda: {"celery": 1, "mqtt-readings": 1}.items()
                    <= it.counts().items(), 60.0)
        it.run("leveretctl clear_policy full; env/bin/celery -A tasks worker --concurrency 1 & "
               "env/bin/python readings_to_tasks.py &")
        it.until(r"stored plant/meter-7/temperature 22\.5")
        it.until(r"stored plant/meter-7/temperature 23\.5")
        binding = {"source": "amq.topic", "vhost": "/", "destination": "celery", "destination_type": "queue",
                   "routing_key": "direct.#", "arguments": {}}
        it.file("direct.json", json.dumps({"bindings": [binding]}))
        it.run(f"leveretctl import_definitions direct.json; {publish.replace('plant/', 'direct/')} 24.5")
        # The guide quotes the worker.
        quoted = "Received and deleted unknown message. Wrong destination?!?"
        assert quoted in (GUIDE / "recipes.md").read_text()
        suite.until("the worker deletes the reading", lambda: quoted in re.sub(r" +", " ", it.output()), 60.0)
        suite.until("the queue is empty", lambda: it.counts()["celery"] == 0, 60.0)
        assert "24.5" not in "".join(re.findall("^.*stored.*$", it.output(), re.MULTILINE))


def esp32() -> None:
    """The guide's commands let a sensor publish over TLS. The sketch has the same addresses and names as they have, and
    publishes with them, after it waited for a broker with growing pauses.
    """
    # The stand-ins and mosquitto_pub look the name up on this machine.
    with board("ESP32 over TLS", **{"broker.local": "localhost", "the content of ca.pem": "CA"}) as it:
        first = sections("install.md")["A sensor on another machine"]
        certificates, _ = [text for language, text in first if language == "sh"]
        steps = sections("install.md")["An MQTT sensor on another machine"]
        create, subscribe, check = [it.here(text) for language, text in steps if language == "sh"]
        config, = [it.here(text) for language, text in steps if language == "toml"]
        it.run(it.here(certificates))
        it.file("etc/leveret.toml", config)
        it.run(create)
        it.run("leveretctl await_startup; " + bind("plant.#"))
        it.run(check)
        assert it.counts() == {"readings": 1}, it.log()
        sketch = (it.home / "reading.ino").read_text()
        agree(sketch, check, config)
        refused = check.replace("plant/meter-7", "plant/meter-8")
        assert refused != check
        it.run(f"! {refused.strip()}")
        # mosquitto_sub ends with status 0 whether its subscription is refused or not, and says which.
        words = check.strip().replace("mosquitto_pub", "mosquitto_sub").split(" -t ")[0] + " -E -c -q 1 -t"
        denied = "All subscription requests were denied"
        assert denied in it.run(f"{words} 'commands/meter-7/#'"), it.log()
        it.run(subscribe)
        assert denied not in it.run(f"{words} 'commands/meter-7/#'"), it.log()
        assert denied in it.run(f"{words} 'plant/#'"), it.log()
        # A session with subscriptions needs these rights, too; the sketch has none.
        it.run(f"{check.strip()}; {create.split(chr(10), 2)[2]}")
        if shutil.which("c++") is None:
            raise suite.Skip("no C++ compiler: the sketch was not compiled; its names agree with the commands")
        before = it.counts()["readings"]
        authority = (it.home / "ca.pem").read_text()
        it.file("reading.ino", sketch.replace("CA\n)", f"{authority})").replace("\nCA\n", f"\n{authority}"))
        it.run(f"c++ -std=c++17 -Wall -Wextra -Werror -I {ARDUINO} -include Arduino.h -x c++ reading.ino -o sketch")
        it.run("systemctl stop leveret")
        said = it.run("SKETCH_FAILURES=8 SKETCH_READINGS=1 ./sketch")
        pauses = [int(pause) for pause in re.findall(r"^pause (\d+)$", said, re.MULTILINE)]
        assert pauses == [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000], said
        it.run("systemctl start leveret; SKETCH_FAILURES=1 SKETCH_READINGS=3 ./sketch")
        assert it.counts() == {"readings": before + 3}, it.log()
        assert it.run("leveretctl -s list_queues messages_persistent").split() == [str(before + 3)]


def bind(key: str) -> str:
    """Returns a command that binds a durable queue `readings` to `amq.topic`."""
    definitions = {"queues": [{"name": "readings", "vhost": "/", "durable": True}],
                   "bindings": [{"source": "amq.topic", "vhost": "/", "destination": "readings", "arguments": {},
                                 "destination_type": "queue", "routing_key": key}]}
    return f"echo '{json.dumps(definitions)}' >bind.json; leveretctl import_definitions bind.json"


def agree(sketch: str, check: str, config: str) -> None:
    """The sketch has the address, port, user, identifier and topic of the command that checks them."""
    values = dict(re.findall(r'^const (?:char|int) (\w+)(?:\[\])? = "?(.*?)"?;', sketch, re.MULTILINE))
    names = {"-h": "BROKER", "-p": "PORT", "-u": "USER", "-P": "PASSWORD", "-i": "CLIENT_ID", "-t": "TOPIC"}
    for option, name in names.items():
        given = re.search(rf" {option} (?:'(.*?)'|(\S+))", check)
        assert given and (given[1] or given[2]) == values[name], (option, check, values)
    assert f'mqtt_tls = ["0.0.0.0:{values["PORT"]}"]' in config, (config, values)


def two_boards() -> None:
    """A publisher with two addresses goes on when its board is killed. What the board had comes when it is back."""
    names = {"board-a.local": "127.0.0.1", "board-b.local": "127.0.0.2", "0.0.0.0:5672": "127.0.0.1:5672"}
    with board("Two boards, one takes over", **names) as it, \
            brokers.leveret(args=["--listen", "127.0.0.2:5672"]) as second:
        it.shell(0)
        second.ctl("import_definitions", str(it.home / "both.json"))
        # A board with a name of mDNS takes its name with it when it is switched off.
        it.run("sed -i 's/^BOARDS = \\[/BOARDS = [\"gone.invalid\", /' publisher.py; grep -q gone.invalid publisher.py")
        it.run("timeout 4 env/bin/python consumer.py gone.invalid || test $? = 124")
        it.shell(1)
        it.until("confirmed 3$")
        # No consumer runs yet, so the first board has messages when it is killed.
        it.run("kill -KILL $(cat pid); rm pid")
        it.until("again:.*confirmed 6$")
        published = it.output()
        assert numbers("confirmed", published) == list(range(len(numbers("confirmed", published)))), published
        it.shell(2)
        it.until("from 127.0.0.2 6$")
        assert not numbers("from 127.0.0.1", it.output()), "the dead board's messages are elsewhere"
        it.run("systemctl start leveret")
        suite.until("every confirmed message came", lambda: set(numbers("confirmed", published)) <= {
            *numbers("from 127.0.0.1", it.output()), *numbers("from 127.0.0.2", it.output())}, 60.0)
        assert {0, 1, 2, 3} <= set(numbers("from 127.0.0.1", it.output())), it.output()
        assert "plant" in second.ctl("-s", "list_users")
        sessions_stay(it, second)
        keepalived(it)


def numbers(words: str, text: str) -> List[int]:
    """Returns the numbers of the lines that begin with these words."""
    return [int(number) for number in re.findall(rf"^{re.escape(words)} (\d+)$", text, re.MULTILINE)]


def sessions_stay(it: Board, second: brokers.Leveret) -> None:
    """Retained messages of one board are not on the other."""
    with (it.home / "etc" / "leveret.toml").open("a") as file:
        file.write('mqtt = ["127.0.0.1:1883"]\n')
    it.run("systemctl restart leveret; mosquitto_sub -u plant -P secret -i kept -c -q 1 -t x -E; "
           "mosquitto_pub -u plant -P secret -i other -q 1 -r -t x -m 1")
    assert "kept" in it.run("leveretctl -s list_mqtt_sessions") and "x" in it.run("leveretctl -s list_retained topic")
    assert not second.ctl("-s", "list_mqtt_sessions").strip() and not second.ctl("-s", "list_retained", "topic").strip()


def keepalived(it: Board) -> None:
    """keepalived accepts the guide's configuration, and its check fails without a broker."""
    if shutil.which("keepalived") is None:
        print("# two-boards: keepalived is not installed, so its configuration is not checked")
        return
    config, = [text for _, text in it.blocks if "keepalived.conf" in text]
    script = re.search(r'script "/usr/bin/(.*)"', config)
    assert script, config
    # As root, keepalived runs no program in a folder that others may write to, such as /tmp.
    it.file("keepalived.conf", config.replace("/usr/bin/leveretctl", "/usr/bin/env leveretctl"))
    it.run("ip link add eth0 type veth peer name eth1; ip address add 192.0.2.1/24 dev eth0; "
           "keepalived --config-test=keepalived.log -f keepalived.conf || { cat keepalived.log; exit 1; }")
    # keepalived itself starts no script in a user namespace.
    it.run(f"{script[1]}; systemctl stop leveret; ! {script[1]}")


def lte() -> None:
    """A bridge over TLS connects on demand, forwards, and counts the bytes of the day."""
    with board("LTE with a byte budget", **{"rabbit.example.com": "127.0.0.2", "the password": "secret"}) as it, \
            upstream(it.home / "stick", ["readings", "alarms"]) as there:
        shutil.copy(it.home / "stick" / "ca.pem", it.home / "etc" / "plant-ca.pem")
        it.file("publish.py", PUBLISH)
        it.shell()
        it.run("env/bin/python publish.py alarms 1")
        suite.until("the alarm is at the upstream", lambda: counts(
            there.ctl("-s", "list_queues", "name", "messages")) == {"readings": 0, "alarms": 1}, 60.0)
        it.run("env/bin/python publish.py readings 20; leveretctl resume_bridge lte")
        suite.until("all messages are at the upstream", lambda: counts(
            there.ctl("-s", "list_queues", "name", "messages")) == {"readings": 20, "alarms": 1}, 60.0)
        said = it.run("leveretctl -s bridge_status name day_bytes day_bytes_max")
        assert re.search(r"^lte\t[1-9]\d{3,}\t20000000$", said, re.MULTILINE), said


def moving() -> None:
    """Users, queues and messages of a RabbitMQ move."""
    environment.have_rabbitmq()
    with brokers.rabbitmq() as old:
        replaced = {"old-machine": f"127.0.0.1:{old.address.port}"}
        with board("Moving from RabbitMQ", **replaced) as it:
            old.ctl("add_user", "mover", "secret")
            old.ctl("set_permissions", "mover", ".*", ".*", ".*")
            queues = [f"orders {number}" for number in range(10)]
            publish = PUBLISH.replace('"localhost"', f'"127.0.0.1", {old.address.port}') + (
                "\nchannel.queue_declare('temporary')\nfor name in sys.argv[3:]:\n    channel.queue_declare(name, durable=True)\n"
                '    channel.basic_publish("", name, name, pika.BasicProperties(delivery_mode=2))\n')
            it.file("publish.py", publish)
            words = " ".join(f"'{name}'" for name in queues)
            it.run(f"systemctl start leveret; env/bin/python publish.py none 0 {words}")
            exported = it.home / "all.json"
            old.ctl("export_definitions", str(exported))
            it.shell(1)
            suite.until("all messages are here", lambda: re.findall(
                r"^(orders \d)\t1$", it.run("leveretctl -s list_queues name messages"), re.MULTILINE) == queues, 90.0)
            left = old.ctl("-s", "list_queues", "name", "messages")
            assert re.findall(r"\t(\d+)$", left, re.MULTILINE) == ["0"] * 11, left
            assert "mover" in it.run("leveretctl -s list_users")
            assert "temporary" not in it.run("cat etc/leveret.toml")


def prometheus() -> None:
    """Prometheus accepts the configuration and the alerts, and each metric in an alert exists."""
    environment.have("promtool", "prometheus")
    bridge = '[[bridge]]\nname = "b"\nupstream = "amqp://x:y@127.0.0.9"\n[[bridge.forward]]\nqueue = "q"\nto_queue = "q"\n'
    with board("Prometheus with Grafana") as it:
        shutil.copy(GUIDE / "leveret-alerts.yml", it.home)
        it.run("promtool check config prometheus.yml")
        (it.home / "etc" / "leveret.toml").open("a").write(bridge)
        it.run("systemctl start leveret")
        metrics = it.run(f"{sys.executable} -c \"import urllib.request as r; "
                         "print(r.urlopen('http://127.0.0.1:15692/metrics').read().decode())\"")
        names = set(re.findall(r"\b(?:leveret|rabbitmq)_\w+", (GUIDE / "leveret-alerts.yml").read_text()))
        assert len(names) > 5, names
        for name in names:
            assert re.search(rf"^{name}[ {{]", metrics, re.MULTILINE), name
        labels = re.search(r"^leveret_bridge_state(\{.*\})", metrics, re.MULTILINE)
        assert labels and 'bridge="' in labels[1], metrics
        assert 'leveret_pool_used{pool="' in metrics and 'leveret_alarms{alarm="' in metrics


def fleet() -> None:
    """One file and one list of definitions make a board with its own queue at the upstream."""
    with board("A fleet from one configuration", **{"rabbit.example.com": "127.0.0.2"}) as it, \
            upstream(it.home / "stick", []) as there:
        it.file("etc/plant.password", "secret\n")
        json, = [text for language, text in it.blocks if language == "json"]
        it.file("etc/definitions.json", json)
        said = it.shell()
        assert "commands." + socket.gethostname() in said and "${" not in said, said
        assert re.search(r"^meter\t\^\(readings", said, re.MULTILINE), said
        wanted = {"readings", "commands." + socket.gethostname()}
        suite.until("the queues are declared", lambda: wanted <= set(counts(
            there.ctl("-s", "list_queues", "name", "messages"))), 60.0)


def read_only_root() -> None:
    """The broker runs where only its data directory and /run can be written to."""
    with board("A read-only root") as it:
        text = (it.home / "etc" / "leveret.toml").read_text()
        it.run("leveret --data-dir var/leveret 2>first & leveretctl -q await_startup; leveretctl stop")
        assert "require_store = true" in text
        it.file("publish.py", PUBLISH.replace("channel.confirm", 'channel.queue_declare("q", durable=True); channel.confirm'))
        (it.home / "root").mkdir()
        it.file("follow.sh", f"""
cd {it.home}
if touch etc/new 2>/dev/null; then exit 9; fi
leveret --config etc/leveret.toml 2>/run/log &
leveretctl -q await_startup --timeout 60
env/bin/python publish.py q 10
leveretctl -s list_queues name messages
leveretctl -q status | grep -A3 Alarms
ls /run/leveret/flight
""")
        # The mounts are in a namespace of these commands: what deletes the folder afterwards must not see them.
        said = it.run("""
unshare --mount sh -ec '
mount --rbind / root
mount -o remount,bind,ro root
mount --bind var "root$PWD/var"
mount -t tmpfs tmpfs root/run
mkdir root/run/leveret
chroot root sh -e "$PWD/follow.sh"
'
""")
        assert not any((it.home / "root").iterdir()), "the mounts are visible here"
        assert counts(said) == {"q": 10} and "(none)" in said, said


def backup_and_restore() -> None:
    """A backup that was made while the broker ran has everything after a restore."""
    with board("Backup and restore") as it:
        it.file("publish.py", PUBLISH.replace("channel.confirm", 'channel.queue_declare("q", durable=True); channel.confirm'))
        it.run("systemctl start leveret; env/bin/python publish.py q 10")
        it.shell(0)
        it.run("leveretctl purge_queue q")
        assert counts(it.shell(1)) == {"q": 10}, it.output()


def listens(port: int) -> bool:
    """Returns whether a program listens on a port of this machine."""
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) == 0


def readme() -> None:
    """The commands and the program of the README's first section do what it says."""
    text = (brokers.ROOT / "README.md").read_text().split("## The first message\n")[1].split("\n## ")[0]
    program, = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    said = re.search(r"It prints `(.*?)`", text)
    command, output = re.findall(r"^    \$ target/release/leveret (.*)\n((?:    .*\n)+)", text, re.MULTILINE)[0]
    assert said and "    cargo run --release\n" in text, text
    with board(None) as it:
        (it.home / "env").symlink_to(environment.pika_python(environment.PIKA_NEW).parents[1])
        it.file("hello.py", program)
        it.run("unset LEVERET_SOCKET; leveret 2>log & leveretctl -q await_startup --data-dir leveret-data --timeout 60")
        assert it.run("env/bin/python hello.py") == f"{said[1]}\n"
        assert it.run(f"unset LEVERET_SOCKET; leveret {command} --data-dir leveret-data") == re.sub(r"^    ", "", output, flags=re.MULTILINE)
        page = it.run("env/bin/python -c \"import urllib.request as r; print(r.urlopen('http://localhost:15672').status)\"")
        assert page == "200\n", page
    suite.until("the broker has left its port", lambda: not listens(15672), 30.0)
    # Another program has the page's port: a warning, and the broker works.
    with board(None) as it, socket.create_server(("127.0.0.1", 15672)):
        it.run("unset LEVERET_SOCKET; leveret 2>log & leveretctl -q await_startup --data-dir leveret-data --timeout 60")
        assert "not listening on 127.0.0.1:15672 now: another program has the port" in it.log(), it.log()


CASES: Dict[str, Callable[[], None]] = {
    "readme": readme, "celery": celery, "work-queue": work_queue, "retry": retry, "rpc": rpc, "ring-buffer": ring,
    "mqtt-sensors": mqtt_sensors, "readings-to-tasks": readings_to_tasks, "esp32": esp32, "two-boards": two_boards,
    "lte": lte, "moving": moving, "prometheus": prometheus, "fleet": fleet,
    "read-only-root": read_only_root, "backup-and-restore": backup_and_restore,
}
# The page on limits.
PLANTS: Dict[str, Callable[[], None]] = {
    "limits-accepted": lambda: plants.accepted(certificate),
    "limits-tls-gateway": lambda: plants.tls_gateway(certificate),
    "limits-home-assistant": plants.home_assistant,
}


def every_recipe_has_a_case() -> None:
    """The guide has as many recipes as this suite has cases for them."""
    assert len(sections()) == len(CASES) - 1, (list(sections()), list(CASES))


def main() -> int:
    """Installs what the recipes need, and starts this program again in a namespace."""
    if INSIDE not in os.environ:
        if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False,
                                                              stderr=subprocess.DEVNULL).returncode != 0:
            print("SKIP recipes: no network namespace can be created (unshare --user --net)")
            return 0
        if sys.argv[1:] == ["readme"]:
            installs = [lambda: environment.pika_python(environment.PIKA_NEW)]
        else:
            installs = [lambda: environment.pika_python(environment.PIKA_NEW),
                        lambda: environment.python_with("recipes", *PACKAGES), environment.have_rabbitmq,
                        environment.have_mosquitto, lambda: environment.have("promtool", "prometheus"),
                        lambda: environment.have("keepalived"), lambda: environment.have("c++", "g++")]
        for install in installs:
            with contextlib.suppress(suite.Skip):
                install()
        os.environ[INSIDE] = "1"
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, __file__, *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    brokers.watchdog(900)
    cases = suite.Suite("recipes", sys.argv[1:])
    cases.case("every-recipe-has-a-case", every_recipe_has_a_case)
    for name, run in {**CASES, **PLANTS}.items():
        cases.case(name, run)
    return cases.status()


if __name__ == "__main__":
    sys.exit(main())
