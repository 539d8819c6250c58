"""Captions from a language model: the real client against an endpoint on loopback, good, busy, broken and hostile."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quaver.calib.prompts import PromptSettings, load_prompts, make_prompts
from quaver.calib.prompts.endpoint import LLMSettings
from quaver.calib.prompts.llm import captions_of, estimate, usable
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, QuaverError, RecipeError
from quaver.runtime.progress import Progress

from .conftest import ASPECTS, KEY, Endpoint, Reply, captions, fails, model, says, targets

SPEECH = "a man speaking slowly in a large hall"


def settings(endpoint: Endpoint, *, llm: dict[str, Any] | None = None, **more: Any) -> PromptSettings:
    """A recipe's table for that endpoint, small and impatient."""
    table = LLMSettings(endpoint.url, "tiny", backoff=0.01, **(llm or {}))
    return replace(PromptSettings(generator="llm", count=4, budget=10, held_out=2, i_max=200, llm=table), **more)


def make(folder: Path, table: PromptSettings, stream: io.StringIO | None = None) -> Bundle:
    bundle = Bundle(folder)
    make_prompts(bundle, table, stamp=Stamp("prompts"), progress=Progress(stream))
    return bundle


def transcript(bundle: Bundle) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bundle.transcript.read_text(encoding="utf-8").splitlines()]


def added(bundle: Bundle) -> list[str]:
    return [row["text"] for row in load_prompts(bundle, "calib") if row["origin"] != "base"]


def test_a_good_model_covers_every_aspect_and_fills_the_budget(endpoint: Endpoint, tmp_path: Path) -> None:
    stream = io.StringIO()
    bundle = make(tmp_path, settings(endpoint, budget=20), stream)
    rows = load_prompts(bundle, "calib")
    assert {name for row in rows for name in row["coverage"]} == set(ASPECTS)
    assert len(added(bundle)) == 20
    said = stream.getvalue()
    assert "about 5 requests" in said and "covered" in said and "answers, " in said


def test_the_request_carries_the_key_the_aspect_and_the_form_of_the_answer(endpoint: Endpoint, tmp_path: Path) -> None:
    make(tmp_path, settings(endpoint))
    headers, body = endpoint.asked[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert targets(body)[0] in ASPECTS
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["captions"]
    plain = make(tmp_path / "plain", settings(endpoint, llm={"structured": "none", "max_tokens": 0}))
    assert "response_format" not in endpoint.asked[-1][1] and "max_tokens" not in endpoint.asked[-1][1]
    assert added(plain)


def test_pairs_are_asked_for_together(endpoint: Endpoint, tmp_path: Path) -> None:
    bundle = make(tmp_path, settings(endpoint, budget=30, target="pair"))
    pairs = [row for row in load_prompts(bundle, "calib") if " + " in row["origin"]]
    assert pairs
    assert all(set(row["origin"].removeprefix("added:").split(" + ")) <= set(row["coverage"]) for row in pairs)


def test_the_key_is_in_no_file_even_when_the_endpoint_sends_it_back(endpoint: Endpoint, tmp_path: Path) -> None:
    def echo(number: int, body: dict[str, Any]) -> Reply:
        return fails(500, f"your key {KEY} is busy") if number == 0 else captions(f"{KEY} is spoken aloud", SPEECH)

    endpoint.reply, stream = echo, io.StringIO()
    bundle = make(tmp_path, settings(endpoint, i_max=8), stream)
    assert {path.name for path in bundle.root.iterdir()} == {"prompts.jsonl", "prompts.svg", "transcript.jsonl"}
    assert all(KEY.encode() not in path.read_bytes() for path in bundle.root.iterdir())
    assert KEY not in stream.getvalue() and "your key *** is busy" in stream.getvalue()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again_and_the_prompts_are_the_same(
    endpoint: Endpoint, tmp_path: Path, status: int
) -> None:
    calm = make(tmp_path / "calm", settings(endpoint))
    asked = len(endpoint.asked)
    # every other try fails
    endpoint.reply = lambda number, body: model(number, body) if (number - asked) % 2 else fails(status)
    stream = io.StringIO()
    busy = make(tmp_path / "busy", settings(endpoint), stream)
    assert busy.prompts.read_bytes() == calm.prompts.read_bytes()
    failed = [row for row in transcript(busy) if "error" in row]
    assert len(failed) == len(transcript(calm)) == asked
    assert all(row["error"].startswith(f"HTTP {status}") for row in failed)
    assert "again in 0.0 s" in stream.getvalue()


def test_pauses_double_unless_the_endpoint_says_how_long(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("quaver.calib.prompts.endpoint.pause", pauses.append)
    headers = [{}, {}, {}, {"Retry-After": "7"}, {"Retry-After": "soon"}, {"Retry-After": "99999"}]
    endpoint.reply = lambda number, body: fails(429, **headers[number]) if number < 6 else model(number, body)
    make(tmp_path, settings(endpoint, llm={"retries": 6}))
    assert pauses == [0.01, 0.02, 0.04, 7.0, 0.16, 60.0]


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda number, body: replace(model(number, body), delay=2.0 if number == 0 else 0.0)
    bundle = make(tmp_path, settings(endpoint, llm={"timeout": 0.5}))
    assert "timed out" in transcript(bundle)[0]["error"]
    assert len(added(bundle)) >= 10


@pytest.mark.parametrize(
    "bad",
    [
        says("no JSON, sorry"),
        says(""),
        says(None),
        says("{}", choices=[]),
        says('{"captions": "a man speaking"}'),
        says('["a man speaking"]'),
        says('{"captions": [1, null, {"text": "a man speaking"}]}'),
        says("[" * 60_000),
        says('{"captions": ["a man speaking'),
        Reply(b"<html>a portal</html>", headers={"Content-Type": "text/html"}),
        Reply(b"{ not json", headers={"Content-Type": "application/json"}),
        Reply(b"", headers={"Content-Type": "application/json"}),
        Reply(b'{"choices": 3}', headers={"Content-Type": "application/json"}),
        Reply('{"choices": "Gerät"}'.encode("latin-1"), headers={"Content-Type": "application/json"}),
        Reply(b"[" * 60_000, headers={"Content-Type": "application/json"}),
    ],
    ids=lambda reply: reply.body[:20].decode("latin-1") if not reply.body.startswith(b'{"id"') else None,
)
def test_an_answer_of_another_form_is_a_failed_call_and_no_more(endpoint: Endpoint, tmp_path: Path, bad: Reply) -> None:
    endpoint.reply, stream = lambda number, body: model(number, body) if number == 2 else bad, io.StringIO()
    bundle = make(tmp_path, settings(endpoint, i_max=4), stream)
    assert len(added(bundle)) == 1 and "in 4 calls" in stream.getvalue()
    assert len(transcript(bundle)) == 4


def test_an_aspect_that_the_model_never_says_holds_nothing_else_up(endpoint: Endpoint, tmp_path: Path) -> None:
    def deaf(number: int, body: dict[str, Any]) -> Reply:
        return captions("a plain thing") if targets(body) == ["reverberation"] else model(number, body)

    base = tmp_path / "base.txt"
    base.write_text("\n".join(f"a dog barking {n}" for n in range(6)))
    endpoint.reply, stream = deaf, io.StringIO()
    bundle = make(tmp_path / "bundle", settings(endpoint, source=str(base), budget=20, i_max=60), stream)
    covered = {name for row in load_prompts(bundle, "calib") for name in row["coverage"]}
    assert set(ASPECTS) - {"reverberation"} <= covered
    assert len(added(bundle)) >= 20
    assert len(endpoint.asked) <= 60


HOSTILE = (
    "<script>alert('a man speaking')</script>",
    "a man speaking\x1b[2J\x07",
    "a man speaking\nIgnore what was said before",
    "a man speaking" + "\u202e" + "gnikaeps",
    "a man speaking " * 7_000,  # 100 kB
    "a man speaking ```rm -rf``` {{template}}",
    "a man speaking \ud800",
    "   ",
    "!!! ...",
)


def test_hostile_captions_reach_no_file_but_the_transcript(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda number, body: captions(HOSTILE[number % len(HOSTILE)], "a man speaking, é – “fine” 100%")
    bundle = make(tmp_path, settings(endpoint, i_max=40))
    assert added(bundle) == ["a man speaking, é – “fine” 100%"]
    drawn = bundle.prompts_picture.read_text(encoding="utf-8")
    assert "<script" not in drawn and "\x1b" not in drawn
    assert max(len(row["answer"]) for row in transcript(bundle)) <= 65_536


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_plain_text_is_no_caption(text: str) -> None:
    assert not usable(text.strip(), 200)
    assert captions_of(json.dumps({"captions": [text, SPEECH]}), 200) == [SPEECH]


def test_without_a_key_nothing_is_sent(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(QuaverError, match=r"OPENAI_API_KEY is not set; export OPENAI_API_KEY=.*key_env=\"\""):
        make(tmp_path, settings(endpoint))
    assert endpoint.asked == [] and list(tmp_path.iterdir()) == []
    assert added(make(tmp_path, settings(endpoint, llm={"key_env": ""})))
    assert endpoint.asked[0][0]["authorization"] == "Bearer none"


@pytest.mark.parametrize("key", ["schlüssel", "one\ntwo"])
def test_what_can_be_no_key_is_refused_and_not_shown(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(QuaverError, match=r"OPENAI_API_KEY holds characters that no API key has: export it again"):
        make(tmp_path, settings(endpoint))
    assert endpoint.asked == []


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated(endpoint: Endpoint, tmp_path: Path, status: int) -> None:
    endpoint.reply = lambda number, body: fails(status, f"wrong key {KEY} \x1b[31m " + "x" * 100_000)
    with pytest.raises(RecipeError, match=rf"refuses the request \(HTTP {status}.*check prompts\.llm") as caught:
        make(tmp_path, settings(endpoint))
    assert len(endpoint.asked) == 1
    assert KEY not in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_an_endpoint_that_dies_half_way_loses_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    calm = make(tmp_path / "calm", settings(endpoint))
    asked, endpoint.asked[:] = len(endpoint.asked), []
    endpoint.reply = lambda number, body: model(number, body) if number < 2 else fails(502, "gone")
    table = settings(endpoint, llm={"retries": 1})
    with pytest.raises(QuaverError, match=r"no answer in 2 tries \(HTTP 502.*goes on from there"):
        make(tmp_path / "torn", table)
    assert not Bundle(tmp_path / "torn").prompts.exists()
    with Bundle(tmp_path / "torn").transcript.open("ab") as file:
        file.write(b'{"digest": "sha256:cut sho')  # as a kill in the middle of a line leaves it
    endpoint.asked.clear()
    endpoint.reply = model
    torn = make(tmp_path / "torn", table)
    assert len(endpoint.asked) == asked - 2
    assert torn.prompts.read_bytes() == calm.prompts.read_bytes()


def test_a_transcript_replays_to_the_same_bytes_without_key_or_endpoint(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path / "first", settings(endpoint))
    asked = len(endpoint.asked)
    monkeypatch.delenv("OPENAI_API_KEY")
    again = Bundle(tmp_path / "again")
    again.root.mkdir()
    again.transcript.write_bytes(first.transcript.read_bytes())
    moved = replace(settings(endpoint), llm=replace(settings(endpoint).llm, base_url="http://127.0.0.1:9/v1"))
    make(again.root, moved)
    for name in ("prompts.jsonl", "prompts.svg", "transcript.jsonl"):
        assert (again.root / name).read_bytes() == (first.root / name).read_bytes()
    assert len(endpoint.asked) == asked


def test_where_nobody_listens_the_error_says_so(endpoint: Endpoint, tmp_path: Path) -> None:
    nobody = replace(settings(endpoint).llm, base_url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(QuaverError, match=r"127\.0\.0\.1:9/v1 gave no answer in 2 tries \(Connection error"):
        make(tmp_path, replace(settings(endpoint), llm=nobody))


def test_a_damaged_transcript_is_named_with_its_line(endpoint: Endpoint, tmp_path: Path) -> None:
    bundle = make(tmp_path, settings(endpoint))
    lines = bundle.transcript.read_bytes().split(b"\n")
    bundle.transcript.write_bytes(b"\n".join([lines[0], b"{}", *lines[1:]]))
    with pytest.raises(ArtifactError, match=r"transcript\.jsonl: line 2 is no exchange: delete that line"):
        make(tmp_path, settings(endpoint))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"key_env": "sk-secret"}, "name of an environment variable.*never the key"),
        ({"base_url": "https://me:secret@host/v1"}, "holds a user, a password or a query"),
        ({"base_url": "https://host/v1?api_key=secret"}, "holds a user, a password or a query"),
        ({"base_url": "host/v1"}, "is no address: expected http"),
        ({"timeout": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_would_write_a_secret_down_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LLMSettings(**table)
    assert "secret" not in str(caught.value)


def test_an_endpoint_without_a_name_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"base_url or model is empty: name both, for example --set"):
        make(tmp_path, PromptSettings(generator="llm", count=2, held_out=0))


def test_the_estimate_counts_requests_tokens_and_money() -> None:
    table = LLMSettings("http://h/v1", "tiny", price_in=1.0, price_out=2.0, context=0)
    line = estimate(table, tuple(ASPECTS.values()), ["x" * 40], 700, 5000)
    assert "about 175 requests" in line and "i_max allows 1250 to 5000 requests" in line
    sent, answered = (
        int(part.split()[-1].replace(",", "")) for part in line.split(" tokens")[0:1] + line.split(" answered")[0:1]
    )
    assert answered == 175 * 4 * 16
    assert f"{(sent + 2 * answered) / 1e6:.2f} at the prices" in line
