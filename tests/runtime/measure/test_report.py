from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, load_json, save_json, save_lines
from quaver.runtime.audio import read_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.error_law import ErrorStats, save_stats
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.generate import binding
from quaver.runtime.measure import report, trajectories
from quaver.runtime.measure.plan import plan_facts
from quaver.runtime.measure.report import ValidateSettings, validate
from quaver.runtime.measure.spectrogram import picture
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import timesteps
from quaver.runtime.session import open_bundle

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
CORRECTIONS = ("none", "d2-deterministic", "d2-stochastic")
SETTINGS = ValidateSettings(corrections=CORRECTIONS, trajectories=6, clips=2, latency_runs=3, latency_warmup=1, batch=4)
STAMP = Stamp("validate", settings="sha256:settings", inputs={"prompts.jsonl": "sha256:prompts"})


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Bundle:
    rows = [
        {"id": "a", "text": "a soft low cello note", "split": "validate"},
        {"id": "b", "text": "<script>bright drum</script>", "split": "validate"},
        {"id": "c", "text": "a note", "split": "calib"},
    ]
    save_lines(tiny_bundle.prompts, rows, Stamp("prompts"))
    with open_bundle(tiny_bundle) as session:
        S = SAMPLING.steps
        stats = ErrorStats(
            timesteps(session.schedule, S),
            np.tile([0.0, 0.01], (S, 1, 1)),
            np.tile([[1.0, 0.002], [0.002, 0.0004]], (S, 1, 1, 1)),
            np.full(S, 100.0),
            binding(session, SAMPLING),
        )
    save_stats(tiny_bundle.error_stats("ort-cpu"), stats, Stamp("stats"))
    probe(tiny_bundle.probe)
    return tiny_bundle


def probe(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(256, 5)), "k": rng.normal(size=(256, 3))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["waveform", "w"], ["features"]),
            helper.make_node("MatMul", ["waveform", "k"], ["family"]),
        ],
        "probe",
        [helper.make_tensor_value_info("waveform", 1, ["B", 256])],
        [helper.make_tensor_value_info(name, 1, ["B", size]) for name, size in (("features", 5), ("family", 3))],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.fixture
def figures(bundle: Bundle) -> dict[str, Any]:
    validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    return load_json(bundle.report_json, "validate")


def test_a_report_compares_the_engine_with_float_on_held_out_prompts(bundle: Bundle, figures: dict[str, Any]):
    assert figures["stamp"]["settings"] == "sha256:settings"
    assert figures["trajectories"] == 6 and figures["prompts"] == 2
    assert [row["name"] for row in figures["corrections"]] == list(SETTINGS.corrections)
    none = figures["corrections"][0]
    assert 0.001 < none["latent_error"]["low"] <= none["latent_error"]["value"] <= none["latent_error"]["high"] < 0.2
    assert len(none["drift"]) == 4 and none["drift"][-1] == pytest.approx(none["latent_error"]["value"])
    assert 0.001 < figures["call"]["error"]["value"] < 0.2
    assert set(figures["call"]["engines"]) == {"float", "ort-cpu"}
    assert figures["call"]["engines"]["float"]["bytes"] == bundle.float_unet.stat().st_size
    assert figures["digests"] == {"prompts.jsonl": "sha256:prompts"}


def test_errors_are_those_of_the_same_seeds_drawn_again(bundle: Bundle, figures: dict[str, Any]):
    pairs = trajectories.held_out(bundle, count=6, seed=SETTINGS.seed)
    latents = []
    for name in ("float", "ort-cpu"):
        with open_bundle(bundle, engine_file=name) as session:
            latents.append(trajectories.take(session, pairs, SAMPLING, batch=6).latents.reshape(6, -1))
    expected = np.linalg.norm(latents[1] - latents[0], axis=1) / np.linalg.norm(latents[0], axis=1)
    assert figures["corrections"][0]["errors"] == pytest.approx(expected, rel=1e-4)


def test_clips_are_playable_files_and_the_page_holds_them(bundle: Bundle, figures: dict[str, Any]):
    assert [clip["seed"] for clip in figures["clips"]] == [SETTINGS.seed, SETTINGS.seed + 1]
    take = figures["clips"][0]["takes"][0]
    waveform, rate = read_wav(bundle.media(take["wave"]))
    assert (rate, waveform.shape) == (16000, (256,))
    assert bundle.media(take["picture"]).read_bytes().startswith(b"\x89PNG")
    page = bundle.report_html.read_text()
    assert page.count("<audio") == 2 * 4
    assert "&lt;script&gt;bright drum" in page
    assert figures["verdict"]["sentence"] in page


def test_every_clip_is_the_sound_and_the_picture_of_its_own_take(tmp_path: Path):
    rng, names = np.random.default_rng(0), ("float", "none", "auto")
    takes = {
        name: trajectories.Take(np.zeros((1, 3, 1)), rng.uniform(-1, 1, (3, 256)), np.zeros((0, 0))) for name in names
    }
    pairs = trajectories.Pairs(("a", "b", "c"), (7, 8, 9))
    rows = [{"name": name, "errors": [0.1, 0.2, 0.3]} for name in names[1:]]
    clips = report.write_clips(Bundle(tmp_path), takes, pairs, rows, rate=16000, count=2)
    assert [(clip["prompt"], clip["seed"]) for clip in clips] == [("a", 7), ("b", 8)]
    for i, clip in enumerate(clips):
        assert [take["name"] for take in clip["takes"]] == list(names)
        for shown in clip["takes"]:
            waveform = takes[shown["name"]].waveforms[i]
            found, _ = read_wav(Bundle(tmp_path).media(shown["wave"]))
            assert found == pytest.approx(waveform, abs=1 / 32767)
            assert Bundle(tmp_path).media(shown["picture"]).read_bytes() == picture(waveform, rate=16000)


def test_the_probe_gives_distance_floor_and_agreement(figures: dict[str, Any]):
    found = figures["probe"]
    assert found["name"] == "Frechet distance (embedded probe)"
    assert found["attributes"] == ["family"] and found["dimensions"] == 5
    assert "use more than 5 samples" in found["note"]
    assert found["corrections"][0]["distance"]["value"] == pytest.approx(found["floor"]["value"], rel=0.2)
    assert 0.5 <= found["corrections"][0]["agreement"]["family"]["value"] <= 1


def test_the_verdict_follows_the_budget(bundle: Bundle, figures: dict[str, Any]):
    rows, call = figures["corrections"], figures["call"]
    generous = report.verdict(rows, call, replace(SETTINGS, max_latent_error=9, min_speedup=0))
    strict = report.verdict(rows, call, replace(SETTINGS, max_latent_error=1e-6, min_speedup=0))
    assert generous["ship"] and not strict["ship"]
    assert [check["passed"] for check in strict["checks"]] == [False, True]
    best = min(rows, key=lambda row: row["latent_error"]["value"])
    assert generous["correction"] == best["name"]


@pytest.mark.parametrize(
    ("budget", "passed"),
    [
        ({"max_latent_error": 0.06, "min_speedup": 1.1}, [True, True]),
        ({"max_latent_error": 0.059, "min_speedup": 1.1}, [False, True]),
        ({"max_latent_error": 0.06, "min_speedup": 1.11}, [True, False]),
    ],
    ids=["kept by both", "error", "speed"],
)
def test_an_engine_ships_when_the_worse_bounds_keep_the_budget(budget: dict[str, float], passed: list[bool]):
    rows = [{"name": "none", "latent_error": {"value": 0.05, "low": 0.04, "high": 0.06}}]
    call = {"speedup": {"value": 1.3, "low": 1.1, "high": 1.5}}
    found = report.verdict(rows, call, replace(SETTINGS, **budget))
    assert [check["passed"] for check in found["checks"]] == passed
    assert found["ship"] == all(passed)


def test_what_is_missing_leaves_the_rest_of_the_report(bundle: Bundle):
    bundle.probe.unlink()
    validate(bundle, replace(SETTINGS, corrections=("none",), clips=0), SAMPLING, stamp=STAMP, progress=quiet())
    figures = load_json(bundle.report_json, "validate")
    assert "no probe.onnx" in figures["probe"]["missing"]
    assert "quaver[trt-rtx]" in figures["plan"]["missing"]


def test_a_killed_run_goes_on_with_the_takes_it_has(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "compare_calls", killed)
        with pytest.raises(KeyboardInterrupt):
            validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    assert not bundle.report_json.exists() and not bundle.report_html.exists()

    drawn: list[str] = []
    real = report.take
    monkeypatch.setattr(report, "take", lambda *a, **k: drawn.append(k["correct"]) or real(*a, **k))
    report.take_path(bundle, "d2-stochastic").unlink()
    validate(bundle, SETTINGS, SAMPLING, stamp=STAMP, progress=quiet())
    assert drawn == ["d2-stochastic"]
    assert not bundle.shards("validate").exists()


def test_takes_of_another_engine_or_of_other_settings_are_drawn_anew(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str | None] = []
    real = report.take
    monkeypatch.setattr(report, "take", lambda session, *a, **k: drawn.append(session.target) or real(session, *a, **k))

    def draw(sampling: SamplingSettings = SAMPLING) -> dict[str, trajectories.Take]:
        drawn.clear()
        pairs, settings = trajectories.Pairs(("a note", "a note"), (1, 2)), replace(SETTINGS, corrections=("none",))
        with open_bundle(bundle, engine_file="float") as reference, open_bundle(bundle) as judged:
            return report.draw_takes(reference, judged, pairs, settings, sampling, quiet())

    before = draw()
    assert drawn == [None, "ort-cpu"]
    draw()
    assert drawn == []
    shutil.copyfile(bundle.float_unet, bundle.qdq("ort-cpu"))
    after = draw()
    assert drawn == ["ort-cpu"]
    assert np.array_equal(after["none"].states, after["float"].states)
    assert not np.array_equal(before["none"].states, after["none"].states)
    draw(replace(SAMPLING, steps=5))
    assert drawn == [None, "ort-cpu"]


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
