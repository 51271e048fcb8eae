"""Operations with every set of permissions, and the recorded form of their answers.

Eight users try each operation. They are named after their permissions: `c`onfigure, `w`rite, `r`ead, all or none.
The other scenarios have users of their own. One line per answer.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, NamedTuple, Tuple

from harness.brokers import Address
from harness.raw import Client, Closed, name_of

PASSWORD = "secret"
RIGHTS = ["cwr", "cw-", "c-r", "-wr", "c--", "-w-", "--r", "---"]
ALL, NONE = ".*", "^$"

# Virtual hosts, and users with tags. "/" and guest exist already.
VHOSTS = ["/", "other", "many", "full"]
LIMITS = {"many": {"max-queues": 1}, "full": {"max-connections": 1}}
USERS = [*RIGHTS, "stranger", "mine", "empty", "default", "gen", "topic", "dot.user", "double", "many"]
TAGS = {"double": ["impersonator"]}
# user, vhost, configure, write, read
PERMISSIONS: List[Tuple[str, str, str, str, str]] = [
    *((user, "/", *(ALL if right in user else NONE for right in "cwr")) for user in RIGHTS),
    ("mine", "/", "mine", "^mine$", "^mine-|^also$"),
    ("empty", "/", "", "", ""),
    ("default", "/", "", "^amq\\.default$", ""),
    ("gen", "/", "^amq\\.gen.*", "", ""),
    ("topic", "/", ALL, ALL, ALL),
    ("dot.user", "other", ALL, ALL, ALL),
    ("double", "/", ALL, ALL, ALL),
    ("many", "many", ALL, ALL, ALL),
    ("many", "full", ALL, ALL, ALL),
]
# user, vhost, exchange, write, read
TOPICS = [
    ("topic", "/", "t", "^a\\.", "^b\\."),
    ("topic", "/", "amq.topic", "", "^{username}\\.{vhost}\\.{client_id}$"),
    ("topic", "/", "x", "^never$", "^never$"),
    ("dot.user", "other", "amq.topic", "^{username}-{vhost}$", ".*"),
]


class Operation(NamedTuple):
    """A method with its fields. A publish is followed by a method that shows its effect."""

    title: str
    name: str
    args: Dict[str, Any]


def op(title: str, name: str, **args: Any) -> Operation:
    """Returns one operation of the table."""
    return Operation(title, name, args)


AE = {"alternate-exchange": "ae"}
DLX = {"x-dead-letter-exchange": "dlx"}

OPERATIONS: List[Operation] = [
    op("declare an exchange", "exchange.declare", exchange="new-x", type="direct"),
    op("declare an exchange that exists", "exchange.declare", exchange="x", type="direct"),
    op("declare an exchange otherwise", "exchange.declare", exchange="x", type="fanout"),
    op("declare an exchange passively", "exchange.declare", exchange="x", type="direct", passive=True),
    op("declare a missing exchange passively", "exchange.declare", exchange="missing", type="direct", passive=True),
    op("declare an exchange with an alternate", "exchange.declare", exchange="new-ae", type="direct", arguments=AE),
    op("declare a reserved exchange", "exchange.declare", exchange="amq.new", type="direct"),
    op("declare a predeclared exchange", "exchange.declare", exchange="amq.direct", type="direct", durable=True),
    op("declare the default exchange", "exchange.declare", exchange="", type="direct"),
    op("declare an exchange of no type", "exchange.declare", exchange="new-y", type="no-such"),
    op("delete an exchange", "exchange.delete", exchange="new-x"),
    op("delete a missing exchange", "exchange.delete", exchange="missing"),
    op("delete a predeclared exchange", "exchange.delete", exchange="amq.direct"),
    op("delete the default exchange", "exchange.delete", exchange=""),
    op("bind an exchange", "exchange.bind", destination="x", source="fan", routing_key="k"),
    op("bind an exchange to itself missing", "exchange.bind", destination="missing", source="fan", routing_key="k"),
    op("bind an exchange to a missing one", "exchange.bind", destination="x", source="missing", routing_key="k"),
    op("bind an exchange to the default one", "exchange.bind", destination="x", source="", routing_key="k"),
    op("bind the default exchange", "exchange.bind", destination="", source="x", routing_key="k"),
    op("unbind an exchange", "exchange.unbind", destination="x", source="fan", routing_key="k"),
    op("unbind a missing exchange", "exchange.unbind", destination="missing", source="gone", routing_key="k"),
    op("declare a queue", "queue.declare", queue="new-q"),
    op("declare a queue that exists", "queue.declare", queue="q"),
    op("declare a queue otherwise", "queue.declare", queue="q", durable=True),
    op("declare a queue passively", "queue.declare", queue="q", passive=True),
    op("declare a missing queue passively", "queue.declare", queue="missing", passive=True),
    op("declare a queue without a name", "queue.declare", queue="", exclusive=True),
    op("declare a reserved queue", "queue.declare", queue="amq.new"),
    op("declare a queue with a dead-letter exchange", "queue.declare", queue="new-dl", arguments=DLX),
    op("declare a queue that exists with one", "queue.declare", queue="q", arguments=DLX),
    op("declare a queue with a wrong argument", "queue.declare", queue="new-z", arguments={"x-expires": 0}),
    op("bind a queue", "queue.bind", queue="q", exchange="x", routing_key="k"),
    op("bind a missing queue", "queue.bind", queue="missing", exchange="x", routing_key="k"),
    op("bind a queue to a missing exchange", "queue.bind", queue="q", exchange="missing", routing_key="k"),
    op("bind a queue to the default exchange", "queue.bind", queue="q", exchange="", routing_key="k"),
    op("unbind a queue", "queue.unbind", queue="q", exchange="x", routing_key="k"),
    op("unbind a missing queue", "queue.unbind", queue="missing", exchange="x", routing_key="k"),
    op("unbind a queue from the default exchange", "queue.unbind", queue="q", exchange="", routing_key="k"),
    op("purge a queue", "queue.purge", queue="q"),
    op("purge a missing queue", "queue.purge", queue="missing"),
    op("delete a queue", "queue.delete", queue="new-q"),
    op("delete a missing queue", "queue.delete", queue="missing"),
    op("publish", "basic.publish", exchange="x", routing_key="k"),
    op("publish to the default exchange", "basic.publish", exchange="", routing_key="q"),
    op("publish to a missing exchange", "basic.publish", exchange="missing", routing_key="q"),
    op("publish to an internal exchange", "basic.publish", exchange="internal", routing_key="q"),
    op("get", "basic.get", queue="q", no_ack=True),
    op("get from a missing queue", "basic.get", queue="missing"),
    op("consume", "basic.consume", queue="q", no_ack=True),
    op("consume from a missing queue", "basic.consume", queue="missing"),
    op("consume replies", "basic.consume", queue="amq.rabbitmq.reply-to", no_ack=True),
]

# Object names against permission patterns: user and operation.
NAMED: List[Tuple[str, Operation]] = [
    ("mine", op("a pattern is not anchored", "queue.declare", queue="so-mine-too")),
    ("mine", op("another name", "queue.declare", queue="my")),
    ("mine", op("an anchored pattern", "basic.publish", exchange="mine", routing_key="")),
    ("mine", op("an anchored pattern and more", "basic.publish", exchange="mines", routing_key="")),
    ("mine", op("one of two patterns", "basic.get", queue="mine-q")),
    ("mine", op("the other of two", "basic.get", queue="also")),
    ("mine", op("neither of two", "basic.get", queue="not-also")),
    ("mine", op("read on the queue for its dead letters", "queue.declare", queue="mine", arguments=DLX)),
    ("mine", op("write on the dead-letter exchange", "queue.declare", queue="mine-q2", arguments=DLX)),
    ("mine", op("read on the exchange for its alternate", "exchange.declare", exchange="mine", type="direct",
                arguments=AE)),
    ("mine", op("write on the alternate exchange", "exchange.declare", exchange="mine-x", type="direct",
                arguments=AE)),
    ("empty", op("an empty pattern and a name", "queue.declare", queue="q9")),
    ("empty", op("an empty pattern and no name", "basic.publish", exchange="", routing_key="q")),
    ("default", op("the default exchange by its name", "basic.publish", exchange="", routing_key="q")),
    ("default", op("no other exchange", "basic.publish", exchange="x", routing_key="q")),
    ("gen", op("a name that the broker makes", "queue.declare", queue="", exclusive=True)),
    ("mine", op("a name that the broker makes is refused", "queue.declare", queue="", exclusive=True)),
    ("topic", op("a key to write", "basic.publish", exchange="t", routing_key="a.1")),
    ("topic", op("another key to write", "basic.publish", exchange="t", routing_key="b.1")),
    ("topic", op("an empty pattern for keys", "basic.publish", exchange="amq.topic", routing_key="k")),
    ("topic", op("an empty pattern and an empty key", "basic.publish", exchange="amq.topic", routing_key="")),
    ("topic", op("no topic exchange", "basic.publish", exchange="x", routing_key="k")),
    ("topic", op("a topic exchange without patterns", "basic.publish", exchange="t2", routing_key="k")),
    ("topic", op("a key to read", "queue.bind", queue="q", exchange="t", routing_key="b.1")),
    ("topic", op("another key to read", "queue.bind", queue="q", exchange="t", routing_key="a.1")),
    ("topic", op("unbinding a key", "queue.unbind", queue="q", exchange="t", routing_key="a.1")),
    ("topic", op("an exchange by a key", "exchange.bind", destination="x", source="t", routing_key="a.1")),
    ("topic", op("variables, but no client id", "queue.bind", queue="q", exchange="amq.topic",
                 routing_key="topic./.x")),
    ("topic", op("a missing topic exchange", "queue.bind", queue="q", exchange="gone", routing_key="a.1")),
]


def run(address: Address) -> List[str]:
    """Returns all answers, one line each."""
    lines: List[str] = []
    with Client(address) as guest:
        prepare(guest)
        for operation in OPERATIONS:
            for user in RIGHTS:
                prepare(guest)
                lines.append(f"{operation.title} | {user} | {attempt(address, user, '/', operation)}")
        for user, operation in NAMED:
            lines.append(f"{operation.title} | {user} | {attempt(address, user, '/', operation)}")
    lines.extend(comings_in(address))
    lines.extend(others(address))
    return lines


def prepare(guest: Client) -> None:
    """Declares what the operations need."""
    guest.open()
    for name, kind, internal in (("x", "direct", False), ("fan", "fanout", False), ("t", "topic", False),
                                 ("t2", "topic", False), ("internal", "fanout", True), ("mines", "fanout", False)):
        guest.call(1, "exchange.declare", exchange=name, type=kind, internal=internal)
    guest.call(1, "exchange.declare", exchange="mine", type="fanout")
    for queue in ("q", "mine-q", "also", "not-also"):
        guest.call(1, "queue.declare", queue=queue)
    for queue in ("new-q", "new-dl", "new-z", "so-mine-too"):
        guest.call(1, "queue.delete", queue=queue)
    for exchange in ("new-x", "new-ae"):
        guest.call(1, "exchange.delete", exchange=exchange)
    guest.call(1, "channel.close", reply_code=200)


def attempt(address: Address, user: str, vhost: str, operation: Operation, password: str = PASSWORD,
            **properties: Any) -> str:
    """Returns the result of an operation."""
    try:
        client = Client(address, user=user, password=password, vhost=vhost)
    except Closed as refused:
        return shown(refused)
    try:
        client.open()
        if operation.name == "basic.publish":
            args = operation.args
            client.publish(1, args["exchange"], args["routing_key"], b"x", **properties)
            client.call(1, "basic.qos")
            return "ok"
        reply = client.call(1, operation.name, **operation.args)
        return f"ok {name_of(reply)}"
    except Closed as refused:
        return shown(refused)
    finally:
        client.close()


def shown(refused: Closed) -> str:
    """Returns a close as one line, without names generated by the broker."""
    if refused.method is None:
        return "the socket was closed"
    method = refused.method
    text = re.sub(r"amq\.gen-[\w-]{22}", "amq.gen-*", method.args["reply_text"].decode(errors="replace"))
    where = f"{method.args['class_id']}.{method.args['method_id']}"
    return f"{method.name} {method.args['reply_code']} {text} ({where})"


def enter(address: Address, user: str, password: str, vhost: str = "/", mechanism: str = "PLAIN") -> str:
    """Returns the result of a login."""
    try:
        Client(address, user=user, password=password, vhost=vhost, mechanism=mechanism).close()
    except Closed as refused:
        return shown(refused)
    return "ok"


def comings_in(address: Address) -> List[str]:
    """Tries which users can open which virtual hosts."""
    answers = [
        ("a right password", enter(address, "mine", PASSWORD)),
        ("a wrong password", enter(address, "mine", "wrong")),
        ("an empty password", enter(address, "mine", "")),
        ("an unknown user", enter(address, "nobody", PASSWORD)),
        ("an unknown user without a name", enter(address, "", "")),
        ("AMQPLAIN", enter(address, "mine", PASSWORD, mechanism="AMQPLAIN")),
        ("AMQPLAIN and a wrong password", enter(address, "mine", "wrong", mechanism="AMQPLAIN")),
        ("no permission for the virtual host", enter(address, "stranger", PASSWORD)),
        ("no permission for this virtual host", enter(address, "mine", PASSWORD, "other")),
        ("a permission of empty patterns", enter(address, "empty", PASSWORD)),
        ("a missing virtual host", enter(address, "mine", PASSWORD, "missing")),
        ("a virtual host without a name", enter(address, "mine", PASSWORD, "")),
    ]
    with Client(address, user="many", password=PASSWORD, vhost="full"):
        answers.append(("a virtual host that is full", enter(address, "many", PASSWORD, "full")))
        answers.append(("full, and not permitted", enter(address, "mine", PASSWORD, "full")))
    return [f"{title} | {answer}" for title, answer in answers]


def others(address: Address) -> List[str]:
    """Tries the separation of virtual hosts, their limits, and the check of `user_id`."""
    declare = op("", "queue.declare", queue="one")
    publish = op("", "basic.publish", exchange="", routing_key="q")
    topic = [op("", "basic.publish", exchange="amq.topic", routing_key=key)
             for key in ("dot.user-other", "dotxuser-other", "dot.user-/")]
    answers: List[Tuple[str, str]] = [
        ("another virtual host has other queues",
         attempt(address, "dot.user", "other", op("", "queue.declare", queue="q", passive=True))),
        ("and its own exchanges", attempt(address, "dot.user", "other", op("", "queue.bind", queue="q", exchange="x"))),
        ("the first queue", attempt(address, "many", "many", declare)),
        ("the same again", attempt(address, "many", "many", declare)),
        ("one more queue", attempt(address, "many", "many", op("", "queue.declare", queue="two"))),
        ("a passive one more", attempt(address, "many", "many", op("", "queue.declare", queue="two", passive=True))),
        ("variables filled in", attempt(address, "dot.user", "other", topic[0])),
        ("variables of another virtual host", attempt(address, "dot.user", "other", topic[2])),
        ("one's own user id", attempt(address, "topic", "/", publish, props={"user_id": "topic"})),
        ("another's user id", attempt(address, "topic", "/", publish, props={"user_id": "mine"})),
        ("an impersonator's", attempt(address, "double", "/", publish, props={"user_id": "mine"})),
    ]
    return [f"{title} | {answer}" for title, answer in answers]
