"""The page in a real Chromium, spoken to over its debugging pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quaver.runtime.measure import page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")

PATIENCE_S = 120  # a busy machine starts a browser slowly

pytestmark = pytest.mark.browser


class Tab:
    """One tab; `events` collects what the browser reports on its own."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.number, self.session, self.rest = 0, None, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, script: str) -> Any:
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.receive], [], [], PATIENCE_S)
            block = os.read(self.receive, 1 << 16) if ready else b""
            assert block, "the browser went away, or does not answer"
            self.rest += block
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        # In CI a missing browser must not hide a broken page; elsewhere it is a reader's choice.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium here: apt-get install chromium")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    command = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # the debugging pipe is file descriptors 3 and 4
    arguments = [found, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", command, "browser", str(theirs_in), str(theirs_out), *arguments],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)


@contextlib.contextmanager
def opened(folder: Path, report: dict[str, Any], media: dict[str, bytes]) -> Iterator[Tab]:
    file = folder / "report.html"
    file.write_text(page.render(report, media.__getitem__), encoding="utf-8")
    with browser(folder / "profile") as tab:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            tab.call(f"{domain}.enable")
        tab.call("Page.navigate", url=file.as_uri())
        tab.evaluate("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
        yield tab


@pytest.mark.parametrize(("kind", "takes", "points"), [("report", 4, 4), ("joint", 7, 10)])
def test_the_page_works_in_a_browser(
    request: pytest.FixtureRequest, tmp_path: Path, media: dict[str, bytes], kind: str, takes: int, points: int
):
    report = request.getfixturevalue(kind)
    with opened(tmp_path, report, media) as tab:
        assert tab.evaluate("document.title") == f"{report['verdict']['word']}: {report['name']}"
        titles = tab.evaluate("[...document.querySelectorAll('.clip h3')].map(title => title.textContent)")
        assert titles[1] == report["clips"][1]["prompt"]
        whole = tab.evaluate("document.querySelectorAll('.clip details p')[0].textContent")
        assert whole == report["clips"][2]["prompt"] and len(whole) > 9000
        assert tab.evaluate("document.querySelectorAll('#tradeoff svg.chart:first-of-type g.point').length") == points
        assert tab.evaluate("document.querySelectorAll('.pareto')[0].getTotalLength()") > 100

        # Every picture decodes, every sound has its length.
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth == 400)")
        players = "[...document.querySelectorAll('audio')]"
        tab.evaluate(f"Promise.all({players}.map(a => a.readyState ? 0 : new Promise(r => a.onloadedmetadata = r)))")
        durations = tab.evaluate(f"{players}.map(a => a.duration)")
        assert durations == pytest.approx([2.05] * 4 * takes, abs=0.01)

        # A click on a picture plays it, another one stops the first.
        tab.evaluate("document.querySelectorAll('.sound')[0].click()")
        moves = f"new Promise(done => {players}[0].ontimeupdate = e => e.target.currentTime > 0 && done(true))"
        assert tab.evaluate(moves)
        buttons = (
            "[...document.querySelectorAll('button.play')].map(b => b.getAttribute('aria-pressed')).indexOf('true')"
        )
        assert tab.evaluate(buttons) == 0
        tab.evaluate(f"{players}[1].play()")
        assert tab.evaluate(f"{players}.map(a => a.paused).indexOf(false)") == 1

        # The keyboard reaches what scrolls, what unfolds, what was folded, and what plays.
        tab.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
        focusable = "document.querySelectorAll('a[href], audio[controls], button, summary, [tabindex=\"0\"]')"
        reached = f"[...{focusable}].filter(e => (e.focus(), document.activeElement == e)).length == {focusable}.length"
        assert tab.evaluate(reached)
        wide = "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0 && e.getAttribute('aria-label'))"
        assert tab.evaluate(wide)

        # Nothing sticks out sideways on a phone, in either colour scheme.
        tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        # The button on a picture plays it there too, by finger.
        button = "document.querySelectorAll('button.play')[2]"
        assert tab.evaluate(f"{button}.getBoundingClientRect().width") >= 44
        assert tab.evaluate(f"new Promise(r => ({players}[2].onplaying = () => r(true), {button}.click()))")
        assert tab.evaluate(buttons) == 2
        # A table shows its first figures beside their heading without being scrolled, and keeps the heading when it is.
        first = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[1].getBoundingClientRect())"
        assert tab.evaluate(f"{first}.every(cell => cell.width > 0 ? cell.right < 390 : true)")
        stays = "e => (e.scrollLeft = 1000, e.querySelector('tbody th').getBoundingClientRect().left > 0)"
        assert tab.evaluate(
            f"[...document.querySelectorAll('section > .scroll, section > details > .scroll')].every({stays})"
        )
        light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light

        assert complaints(tab) == []
        assert {url.partition(":")[0] for url in requests(tab)} <= {"file", "data"}


def complaints(tab: Tab) -> list[dict[str, Any]]:
    methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for event in tab.events if event.get("method") in methods]


def requests(tab: Tab) -> list[str]:
    sent = [event for event in tab.events if event.get("method") == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]
