"""The shapes of JSON values: their members and types, to compare answers whose values differ."""

from __future__ import annotations

from typing import Any, Iterator


def shape(value: Any) -> Any:
    """Returns the keys and types of a JSON value; for a list, those of all its items together."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        merged: Any = {}
        for inner in map(shape, value):
            merged = together(merged, inner if isinstance(inner, dict) else {"": inner})
        return [merged]
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, (int, float)):
        return "number"
    return "null" if value is None else "text"


def together(one: Any, other: Any) -> Any:
    """Returns the shape of two items of a list. Where their types differ, there is any value."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: together(one[key], other[key]) for key in one.keys() & other.keys()}
        return dict(sorted({**one, **other, **both}.items()))
    if isinstance(one, list) and isinstance(other, list):
        return [together(one[0], other[0])]
    return one if one == other else "any"


def differences(path: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Returns what RabbitMQ's answer has and Leveret's lacks or has with another type. Additional fields are allowed. The
    type is part of the difference: strict clients stop at a text in place of an object.
    """
    if isinstance(theirs, list) and isinstance(ours, list):
        # A list that is empty on one side shows nothing about its items.
        if theirs[0] and ours[0]:
            yield from differences(path + "[]", theirs[0], ours[0])
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        for key, inner in theirs.items():
            if key in ours:
                yield from differences(f"{path}.{key}", inner, ours[key])
            else:
                yield f"{path}.{key} missing"
    elif "any" not in (theirs, ours) and (type(theirs) is not type(ours) or theirs != ours):
        yield f"{path} {kind(ours)}, not {kind(theirs)}"


def kind(found: Any) -> str:
    """Returns the name of a type."""
    return {dict: "object", list: "list"}.get(type(found), found)
