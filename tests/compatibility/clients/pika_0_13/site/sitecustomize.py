"""pika 0.13.1 looks for these in `collections`, where Python 3.10 no longer has them."""

import collections
import collections.abc

for name in ("Callable", "Mapping", "MutableMapping", "Iterable"):
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))
