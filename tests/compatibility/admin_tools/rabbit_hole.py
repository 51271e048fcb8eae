"""The requests of the Go library rabbit-hole, and its types, which decode the answers.

Terraform's provider for RabbitMQ uses the library. Its module is not available from the registries that the tests use,
so `rabbit_hole_calls.txt` has its requests, and `rabbit_hole_types.txt` the fields of its types. `decode` accepts what
Go's `encoding/json` accepts: one text in place of a number makes a whole answer useless to such a client.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from harness import raw
from harness.brokers import Address
from harness.suite import patience, until
from sides import LOGIN, Side, listed

HERE = Path(__file__).resolve().parent
TYPES = HERE / "rabbit_hole_types.txt"
CALLS = HERE / "rabbit_hole_calls.txt"
DIFFERENCES = HERE / "rabbit_hole_differences.txt"
SIZES = {"int": (-(2 ** 63), 2 ** 63), "int32": (-(2 ** 31), 2 ** 31), "uint": (0, 2 ** 64), "uint32": (0, 2 ** 32)}
PHASES = ["permitted_by_default", "denied_by_default", "disconnect", "removed"]


class Call(NamedTuple):
    """A request and its expected answer. `kind` is empty if the library ignores the body."""

    line: str
    method: str
    path: str
    body: Optional[str]
    kind: str
    expected: Any


class Mismatch(Exception):
    """A type of Go cannot hold a value."""


def read_types() -> Dict[str, Dict[str, str]]:
    """Reads the fields of each type."""
    types: Dict[str, Dict[str, str]] = {}
    for line in "\n".join(listed(TYPES)).replace("\n  ", " ").splitlines():
        name, *fields = line.split()
        types[name] = dict(field.split(":", 1) for field in fields)
    return types


def read_calls() -> List[Call]:
    """Reads the requests."""
    calls = []
    for line in listed(CALLS):
        request, _, answer = line.partition(" -> ")
        method, path, *body = request.split(" ", 2)
        kind, _, expected = answer.partition(" ")
        calls.append(Call(line, method, path, body[0] if body else None, kind, json.loads(expected or "null")))
    return calls


TYPE_FIELDS = read_types()


def decode(kind: str, value: Any, place: str) -> None:
    """Raises `Mismatch` for a value that Go refuses. Additional fields and missing ones are allowed."""
    if kind == "any" or value is None and kind not in ("AutoDelete", "Port", "DeleteAfter"):
        return
    if kind.startswith("[]"):
        need(isinstance(value, list), kind, value, place)
        for item in value:
            decode(kind[2:], item, place + "[]")
    elif kind.startswith("map"):
        need(isinstance(value, dict), kind, value, place)
        for item in value.values():
            decode(kind[4:] or "any", item, place + ".*")
    elif kind in TYPE_FIELDS:
        # RabbitMQ writes an empty list for the channel of a consumer that has ended. The library allows for it.
        if kind == "ChannelDetails" and value == []:
            return
        need(isinstance(value, dict), kind, value, place)
        for name, inner in TYPE_FIELDS[kind].items():
            if name in value:
                decode(inner, value[name], f"{place}.{name}")
    else:
        need(fits(kind, value), kind, value, place)


def fits(kind: str, value: Any) -> bool:
    """Returns whether a value of JSON fits a simple type."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if kind in SIZES:
        return is_int and SIZES[kind][0] <= value < SIZES[kind][1]
    if kind == "float":
        return is_int or isinstance(value, float)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    if kind == "Port":
        return is_int or isinstance(value, str) and (value.isdigit() or value == "undefined")
    if kind == "AutoDelete":
        return isinstance(value, bool) or value == "undefined"
    if kind in ("Tags", "URISet"):
        return isinstance(value, str) or isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == "DeleteAfter":
        return is_int or isinstance(value, str)
    assert kind == "DeprecationPhase", f"no such type: {kind}"
    return value in PHASES


def need(holds: bool, kind: str, value: Any, place: str) -> None:
    """Raises `Mismatch` if the type cannot hold the value."""
    if not holds:
        raise Mismatch(f"{place}: {json.dumps(value)[:80]} is no {kind}")


def contains(found: Any, expected: Any) -> bool:
    """Returns whether an answer has what is expected: in objects these keys, in lists one item for each."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(contains(found.get(key), value) for key, value in expected.items())
    if isinstance(expected, list):
        if not isinstance(found, list) or not expected and found:
            return False
        return all(any(contains(one, item) for one in found) for item in expected)
    return found == expected


def unlike(found: Any, expected: Any) -> str:
    """Returns the keys of an answer whose values are not as expected, or the number of items of a list."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key, value in expected.items() if not contains(found.get(key), value)]
        return ", ".join(f"{key} is {json.dumps(found[key])}" if key in found else f"no {key}" for key in keys)
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected) == 1:
        return unlike(found[0], expected[0])
    return f"{len(found)} items" if isinstance(found, list) else json.dumps(found)


def request(side: Side, method: str, path: str, body: Optional[str]) -> Tuple[int, bytes]:
    """Returns status and body of an answer. The headers are those of the library, which closes each connection."""
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=patience(60))
    try:
        headers = {"Authorization": LOGIN, "Content-Type": "application/json", "Connection": "close",
                   "User-Agent": "Go-http-client/1.1"}
        connection.request(method, "/api/" + path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def result(side: Side, call: Call, names: Dict[str, str]) -> str:
    """Returns the verdict of the library on an answer, which is empty for a success."""
    path, body, expected = call.path, call.body, json.dumps(call.expected)
    for name, value in names.items():
        path = path.replace(name, urllib.parse.quote(value, safe=""))
        expected = expected.replace(name, value)
    status, text = request(side, call.method, path, body)
    if not call.kind:
        is_success = status < 300 or call.method == "DELETE" and status == 404
        return "" if is_success else f"status {status}"
    kind = call.kind.lstrip("!")
    is_refusal = call.kind == "ErrorResponse" or call.kind.startswith("!")
    if is_refusal != (status >= 400):
        return f"status {status}"
    try:
        answer = json.loads(text)
        decode(kind, answer, kind)
    except (ValueError, Mismatch) as why:
        return f"not decoded: {why}"
    if call.expected is not None and not contains(answer, json.loads(expected)):
        return f"not as expected: {unlike(answer, json.loads(expected))}"
    return ""


def outcome(side: Side) -> Dict[str, str]:
    """Returns the verdict on each call. A call that occurs twice has a number."""
    client = raw.Client(Address("127.0.0.1", side.amqp_port))
    try:
        client.open(1)
        client.call(1, "queue.declare", queue="live", durable=True)
        client.call(1, "basic.qos", prefetch_count=7)
        client.call(1, "basic.consume", queue="live", consumer_tag="c")
        names = {"NODE": side.ask("GET", "nodes")[0]["name"], "PORT": str(side.amqp_port)}
        until("the API knows the consumer and its connection", lambda: knows(side), 60)
        names["CONNECTION"] = side.ask("GET", "connections")[0]["name"]
        names["CHANNEL"] = side.ask("GET", "channels")[0]["name"]
        found: Dict[str, str] = {}
        for call in read_calls():
            line = call.line
            while line in found:
                line += " (again)"
            found[line] = result(side, call, names)
            # RabbitMQ updates its statistics every five seconds.
            for _ in range(4):
                if side.is_rabbitmq and found[line].startswith("not as expected"):
                    time.sleep(2)
                    found[line] = result(side, call, names)
        return found
    finally:
        client.close()


def knows(side: Side) -> bool:
    """Returns whether the API reports the client completely."""
    connections, channels = side.ask("GET", "connections"), side.ask("GET", "channels")
    return bool(connections and "user" in connections[0] and channels and channels[0].get("consumer_count") == 1
                and side.ask("GET", "consumers") and side.ask("GET", "overview")["object_totals"]["consumers"] == 1)


def found_differences(theirs: Dict[str, str], ours: Dict[str, str]) -> Iterator[str]:
    """Returns the calls that fail with one of the brokers. `tests/compatibility/management` compares the fields that
    answers have.
    """
    for line, verdict in theirs.items():
        request_line = line.split(" -> ")[0].split(" {")[0]
        for name, said in (("RabbitMQ", verdict), ("Leveret", ours[line])):
            if said:
                yield f"{request_line}: {name}: {said}"


def compare(theirs: Dict[str, str], ours: Dict[str, str]) -> None:
    """Every function of the library works, except for the listed differences, which all have to occur."""
    found, meant = list(found_differences(theirs, ours)), listed(DIFFERENCES)
    works = sum(not verdict for verdict in theirs.values())
    both = sum(not verdict and not ours[line] for line, verdict in theirs.items())
    print(f"# {both} of {works} calls that succeed with RabbitMQ do with Leveret; "
          f"{sum(not verdict for verdict in ours.values())} of {len(ours)} altogether")
    news = [line for line in found if line not in meant]
    gone = [line for line in meant if line not in found]
    assert not news, "different:\n" + "\n".join(news)
    assert not gone, "listed, but no longer different:\n" + "\n".join(gone)
