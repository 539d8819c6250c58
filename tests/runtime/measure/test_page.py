from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from quaver.runtime.measure import page
from quaver.runtime.measure.page.accuracy import drift, steps
from quaver.runtime.measure.page.tradeoff import call_rows, tradeoff
from quaver.runtime.measure.spectrogram import truecolour
from quaver.runtime.measure.units import percent, spoken
from quaver.runtime.measure.verdict import best_row

VOID = {"meta", "img", "br"}


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
    assert len(places - {None}) == 8


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


def test_the_verdict_comes_first_and_is_the_reports(report: dict[str, Any], media: dict[str, bytes]):
    report["verdict"] = {"ship": False, "word": "Do not ship", "sentence": "It is too far off."}
    found = Reader(page.render(report, media.__getitem__))
    assert next(name for name, _ in found.found if name in ("h1", "h2", "audio")) == "h1"
    assert "Do not ship" in found.text


def test_a_long_prompt_is_cut_in_the_title_and_whole_below(text: str, report: dict[str, Any]):
    whole = report["clips"][2]["prompt"]
    assert len(whole) > 9000
    assert Reader(text).text.count(whole) == 1


def test_what_is_missing_is_said(report: dict[str, Any], media: dict[str, bytes]):
    keys = ("plan", "sites", "coverage", "ranges")
    report["engines"][0] |= {key: {"missing": f"no {key} here"} for key in keys}
    report["engines"][0]["sets"] = [{"network": "probe", "missing": "no probe.onnx here"}]
    found = Reader(page.render(report | {"clips": []}, media.__getitem__))
    assert all(f"no {key} here" in found.text for key in (*keys, "probe.onnx"))
    assert "This report has no samples" in found.text and found.all("audio") == []


def test_several_engines_have_a_verdict_each_and_the_clips_of_their_best_correction(
    joint: dict[str, Any], media: dict[str, bytes]
):
    text = page.render(joint, media.__getitem__)
    found = Reader(text)
    assert found.open == [] and "<i>w4a8</i>" in found.text
    assert len([a for a in found.all("article") if a["class"] == "engine"]) == 3
    assert len(found.all("audio")) == (1 + 3 * 2) * len(joint["clips"])  # float, and none and the best of each
    assert found.text.count("Do not ship") == 1


def test_every_engine_and_correction_is_a_point_and_the_pareto_line_leaves_out_what_is_dominated(
    joint: dict[str, Any], media: dict[str, bytes]
):
    text = page.render(joint, media.__getitem__)
    chart = re.search(r'<svg class="chart" [^>]*aria-label="Error against time.*?</svg>', text, re.DOTALL).group()
    points = [g for g in Reader(chart).all("g") if g["class"].startswith("point ")]
    assert len(points) == 1 + 3 * 3
    line = next(p["points"] for p in Reader(chart).all("polyline"))
    # fastest: none of w4a8 (nothing added), its best; likewise of the others; float; never d2-stochastic
    assert len(line.split()) == 2 * 3 + 1


def test_an_engines_time_is_one_figure_in_chart_and_table_however_the_machine_went(joint: dict[str, Any]):
    """Float's median over the paired speed-up, where an engine's own median says that the machine was busy."""
    for engine in joint["engines"]:
        engine["call"]["engines"][engine["target"]]["median_s"] = 9.0
        engine["call"]["speedup"] = {"value": 2.0, "low": 1.5, "high": 2.5}
    joint["references"][0]["call"]["median_s"] = 0.02
    found = {row.label: (row.value, row.low, row.high) for row in call_rows(joint)}
    assert found.pop("float") == (0.02, 0.02, 0.02)
    assert set(found) == {engine["name"] for engine in joint["engines"]}
    assert set(found.values()) == {(0.01, 0.008, 0.02 / 1.5)}
    shown = re.search(r'aria-label="Time of a call: [^"]*"', tradeoff(joint)).group()
    assert shown.count("10.0 ms") == len(joint["engines"]) and "9.00 s" not in tradeoff(joint)


def test_clips_beyond_the_budget_are_links_to_their_files(report: dict[str, Any], media: dict[str, bytes]):
    one = len(page.render(report | {"clips": report["clips"][:1]}, media.__getitem__))
    bare = len(page.render(report | {"clips": []}, media.__getitem__))
    text = page.render(report, media.__getitem__, budget=int(1.5 * (one - bare)))
    found = Reader(text)
    assert len(found.all("audio")) == 4
    files = [link["href"] for link in found.all("a") if link["href"].startswith("media/")]
    assert files == [f"media/{take['file']}" for clip in report["clips"][1:] for take in clip["takes"]]
    assert report["clips"][1]["prompt"] in found.text and "3 more clips" in found.text
    assert len(text) < 1.6 * one


def test_a_picture_has_no_player(report: dict[str, Any]):
    drawn = truecolour(np.zeros((4, 4, 3), np.uint8))
    for clip in report["clips"]:
        clip["takes"] = [
            {key: take[key] for key in ("engine", "correction", "latent_error")} | {"file": "x.png"}
            for take in clip["takes"]
        ]
    found = Reader(page.render(report, lambda name: drawn))
    assert found.all("audio") == [] and len(found.all("img")) == 4 * len(report["clips"])
    assert base64.b64decode(found.all("img")[0]["src"].removeprefix("data:image/png;base64,")) == drawn


def test_silent_and_clipped_clips_are_marked(report: dict[str, Any], media: dict[str, bytes]):
    report["clips"][0]["takes"][1] |= {"silent": True}
    text = page.render(report, media.__getitem__)
    assert text.count('<p class="warning">silent</p>') == 1  # the other three clips share their takes, but not this one
    assert '<p class="warning">1.2% clipped</p>' in text


def test_a_table_says_its_engine_and_correction_in_one_heading_that_stays(
    joint: dict[str, Any], media: dict[str, bytes]
):
    text = page.render(joint, media.__getitem__)
    rows = re.findall(r'<tr[^>]*><th scope="row"><span><i[^>]*></i><b>([^<]+)</b><small>([^<]+)</small>', text)
    wanted = [(e["name"], spoken(row["name"])) for e in joint["engines"] for row in e["corrections"]]
    assert [(unescape(name), correction) for name, correction in rows] == 2 * wanted  # the corrections, and the sets
    assert "<caption><span>embedded probe: 64 clips, 96 features</span></caption>" in text


def test_clips_beyond_the_first_are_folded_and_in_the_page(report: dict[str, Any], media: dict[str, bytes]):
    report["clips"] += report["clips"][:1] * 3
    open_, _, folded = page.render(report, media.__getitem__).partition('<details class="more"><summary>3 more clips')
    assert open_.count('<article class="clip">') == 4 and folded.count('<article class="clip">') == 3


@pytest.mark.parametrize("made", ["report", "joint"])
def test_error_and_snr_of_every_step_are_numbers_too(made: str, request: pytest.FixtureRequest):
    found = request.getfixturevalue(made)
    for row in found["engines"][-1]["corrections"] if made == "joint" else ():
        row["drift"], row["drift_snr_db"] = row["drift"][:12], row["drift_snr_db"][:12]  # an engine of fewer steps
    said = Reader(str(steps(found)))
    assert said.open == [] and len(said.all("tr")) == 21
    best = best_row(found["engines"][0]["corrections"])
    assert f"{percent(best['drift'][10])}{best['drift_snr_db'][10]:.1f} dB" in said.text


def test_drift_stands_beside_the_float_model_whose_seeds_lie_nearest(joint: dict[str, Any]):
    own = joint["references"][0]
    alone = drift(joint, beyond=True)
    joint["references"].append(own | {"seed_spread": [2 * value for value in own["seed_spread"]]})
    assert drift(joint, beyond=True) == alone
    joint["references"].append(own | {"seed_spread": [value / 2 for value in own["seed_spread"]]})
    assert drift(joint, beyond=True) != alone
