"""The web page: an operator's work, hostile content, logins and accessibility."""

from __future__ import annotations

import os
import tempfile
from typing import Callable, Dict

import pika
from browser import GUEST, PAGES, Chromium, go, row_of, until_row
from harness import brokers, suite
from playwright.sync_api import Page

PERSISTENT = pika.BasicProperties(delivery_mode=2)
NARROW = {"width": 320, "height": 640}
STATIC_BYTES_MAX = 70_000
STATIC_REQUESTS_MAX = 6
HOSTILE = ["<img src=x onerror=pwned()>", "<script>pwned()</script>", "\"onmouseover=pwned() x=\"", "${pwned()}",
           "javascript:pwned()", "</title><svg onload=pwned()>", "{{constructor.constructor('pwned()')()}}",
           "a&lt;b&#x27;", "../../etc", "%3Cscript%3E"]


def shown_messages_stay(chromium: Chromium) -> None:
    """A message is shown twice, and is then received as if it had not been shown."""
    with chromium.window() as page, chromium.amqp() as channel:
        channel.queue_declare("hello")
        chromium.log_in(page)
        page.get_by_text("No alarms.", exact=True).wait_for()
        page.keyboard.press("g")
        page.keyboard.press("q")
        page.get_by_role("heading", name="Queues", level=1).wait_for()
        until_row(page, "hello", "Total", "0")
        channel.basic_publish("", "hello", b"Hello World!")
        until_row(page, "hello", "Total", "1")
        for _ in range(2):
            page.get_by_role("link", name="hello", exact=True).focus()
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="hello", level=1).wait_for()
            page.locator("dt:text-is('Messages') + dd:text-is('1')").wait_for()
            for _ in range(2):
                page.get_by_role("button", name="Look").click()
                page.get_by_text("Looked at 1 message; none was changed.").wait_for()
                page.locator(".snippet", has_text="Hello World!").wait_for()
                assert page.get_by_text("redelivered", exact=True).count() == 0
            go(page, "queues", "Queues")
            until_row(page, "hello", "Total", "1")
        method, _, body = channel.basic_get("hello", auto_ack=True)
        assert (body, method.redelivered, method.message_count) == (b"Hello World!", False, 0), method
        until_row(page, "hello", "Total", "0")
        channel.queue_delete("hello")


def a_queue_fills(chromium: Chromium) -> None:
    """The list of queues can be searched and sorted, and the chart of a queue grows."""
    with chromium.window() as page, chromium.amqp() as channel:
        for number in range(120):
            channel.queue_declare(f"fill.{number:03}")
        chromium.log_in(page)
        go(page, "queues?name=fill", "Queues")
        page.get_by_text("1 / 2").wait_for()
        page.get_by_role("button", name="Next page").click()
        page.get_by_role("link", name="fill.110", exact=True).wait_for()
        page.keyboard.press("/")
        page.keyboard.press("End")
        page.keyboard.type(".007")
        page.get_by_text("1 of 12").wait_for()
        for _ in range(7):
            channel.basic_publish("", "fill.007", b"x")
        until_row(page, "fill.007", "Ready", "7")
        go(page, "queue/%2F/fill.007", "fill.007")
        page.locator("figure path.s0[d*='L']").first.wait_for(state="attached")
        for number in range(120):
            channel.queue_delete(f"fill.{number:03}")


def a_queue_is_made_filled_emptied_and_deleted(chromium: Chromium) -> None:
    """A queue is declared, filled, purged and deleted on the page. Destructive actions ask for confirmation and state
    the number of messages."""
    with chromium.window() as page, chromium.amqp() as channel:
        chromium.log_in(page)
        go(page, "queues", "Queues")
        page.get_by_role("button", name="Add queue").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("by/hand")
        dialog.get_by_label("Arguments (JSON)").fill('{"x-max-length": "many"}')
        dialog.get_by_role("button", name="Add queue").click()
        dialog.get_by_role("alert").filter(has_text="x-max-length").wait_for()
        page.troubles.clear()  # type: ignore[attr-defined]
        dialog.get_by_label("Arguments (JSON)").fill('{"x-max-length": 5}')
        dialog.get_by_role("button", name="Add queue").click()
        page.get_by_role("link", name="by/hand", exact=True).click()
        for payload in ("first", "second"):
            page.get_by_role("button", name="Publish…").click()
            dialog.get_by_label("Payload", exact=True).fill(payload)
            dialog.get_by_label("Headers (JSON)").fill('{"n": 1}')
            dialog.get_by_role("button", name="Publish").click()
            page.get_by_text("Published: a queue has the message.").wait_for()
        # Wait for 2 before one message goes. Otherwise the 1 below might be the value before.
        page.locator("dt:text-is('Messages') + dd:text-is('2')").wait_for()
        method, properties, body = channel.basic_get("by/hand", auto_ack=True)
        assert (body, properties.headers, properties.delivery_mode) == (b"first", {"n": 1}, 2), properties
        assert method.routing_key == "by/hand"
        page.locator("dt:text-is('Messages') + dd:text-is('1')").wait_for()
        page.get_by_role("button", name="Purge…").click()
        dialog.get_by_text("1 ready message is deleted.").wait_for()
        dialog.get_by_role("button", name="Purge queue").click()
        page.locator("dt:text-is('Messages') + dd:text-is('0')").wait_for()
        page.get_by_role("button", name="Bind…").click()
        dialog.get_by_label("From exchange").fill("amq.topic")
        dialog.get_by_label("Routing key").fill("a.#")
        dialog.get_by_role("button", name="Bind").click()
        page.get_by_role("link", name="amq.topic").wait_for()
        channel.basic_publish("amq.topic", "a.b", b"routed")
        page.locator("dt:text-is('Messages') + dd:text-is('1')").wait_for()
        page.get_by_role("button", name="Unbind by/hand").click()
        dialog.get_by_role("button", name="Remove binding").click()
        page.get_by_role("link", name="amq.topic").wait_for(state="detached")
        page.get_by_role("button", name="Delete…").click()
        dialog.get_by_label("Only if it holds no messages").uncheck()
        dialog.get_by_role("button", name="Delete queue").click()
        page.get_by_role("heading", name="Queues", level=1).wait_for()
        page.get_by_role("link", name="by/hand", exact=True).wait_for(state="detached")
        status, rows = chromium.api("queues/%2F?columns=name", GUEST)
        assert status == 200 and not [row for row in rows if row["name"] == "by/hand"], rows


def users_come_and_go(chromium: Chromium) -> None:
    """A user is added, gets permissions, logs in, and is deleted. Deletion asks for confirmation."""
    with chromium.window() as page, chromium.window() as other:
        chromium.log_in(page)
        go(page, "users", "Users")
        page.get_by_role("button", name="Add user").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("clerk")
        dialog.get_by_label("Password").fill("pa:ss wörd")
        dialog.get_by_label("Tags").fill("management")
        dialog.get_by_role("button", name="Add user").click()
        until_row(page, "clerk", "Tags", "management")
        chromium.log_in(other, "clerk", "pa:ss wörd")
        other.locator(".tiles").wait_for()
        names = other.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts()
        hidden = {"Users", "Permissions", "Device", "Bridge", "MQTT sessions", "Limits", "Definitions", "Log"}
        assert not hidden & set(names) and "Queues" in names, names
        for where, title in PAGES.items():
            if title not in hidden:
                go(other, where, title)
        go(other, "vhosts", "Virtual hosts")
        assert other.get_by_role("row").count() <= 2, "the user sees a virtual host"
        page.get_by_role("button", name="Delete clerk").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert row_of(page, "clerk")["Tags"] == "management", "the user was deleted before the confirmation"
        page.get_by_role("button", name="Delete clerk").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete user").click()
        page.get_by_role("cell", name="clerk", exact=True).wait_for(state="detached")
        other.get_by_text("The login has run out.").first.wait_for()
        other.troubles[:] = [said for said in other.troubles if "401" not in said]  # type: ignore[attr-defined]


def a_wrong_password_is_refused_in_words(chromium: Chromium) -> None:
    """A wrong password is refused with a message, and the right one then succeeds."""
    with chromium.window() as page:
        chromium.log_in(page, "guest", "wrong")
        page.get_by_role("alert").get_by_text("the name or the password is wrong").wait_for()
        assert page.evaluate("sessionStorage.length + localStorage.length") <= 1
        assert [said for said in page.troubles if "401" not in said] == []  # type: ignore[attr-defined]
        page.troubles.clear()  # type: ignore[attr-defined]
        chromium.log_in(page)
        page.locator(".tiles").wait_for()


def no_password_is_kept_and_logging_out_ends_the_token(chromium: Chromium) -> None:
    """A reload keeps the login. After a logout the token is invalid."""
    kept = "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])"
    with chromium.window() as page:
        chromium.log_in(page)
        page.locator(".tiles").wait_for()
        stored = page.evaluate(kept)
        assert "Z3Vlc3Q6" not in stored and '"guest"' not in stored, stored
        page.reload()
        page.locator(".tiles").wait_for()
        token = page.evaluate("sessionStorage.getItem('leveret.token')")
        assert chromium.api("whoami", f"Bearer {token}")[0] == 200
        with page.expect_response(lambda answer: answer.request.method == "DELETE"):
            page.get_by_role("button", name="Log out").click()
        page.get_by_label("Password").wait_for()
        assert token not in page.evaluate(kept)
        assert chromium.api("whoami", f"Bearer {token}")[0] == 401
        assert token not in chromium.log()


def hostile_names_are_only_names(chromium: Chromium) -> None:
    """Names and properties with HTML and script are shown as text on every page, and nothing is executed."""
    with chromium.window() as page, chromium.amqp(connection_name=HOSTILE[0], product=HOSTILE[1]) as channel:
        page.add_init_script("window.pwned = () => { console.error('PWNED'); }")
        for number, name in enumerate(HOSTILE):
            channel.queue_declare(name, arguments={"x-max-length": 10})
            channel.exchange_declare(f"{name}e", "topic")
            channel.queue_bind(name, f"{name}e", HOSTILE[(number + 1) % len(HOSTILE)])
            channel.basic_publish("", name, name.encode(), pika.BasicProperties(
                headers={name: name}, content_type=name, user_id=None, message_id=name))
            channel.basic_consume(name, lambda *_: None, consumer_tag=name)
        chromium.log_in(page)
        for where, title in PAGES.items():
            go(page, where, title)
        go(page, "queues", "Queues")
        for name in HOSTILE:
            assert row_of(page, name)["Total"] == "1", name
            page.get_by_role("link", name=name, exact=True).click()
            page.get_by_role("heading", name=name, level=1, exact=True).wait_for()
            page.get_by_role("cell", name=name, exact=True).first.wait_for()
            page.get_by_role("button", name="Look").click()
            page.get_by_text("Looked").first.wait_for()
            go(page, "queues", "Queues")
        go(page, "connections", "Connections")
        page.get_by_role("row").get_by_role("link").first.click()
        page.get_by_text("Heartbeat").wait_for()
        for name in HOSTILE:
            channel.queue_delete(name)
            channel.exchange_delete(f"{name}e")


def a_narrow_screen_is_enough(chromium: Chromium) -> None:
    """Nothing is wider than a screen of 320 pixels."""
    with chromium.amqp() as channel:
        channel.queue_declare("reader", durable=True)
        channel.basic_consume("reader", lambda *_: None)
        with chromium.window(NARROW) as page:
            chromium.log_in(page)
            for where, title in {**PAGES, "queue/%2F/reader": "reader"}.items():
                go(page, where, title)
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= NARROW["width"], (title, width)
                mark = page.locator(".menu-button .state")
                mark.get_by_text("no alarms").wait_for()
                assert mark.get_attribute("class") == "state", "no alarm is no trouble"
        channel.queue_delete("reader")


def size_and_requests(chromium: Chromium) -> None:
    """The page needs few requests and bytes to load, polls while it is visible, and not while it is hidden."""
    with chromium.window() as page:
        answers = []
        page.on("response", lambda answer: answers.append(answer))
        page.goto(chromium.base)
        page.get_by_label("User").wait_for()
        sizes = [int(answer.header_value("content-length") or 0) for answer in answers]
        assert len(answers) <= STATIC_REQUESTS_MAX and sum(sizes) <= STATIC_BYTES_MAX, sizes
        assert all(answer.url.startswith(chromium.base) for answer in answers)
        chromium.log_in(page)
        page.locator(".tiles").wait_for()
        answers.clear()
        page.wait_for_timeout(6_000)
        asked = [answer for answer in answers if "/api/" in answer.url]
        assert asked, "the page does not poll"
        page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true });"
                      "document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(500)
        answers.clear()
        page.wait_for_timeout(6_000)
        assert not answers, [answer.url for answer in answers]


BRIDGE = """
[[bridge]]
name = "plant"
upstream = "amqp://guest:guest@{address.host}:{address.port}/%2f"
link = "on_demand"
connect_messages = 1
rest_after = "1s"
[[bridge.forward]]
queue = "telemetry"
to_queue = "far"
"""


def bridge_traffic(chromium: Chromium) -> None:
    """A bridge on demand rests, connects when requested, and shows the purposes of its bytes."""
    with brokers.leveret() as hub:
        far = pika.BlockingConnection(pika.ConnectionParameters(hub.address.host, hub.address.port)).channel()
        far.queue_declare("far")
        with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"],
                             BRIDGE.format(address=hub.address)) as edge:
            with chromium.of(edge, edge.port_of("management API")), chromium.window() as page, \
                    chromium.amqp() as channel:
                chromium.log_in(page)
                page.get_by_text("No alarms.", exact=True).wait_for()
                go(page, "bridges", "Bridge")
                page.get_by_text("resting").first.wait_for()
                channel.basic_publish("", "telemetry", b"21 degrees")
                page.locator("dt:text-is('Sent today') + dd").wait_for()
                page.locator("dt:text-is('Moved') + dd:text-is('1')").wait_for()
                assert far.basic_get("far", auto_ack=True)[2] == b"21 degrees"
                page.get_by_text("resting").first.wait_for()
                page.locator("dt:text-is('Not connected for') + dd").wait_for()
                page.locator("dt:text-is('Connects automatically in') + dd").wait_for()

                def count() -> int:
                    return int(edge.ctl("bridge_status", "connected").split()[-1])

                contacts = count()
                page.get_by_role("button", name="Connect… plant").click()
                page.get_by_role("dialog").get_by_role("button", name="Connect", exact=True).click()
                page.get_by_text("The order was given to the bridge plant.").wait_for()
                # The connection lasts only a moment, so a page that polls every few seconds may not show it.
                suite.until("another connection of the bridge", lambda: count() > contacts, 60)
                page.get_by_text("resting").first.wait_for()
                assert count() == contacts + 1


def pictures(chromium: Chromium) -> None:
    """The pictures of the README can be taken again, and are small. `LEVERET_PICTURES` names their folder; five minutes
    of traffic then fill the charts."""
    with brokers.leveret() as hub, tempfile.TemporaryDirectory() as temporary:
        far = pika.BlockingConnection(pika.ConnectionParameters(hub.address.host, hub.address.port)).channel()
        far.queue_declare("telemetry", durable=True)
        config = BRIDGE.format(address=hub.address).replace('"far"', '"telemetry"')
        folder = os.environ.get("LEVERET_PICTURES", "")
        with brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"], config) as edge:
            with chromium.of(edge, edge.port_of("management API")), \
                    chromium.amqp(connection_name="controller") as channel, \
                    chromium.window({"width": 1280, "height": 860}) as page:
                plant(channel)
                for second in range(330 if folder else 6):
                    for number in range(3 + second % 60 // 12):
                        channel.basic_publish("sensors", f"hall.{number % 4}.temperature", b"21 degrees", PERSISTENT)
                    channel.basic_publish("sensors", "hall.2.alarm", b"door open", PERSISTENT)
                    channel.basic_publish("", "telemetry", b"21 degrees", PERSISTENT)
                    channel.connection.sleep(1)
                chromium.log_in(page)
                page.get_by_role("img", name="Queued messages, now", exact=False).wait_for()
                take(page, f"{folder or temporary}/page.png")
                go(page, "routing", "Routing")
                page.get_by_label("Exchange", exact=True).select_option("sensors")
                page.get_by_label("Routing key").fill("hall.2.temperature")
                page.get_by_role("button", name="Show route").click()
                page.get_by_text("3 queues").first.wait_for()
                page.locator("h1").click()
                take(page, f"{folder or temporary}/page-routing.png")


def plant(channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
    """Declares the queues, exchanges and a consumer of the pictures."""
    channel.exchange_declare("sensors", "topic", durable=True)
    channel.exchange_declare("alarms", "fanout", durable=True)
    for queue, keys in (("history", ["#"]), ("dashboard", ["hall.*.temperature"]), ("heating", ["hall.2.temperature"]),
                        ("ventilation", ["hall.*.humidity", "hall.*.co2"])):
        channel.queue_declare(queue, durable=True, arguments={"x-max-length": 5000} if queue == "history" else None)
        for key in keys:
            channel.queue_bind(queue, "sensors", key)
    for queue in ("siren", "on-call"):
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "alarms")
    channel.exchange_bind("alarms", "sensors", "hall.*.alarm")
    for queue in ("dashboard", "heating", "siren"):
        channel.basic_consume(queue, lambda on, method, *_: on.basic_ack(method.delivery_tag))


def take(page: Page, file: str) -> None:
    """Writes a picture of the window."""
    page.wait_for_timeout(500)
    page.screenshot(path=file)
    assert 10_000 < os.path.getsize(file) < 150_000, os.path.getsize(file)


CASES: Dict[str, Callable[[Chromium], None]] = {
    run.__name__: run for run in (
        shown_messages_stay, a_queue_fills, a_queue_is_made_filled_emptied_and_deleted,
        users_come_and_go, a_wrong_password_is_refused_in_words,
        no_password_is_kept_and_logging_out_ends_the_token, hostile_names_are_only_names, a_narrow_screen_is_enough,
        size_and_requests, bridge_traffic, pictures)
}
