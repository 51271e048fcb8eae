"""The types of what commands print with `--formatter json`, recorded from RabbitMQ 3.10.8 and compared with Leveret.

`python3 tests/system/ctl/as_json.py` records again, with rabbitmqctl and rabbitmq-diagnostics on a node of its own.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

from harness import raw  # noqa: E402
from harness.brokers import Address, RabbitMq, leveret, rabbitmq  # noqa: E402
from harness.shapes import differences, shape  # noqa: E402
from support import Done, ctl  # noqa: E402
import alike  # noqa: E402

RECORDED = HERE / "as_json.txt"

# `{home}` is a folder of each side, `{port}` the broker's port. A line that begins with `?` is a check of
# rabbitmq-diagnostics.
SCRIPT = """
list_queues
list_queues name messages durable arguments state
list_exchanges name type durable arguments
list_bindings
list_connections user peer_port state
list_channels pid user consumer_count
list_consumers
list_users
list_vhosts name tracing
list_permissions
list_user_permissions guest
list_topic_permissions
list_vhost_limits
list_vhost_limits --global
list_user_limits --global
list_user_limits --user guest
list_parameters
list_policies
list_operator_policies
list_feature_flags
list_feature_flags name desc
status
cluster_status
environment
version
ping
report
await_startup
node_health_check
authenticate_user guest guest
authenticate_user guest wrong
add_user ann secret
change_password ann other
clear_password ann
set_user_tags ann management
add_vhost plant
set_permissions -p plant ann .* .* .*
set_topic_permissions -p plant ann amq.topic a b
list_permissions -p plant
list_topic_permissions -p plant
list_user_topic_permissions ann
clear_topic_permissions -p plant ann amq.topic
clear_permissions -p plant ann
set_vhost_limits -p plant {"max-queues":5}
list_vhost_limits -p plant
list_vhost_limits --global
clear_vhost_limits -p plant
set_user_limits ann {"max-channels":3}
list_user_limits --global
list_user_limits --user ann
clear_user_limits ann all
set_policy --apply-to queues p ^nothing {"max-length":3}
list_policies
clear_policy p
clear_policy p
set_operator_policy op ^nothing {"max-length":3}
list_operator_policies
clear_operator_policy op
set_global_parameter g {"a":1}
list_global_parameters
clear_global_parameter g
trace_on
trace_off
enable_feature_flag all
purge_queue q
delete_queue q
delete_queue q
close_all_user_connections ann why
close_all_connections -p plant why
export_definitions {home}/exported.json
import_definitions {home}/exported.json
delete_user ann
delete_vhost plant
? check_running
? is_running
? is_booting
? check_alarms
? check_local_alarms
? check_virtual_hosts
? check_port_connectivity
? check_port_listener {port}
? check_port_listener 1
? check_protocol_listener amqp
? check_protocol_listener nothing
""".strip().splitlines()

# Members that RabbitMQ has and Leveret lacks, because it is one process without Erlang, plug-ins and log files; and
# `environment`, which has the configuration of each broker.
MISSING = {
    "environment": r"\..*",
    "status": r"\.(crypto_lib_version|enabled_plugin_file|erlang_version|memory\..*|net_ticktime|raft_data_directory"
              r"|release_series_support_status|vm_memory_high_watermark_setting\.relative)",
    "cluster_status": r"\.versions\.NODE\.erlang_version",
}


def outcome(done: Done) -> List[Any]:
    """Returns the exit code, and the shapes of standard output and standard error. A text is only called a text."""
    def read(text: str) -> Any:
        text = re.sub(r"oracle@localhost|leveret@[\w-]+(?:\.[\w-]+)*", "NODE", alike.plain(text))
        if not text.strip():
            return ""
        try:
            return shape(json.loads(text.replace("\n{", "\n,{").replace("[\n,{", "[\n{")))
        except ValueError:
            return "no JSON"
    return [done.status, read(done.out), read(re.sub(r"(?m)^.*\[warning\].*$", "", done.err))]


def play(address: Address, home: Path, run: Callable[[List[str], bool], Done]) -> Iterator[Tuple[str, List[Any]]]:
    """Runs the script beside a client that has a queue. Returns each command with its outcome."""
    with raw.Client(address) as client:
        client.open(1)
        client.call(1, "queue.declare", queue="q", durable=True)
        client.call(1, "exchange.declare", exchange="x", type="fanout", durable=True)
        client.call(1, "queue.bind", queue="q", exchange="x")
        client.call(1, "basic.consume", queue="q", consumer_tag="c")
        for line in SCRIPT:
            words = line.replace("{home}", str(home)).replace("{port}", str(address.port)).split(" ")
            is_check = words[0] == "?"
            yield line, outcome(run([*words[is_check:], "--formatter", "json"], is_check))


def record() -> None:
    """Writes what RabbitMQ prints."""
    def run(oracle: RabbitMq) -> Callable[[List[str], bool], Done]:
        def one(words: List[str], is_check: bool) -> Done:
            return alike.by_diagnostics(oracle, words) if is_check else alike.by_rabbitmqctl(oracle, words)
        return one
    with rabbitmq() as oracle:
        lines = [f"{line}\t{json.dumps(said, sort_keys=True)}\n"
                 for line, said in play(oracle.address, oracle.home, run(oracle))]
    RECORDED.write_text("".join(lines))


def json_has_the_types_of_rabbitmqctl() -> None:
    """With `--formatter json`, every command that both have ends with the same exit code, and prints the same types."""
    recorded = [line.split("\t") for line in RECORDED.read_text().splitlines()]
    with leveret() as broker:
        ours = list(play(broker.address, broker.home, lambda words, _: ctl(broker, *words)))
    assert [line for line, _ in ours] == [line for line, _ in recorded], "the script has changed: record it again"
    wrong = []
    for (line, said), (_, text) in zip(ours, recorded):
        for name, one, other in zip(("status", "output", "error"), json.loads(text), said):
            missing = MISSING.get(line, "-")
            found = differences("", one, other)
            wrong += [f"{line}: {name}{what}" for what in found if not re.match(rf"{missing} missing$", what)]
    assert not wrong, "different from RabbitMQ:\n" + "\n".join(wrong)


CASES = [json_has_the_types_of_rabbitmqctl]

if __name__ == "__main__":
    record()
