"""Importing this package registers every scenario, in the order of the chapters of the AMQP specification."""

from . import handshake, framing, channels, exchanges, queues, bindings  # noqa: F401
from . import publishing, routing, confirms, consuming, settling, transactions  # noqa: F401
from . import reply_to, limits, dead_letters, expiry, policies, priorities, firehose, pipelined  # noqa: F401
