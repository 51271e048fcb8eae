"""The web page's states, charts and tables: colours, sizes of texts, and widths."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from typing import Callable, Dict, List, Set

import pika
from browser import DESKTOP, PAGES, Chromium, go
from harness import brokers
from harness.suite import patience, until
from playwright.sync_api import Page, Route
from views import filled, post

SMALL = {"width": 400, "height": 800}
NARROW = {"width": 320, "height": 640}
# Names as long as those of real fleets.
LONG_CLIENT = "gateway-hall-12-line-07.telemetry-forwarder.production.eu-central.example"
LONG_USER = "svc_telemetry_forwarder_production_hall_12"
LONG_VHOST = "customer-north/production"

BRIDGES = """
[[bridge]]
name = "gone"
upstream = "amqp://guest:guest@127.0.0.1:{closed}/%2f"
[[bridge.forward]]
queue = "telemetry"
to_queue = "far"
[[bridge]]
name = "halted"
upstream = "amqp://guest:guest@{address.host}:{address.port}/%2f"
[[bridge.forward]]
queue = "history"
to_queue = "far"
[[bridge]]
name = "well"
upstream = "amqp://guest:guest@{address.host}:{address.port}/%2f"
[[bridge.forward]]
queue = "now"
to_queue = "far"
"""

# Returns [state, colour] of each state that is shown. A state is the text without its shape and what follows it.
STATES = r"""() => [...document.querySelectorAll('.state, .wire-text')].map((one) => {
  const style = getComputedStyle(one);
  return [one.textContent.replace(/^[▲◆○●]\s/, '').split(/:|,| for /)[0], one.namespaceURI.endsWith('svg') ? style.fill
    : style.color];
})"""

# Returns [size in CSS pixels, text] of each text of charts, bars, trends and sketches. An SVG may scale its texts.
SIZES = """() => {
  const own = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const seen = (one) => one.getClientRects().length && getComputedStyle(one).display !== 'none'
    && !one.closest('.sr-only, [aria-hidden]');
  return [...document.querySelectorAll('.chart *, .bar *, .trend *, .sketch *')].filter((one) => own(one) && seen(one))
    .map((one) => {
      const scale = one.getScreenCTM ? Math.hypot(one.getScreenCTM().c, one.getScreenCTM().d) : 1;
      const wide = one.getScreenCTM ? Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b) : 1;
      const size = parseFloat(getComputedStyle(one).fontSize);
      return [Math.round(size * scale * 10) / 10, Math.round(size * wide * 10) / 10, one.textContent];
    });
}"""

# Returns the pairs of texts of a chart or a sketch that overlap, and texts outside of the window.
COLLISIONS = """() => [...document.querySelectorAll('.plot, .sketch')].flatMap((svg) => {
  const texts = [...svg.querySelectorAll('text')].filter((one) => getComputedStyle(one).display !== 'none')
    .map((one) => [one.textContent, one.getBoundingClientRect()]);
  const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  return [...texts.flatMap(([text, box], at) => texts.slice(at + 1).filter(([, other]) => hit(box, other))
    .map(([other]) => `${text} / ${other}`)),
  ...texts.filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([text]) => `outside: ${text}`)];
})"""


def closed_port() -> socket.socket:
    """Returns a socket that has a port and refuses connections until `listen` is called."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    return server


def far_queue(hub: brokers.Leveret) -> pika.BlockingConnection:
    """Declares the queue to which the bridges forward."""
    connection = pika.BlockingConnection(pika.ConnectionParameters(hub.address.host, hub.address.port))
    connection.channel().queue_declare("far")
    return connection


def a_waiting_bridge_is_tried_now(chromium: Chromium) -> None:
    """A bridge that waits for its next attempt connects at once when an administrator presses "Try now"; other users
    do not have the button."""
    with brokers.leveret() as hub, closed_port() as upstream:
        far_queue(hub).close()
        config = BRIDGES.format(address=hub.address, closed=upstream.getsockname()[1])
        with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"], config) as edge, \
                chromium.of(edge, edge.port_of("management API")):
            edge.ctl("pause_bridge", "halted")
            post(chromium, "users/watcher", {"password": "watcher", "tags": "monitoring"}, "PUT")
            post(chromium, "permissions/%2F/watcher", {"configure": "", "write": "", "read": ".*"}, "PUT")
            with chromium.window() as page, chromium.window(NARROW) as other:
                chromium.log_in(other, "watcher", "watcher")
                other.locator(".tiles").wait_for()
                go(other, "bridges", "Bridge")
                other.get_by_text("waiting").first.wait_for()
                assert other.get_by_role("main").get_by_role("button", name="Try now").count() == 0
                chromium.log_in(page)
                page.locator(".tiles").wait_for()
                go(page, "bridges", "Bridge")
                button = page.get_by_role("button", name="Try now gone")
                button.wait_for()
                for name in ("halted", "well"):
                    assert page.get_by_role("button", name=f"Try now {name}").count() == 0, name
                upstream.listen()
                upstream.settimeout(patience(30))
                button.focus()
                with page.expect_response("**/api/leveret/bridges/gone/resume") as answer:
                    page.keyboard.press("Enter")
                assert answer.value.status < 300, answer.value.status
                upstream.accept()[0].close()
                page.get_by_text("The bridge gone connects now.").wait_for()


def one_state_has_one_colour(chromium: Chromium) -> None:
    """A state has the same colour on all views, and no view chooses the class of a state itself."""
    web = brokers.ROOT / "src" / "management" / "web"
    own = [f"{script.name}: {line.strip()}" for script in sorted(web.glob("*.js")) if script.name != "widgets.js"
           for line in script.read_text().splitlines()
           if re.search(r"""['"`](state|wire|wire-text|tip) |['"`]state['"`].*class|class: ['"`]state""", line)]
    assert not own, own
    colours: Dict[str, Set[str]] = {}
    with brokers.leveret() as hub, closed_port() as upstream:
        connection = far_queue(hub)
        config = BRIDGES.format(address=hub.address, closed=upstream.getsockname()[1])
        with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"], config) as edge, \
                chromium.of(edge, edge.port_of("management API")), chromium.amqp() as channel, \
                chromium.window() as page:
            edge.ctl("pause_bridge", "halted")
            post(chromium, "parameters/shovel/%2F/up", {"value": {
                "src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": "now", "dest-protocol": "amqp091",
                "dest-uri": f"amqp://127.0.0.1:{upstream.getsockname()[1]}", "dest-queue": "far"}}, "PUT")
            channel.queue_declare("one-by-one", arguments={"x-single-active-consumer": True, "x-max-length": 1})
            channel.basic_qos(prefetch_count=1)
            for _ in range(2):
                channel.basic_consume("one-by-one", lambda *_: None)
            for _ in range(3):
                channel.basic_publish("", "one-by-one", b"x")
            chromium.log_in(page)
            page.locator(".tiles").wait_for()
            go(page, "bridges", "Bridge")
            for word in ("waiting", "paused", "running"):
                page.locator(".state", has_text=word).first.wait_for()
            for where, title in {"": "Overview", "bridges": "Bridge", "shovels": "Shovels", "connections": "Connections",
                                 "consumers": "Consumers", "queues": "Queues", "mqtt": "MQTT sessions",
                                 "device": "Device", "log": "Log"}.items():
                go(page, where, title)
                for word, colour in page.evaluate(STATES):
                    colours.setdefault(word, set()).add(colour)
        connection.close()
    assert {"waiting", "paused", "running"} <= colours.keys(), colours
    mixed = {word: found for word, found in colours.items() if len(found) > 1}
    assert not mixed, mixed
    assert len({*colours["waiting"], *colours["paused"]}) == 2, colours


def widen(route: Route) -> None:
    """Replaces the short values of connections by long ones: a blocked MQTT client over TLS that has been connected for
    a week."""
    answer = route.fetch()
    rows = answer.json()
    for row in rows["items"]:
        row.update(peer_host="192.168.100.200", protocol="MQTT 3.1.1", state="blocked", blocked_ms=754_000, ssl=True,
                   connected_at=row["connected_at"] - 7 * 86_400_000,
                   recv_oct_details={"rate": 123_456.7}, send_oct_details={"rate": 123_456.7})
    route.fulfill(response=answer, json=rows)


def connections_fit(chromium: Chromium) -> None:
    """The list of connections needs no scrolling to the side at 1,280 pixels, and no page scrolls to the side on a narrow
    screen, however long the names are."""
    with filled(chromium, 20):
        post(chromium, f"users/{LONG_USER}", {"password": "p", "tags": "monitoring"}, "PUT")
        post(chromium, "vhosts/customer-north%2Fproduction", {}, "PUT")
        post(chromium, f"permissions/customer-north%2Fproduction/{LONG_USER}",
             {"configure": ".*", "write": ".*", "read": ".*"}, "PUT")
        assert chromium.broker is not None
        address = chromium.broker.address
        clients = [pika.BlockingConnection(pika.ConnectionParameters(
            address.host, address.port, LONG_VHOST, pika.PlainCredentials(LONG_USER, "p"),
            client_properties={"connection_name": name})) for name in (LONG_CLIENT, "W" * 100)]
        for size in (DESKTOP, SMALL, NARROW):
            with chromium.window(size) as page:
                page.route("**/api/connections?*", widen)
                chromium.log_in(page)
                page.locator(".tiles").wait_for()
                go(page, "connections", "Connections")
                page.get_by_text("telemetry-forwarder", exact=False).first.wait_for()
                page.get_by_text("blocked for", exact=False).first.wait_for(state="attached")
                assert_fits(page, size["width"])
                if size is DESKTOP:
                    head = page.get_by_role("columnheader").all_inner_texts()
                    assert {"Virtual host", "TLS", "Sent"} <= {name.strip(" ▾▴") for name in head}, head
        for client in clients:
            client.close()


def assert_fits(page: Page, width: int) -> None:
    """Asserts that neither the document nor a table scrolls to the side."""
    found = page.evaluate("""() => ({ page: document.documentElement.scrollWidth,
        right: document.querySelector('main').getBoundingClientRect().right,
        tables: [...document.querySelectorAll('.scroll')].map((one) => [one.scrollWidth, one.clientWidth,
          one.querySelector('table').getBoundingClientRect().right - one.getBoundingClientRect().right]) })""")
    assert found["page"] <= width and found["right"] <= width, found
    assert found["tables"] and all(scroll <= client and over <= 1 for scroll, client, over in found["tables"]), found


def chart_texts_have_one_size(chromium: Chromium) -> None:
    """All texts of charts, bars, trends and the sketch of a bridge have one size on all views, at every width of the
    window; none overlaps another."""
    with brokers.leveret() as hub, closed_port() as upstream:
        far_queue(hub).close()
        config = BRIDGES.format(address=hub.address, closed=upstream.getsockname()[1])
        with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"], config) as edge, \
                chromium.of(edge, edge.port_of("management API")), chromium.amqp(connection_name="filler") as channel:
            channel.queue_declare("depth")
            for number in range(12_000):
                channel.basic_publish("", "depth", b"x" * 10)
                if number < 300:
                    channel.basic_publish("", "telemetry", b"x")
            until("a sample", lambda: json.load(urllib.request.urlopen(urllib.request.Request(
                f"{chromium.base}/api/queues/%2F/depth", headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q="})))
                ["messages"] == 12_000, 30)
            for size in (DESKTOP, {"width": 900, "height": 800}, SMALL, NARROW):
                with chromium.window(size) as page:
                    chromium.log_in(page)
                    page.locator(".tiles").wait_for()
                    sizes: Dict[float, List[str]] = {}
                    kinds = 0
                    views = {**PAGES, "bridges": "Bridge", "queue/%2F/depth": "depth"}
                    for where, title in views.items():
                        go(page, where, title)
                        page.wait_for_timeout(300)
                        texts = page.evaluate(SIZES)
                        kinds += bool(texts)
                        for high, wide, text in texts:
                            sizes.setdefault(high, []).append(f"{title}: {text}")
                            sizes.setdefault(wide, []).append(f"{title}: {text}")
                        collisions = page.evaluate(COLLISIONS)
                        assert not collisions, (size["width"], title, collisions)
                    assert kinds >= 4, kinds
                    few = {high: texts[:4] for high, texts in sizes.items()}
                    assert len(sizes) == 1, (size["width"], few)


CASES: Dict[str, Callable[[Chromium], None]] = {
    run.__name__: run for run in (
        a_waiting_bridge_is_tried_now, one_state_has_one_colour, connections_fit, chart_texts_have_one_size)
}
