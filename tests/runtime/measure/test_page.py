from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from quaver.runtime.measure import page

VOID = {"meta", "img", "br", "path", "line", "circle", "rect"}


class Reader(HTMLParser):
    """Every element with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def text(report: dict[str, Any], media: dict[str, bytes]) -> str:
    return page.render(report, media.__getitem__)


def test_every_element_is_closed_and_every_link_has_its_place(text: str):
    found = Reader(text)
    assert found.open == []
    places = {attributes.get("id") for _, attributes in found.found}
    assert {link["href"][1:] for link in found.all("a")} <= places


def test_a_hostile_prompt_stays_text(text: str, report: dict[str, Any]):
    found = Reader(text)
    assert report["clips"][1]["prompt"] in found.text
    assert "<b>cpu</b>" in found.text
    assert len(found.all("script")) == 1
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert not any(name.startswith("on") for _, attributes in found.found for name in attributes)


def test_every_clip_has_a_sound_in_it(text: str, media: dict[str, bytes], report: dict[str, Any]):
    sounds = Reader(text).all("audio")
    assert len(sounds) == 4 * len(report["clips"])
    assert all("controls" in sound and sound["aria-label"] for sound in sounds)
    assert base64.b64decode(sounds[0]["src"].removeprefix("data:audio/wav;base64,")) == media["float.wav"]


def test_the_page_loads_nothing_and_forbids_loading(text: str):
    assert not re.search(r"https?://", text)
    found = Reader(text)
    assert found.all("link") == []
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_verdict_comes_first_and_follows_the_figures(report: dict[str, Any], media: dict[str, bytes]):
    report["verdict"]["ship"] = False
    found = Reader(page.render(report, media.__getitem__))
    assert next(name for name, _ in found.found if name in ("h1", "h2", "audio")) == "h1"
    assert "Do not ship" in found.text


def test_a_long_prompt_is_cut_in_the_title_and_whole_below(text: str, report: dict[str, Any]):
    whole = report["clips"][2]["prompt"]
    assert len(whole) > 9000
    assert Reader(text).text.count(whole) == 1


def test_what_is_missing_is_said(report: dict[str, Any], media: dict[str, bytes]):
    report |= {"probe": {"missing": "no probe.onnx here"}, "plan": {"missing": "no plan here"}}
    found = Reader(page.render(report, media.__getitem__))
    assert "no probe.onnx here" in found.text and "no plan here" in found.text
