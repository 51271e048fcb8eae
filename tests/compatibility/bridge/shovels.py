"""Shovels that are set by runtime parameters, compared with a real RabbitMQ: keys, texts and definition files.

The test compares what scripts use: exit codes, texts and columns of both command lines, and the queue contents.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from harness import brokers, raw
from harness.brokers import Address, BrokerError

PLUGINS = "[rabbitmq_shovel]"


class RabbitWithShovels(brokers.RabbitMq):
    """RabbitMQ with its shovels enabled."""

    def _environment(self) -> Dict[str, str]:
        environment = super()._environment()
        Path(environment["RABBITMQ_ENABLED_PLUGINS_FILE"]).write_text(PLUGINS + ".\n")
        return environment


class Shovels:
    """The cases. They share an upstream with those of bridges."""

    def __init__(self, place: Any, module: Any) -> None:
        self.place, self.module = place, module

    @property
    def upstream(self) -> Address:
        return self.place.upstream.address

    def uri(self) -> str:
        return f"amqp://guest:guest@{self.upstream.host}:{self.upstream.port}"

    def forward(self, **more: Any) -> Dict[str, Any]:
        """Returns a shovel from the edge to the upstream."""
        said = {"src-uri": "amqp://", "src-queue": "telemetry", "dest-uri": self.uri(), "dest-queue": "telemetry"}
        said.update({key.replace("_", "-"): value for key, value in more.items()})
        return {key: value for key, value in said.items() if value is not None}

    def fetch(self, **more: Any) -> Dict[str, Any]:
        """Returns a shovel from the upstream to the edge."""
        own = {"src_uri": self.uri(), "dest_uri": "amqp://", "src_queue": "commands", "dest_queue": "orders"}
        return self.forward(**{**own, **more})

    def status(self, edge: brokers.Leveret) -> List[Dict[str, str]]:
        return json.loads(edge.ctl("shovel_status", "--formatter", "json"))

    def until_gone(self, edge: brokers.Leveret) -> None:
        self.module.until("the parameter is deleted",
                          lambda: json.loads(edge.ctl("list_parameters", "--formatter", "json")) == [])

    # ---- cases

    def set_by_parameter(self) -> None:
        """Shovels in both directions work, also after a kill, and can be restarted and deleted. A missing queue is
        declared."""
        m = self.module
        self.place.clear()
        home = Path(tempfile.mkdtemp(prefix="leveret-test-"))
        start = lambda: brokers.Leveret(brokers.leveret_binary(), [], "", home)  # noqa: E731
        try:
            edge = self.place.edge = start()
            with raw.Client(self.upstream) as client:
                client.open()
                client.call(1, "queue.delete", queue="telemetry")
            edge.ctl("set_parameter", "shovel", "up", json.dumps(self.forward(add_forward_headers=True)))
            edge.ctl("set_parameter", "shovel", "down", json.dumps(self.fetch()))
            m.publish(edge.address, "telemetry", 0, 500)
            m.publish(self.upstream, "commands", 0, 100)
            m.until("all messages are upstream", lambda: m.ready(self.upstream, "telemetry") == 500)
            m.until("all messages are at the edge", lambda: m.ready(edge.address, "orders") == 100)
            taken = m.drain(self.upstream, "telemetry")
            assert m.check_arrived(taken, 500) == 0
            by, = m.headers_of(taken[0])[b"x-shovelled"]
            table = {name: field.value for name, field in by.value}
            assert (table[b"shovel-name"], table[b"src-queue"], table[b"shovel-type"]) == (b"up", b"telemetry", b"dynamic")
            rows = {row["name"]: row for row in self.status(edge)}
            assert (rows["up"]["state"], rows["up"]["type"], rows["up"]["source"]) == ("running", "dynamic", "amqp://"), rows
            assert rows["up"]["destination"] == f"amqp://{self.upstream.host}:{self.upstream.port}", rows
            assert "guest:guest" not in edge.ctl("shovel_status") + edge.log() + edge.ctl("report")
            edge.kill()
            edge.close()
            edge = self.place.edge = start()
            m.publish(edge.address, "telemetry", 500, 100)
            # Messages acknowledged just before the kill may be delivered again.
            m.until("the source queue is empty", lambda: raw.queue_state(edge.address, "telemetry") == [0, 1])
            m.until("all messages are upstream", lambda: m.ready(self.upstream, "telemetry") >= 100)
            edge.ctl("restart_shovel", "up")
            m.publish(edge.address, "telemetry", 600, 100)
            m.until("all messages are upstream", lambda: m.ready(self.upstream, "telemetry") >= 200)
            m.until("the source queue is empty", lambda: raw.queue_state(edge.address, "telemetry") == [0, 1])
            taken = set(m.numbers(m.drain(self.upstream, "telemetry")))
            assert set(range(500, 700)) <= taken <= set(range(700)), taken
            edge.ctl("delete_shovel", "up")
            edge.ctl("clear_parameter", "shovel", "down")
            m.until("the shovels are deleted", lambda: self.status(edge) == [])
            m.publish(edge.address, "telemetry", 700, 1)
            edge.kill()
            edge.close()
            edge = self.place.edge = start()
            assert self.status(edge) == [] and m.ready(edge.address, "telemetry") == 1
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def until_the_queue_is_moved(self) -> None:
        """`delete-after`: exactly the messages that the queue had are moved, and then the parameter is deleted."""
        m = self.module
        edge = self.place.start("")
        for after, moved in (("queue-length", 300), (50, 50)):
            m.publish(self.upstream, "commands", 0, 300)
            edge.ctl("set_parameter", "shovel", "move", json.dumps(self.fetch(src_delete_after=after, prefetch_count=7)))
            self.until_gone(edge)
            m.until("the shovel has ended", lambda: self.status(edge) == [])
            assert m.numbers(m.drain(edge.address, "orders")) == list(range(moved)), after
            assert m.numbers(m.drain(self.upstream, "commands")) == list(range(moved, 300)), after
        m.publish(edge.address, "telemetry", 0, 20)
        edge.ctl("set_parameter", "shovel", "up", json.dumps(self.forward(delete_after=5)))
        self.until_gone(edge)
        m.until("five messages are upstream", lambda: m.ready(self.upstream, "telemetry") == 5)
        m.until("the other messages are at the edge", lambda: raw.queue_state(edge.address, "telemetry") == [15, 0])

    def from_exchanges(self) -> None:
        """Shovels from an exchange on either side use a queue of their own. Routing keys are kept or replaced."""
        m = self.module
        edge = self.place.start("")
        with raw.Client(self.upstream) as client:
            client.open()
            client.call(1, "queue.bind", queue="telemetry", exchange="amq.topic", routing_key="#")
        up = self.forward(src_queue=None, dest_queue=None, src_exchange="amq.topic", src_exchange_key="a.#",
                          dest_exchange="amq.topic")
        edge.ctl("set_parameter", "shovel", "up", json.dumps(up))
        down = self.fetch(src_queue=None, src_exchange="amq.direct", src_exchange_key="k")
        edge.ctl("set_parameter", "shovel", "down", json.dumps(down))
        m.until("both shovels run", lambda: [row["state"] for row in self.status(edge)] == ["running"] * 2)
        try:
            with raw.Client(edge.address) as client:
                client.open()
                for key in ("a.b", "b.b"):
                    client.publish(1, "amq.topic", key, key.encode(), props=m.PERSISTENT)
            with raw.Client(self.upstream) as client:
                client.open()
                client.publish(1, "amq.direct", "k", b"down", props=m.PERSISTENT)
            m.until("one message is upstream", lambda: m.ready(self.upstream, "telemetry") == 1)
            got, = m.drain(self.upstream, "telemetry")
            assert (got.method.args["routing_key"], got.body) == (b"a.b", b"a.b"), got
            m.until("one message is at the edge", lambda: m.ready(edge.address, "orders") == 1)
        finally:
            with raw.Client(self.upstream) as client:
                client.open()
                client.call(1, "queue.unbind", queue="telemetry", exchange="amq.topic", routing_key="#")

    def wrong_keys(self) -> None:
        """Wrong keys are refused with the text of RabbitMQ, which is queried in the test. Unsupported keys are named.
        """
        edge = self.place.start("")
        with contextlib.closing(RabbitWithShovels()) as other:
            changes: List[Dict[str, Any]] = [
                {"src-queue": None}, {"delete-after": "zz"}, {"src-exchange": "x"}, {"ack-mode": "zz"},
                {"ack-mode": "no-ack", "delete-after": 5}, {"prefetch-count": "x"}, {"reconnect-delay": "x"},
                {"src-uri": None}, {"dest-exchange": "x"}, {"add-forward-headers": "x"}, {"dest-queue": 3},
                {"dest-publish-properties": {"zz": 1}},
            ]
            # Each call of RabbitMQ's command line takes seconds.
            for changed in changes if self.module.is_full() else changes[:2]:
                said = {**self.forward(), **changed}
                said = {key: value for key, value in said.items() if value is not None}
                words = ["set_parameter", "shovel", "wrong", json.dumps(said)]
                theirs = other.rabbitmqctl(words)
                with self.refused(edge, *words) as refusal:
                    pass
                assert refusal[0] == theirs.returncode == 69, (changed, refusal, theirs)
                assert theirs.stderr.strip() in refusal[1], (changed, refusal, theirs.stderr)
            commands = [["set_parameter", "nope", "x", "{}"], ["delete_shovel", "nix"], ["restart_shovel", "nix"],
                        ["set_parameter", "shovel", "x", "{"],
                        ["clear_parameter", "shovel", "nix"], ["clear_global_parameter", "nix"],
                        ["list_parameters", "-p", "nix"],
                        ["set_parameter", "-p", "nix", "shovel", "x", json.dumps(self.forward())]]
            for words in commands if self.module.is_full() else commands[:3]:
                theirs = other.rabbitmqctl(words)
                with self.refused(edge, *words) as refusal:
                    pass
                assert refusal[0] == theirs.returncode, (words, refusal, theirs)
                said = theirs.stderr.replace("oracle@localhost", "leveret").strip()
                assert said in refusal[1], (words, refusal, said)
        for changed, why in [
            ({"foo": "amqp://u:secret@h"}, 'Unrecognised terms [<<"foo">>] in wrong'),
            ({"ack-mode": "no-ack"}, "ack-mode 'no-ack' is not supported here"),
            ({"dest-protocol": "amqp10"}, "dest-protocol 'amqp10' is not supported here"),
            ({"src-consumer-args": {"x": 1}}, "src-consumer-args is not supported here"),
            ({"dest-uri": "amqp:///"}, "src-uri and dest-uri both mean this broker"),
            ({"src-uri": "amqp://elsewhere"}, "neither src-uri nor dest-uri means this broker"),
        ]:
            with self.refused(edge, "set_parameter", "shovel", "wrong", json.dumps({**self.forward(), **changed})) as refusal:
                assert refusal[0] == 69 and why in refusal[1] and "secret" not in edge.log(), refusal
        assert edge.ctl("list_parameters").split("\n")[1:2] == [""], edge.ctl("list_parameters")

    @contextlib.contextmanager
    def refused(self, edge: brokers.Leveret, *words: str) -> Iterator[Tuple[int, str]]:
        """Runs a command that must fail. Returns its exit code and output."""
        try:
            edge.ctl(*words)
        except BrokerError as error:
            text = str(error)
            yield int(text.split("status ", 1)[1].split(":", 1)[0]), text
        else:
            raise AssertionError(f"{words} succeeded")

    def by_definitions(self) -> None:
        """Leveret imports a definition file exported by RabbitMQ, and RabbitMQ imports one exported by Leveret."""
        m = self.module
        edge = self.place.start("")
        with contextlib.closing(RabbitWithShovels()) as other:
            said = self.forward(add_timestamp_header=True, publish_properties={"app_id": "exported"})
            other.ctl("set_parameter", "shovel", "exported", json.dumps(said))
            other.ctl("set_global_parameter", "place", json.dumps({"name": "north", "at": [1, 2.5]}))
            file = other.home / "definitions.json"
            other.ctl("export_definitions", str(file))
            edge.ctl("import_definitions", str(file))
            m.publish(edge.address, "telemetry", 0, 10)
            m.until("all messages are upstream", lambda: m.ready(self.upstream, "telemetry") == 10)
            first = m.drain(self.upstream, "telemetry")[0]
            assert first.header.props["app_id"] == b"exported", first.header
            assert b"x-shovelled-timestamp" in m.headers_of(first), first.header
            ours = other.home / "ours.json"
            edge.ctl("export_definitions", str(ours))
            for name in ("parameters", "global_parameters"):
                sent, back = (json.loads(path.read_text())[name] for path in (file, ours))
                own = [it for it in sent if it["name"] not in ("internal_cluster_id", "cluster_name")]
                assert own == back, (own, back)
            other.ctl("clear_parameter", "shovel", "exported")
            other.ctl("import_definitions", str(ours))
            assert "exported" in other.ctl("list_parameters"), "RabbitMQ did not import our file"
            for command in ("list_parameters", "list_global_parameters"):
                theirs = [row for row in other.ctl(command).splitlines() if "internal_cluster_id" not in row]
                assert edge.ctl("-q", command).splitlines() == theirs, command

    def cases(self) -> List[Callable[[], None]]:
        """Returns all cases."""
        return [self.set_by_parameter, self.until_the_queue_is_moved, self.from_exchanges, self.wrong_keys,
                self.by_definitions]
