"""Runs the same commands with `rabbitmqctl` 3.10.8 and with `leveret ctl`, and compares the output.

The order of rows, process ids, ports, memory and node names may differ. Everything else must be equal, including
banners, headers, error texts and exit codes, except for the entries of `DIFFERS`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any, Callable, Dict, List, Tuple

from harness import environment
from harness.brokers import RabbitMq, leveret, rabbitmq
from harness.suite import patience
from support import Done, command_of, ctl

# The words of each command, in order. `{home}` is a folder of each side.
SCRIPT: List[List[str]] = [
    line.split(" ")
    for line in """
list_queues
list_queues name messages durable auto_delete arguments exclusive state
-q list_queues name messages consumers
-s list_queues name messages
-t 5 list_queues
list_queues --vhost=/ name
list_queues --no-table-headers name
list_queues --formatter json name messages durable
list_queues --formatter csv name messages arguments
list_queues name messages_ready messages_unacknowledged messages_persistent policy type owner_pid pid
list_queues name messages_ram messages_ready_ram messages_unacknowledged_ram
list_queues name message_bytes message_bytes_ready message_bytes_unacknowledged
list_queues name slave_pids synchronised_slave_pids head_message_timestamp leader members online
list_connections user ssl_protocol ssl_key_exchange ssl_cipher ssl_hash peer_cert_subject peer_cert_issuer peer_cert_validity
list_queues name nosuch
list_queues -p nosuch
list_queues --bogus
list_queues -p
list_queue
lst_quees
list_exchanges name type durable auto_delete internal arguments policy
list_bindings
list_bindings -p nosuch
list_connections
list_connections name user vhost state protocol channels frame_max channel_max timeout host peer_host ssl
list_channels
list_channels name connection number user vhost transactional confirm consumer_count prefetch_count
list_consumers
list_consumers --formatter json queue_name consumer_tag ack_required prefetch_count active
list_users
-q list_users
-s list_users
list_users --formatter json
list_users --formatter csv
list_users nosuchcolumn
add_user bob secret
add_user bob secret
-q add_user ann secret
add_user
add_user a b c
set_user_tags bob management monitoring
set_user_tags ann
set_user_tags nosuch administrator
list_users
change_password bob new
change_password nosuch new
authenticate_user bob new
-q authenticate_user bob new
authenticate_user bob wrong
authenticate_user nosuch wrong
clear_password ann
authenticate_user ann secret
list_vhosts
list_vhosts name tracing
trace_on
list_vhosts name tracing
-q trace_on
trace_off
list_vhosts name tracing
trace_on -p nosuch
enable_feature_flag all
enable_feature_flag quorum_queue
enable_feature_flag nosuch
node_health_check
-q node_health_check
add_vhost v1
add_vhost v1
set_permissions -p v1 bob .* ^a ^$
set_permissions bob .* .* .*
set_permissions -p nosuch bob .* .* .*
set_permissions -p v1 nosuch .* .* .*
set_permissions bob .*
list_permissions
list_permissions -p v1
list_permissions -p nosuch
list_permissions --formatter json
list_user_permissions bob
list_user_permissions nosuch
set_topic_permissions -p v1 bob amq.topic ^a ^b
list_topic_permissions -p v1
list_topic_permissions
list_user_topic_permissions bob
clear_topic_permissions -p v1 bob amq.topic
clear_topic_permissions -p v1 bob
clear_permissions -p v1 bob
clear_permissions -p v1 nosuch
list_permissions -p v1
list_permissions -p v1 --formatter json
set_vhost_limits -p v1 {"max-queues":5,"max-connections":7}
list_vhost_limits -p v1
list_vhost_limits
set_vhost_limits -p v1 x
set_vhost_limits -p nosuch {"max-queues":1}
set_vhost_limits -p v1 {"max-queues":3,"foo":1}
set_vhost_limits -p v1 {"max-queues":"a"}
list_vhost_limits --global
clear_vhost_limits -p v1
list_vhost_limits -p v1
list_vhost_limits --global
list_user_limits --user bob
list_user_limits --global
list_user_limits
set_user_limits bob {"max-connections":2,"max-channels":3}
set_user_limits guest {"max-channels":700}
list_user_limits --user bob
list_user_limits --user nosuch
list_user_limits --global
-q list_user_limits --global
-s list_user_limits --user bob
list_user_limits --user bob --formatter json
list_user_limits bob
set_user_limits bob x
set_user_limits bob {"max-queues":1}
set_user_limits bob {"max-channels":"a"}
set_user_limits bob {"max-channels":5}
list_user_limits --user bob
set_user_limits bob
set_user_limits nosuch {"max-channels":1}
clear_user_limits bob max-connections
list_user_limits --user bob
clear_user_limits bob nosuchlimit
clear_user_limits nosuch max-channels
clear_user_limits bob
clear_user_limits bob all
list_user_limits --user bob
list_parameters
list_parameters -p nosuch
list_parameters --formatter json
set_parameter nope x {"a":1}
set_parameter nope x {
set_parameter -p nosuch nope x {"a":1}
clear_parameter nope x
clear_parameter -p nosuch nope x
set_global_parameter g {"b":[1,2.5],"a":"x"}
set_global_parameter g {
clear_global_parameter g
clear_global_parameter g
list_policies
list_policies -p nosuch
set_policy p ^q {"max-length":3}
set_policy --priority 5 --apply-to queues p ^q {"overflow":"reject-publish","max-length-bytes":100}
set_policy -p v1 --priority -3 neg ^zz {"max-length":3}
list_policies
list_policies -p v1
list_policies --formatter json
-s list_policies
set_policy bad ^q {"nonsense":3,"other":4,"max-length":5}
set_policy bad ^q {"federation-upstream":"x"}
set_policy bad ^q {"max-length":"x"}
set_policy bad ^q {"message-ttl":-1}
set_policy bad ^q {"expires":0}
set_policy bad ^q {"overflow":"x"}
set_policy bad ^q {"dead-letter-routing-key":[1,"a"]}
set_policy bad ^q {"alternate-exchange":{"a":1}}
set_policy bad ^q {"ha-params":2}
set_policy bad ^q {}
set_policy bad ^q {x
set_policy --priority x bad ^q {"max-length":3}
set_policy --apply-to topics bad ^q {"max-length":3}
set_policy -p nosuch bad ^q {"max-length":3}
set_policy bad ^q
list_queues name policy
clear_policy nothing
clear_policy -p nosuch nothing
set_operator_policy op ^q {"max-length":2}
set_operator_policy op ^q {"overflow":"drop-head"}
list_operator_policies
-q list_operator_policies
clear_operator_policy nothing
clear_operator_policy op
clear_policy p
list_operator_policies
set_policy ha ^h {"ha-mode":"all","ha-sync-mode":"automatic"}
list_policies
clear_policy ha
list_queues -p v1
list_queues -p v1 --formatter json
list_queues -p v1 --formatter csv
list_queues -p v1 --formatter pretty_table
purge_queue dur
purge_queue nosuch
-q purge_queue dur
delete_queue nosuch
delete_queue --if-unused dur
delete_queue -e plain
-q delete_queue args
delete_queue -p nosuch q
close_connection nosuch why
close_all_user_connections nosuch why
delete_user bob
delete_user bob
delete_vhost v1
delete_vhost v1
export_definitions
export_definitions /nosuchdir/x
close_all_connections
close_all_connections -p nosuch why
close_all_connections why
""".strip().splitlines()
]

# Commands whose output differs intentionally.
DIFFERS = {
    # Leveret allows more arguments to be omitted: it then asks for the password.
    "add_user", "add_user a b c",
    # rabbitmqctl deletes a queue with consumers nevertheless.
    "delete_queue --if-unused dur",
    # rabbitmqctl lists a missing virtual host as if it were empty. Leveret reports the mistyped name.
    "list_queues -p nosuch", "list_bindings -p nosuch",
    # rabbitmqctl traces a virtual host that does not exist.
    "trace_on -p nosuch",
}

# The same for the checks of `rabbitmq-diagnostics`.
CHECKS: List[List[str]] = [
    line.split(" ")
    for line in """
check_running
-q check_running
check_local_alarms
check_alarms
check_port_connectivity
check_port_listener {port}
check_port_listener 1
check_protocol_listener amqp
check_protocol_listener mqtt
check_virtual_hosts
is_running
is_booting
""".strip().splitlines()
]


def checks_equal_rabbitmqctl() -> None:
    """The checks that scripts run print the same as RabbitMQ's."""
    environment.have_rabbitmq()
    with rabbitmq() as oracle, leveret() as broker:
        for check in CHECKS:
            their_words, our_words = ([word.format(port=side.address.port) for word in check]
                                      for side in (oracle, broker))
            theirs = checked(oracle, by_diagnostics(oracle, their_words))
            ours = checked(broker, ctl(broker, *our_words))
            assert theirs == ours, f"{check}: rabbitmq-diagnostics prints {theirs}, leveretctl {ours}"


def by_diagnostics(oracle: RabbitMq, words: List[str]) -> Done:
    """Runs the real rabbitmq-diagnostics on its node."""
    command = [str(oracle.sbin / "rabbitmq-diagnostics"), "-n", "oracle@localhost", *words]
    done = subprocess.run(command, env=oracle.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience(120), check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def checked(side: object, done: Done) -> List[str]:
    """Returns the output without the port and the protocol that RabbitMQ uses between its nodes."""
    port = str(side.address.port)  # type: ignore[attr-defined]
    said = [re.sub(rf"\b{port}\b", "PORT", text) for text in normal(done)]
    return [re.sub(r"PORT, \d+|\d+, PORT", "PORT", text).replace("amqp, clustering", "amqp") for text in said]



def without_plain_words(said: Any) -> Any:
    """Returns the output without the sentences that Leveret adds to Erlang terms."""
    if isinstance(said, list):
        return [without_plain_words(part) for part in said]
    return re.sub(r"^(Error:\n(?:{:.*}|JSON decoding error. Reason: badarg|not_found))\n"
                  r"(?:There is no |The (?:definition|value) is not JSON: ).*$", r"\1", said)


def output_equals_rabbitmqctl() -> None:
    """Every command that both have prints the same."""
    environment.have_rabbitmq()
    with rabbitmq() as oracle, leveret() as broker:
        theirs = play(oracle.address.port, lambda words: by_rabbitmqctl(oracle, words))
        ours = play(broker.address.port, lambda words: ctl(broker, *words))
    different: Dict[str, Tuple[List[str], List[str]]] = {}
    for words in SCRIPT:
        name = " ".join(words)
        if name not in DIFFERS and theirs[name] != without_plain_words(ours[name]):
            different[name] = (theirs[name], ours[name])
    for name, (one, other) in different.items():
        print(f"--- {name}\nrabbitmqctl: {one}\nleveretctl:  {other}")
    assert not different, f"{len(different)} of {len(SCRIPT)} commands differ: {list(different)}"


def play(port: int, run: Callable[[List[str]], Done]) -> Dict[str, List[List[str]]]:
    """Runs the script on one side, beside a program that declares and uses objects. Returns the output by command."""
    program = subprocess.Popen(command_of("topology", port), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    said: Dict[str, List[List[str]]] = {}
    try:
        assert program.stdout and program.stdout.readline() == "ready\n"
        for words in SCRIPT:
            said.setdefault(" ".join(words), []).append(normal(run(words)))
    finally:
        program.kill()
        program.wait(patience(10))
    return said


def by_rabbitmqctl(oracle: RabbitMq, words: List[str]) -> Done:
    """Runs the real rabbitmqctl on its node."""
    done = oracle.rabbitmqctl(words)
    return Done(done.returncode, done.stdout, done.stderr)


def normal(done: Done) -> List[str]:
    """Returns the output without values that must differ, with sorted rows."""
    out, err = (plain(text) for text in (done.out, done.err))
    # The usage text of a command is Leveret's own.
    err = err.split("\nUsage")[0]
    lines = [line for line in err.splitlines() if " [warning] " not in line]
    return [str(done.status), "\n".join(sorted(out.splitlines())), "\n".join(lines).strip()]


def plain(text: str) -> str:
    """Returns the text with placeholders for everything that differs between runs."""
    text = re.sub(r"\x1b\[\d+m", "", text)
    text = re.sub(r"<(oracle@localhost|leveret)[.\w]*>", "PID", text)
    text = re.sub(r"(-n|--data-dir) \S+ ", "", text)
    text = re.sub(r"oracle@localhost|leveret@[\w-]+(?:\.[\w-]+)*", "NODE", text)
    text = re.sub(r"127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+", "NAME", text)
    text = re.sub(r"(?<=127\.0\.0\.1\t)\d+", "PORT", text)
    text = text.replace("rabbitmqctl", "leveretctl")
    # RabbitMQ creates this exchange when its log is first requested.
    text = re.sub(r"amq\.rabbitmq\.log\t.*\n", "", text)
    # A row in JSON begins with "[{" or ",{".
    return re.sub(r"(?m)^,(?=\{)", "", text)


CASES = [output_equals_rabbitmqctl, checks_equal_rabbitmqctl]

if __name__ == "__main__":
    sys.exit("run ./run output-equals-rabbitmqctl")
