"""Adds the names to `collections` that pika 0.13.1 uses and Python 3.10 removed."""

import collections
import collections.abc

for name in ("Callable", "Mapping", "MutableMapping", "Iterable"):
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))
