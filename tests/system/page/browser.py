"""A broker with its web page, a browser, and the errors of both."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from typing import Dict, Iterator, List, Optional, Tuple

import pika
from axe_playwright_python.sync_playwright import Axe
from harness import brokers
from harness.suite import patience
from playwright.sync_api import Browser, Page, sync_playwright

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
WAIT_MS = 15_000
# Every page that an administrator's navigation leads to, with its heading.
PAGES = {"": "Overview", "queues": "Queues", "exchanges": "Exchanges", "routing": "Routing",
         "connections": "Connections", "channels": "Channels", "consumers": "Consumers", "mqtt": "MQTT sessions",
         "retained": "Retained messages", "vhosts": "Virtual hosts", "policies": "Policies", "limits": "Limits",
         "users": "Users",
         "permissions": "Permissions", "definitions": "Definitions", "device": "Device", "log": "Log"}
GUEST = "Basic Z3Vlc3Q6Z3Vlc3Q="


class Chromium:
    """One broker and one browser for all cases. Each case has its own window and login."""

    def __init__(self) -> None:
        self.port = 0
        self.broker: Optional[brokers.Leveret] = None
        self.troubles: List[str] = []

    def __enter__(self) -> "Chromium":
        self._stack = contextlib.ExitStack()
        self.broker = brokers.Leveret(brokers.leveret_binary(), ["--management", "127.0.0.1:0"])
        self._stack.callback(self.broker.close)
        self.port = self.broker.port_of("management API")
        playwright = self._stack.enter_context(sync_playwright())
        self.browser: Browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-dev-shm-usage"])
        self._stack.callback(self.browser.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def of(self, broker: brokers.Leveret, port: int) -> Iterator[None]:
        """Uses the page of another broker for a `with` block."""
        before = (self.broker, self.port)
        self.broker, self.port = broker, port
        try:
            yield
        finally:
            self.broker, self.port = before

    def log(self) -> str:
        """Returns the broker's log."""
        return self.broker.log() if self.broker else ""

    @property
    def base(self) -> str:
        """Returns the address of the page."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def window(self, size: Optional[Dict[str, int]] = None, scheme: str = "light", **options: object) -> Iterator[Page]:
        """Opens a window. At the end, only errors that `excuse` allowed may have occurred in it."""
        troubles: List[str] = []
        context = self.browser.new_context(viewport=size or DESKTOP, color_scheme=scheme, **options)
        context.set_default_timeout(patience(WAIT_MS))
        page = context.new_page()
        page.on("console", lambda said: troubles.append(f"{said.type}: {said.text}")
                if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.troubles = troubles  # type: ignore[attr-defined]
        try:
            yield page
            assert not troubles, troubles
        finally:
            context.close()

    def log_in(self, page: Page, user: str = "guest", password: str = "guest") -> None:
        """Logs in with the keyboard only."""
        page.goto(self.base)
        page.get_by_label("User").press_sequentially(user)
        page.keyboard.press("Tab")
        page.keyboard.type(password)
        page.keyboard.press("Enter")

    @contextlib.contextmanager
    def amqp(self, **properties: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        """Returns a channel of a new connection."""
        assert self.broker is not None
        connection = pika.BlockingConnection(pika.ConnectionParameters(
            self.broker.address.host, self.broker.address.port, client_properties=properties or None))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def api(self, path: str, authorization: str) -> Tuple[int, object]:
        """Returns the status and the JSON of an API request."""
        request = urllib.request.Request(f"{self.base}/api/{path}", headers={"Authorization": authorization})
        try:
            with urllib.request.urlopen(request, timeout=patience(15)) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)


def found_by_axe(axe: Axe, page: Page, where: str) -> List[str]:
    """Returns the problems that axe reports, with their places."""
    page.evaluate("document.getAnimations().forEach((one) => one.finish())")
    return [f"{where}: {one['id']} ({one['impact']}): {one['nodes'][0]['target']} {one['nodes'][0]['html'][:120]}"
            for one in axe.run(page).response["violations"]]


def go(page: Page, where: str, title: str) -> None:
    """Opens another page and waits until it is drawn."""
    page.evaluate("where => { location.hash = `#/${where}`; }", where)
    page.get_by_role("heading", name=title, level=1, exact=True).wait_for()
    page.get_by_text("Loading…").wait_for(state="detached")


def row_of(page: Page, name: str) -> Dict[str, str]:
    """Returns a row of the displayed table, by column names."""
    cells = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True)).get_by_role("cell")
    return {cell.get_attribute("data-label") or "": cell.inner_text().strip() for cell in cells.all()}


def until_row(page: Page, name: str, column: str, value: str) -> None:
    """Waits until a poll has brought this value."""
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
    row.locator(f"td[data-label='{column}']", has_text=value).wait_for()
    assert row_of(page, name)[column] == value, row_of(page, name)
