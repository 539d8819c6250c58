from __future__ import annotations

import runpy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.audio import write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure import hearing
from quaver.runtime.measure.divergence import softmax
from quaver.runtime.measure.features import Heard, Network, open_network
from quaver.runtime.measure.hearing import Scene
from quaver.runtime.measure.reference import save_features
from quaver.runtime.measure.trajectories import Take

SCENE = Scene(("a note",) * 400, 16000, Path("nowhere/probe.onnx"))
NONE = np.zeros((0, 0))


def test_the_probe_measures_what_each_correction_made_against_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Features moved by one in each of four dimensions lie 4 above the floor; a quarter of the verdicts is turned."""
    y = np.random.default_rng(0).normal(size=(400, 7))
    moved = y + np.array([1.0] * 4 + [0.0] * 3)
    moved[::4, 4:] *= -1  # the largest logit is now the smallest

    def hear(heard: Mapping[str, np.ndarray]) -> Heard:
        return Heard(heard["waveform"][:, :4], {"family": heard["waveform"][:, 4:]})

    def heard(waveforms: np.ndarray) -> Take:
        return Take(np.zeros((1, 400, 1)), waveforms, np.zeros((0, 0)))

    monkeypatch.setattr(hearing, "open_network", lambda *_, **__: Network("ears", "distance of ears", hear))
    found = hearing.set_measures("ears", SCENE, heard(y), {"none": heard(y), "moved": heard(moved)})
    (floor, _), (none, other) = found["floors"], [row["measures"] for row in found["corrections"]]
    least = floor["measures"]["distance of ears"]["value"]
    assert none["distance of ears"]["value"] == pytest.approx(least) and none["same family"]["value"] == 1.0
    assert other["distance of ears"]["value"] - least == pytest.approx(4.0, rel=0.1)
    assert other["same family"]["value"] == pytest.approx(0.75)
    assert other["KL"]["value"] > 0.1 > none["KL"]["value"]
    assert all(0 <= bound <= 1 for share in ("precision", "recall") for bound in other[share].values())


def test_a_network_that_is_not_here_is_named_with_what_brings_it(tmp_path: Path):
    take = Take(np.zeros((1, 4, 1)), np.zeros((4, 256)), np.zeros((0, 0)))
    found = hearing.set_measures("onnx:none.onnx", SCENE, take, {"none": take})
    assert found["network"] == "onnx:none.onnx" and "name an ONNX file as 'onnx:FILE'" in found["missing"]


@pytest.fixture
def sounds(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Forty clips, and a network that hears their first three samples, and whether the first is positive."""

    def hear(heard: Mapping[str, np.ndarray]) -> Heard:
        x = heard["waveform"]
        return Heard(x[:, :3], {"sign": np.stack([-x[:, 0], x[:, 0]], axis=1)})

    monkeypatch.setattr(hearing, "open_network", lambda *_, **__: Network("ears", "distance of ears", hear))
    return Take(np.zeros((1, 40, 1)), np.random.default_rng(0).uniform(-0.9, 0.9, (40, 64)), NONE)


def test_real_clips_have_a_distance_and_a_floor_of_their_own(sounds: Take, tmp_path: Path):
    for i, clip in enumerate(np.random.default_rng(1).uniform(-0.9, 0.9, (40, 64))):
        write_wav(tmp_path / f"{i:03d}.wav", clip, 16000)
    found = hearing.set_measures("ears", replace(SCENE, reference=str(tmp_path)), sounds, {"none": sounds})
    floors = {row["name"]: row["measures"] for row in found["floors"]}
    assert set(floors) == {"float against float", "real against real", "float"}
    own, same = floors["float"]["distance of ears to real"], found["corrections"][0]["measures"]
    assert same["distance of ears to real"] == own
    assert 0 < floors["real against real"]["distance of ears to real"]["value"] < 1


def test_no_interval_of_a_set_takes_clips_of_one_prompt_for_clips_of_several(
    sounds: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hearing, "over_halves", partial(hearing.over_halves, splits=3))
    for i, clip in enumerate(np.random.default_rng(1).uniform(-0.9, 0.9, (20, 64))):
        write_wav(tmp_path / f"{i:03d}.wav", clip, 16000)
    take = Take(sounds.states[:, :20], np.repeat(sounds.waveforms[:10], 2, axis=0), NONE)
    moved = replace(take, waveforms=take.waveforms - 0.3)  # so that some turn their sign
    apart, twice = (
        hearing.set_measures("ears", replace(SCENE, prompts=prompts, reference=str(tmp_path)), take, {"moved": moved})
        for prompts in (tuple("abcdefghijklmnopqrst"), tuple("aabbccddeeffgghhiijj"))
    )
    for one, other in zip(apart["floors"] + apart["corrections"], twice["floors"] + twice["corrections"], strict=True):
        same = {name for name, found in one["measures"].items() if found == other["measures"][name]}
        assert bool(same) == (one["name"] == "real against real"), (one["name"], same)


def test_features_that_the_example_keeps_of_real_clips_say_what_the_clips_do(bundle: Bundle, tmp_path: Path):
    for i, clip in enumerate(np.random.default_rng(1).uniform(-0.9, 0.9, (6, 300))):
        write_wav(tmp_path / "clips" / f"{i}.wav", clip, 16000)
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "reference_features.py"))
    example["main"](str(bundle.root), str(tmp_path / "clips"), "probe", str(tmp_path / "kept.safetensors"))
    network, scene = open_network("probe", rate=16000, probe=bundle.probe), replace(SCENE, probe=bundle.probe)
    kept, taken = (
        hearing.real_features(replace(scene, reference=str(tmp_path / name)), network, (6, 256), 5)[0]
        for name in ("kept.safetensors", "clips")
    )
    assert kept.shape == (6, 5) and np.array_equal(kept, taken)


def test_features_of_another_network_by_the_same_name_are_told_and_left_out(sounds: Take, tmp_path: Path):
    kept = save_features(tmp_path / "kept.safetensors", np.ones((9, 5)), network="ears")
    found = hearing.set_measures("ears", replace(SCENE, reference=str(kept)), sounds, {"none": sounds})
    assert "kept.safetensors holds 5 features of a clip, expected 3: name a folder of WAV files" in found["note"]
    assert "distance of ears" in found["corrections"][0]["measures"]


@pytest.mark.parametrize(
    ("reference", "rate", "said"),
    [
        ("missing", 16000, "no reference set at"),
        ("clips", 8000, "is at 8000 Hz, expected 16000 Hz"),
        ("clips", 16000, "holds 1, expected 4 or more"),
    ],
)
def test_a_reference_set_that_cannot_be_used_is_told_and_the_rest_is_measured(
    sounds: Take, tmp_path: Path, reference: str, rate: int, said: str
):
    write_wav(tmp_path / "clips" / "a.wav", np.zeros(64), rate)
    found = hearing.set_measures("ears", replace(SCENE, reference=str(tmp_path / reference)), sounds, {"none": sounds})
    assert said in found["note"] and "distance of ears" in found["corrections"][0]["measures"]


def test_what_a_prompt_says_is_held_against_what_is_heard(sounds: Take):
    words = {"sign": (("low",), ("high",))}
    said = ("high", "low", "high low", "other") * 10
    found = hearing.set_measures("ears", replace(SCENE, prompts=said, words=words), sounds, {"none": sounds})
    signs = sounds.waveforms[:, 0] > 0
    expected = np.mean([signs[i] == (said[i] == "high") for i in range(40) if said[i] in ("high", "low")])
    assert found["corrections"][0]["measures"]["text agreement"]["value"] == pytest.approx(expected)
    assert [row["name"] for row in found["floors"]] == ["float against float", "float"]


def test_a_network_that_reads_is_asked_for_the_cosine_with_the_prompt(sounds: Take, monkeypatch: pytest.MonkeyPatch):
    network = Network(
        "clap",
        "distance of clap",
        lambda heard: Heard(heard["waveform"][:, :3]),
        read=lambda texts: np.tile([2.0, 0, 0], (len(texts), 1)),
    )
    monkeypatch.setattr(hearing, "open_network", lambda *_, **__: network)
    found = hearing.set_measures("clap", replace(SCENE, prompts=("a",) * 40), sounds, {"none": sounds})
    x = sounds.waveforms[:, :3]
    expected = np.mean(x[:, 0] / np.linalg.norm(x, axis=1))
    assert found["corrections"][0]["measures"]["text agreement"]["value"] == pytest.approx(expected)


def test_the_inception_style_score_is_that_of_the_classes_heard(sounds: Take):
    found = hearing.set_measures("ears", SCENE, sounds, {"none": sounds})
    x = sounds.waveforms[:, 0]
    p = softmax(np.stack([-x, x], axis=1))
    score = np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
    floors = {row["name"]: row["measures"] for row in found["floors"]}
    for measures in (floors["float"], found["corrections"][0]["measures"]):
        assert measures["inception-style score"]["value"] == pytest.approx(score)
        assert 1 <= measures["inception-style score"]["low"] < score < measures["inception-style score"]["high"]


def test_a_network_that_sees_is_shown_pictures_and_one_that_hears_says_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pictures = np.random.default_rng(0).uniform(-1, 1, (40, 1, 2, 3)).astype(np.float32)
    take = Take(np.zeros((1, 40, 1)), NONE, NONE, pictures)
    helper = pytest.importorskip("onnx").helper
    for taken, shape in (("image", ["B", 1, 2, 3]), ("waveform", ["B", 6])):
        graph = helper.make_graph(
            [helper.make_node("Flatten", [taken], ["features"])],
            "eye",
            [helper.make_tensor_value_info(taken, 1, shape)],
            [helper.make_tensor_value_info("features", 1, ["B", 6])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (tmp_path / f"{taken}.onnx").write_bytes(model.SerializeToString())
    scene = replace(SCENE, rate=0)
    seen, deaf = (
        hearing.set_measures(f"onnx:{tmp_path / taken}.onnx", scene, take, {"none": take})
        for taken in ("image", "waveform")
    )
    (floor,) = seen["floors"]
    assert seen["dimensions"] == 6 and seen["corrections"][0]["measures"].items() >= floor["measures"].items()
    assert "takes 'waveform', and here is image" in deaf["missing"]
    ears = Network("ears", "distance of ears", lambda heard: Heard(heard["waveform"]))
    monkeypatch.setattr(hearing, "open_network", lambda *_, **__: ears)
    assert "ears takes 'waveform', and here is image" in hearing.set_measures("ears", scene, take, {})["missing"]


def test_how_much_further_than_float_an_engine_lies_is_told_pair_by_pair():
    """An equal engine lies at 0, a nearly equal one within what cannot be told, one of half as much again above."""
    y = np.random.default_rng(0).normal(size=(64, 8))
    noisy = y + 0.05 * np.random.default_rng(1).normal(size=y.shape)
    same, near, far = (
        hearing.beyond("further", y, y, judged, paired=True)["further"] for judged in (y, noisy, 1.5 * y)
    )
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert near["low"] < 0.01 and abs(near["value"]) < 0.02
    assert far["low"] > 0.2
    value, floor = (hearing.distances("distance", y, judged, paired=True)["distance"] for judged in (noisy, y))
    assert near["value"] == pytest.approx(value["value"] / floor["value"] - 1)
    assert near["high"] - near["low"] < 0.2 * (value["high"] - value["low"]) / value["value"]  # what is common is out
    assert hearing.beyond("further", np.zeros((16, 2)), np.zeros((16, 2)), np.ones((16, 2)), paired=True) == {}
