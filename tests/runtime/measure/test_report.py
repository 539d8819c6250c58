from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, digest_file, load_json, load_tensors, save_json, save_lines
from quaver.runtime.audio import read_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.error_law import load_stats, save_stats
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.measure import compare, report, takes, trajectories, verdict
from quaver.runtime.measure.generation import usable_cores
from quaver.runtime.measure.plan import plan_facts
from quaver.runtime.measure.report import ValidateSettings, validate
from quaver.runtime.progress import Progress, quiet
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import open_bundle

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
CORRECTIONS = ("none", "d2-deterministic", "d2-stochastic")
SETTINGS = ValidateSettings(
    corrections=CORRECTIONS, trajectories=6, clips=2, latency_runs=3, latency_warmup=1, batch=4, generations=0
)
STAMP = Stamp("validate", settings="sha256:settings", inputs={"prompts.jsonl": "sha256:prompts"})


@pytest.fixture
def figures(bundle: Bundle) -> dict[str, Any]:
    validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    return load_json(bundle.report_json, "validate")


@pytest.fixture
def engine(figures: dict[str, Any]) -> dict[str, Any]:
    return figures["engines"][0]


def test_a_report_compares_the_engine_with_float_on_held_out_prompts(bundle: Bundle, figures: dict[str, Any], engine):
    assert figures["stamp"]["settings"] == "sha256:settings" and figures["schema"] == 2
    assert figures["trajectories"] == 6 and figures["prompts"] == 2
    assert [row["name"] for row in engine["corrections"]] == list(SETTINGS.corrections)
    none = engine["corrections"][0]
    assert 0.001 < none["latent_error"]["low"] <= none["latent_error"]["value"] <= none["latent_error"]["high"] < 0.2
    assert len(none["drift"]) == 4 and none["drift"][-1] == pytest.approx(none["latent_error"]["value"])
    assert none["added_s"] == 0 < engine["corrections"][1]["added_s"]
    assert 0.001 < engine["call"]["error"]["value"] < 0.2
    assert set(engine["call"]["engines"]) == {"float", "ort-cpu"}
    assert figures["references"][0]["bytes"] == bundle.float_unet.stat().st_size
    assert engine["digests"][bundle.prompts.name] == digest_file(bundle.prompts)
    assert "6 trajectories from 2 held-out prompts" in figures["notes"][0]
    assert "hold for other seeds of these prompts, not for other prompts" in figures["notes"][0]
    assert "3 pairs of calls, too few for a 95% interval" in figures["notes"][2]


def test_errors_are_those_of_the_same_seeds_drawn_again(bundle: Bundle, engine: dict[str, Any]):
    pairs = trajectories.held_out(bundle, count=6, seed=SETTINGS.seed)
    latents = []
    for name in ("float", "ort-cpu"):
        with open_bundle(bundle, engine_file=name) as session:
            latents.append(trajectories.take(session, pairs, SAMPLING, batch=6).latents.reshape(6, -1))
    expected = np.linalg.norm(latents[1] - latents[0], axis=1) / np.linalg.norm(latents[0], axis=1)
    assert engine["corrections"][0]["errors"] == pytest.approx(expected, rel=1e-4)


def test_clips_are_playable_files_and_the_page_holds_them(bundle: Bundle, figures: dict[str, Any]):
    assert [clip["seed"] for clip in figures["clips"]] == [SETTINGS.seed, SETTINGS.seed + 1]
    waveform, rate = read_wav(bundle.media(figures["clips"][0]["takes"][0]["file"]))
    assert (rate, waveform.shape) == (16000, (256,))
    page = bundle.report_html.read_text()
    assert page.count("<audio") == 2 * 4
    assert "&lt;script&gt;bright drum" in page
    assert figures["verdict"]["sentence"] in page


def test_the_probe_gives_distance_floor_and_agreement(engine: dict[str, Any]):
    (found,) = engine["sets"]
    assert found["network"] == "embedded probe" and found["dimensions"] == 5
    assert "use more than 5 samples" in found["note"]
    none, floor = found["corrections"][0]["measures"], found["floors"][0]["measures"]
    distance = "Frechet distance (embedded probe)"
    assert none[distance]["value"] == pytest.approx(floor[distance]["value"], rel=0.2)
    assert 0.5 <= none["same family"]["value"] <= 1


def test_the_verdict_follows_the_budget(engine: dict[str, Any]):
    rows, call = engine["corrections"], engine["call"]
    generous = verdict.verdict("ort-cpu", rows, call, replace(SETTINGS, max_latent_error=9, min_speedup=0))
    strict = verdict.verdict("ort-cpu", rows, call, replace(SETTINGS, max_latent_error=1e-6, min_speedup=0))
    assert generous["ship"] and not strict["ship"]
    assert [check["passed"] for check in strict["checks"]] == [False, True]
    assert generous["correction"] == min(rows, key=lambda row: row["latent_error"]["value"])["name"]


def test_what_is_missing_leaves_the_rest_of_the_report_and_is_said(bundle: Bundle):
    bundle.probe.unlink()
    settings = replace(SETTINGS, corrections=("none",), clips=0, networks=("probe", "onnx:nowhere.onnx"))
    said = StringIO()
    validate(bundle, settings, SAMPLING, stamp=STAMP, progress=Progress(said))
    assert said.getvalue().count("onnx:nowhere.onnx: no feature network at nowhere.onnx: name an ONNX file") == 1
    assert "6 trajectories are too few for 95% intervals: compare 8 or more." in said.getvalue()
    (engine,) = load_json(bundle.report_json, "validate")["engines"]
    assert "no probe.onnx" in engine["sets"][0]["missing"] and "nowhere.onnx" in engine["sets"][1]["missing"]
    assert "quaver[trt-rtx]" in engine["plan"]["missing"]
    assert "'quaver ranges RECIPE'" in engine["ranges"]["missing"]
    assert "nowhere.onnx" in bundle.report_html.read_text()


def test_a_reference_set_that_is_missing_is_said(bundle: Bundle):
    said, settings = StringIO(), replace(SETTINGS, corrections=("none",), clips=0, reference="nowhere")
    validate(bundle, settings, SAMPLING, stamp=STAMP, progress=Progress(said))
    assert "not compared with real clips: no reference set at nowhere" in said.getvalue()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("corrections", "unknown correction 'autoo'; did you mean 'auto'"),
        ("networks", "unknown feature network 'autoo'"),
    ],
)
def test_a_name_that_nothing_has_is_refused_before_anything_is_drawn(bundle: Bundle, field: str, says: str):
    settings = replace(SETTINGS, **{field: ("none" if field == "corrections" else "probe", "autoo")})
    with pytest.raises(RecipeError, match=says):
        validate(bundle, settings, SAMPLING, stamp=STAMP, progress=quiet())
    assert not bundle.shards("validate").exists()


def test_a_killed_run_goes_on_with_the_takes_it_has(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "compare_calls", killed)
        with pytest.raises(KeyboardInterrupt):
            validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    assert not bundle.report_json.exists() and not bundle.report_html.exists()

    drawn: list[str] = []
    real = takes.take
    monkeypatch.setattr(takes, "take", lambda *a, **k: drawn.append(k["correct"]) or real(*a, **k))
    pairs = trajectories.held_out(bundle, count=6, seed=SETTINGS.seed)
    with open_bundle(bundle) as session:
        stamp = trajectories.take_stamp(session, pairs, SAMPLING, correct="d2-stochastic", batch=4)
    trajectories.take_path(bundle.shards("validate"), stamp).unlink()
    validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    assert drawn == ["d2-stochastic"]
    assert not bundle.shards("validate").exists()


def test_clipped_steps_are_those_of_the_sampler_whatever_the_batch(bundle: Bundle):
    """A residual of variance 25 leaves no noise at eta 1: four steps of one Gaussian over all channels."""
    path, sampling = bundle.error_stats("ort-cpu"), replace(SAMPLING, eta=1.0)
    stats = load_stats(path)
    assert stats.binding is not None
    loud = np.tile([[1.0, 0.0], [0.0, 25.0]], (4, 1, 1, 1))
    save_stats(path, replace(stats, cov=loud, binding=replace(stats.binding, eta=1.0)), Stamp("stats"))
    for batch in (2, 6):
        validate(bundle, replace(SETTINGS, batch=batch, clips=0), sampling, stamp=STAMP, progress=quiet())
        (engine,) = load_json(bundle.report_json, "validate")["engines"]
        found = {row["name"]: row["clipped_steps"] for row in engine["corrections"]}
        assert found == {"none": 0, "d2-deterministic": 4, "d2-stochastic": 0}


def test_takes_of_another_engine_or_of_other_settings_are_drawn_anew(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str | None] = []
    real = takes.take
    monkeypatch.setattr(takes, "take", lambda session, *a, **k: drawn.append(session.target) or real(session, *a, **k))

    def draw(sampling: SamplingSettings = SAMPLING) -> dict[str, trajectories.Take]:
        drawn.clear()
        pairs, how = trajectories.Pairs(("a note", "a note"), (1, 2)), drawing(bundle, sampling)
        with open_bundle(bundle, engine_file="float") as reference, open_bundle(bundle) as judged:
            return takes.draw_takes(how, reference, judged, pairs, ("none",))[0]

    before = draw()
    assert drawn == [None, "ort-cpu"]
    draw()
    assert drawn == []
    draw(replace(SAMPLING, steps=5))
    assert drawn == [None, "ort-cpu"]
    shutil.copyfile(bundle.float_unet, bundle.qdq("ort-cpu"))
    after = draw()
    assert drawn == []  # now it is the float engine, whose take is there
    assert np.array_equal(after["none"].states, after["float"].states)
    assert not np.array_equal(before["none"].states, after["none"].states)


def drawing(bundle: Bundle, sampling: SamplingSettings = SAMPLING) -> takes.Drawing:
    return takes.Drawing(sampling, 4, bundle.shards("validate"), quiet())


def test_the_spread_is_between_two_seeds_of_each_prompt_and_drawn_without_sound(bundle: Bundle):
    pairs, how = trajectories.Pairs(("a note", "a soft low cello note"), (1, 2)), drawing(bundle)
    with open_bundle(bundle, engine_file="float") as session:
        drawn = trajectories.take(session, pairs, SAMPLING, decode=False)
        spread, (path,) = takes.draw_spread(how, session, pairs, drawn)
        again = trajectories.take(session, trajectories.Pairs(pairs.prompts, (3, 4)), SAMPLING, decode=False)
    expected = [
        np.quantile(
            [np.linalg.norm(a[i] - b[i]) / np.linalg.norm(c[i]) for i in range(2) for c in (a, b)],
            0.05,
        )
        for a, b in zip(drawn.states, again.states, strict=True)
    ]
    assert spread == pytest.approx(expected, rel=1e-4)
    assert not trajectories.Take(**load_tensors(path, trajectories.KIND)[0]).heard


def test_engines_of_one_float_model_share_the_seeds_drawn_beside(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    rows = [{"id": name, "text": f"a {name} note", "split": "validate"} for name in ("low", "high", "soft", "loud")]
    save_lines(bundle.prompts, rows, Stamp("prompts"))
    drawn: list[tuple[int, ...]] = []
    real = takes.take
    monkeypatch.setattr(takes, "take", lambda s, pairs, *a, **k: drawn.append(pairs.seeds) or real(s, pairs, *a, **k))
    settings = replace(SETTINGS, corrections=("none",), trajectories=4, clips=0, seed=7)
    place = Bundle(bundle.root.parent / "joint")
    subjects = [report.Subject(name, bundle, settings, SAMPLING) for name in ("one", "two")]
    path = report.write_report(subjects, place, stamp=STAMP, command="", progress=quiet())
    assert drawn == [(7, 8, 9, 10), (7, 8, 9, 10), (11, 12, 13, 14)]
    assert len(list(place.shards("validate").glob("*.safetensors"))) == 3
    assert len(load_json(path, "validate")["references"][0]["seed_spread"]) == SAMPLING.steps


def test_second_seeds_are_drawn_only_as_far_as_prompts_lack_them():
    many = trajectories.Pairs(tuple("abcdefghijkl"), tuple(range(5, 17)))
    assert trajectories.second_seeds(many) == trajectories.Pairs(tuple("abcdefgh"), tuple(range(17, 25)))
    some = trajectories.Pairs(("a", "b", "a", "c"), (1, 2, 3, 4))
    assert trajectories.second_seeds(some, prompts=2) == trajectories.Pairs(("b",), (5,))
    assert trajectories.second_seeds(some, prompts=1) == trajectories.Pairs((), ())


def test_prompts_without_a_validation_split_are_refused(bundle: Bundle):
    save_lines(bundle.prompts, [{"id": "c", "text": "a note", "split": "calib"}], Stamp("prompts"))
    with pytest.raises(ArtifactError, match=r"no prompt of the split 'validate': 'quaver prompts RECIPE'"):
        validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("trajectories", 3, "4 or more"), ("clips", 65, "0 to trajectories"), ("corrections", (), "at least one")],
)
def test_settings_that_cannot_be_meant_are_refused(field: str, value: Any, expected: str):
    with pytest.raises(RecipeError, match=rf"validate\.{field} is .*{expected}"):
        ValidateSettings(**{field: value})


def test_the_report_is_json_without_nan(bundle: Bundle, figures: dict[str, Any]):
    json.loads(bundle.report_json.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_plan_left_out_says_why_and_a_built_one_its_coverage(bundle: Bundle):
    sidecar = bundle.plan_sidecar("tensorrt-rtx")
    save_json(sidecar, {"built": False, "reason": "tensorrt_rtx is not installed"}, Stamp("build"))
    assert plan_facts(bundle) == {"missing": "No tensorrt-rtx plan was built: tensorrt_rtx is not installed."}
    coverage = {"meant": 4, "integer": 3, "by_count": 0.75, "by_macs": 0.9, "missed": [{"layer": "a", "kernels": []}]}
    built = {
        "built": True,
        "tensorrt_rtx": "1.7",
        "compute_capabilities": ["SM89"],
        "batch": {"opt": 2},
        "seconds": 1.5,
    }
    save_json(sidecar, {**built, "plan": {"bytes": 7}, "coverage": coverage, "layers": []}, Stamp("build"))
    found = plan_facts(bundle)
    assert (found["version"], found["bytes"], found["by_count"]) == ("1.7", 7, 0.75)


def test_whole_generations_are_timed_apart_and_a_failure_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def cost(bundle: Bundle, engine: str, sampling: SamplingSettings, *, correct: str, threads: Any, runs: int) -> Any:
        asked.append((engine, correct, threads, runs))
        raise EngineError("measuring ort-cpu failed: it ran out of memory")

    monkeypatch.setattr(report, "generation_cost", cost)
    settings = replace(SETTINGS, corrections=("none",), generations=2)
    validate(bundle, settings, SAMPLING, stamp=STAMP, progress=quiet())
    figures = load_json(bundle.report_json, "validate")
    assert asked == [("float", "none", None, 2), ("ort-cpu", "none", None, 2)]
    assert figures["engines"][0]["generation"] == {"missing": "measuring ort-cpu failed: it ran out of memory."}


def test_every_time_is_taken_on_as_many_threads_as_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    opened, loaded, cores = [], [], usable_cores()

    @contextmanager
    def opening(place: Bundle, *, engine_file: str, threads: int | None) -> Iterator[Any]:
        opened.append((engine_file, threads, len(usable_cores())))
        with open_bundle(place, engine_file=engine_file, threads=threads) as session:
            yield session

    def seconds(path: Path, threads: int | None) -> float:
        loaded.append(threads)
        return 1.0

    monkeypatch.setattr(report, "open_bundle", opening)
    monkeypatch.setattr(compare, "load_seconds", seconds)
    settings = replace(SETTINGS, corrections=("none",), threads=1, generations=1)
    validate(bundle, settings, SAMPLING, stamp=STAMP, progress=quiet())
    (engine,) = load_json(bundle.report_json, "validate")["engines"]
    assert opened == [("float", 1, 1), ("ort-cpu", 1, 1)] and loaded == [1, 1]
    assert engine["call"]["threads"] == ("1 thread" if len(cores) > 1 else "all 1 core")
    assert engine["generation"]["threads"] == 1
    assert usable_cores() == cores
