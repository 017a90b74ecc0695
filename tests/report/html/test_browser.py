"""A headless Chromium opens the page: no error, no request, no sideways scrolling, and what the script does."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroada.report.html.page import report_page
from neuroada.report.html.run import read_runs

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium on PATH: apt-get install chromium")

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
PATIENCE = 120.0
"""Seconds to wait for one answer; only a hang takes that long."""


class Browser:
    """One tab, spoken to through the browser's debugging pipe, whose messages end with a zero byte.

    events: all that it told since the page was opened, as (method, parameters).
    """

    def __init__(self, binary: str, profile: Path):
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.session, self.number, self.rest = "", 0, b""
        low = [*os.pipe(), *os.pipe()]
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low]  # the browser's ends become 3 and 4
        for end in low:
            os.close(end)
        read, self.write, self.read, write = high
        arguments = [binary, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        moved = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4)]
        self.process = os.posix_spawn(binary, arguments, os.environ, file_actions=[*quiet, *moved], setpgroup=0)
        os.close(read)
        os.close(write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": parameters, **session}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str, script: bool = True) -> None:
        """Load a file in a viewport of that width, where the system prefers that colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.told("Page.loadEventFired"):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def told(self, method: str) -> list[dict[str, Any]]:
        """The parameters of its events of one kind."""
        return [parameters for name, parameters in self.events if name == method]

    def close(self) -> None:
        """End the browser and its children."""
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.read)
        os.close(self.write)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self.read, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("Chromium does not answer")
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(BINARY or "", tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(read_runs(list(trained.values()))), encoding="utf-8")
    return path


COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_opens_without_error_request_or_sideways_scrolling(browser: Browser, page: Path, width: int, scheme: str):
    browser.open(page, width, scheme)
    assert browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true) || 1") == 1
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    assert [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")] == [page.as_uri()]
    assert [event for kind in COMPLAINTS for event in browser.told(kind)] == []


def test_a_page_with_an_error_and_a_request_is_noticed(browser: Browser, page: Path, tmp_path: Path):
    broken = tmp_path / "broken.html"
    broken.write_text("<img src='http://127.0.0.1:9/x.png' onerror='fail()'>")
    browser.open(broken, 390, "light")
    assert len(browser.told("Network.requestWillBeSent")) == 2
    assert browser.told("Runtime.exceptionThrown")


def test_a_script_that_is_not_ours_is_refused(browser: Browser, page: Path, tmp_path: Path):
    injected = tmp_path / "injected.html"
    injected.write_text(page.read_text().replace("</main>", "<script>document.title = 'mine'</script></main>"))
    browser.open(injected, 390, "light")
    assert "neuroada report" in browser.evaluate("document.title")
    assert browser.told("Log.entryAdded")


def test_a_click_on_a_heading_sorts(browser: Browser, page: Path):
    browser.open(page, 1400, "light")
    table = "document.querySelector('.tall table')"
    column = f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[3].dataset.sort))"
    click = f"{table}.tHead.rows[0].cells[3].querySelector('button').click()"
    given = browser.evaluate(column)
    for state, reverse in (("descending", True), ("ascending", False), ("descending", True)):
        browser.evaluate(click)
        assert browser.evaluate(f"{table}.tHead.rows[0].cells[3].ariaSort") == state
        assert browser.evaluate(column) == sorted(given, reverse=reverse)
    browser.evaluate(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
    assert browser.evaluate(f"{table}.querySelectorAll('[aria-sort]').length") == 1
    names = browser.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].innerText.split('\\n')[0].trim())")
    assert names[0].lower() <= names[-1].lower()


def test_missing_values_are_sorted_last(browser: Browser, page: Path):
    browser.open(page, 1400, "light")
    table = "document.querySelector('.tall table')"
    for _ in range(2):
        browser.evaluate(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
        cells = browser.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[2].textContent)")
        missing = [cell == "—" for cell in cells]
        assert any(missing)
        assert missing == sorted(missing)


def test_examples_are_filtered(browser: Browser, page: Path):
    browser.open(page, 390, "dark")
    count = "document.querySelectorAll('.example:not([hidden])').length"
    whole = browser.evaluate(count)
    choose = """(() => {
        const select = document.querySelector('.filters [name=test]');
        select.value = 'piqa';
        select.dispatchEvent(new Event('change', {bubbles: true}));
    })()"""
    browser.evaluate(choose)
    assert 0 < browser.evaluate(count) < whole
    tests = browser.evaluate("[...document.querySelectorAll('.example:not([hidden])')].map(each => each.dataset.test)")
    assert set(tests) == {"piqa"}
    assert browser.evaluate("document.querySelector('.filters output').textContent").endswith(f"of {whole} examples")


@pytest.mark.parametrize(("scheme", "other"), [("light", "rgb(20, 23, 26)"), ("dark", "rgb(255, 255, 255)")])
def test_the_toggle_changes_light_and_dark(browser: Browser, page: Path, scheme: str, other: str):
    browser.open(page, 390, scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.evaluate(ground)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) == other != before
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) == before


def test_without_script_all_is_there_and_nothing_promises_more(browser: Browser, page: Path):
    browser.open(page, 390, "light", script=False)
    root = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]

    def count(selector: str) -> int:
        return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert count("th button") == 0
    assert count(".filters:not([hidden]), #theme:not([hidden])") == 0
    assert count(".example:not([hidden])") > 0
