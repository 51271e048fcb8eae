"""MQTT clients against Leveret: mosquitto_pub and mosquitto_sub, paho and MQTT.js (over WebSocket too), aiomqtt,
paho.mqtt.golang, Node-RED, packets of devices, and pika on the other side.

Most cases kill the broker with SIGKILL while messages are in flight. They check which messages arrive, never durations.
`full` mode kills it more often.

Suite lines: `PASS mqtt/NAME` and so on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
sys.path[:0] = [str(TESTS / "support"), str(HERE.parent), str(TESTS / "system" / "tls"), str(HERE)]
sys.dont_write_bytecode = True

from harness import brokers, environment  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402

# The broker is killed this many times in the cases that publish in a loop.
KILLS = {"gate": 5, "full": 40}
# The longest time of the suite.
WATCHDOG_S = {"gate": 300, "full": 1800}


def prepare() -> str:
    """Returns why the suite cannot run here; empty if it can. Starts itself again with an interpreter that has the
    clients.
    """
    try:
        python = environment.mqtt_python()
        if Path(sys.prefix) != python.parents[1]:
            os.execv(python, [str(python), *sys.argv])
        environment.have_mosquitto()
        environment.have("openssl")
    except Skip as why:
        return str(why)
    return ""


def main() -> int:
    """Runs the cases named on the command line, or all of them."""
    brokers.raise_on_sigterm()
    suite = Suite("mqtt", sys.argv[1:])
    why = prepare()
    if why:
        suite.skip("all", why)
        return 0
    import between_protocols
    import devices
    import login
    import mapping
    import subscriptions
    import with_aiomqtt
    import with_applications
    import with_go
    import with_mosquitto
    import with_mqttjs
    import with_nodered
    import with_paho
    import with_websocket

    mode = os.environ.get("LEVERET_TEST_MODE") or "gate"
    kills = KILLS[mode]
    modules = [with_mosquitto, with_paho, with_aiomqtt, with_mqttjs, with_go, with_nodered, with_websocket,
               between_protocols, login, mapping, subscriptions, devices]
    if mode == "full":
        modules.append(with_applications)
    # Home Assistant takes minutes to be installed.
    brokers.watchdog(WATCHDOG_S[mode])
    with tempfile.TemporaryDirectory(prefix="leveret-mqtt-") as folder:
        for module in modules:
            for name, run in module.cases(kills).items():
                home = Path(folder) / name
                home.mkdir()
                suite.case(name, lambda: run(home))
    return suite.status()


if __name__ == "__main__":
    sys.exit(main())
