"""The web page with few and with many objects: every view, the bytes of a poll, and what each view can do."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from typing import Callable, Dict, Iterator, List

from axe_playwright_python.sync_playwright import Axe
from browser import DESKTOP, GUEST, PAGES, PHONE, Chromium, found_by_axe, go, row_of
from harness import brokers
from playwright.sync_api import Page

# Maximum number of bytes of a poll, with the heads of the answers. 1,000 queues are shown in pages of 100.
OVERVIEW_BYTES_MAX = 1024
HUNDRED_QUEUES_BYTES_MAX = 3 * 1024
THOUSAND_QUEUES_BYTES_MAX = 10 * 1024
ONE_QUEUE_BYTES_MAX = 1536
UNCHANGED_BYTES_MAX = 1024
CONFIG = ""


def definitions(queues: int) -> Dict[str, List[Dict[str, object]]]:
    """Returns definitions with this many queues, bound by topics, with policies of both kinds."""
    names = [f"plant.{number % 7}.sensor.{number:04}" for number in range(queues)]
    arguments: List[Dict[str, object]] = [{}, {"x-max-length": 100}, {"x-message-ttl": 60000},
                                          {"x-dead-letter-exchange": "dead"}]
    return {
        "exchanges": [{"name": name, "vhost": "/", "type": kind, "durable": True, "auto_delete": False, "arguments": {}}
                      for name, kind in (("plant", "topic"), ("dead", "fanout"), ("alarms", "headers"))],
        "queues": [{"name": name, "vhost": "/", "durable": True, "auto_delete": False,
                    "arguments": arguments[at % len(arguments)]} for at, name in enumerate(names)],
        "bindings": [{"source": "plant", "vhost": "/", "destination": name, "destination_type": "queue",
                      "routing_key": f"{name.rsplit('.', 1)[0]}.#", "arguments": {}} for name in names],
        "policies": [{"name": "short", "vhost": "/", "pattern": "^plant\\.1", "apply-to": "queues", "priority": 1,
                      "definition": {"max-length": 50}}],
    }


def post(chromium: Chromium, path: str, body: object, method: str = "POST") -> None:
    """Sends a request that changes something, as the administrator."""
    request = urllib.request.Request(f"{chromium.base}/api/{path}", json.dumps(body).encode(), method=method, headers={
        "Authorization": GUEST, "Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


@contextlib.contextmanager
def filled(chromium: Chromium, queues: int) -> Iterator[None]:
    """Uses the page of a broker with this many queues for a `with` block."""
    with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"], CONFIG) as broker, \
            chromium.of(broker, broker.port_of("management API")):
        post(chromium, "definitions", definitions(queues))
        post(chromium, "operator-policies/%2F/cap", {"pattern": "^plant", "apply-to": "queues", "priority": 0,
                                                     "definition": {"max-length": 1000}}, "PUT")
        with chromium.amqp(connection_name="filler", product="test") as channel:
            for number in range(queues):
                for _ in range(number % 5):
                    channel.basic_publish("", f"plant.{number % 7}.sensor.{number:04}", b'{"temperature": 21}')
            channel.basic_consume("plant.0.sensor.0000", lambda *_: None)
            yield


OBJECTS = {"shovels": "Shovels", "queue/%2F/plant.1.sensor.0001": "plant.1.sensor.0001",
           "exchange/%2F/plant": "plant"}


def every_view_is_accessible(chromium: Chromium) -> None:
    """axe reports no problem on any view, in light and dark mode, on a desktop and a phone; nothing is wider than a
    phone's screen."""
    axe = Axe()
    found: List[str] = []
    with filled(chromium, 20):
        for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")):
            # axe's own code violates the content security policy; the page's scripts run under it in other cases.
            with chromium.window(size, scheme, bypass_csp=True) as page:
                page.goto(chromium.base)
                page.get_by_label("User").wait_for()
                found += found_by_axe(axe, page, f"login {scheme}")
                chromium.log_in(page)
                for where, title in {**PAGES, **OBJECTS}.items():
                    go(page, where, title)
                    found += found_by_axe(axe, page, f"{title} {scheme} {size['width']}")
                    width = page.evaluate("document.documentElement.scrollWidth")
                    assert width <= size["width"], (title, width)
                go(page, "users", "Users")
                page.get_by_role("button", name="Add user").click()
                found += found_by_axe(axe, page, f"dialog {scheme} {size['width']}")
    assert not found, "\n".join(found)


def a_thousand_queues_are_shown(chromium: Chromium) -> None:
    """Every view works with 1,000 queues; a phone folds the rows of a list; the picture of the routing folds by
    exchange."""
    with filled(chromium, 1000):
        for size, scheme in ((DESKTOP, "dark"), (PHONE, "light")):
            with chromium.window(size, scheme) as page:
                chromium.log_in(page)
                for where, title in {**PAGES, **OBJECTS}.items():
                    go(page, where, title)
                    width = page.evaluate("document.documentElement.scrollWidth")
                    assert width <= size["width"], (title, width)
                go(page, "queues", "Queues")
                page.get_by_text("1,000 queues").wait_for()
                page.get_by_text("1 / 10").wait_for()
                height = page.evaluate("document.documentElement.scrollHeight")
                # On a phone, 100 rows take two lines each.
                assert height <= (12_000 if size is PHONE else 6_500), height
                go(page, "routing", "Routing")
                page.locator("svg text", has_text="1,000 queues").wait_for()


def sizes_of_poll(page: Page) -> List[int]:
    """Makes the page poll, and returns the bytes of each answer, head included."""
    done: List[object] = []
    listener = lambda request: done.append(request)  # noqa: E731
    page.on("requestfinished", listener)
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.wait_for_timeout(1_500)
    page.remove_listener("requestfinished", listener)
    sizes = [request.sizes() for request in done]  # type: ignore[attr-defined]
    return [size["responseHeadersSize"] + size["responseBodySize"] for size in sizes]


def polls_are_small(chromium: Chromium) -> None:
    """A poll has few bytes in every view that is watched for long, and fewer if nothing has changed."""
    found = {}
    with filled(chromium, 1000):
        with chromium.window() as page, chromium.amqp() as channel:
            chromium.log_in(page)
            page.locator(".tiles").wait_for()
            page.wait_for_timeout(1_000)
            limits = {"": OVERVIEW_BYTES_MAX, "queues?name=.sensor.00": HUNDRED_QUEUES_BYTES_MAX,
                      "queues": THOUSAND_QUEUES_BYTES_MAX, "queue/%2F/plant.1.sensor.0001": ONE_QUEUE_BYTES_MAX}
            for where, most in limits.items():
                page.evaluate("where => { location.hash = `#/${where}`; }", where)
                page.wait_for_timeout(1_500)
                # Messages arrive in every queue that is shown, so that every row differs from the last poll.
                for number in range(100):
                    channel.basic_publish("", f"plant.{number % 7}.sensor.{number:04}", b"x" * (1 + number % 9))
                channel.connection.process_data_events(time_limit=0)
                found[where] = sum(sizes_of_poll(page))
                assert found[where] <= most, found
            page.evaluate("location.hash = '#/exchanges'")
            page.wait_for_timeout(7_000)
            sizes_of_poll(page)
            found["unchanged"] = sum(sizes_of_poll(page))
            assert found["unchanged"] <= UNCHANGED_BYTES_MAX, found
    print(f"# bytes of a poll: {found}")


def the_history_is_there_at_once(chromium: Chromium) -> None:
    """The overview shows the last minutes of all figures as soon as it is opened."""
    with filled(chromium, 20), chromium.amqp() as channel:
        for _ in range(13):
            channel.basic_publish("", "plant.1.sensor.0001", b"x")
            channel.connection.process_data_events(time_limit=1)
        with chromium.window() as page:
            chromium.log_in(page)
            for title in ("Queued messages", "Message rates", "Memory", "Written to flash"):
                chart = page.get_by_role("img", name=f"{title}, now", exact=False)
                line = chart.locator("path.s0").get_attribute("d") or ""
                assert line.count("L") + line.count("M") >= 2, (title, line)


def a_route_is_shown_without_publishing(chromium: Chromium) -> None:
    """The routing view tells which queues a message with this key would reach, and marks them in the picture."""
    with filled(chromium, 20), chromium.window() as page:
        chromium.log_in(page)
        go(page, "routing", "Routing")
        before = chromium.api("overview", GUEST)[1]
        page.get_by_label("Exchange", exact=True).select_option("plant")
        page.get_by_label("Routing key").fill("plant.1.sensor.now")
        page.get_by_role("button", name="Show route").click()
        page.get_by_text("3 queues would receive it").wait_for()
        page.get_by_role("link", name="plant.1.sensor.0008").first.wait_for()
        page.get_by_label("Routing key").fill("elsewhere")
        page.get_by_role("button", name="Show route").click()
        page.get_by_text("No queue would receive it").wait_for()
        after = chromium.api("overview", GUEST)[1]
        published = [found["message_stats"]["publish"] for found in (before, after)]  # type: ignore[index]
        assert published[0] == published[1], published


def dead_letters_are_sent_back(chromium: Chromium) -> None:
    """Selected dead letters are found by their text, and moved to the queue in which they died."""
    with filled(chromium, 20), chromium.window() as page, chromium.amqp() as channel:
        channel.queue_declare("orders", durable=True, arguments={
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "orders.dead"})
        channel.queue_declare("orders.dead", durable=True)
        for number in range(30):
            channel.basic_publish("", "orders", b'{"order": %d}' % number)
        for method, _, _ in channel.consume("orders", inactivity_timeout=5):
            channel.basic_reject(method.delivery_tag, requeue=False)
            if method.delivery_tag == 30:
                break
        channel.cancel()
        chromium.log_in(page)
        go(page, "queue/%2F/orders.dead", "orders.dead")
        page.get_by_placeholder("Filter by text or header").fill('"order": 17')
        page.get_by_role("button", name="Look").click()
        page.get_by_text("found 1.").wait_for()
        page.get_by_text("rejected in orders", exact=False).first.wait_for()
        page.get_by_label("Select message 18").check()
        page.get_by_role("button", name="Send back").click()
        page.get_by_role("dialog").get_by_role("button", name="Send back").click()
        page.get_by_text("1 message was sent back.").wait_for()
        method, properties, body = channel.basic_get("orders", auto_ack=True)
        assert body == b'{"order": 17}' and not method.redelivered, (method, body)
        assert properties.headers["x-first-death-queue"] == "orders", properties
        found = chromium.api("queues/%2F/orders.dead", GUEST)[1]
        assert found["messages"] == 29, found  # type: ignore[index]


def administration(chromium: Chromium) -> None:
    """Policies, limits and definitions are changed on the page; a dry run of an import changes nothing."""
    with filled(chromium, 20), chromium.window() as page:
        chromium.log_in(page)
        go(page, "policies", "Policies")
        page.get_by_role("button", name="Add policy").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("brief")
        dialog.get_by_label("Pattern").fill("^plant\\.2")
        dialog.get_by_label("Definition (JSON)").fill('{"message-tll": 60000}')
        dialog.get_by_text("The pattern matches 3 of ").wait_for()
        dialog.get_by_role("button", name="Add policy").click()
        dialog.get_by_text('"message-tll" is not a key of a policy.').wait_for()
        page.troubles.clear()  # type: ignore[attr-defined]
        dialog.get_by_label("Definition (JSON)").fill('{"message-ttl": 60000}')
        dialog.get_by_role("button", name="Add policy").click()
        page.get_by_role("cell", name="brief", exact=True).wait_for()
        go(page, "queues?name=plant.2.sensor.0002", "Queues")
        page.get_by_text("TTL 1 min").wait_for()
        page.get_by_text("op cap").wait_for()
        go(page, "queue/%2F/plant.2.sensor.0002", "plant.2.sensor.0002")
        page.get_by_role("button", name="Limit…").click()
        dialog.get_by_text("with the other keys of brief").wait_for()
        dialog.get_by_label("Most messages").fill("7")
        dialog.get_by_role("button", name="Set limits").click()
        page.get_by_role("link", name="limit.plant.2.sensor.0002").wait_for()
        policy = chromium.api("policies/%2F/limit.plant.2.sensor.0002", GUEST)[1]
        assert policy["pattern"] == "^plant\\.2\\.sensor\\.0002$", policy  # type: ignore[index]
        limits = {"max-length": 7, "message-ttl": 60000, "overflow": "drop-head"}
        assert policy["definition"] == limits, policy  # type: ignore[index]
        go(page, "limits", "Limits")
        page.get_by_role("button", name="Change the limits of /", exact=True).click()
        dialog.get_by_label("Queues").fill("500")
        dialog.get_by_role("button", name="Set limits").click()
        page.get_by_role("cell", name="500", exact=True).wait_for()
        go(page, "definitions", "Definitions")
        file = {"queues": [{"name": name, "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
                           for name in ("plant.0.sensor.0000", "brand.new")]}
        page.get_by_label("File").set_input_files(
            {"name": "new.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()})
        page.get_by_text("brand.new").first.wait_for()
        assert chromium.api("queues/%2F/brand.new", GUEST)[0] == 404, "a dry run created a queue"
        page.get_by_role("button", name="Import… definitions").click()
        page.get_by_role("dialog").get_by_role("button", name="Import").click()
        page.get_by_text("imported", exact=False).first.wait_for()
        assert chromium.api("queues/%2F/brand.new", GUEST)[0] == 200
        go(page, "device", "Device")
        assert row_of(page, "messages")["Limit"] not in ("", "–")


def actions_concern_the_object_that_is_shown(chromium: Chromium) -> None:
    """A confirmed action concerns the object in the dialog, whatever the object is called and whatever the address has
    become. Names that a browser cannot send in a path are refused."""
    with filled(chromium, 20), chromium.window() as page, chromium.amqp() as channel:
        for name in ("prod", "prod%0Ax", "contents"):
            post(chromium, f"queues/%2F/{name}", {"durable": True}, "PUT")
        channel.queue_declare(".", durable=True)
        for name in ("prod", "prod\nx", ".", "contents"):
            post(chromium, "exchanges/%2F/amq.default/publish", {
                "properties": {}, "routing_key": name, "payload": "x", "payload_encoding": "string"})
        chromium.log_in(page)
        go(page, "queue/%2F/contents", "contents")
        go(page, "queue/%2F/prod", "prod")
        page.get_by_role("button", name="Look").click()
        page.get_by_text("Looked at 1 message").wait_for()
        page.get_by_role("button", name="Purge…").click()
        page.go_back()
        page.get_by_role("heading", name="contents", level=1).wait_for()
        page.get_by_role("dialog").wait_for(state="detached")
        for name in ("x", "."):
            go(page, "queues?sort=message_bytes&down=1&name=" + ("prod%0Ax" if name == "x" else "."), "Queues")
            page.get_by_label(f"Select {name}" if name == "." else "Select prod").first.check()
            page.get_by_role("button", name="Purge… the selected queues").click()
            page.get_by_role("dialog").get_by_role("button", name="Purge queue").click()
            page.get_by_text("1 purged." if name == "x" else 'called "." or ".."').first.wait_for()
        depths = [chromium.api(f"queues/%2F/{name}", GUEST)[1]["messages"]  # type: ignore[index]
                  for name in ("prod", "prod%0Ax", "contents")]
        assert depths == [1, 0, 1], depths
        go(page, "queue/%2F/prod", "prod")
        page.get_by_role("button", name="Look").click()
        page.locator(".message").first.wait_for()
        page.get_by_role("button", name="Log out").click()
        chromium.log_in(page)
        go(page, "queue/%2F/prod", "prod")
        assert page.locator(".message").count() == 0, "the messages are shown after another login"


def keys(chromium: Chromium) -> None:
    """Every list can be used with the keyboard: next row, open, search, and the list of keys."""
    with filled(chromium, 20), chromium.window() as page:
        chromium.log_in(page)
        page.locator(".tiles").wait_for()
        page.keyboard.press("?")
        page.get_by_role("dialog", name="Keys").get_by_text("search").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
        page.keyboard.type("gq")
        page.get_by_role("link", name="plant.0.sensor.0000", exact=True).wait_for()
        page.keyboard.type("jj")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="plant.0.sensor.0007", level=1).wait_for()
        page.keyboard.type("gq")
        page.get_by_role("link", name="plant.0.sensor.0000", exact=True).wait_for()
        page.keyboard.type("/0013")
        page.get_by_text("1 of 20 queues").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.type("jx")
        page.get_by_text("1 queue selected").wait_for()


def destructive_buttons_stay_readable(chromium: Chromium) -> None:
    """The button of a destructive dialog keeps its contrast while the pointer is over it."""
    with filled(chromium, 20), chromium.window() as page:
        chromium.log_in(page)
        go(page, "queue/%2F/plant.1.sensor.0001", "plant.1.sensor.0001")
        page.get_by_role("button", name="Delete…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("deleted only if it holds no messages", exact=False).wait_for()
        button = dialog.get_by_role("button", name="Delete queue")
        button.hover()
        page.wait_for_timeout(300)
        colours = button.evaluate("one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]")
        assert contrast(*colours) >= 4.5, colours


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours `rgb(r, g, b)` (WCAG 2.2)."""
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1:-1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


CASES: Dict[str, Callable[[Chromium], None]] = {
    run.__name__: run for run in (
        every_view_is_accessible, a_thousand_queues_are_shown, polls_are_small, the_history_is_there_at_once,
        a_route_is_shown_without_publishing, dead_letters_are_sent_back, administration, keys,
        actions_concern_the_object_that_is_shown,
        destructive_buttons_stay_readable)
}
