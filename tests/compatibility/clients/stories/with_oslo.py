"""oslo.messaging: notifications over both kills, each processed at least once; calls answered before and after them,
and a fanout that reaches the server."""

import os
import sys
import threading
import time

import oslo_messaging
from oslo_config import cfg

from ledger import lines, numbers, please, until, write

HERE = "marks"


def transport(kind):
    """Returns a transport with durable queues and confirms, the settings of OpenStack."""
    config = cfg.CONF
    config([], project="story")
    make = oslo_messaging.get_notification_transport if kind == "notify" else oslo_messaging.get_rpc_transport
    url = os.environ["AMQP_URL"].replace("amqp://", "rabbit://").replace("%2F", "")
    made = make(config, url=url)
    for name, value in {"amqp_durable_queues": True, "heartbeat_timeout_threshold": 10,
                        "kombu_reconnect_delay": 0.2, "rabbit_retry_interval": 1}.items():
        config.set_override(name, value, group="oslo_messaging_rabbit")
    return made


class Endpoint:
    """The methods of the worker."""

    target = oslo_messaging.Target(version="1.0")

    def double(self, _context, number):
        return 2 * number

    def tell(self, _context, number):
        write(number, "told")


class Marks:
    """The handlers of the worker for notifications."""

    def info(self, _context, _publisher, _event, payload, _metadata):
        write(payload["number"], "marked")
        time.sleep(0.02)
        return oslo_messaging.NotificationResult.HANDLED


def work():
    listener = oslo_messaging.get_notification_listener(
        transport("notify"), [oslo_messaging.Target(topic=HERE)], [Marks()], executor="threading", allow_requeue=True)
    server = oslo_messaging.get_rpc_server(
        transport("rpc"), oslo_messaging.Target(topic="calls", server="one"), [Endpoint()], executor="threading")
    listener.start()
    server.start()
    print("worker is ready", flush=True)
    threading.Event().wait()


def call(client, number):
    """Calls the server, and retries when no answer came."""
    while True:
        try:
            return client.prepare(timeout=3).call({}, "double", number=number)
        except (oslo_messaging.MessagingTimeout, oslo_messaging.MessageDeliveryFailure) as why:
            print("again:", why, flush=True)


def story():
    client = oslo_messaging.get_rpc_client(transport("rpc"), oslo_messaging.Target(topic="calls", version="1.0"))
    notifier = oslo_messaging.Notifier(transport("notify"), "story", driver="messagingv2", topics=[HERE], retry=-1)
    assert call(client, 21) == 42
    for number in range(80):
        notifier.info({}, "mark", {"number": number})
    until(lambda: len(lines()) >= 5, "five")
    please("worker")
    assert call(client, 4) == 8
    until(lambda: len(lines()) >= 30, "thirty")
    please("broker")
    for number in range(80, 100):
        notifier.info({}, "mark", {"number": number})
    until(lambda: numbers() == set(range(100)), "all notifications are processed")
    assert call(client, 5) == 10
    client.prepare(fanout=True).cast({}, "tell", number=200)
    until(lambda: "200 told" in lines(), "the fanout reached the server")


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work()
    else:
        story()
        print("ok", sys.argv[1], flush=True)
        os._exit(0)
