from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import corrections, int8, model
from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.runtime.artifact import Stamp, digest_file, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.generate import Batch
from quaver.runtime.measure.quality import Interval
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Bundle:
    save_lines(tiny_bundle.prompts, [{"id": "a", "text": "a soft note", "split": "validate"}], Stamp("prompts"))
    return tiny_bundle


def test_int8_prints_speed_up_and_output_error_of_each_batch(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    int8.main([str(bundle.root), "--batches", "2", "3", "--runs", "3", "--trajectories", "3"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["name"] == "int8"
    assert set(line["figures"]) == {"batch 2", "batch 3"}
    row = line["figures"]["batch 2"]
    assert row["speed-up"]["low"] <= row["speed-up"]["value"] <= row["speed-up"]["high"]
    assert 0.001 < row["output error"]["value"] < 0.2
    assert set(line["reached"]) == {f"INT8 is faster than FP32 at batch {n}" for n in (2, 3)}


def test_a_reference_is_read_as_documented_and_accuracy_is_the_share_of_hits(tmp_path: Path):
    labels = np.array([[0, 1], [1, 1], [2, 0], [0, 0]], np.int32)
    classes = np.array([[0, 1], [1, 0], [0, 0], [0, 0]], np.int32)
    tensors = {"labels": labels, "classes": classes, "features": np.zeros((4, 3), np.float32)}
    meta = {"texts": json.dumps(list("abcd")), "attributes": json.dumps(["family", "register"])}
    save_file({**tensors, "latent_std": np.ones(9, np.float32)}, tmp_path / "reference.safetensors", meta)
    reference = model.load_reference(tmp_path / "reference.safetensors")
    assert reference.texts == ("a", "b", "c", "d")
    found = model.accuracies(reference.classes, reference)
    assert {name: interval.value for name, interval in found.items()} == {"family": 0.75, "register": 0.75}


def test_classes_are_found_by_attribute_name_whatever_their_order():
    verdicts = {"register": np.array([1, 2]), "family": np.array([3, 4])}
    assert model.classes_of(verdicts, ("family", "register")).tolist() == [[3, 1], [4, 2]]


def test_what_is_heard_of_clips_is_in_their_order_and_in_that_of_the_attributes(monkeypatch: pytest.MonkeyPatch):
    def judge(network: Path, decoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"register": np.eye(3)[decoded["mel"] % 3], "family": np.eye(2)[decoded["mel"] % 2], "features": mels}

    mels = np.arange(2)
    drawn = [Batch(np.full((2, 1), i), {"mel": mels + 2 * i}, ("", ""), (0, 1)) for i in range(2)]
    monkeypatch.setattr("quaver.runtime.measure.probe.judge", judge)
    heard = model.hear(drawn, Path("probe.onnx"), ("family", "register"), count=4, label="")
    assert heard["latents"].ravel().tolist() == [0, 0, 1, 1] and heard["features"].tolist() == [0, 1, 0, 1]
    assert heard["classes"].tolist() == [[0, 0], [1, 1], [0, 2], [1, 0]]
    assert np.array_equal(heard["logits.register"], np.eye(3)[[0, 1, 2, 0]])


@pytest.mark.parametrize(
    ("best", "beats", "harmless"),
    [((0.90, 0.89, 0.92), True, True), ((0.96, 0.94, 0.98), False, True), ((1.05, 1.02, 1.08), False, False)],
    ids=["better than all", "better than none alone", "worse"],
)
def test_a_correction_reaches_its_aim_by_what_was_measured(best, beats, harmless):
    ratios = {"none": (1, 1, 1), "mean": (0.99, 0.97, 1.01), "ptqd": (0.95, 0.94, 0.96), "auto": best}
    rows = [
        {"bundle": "demo", "steps": 20, "eta": 0.0, "correction": name, "ratio to none": Interval(*ratio)}
        for name, ratio in ratios.items()
    ]
    assert list(corrections.claims(rows, "demo, 20 steps eta 0").values()) == [beats, harmless]


def test_d2_is_not_said_to_beat_corrections_that_were_not_drawn():
    rows = [
        {"bundle": "demo", "steps": 20, "eta": 0.0, "correction": name, "ratio to none": Interval(*ratio)}
        for name, ratio in {"none": (1, 1, 1), "auto": (0.90, 0.89, 0.92)}.items()
    ]
    assert corrections.claims(rows, "demo, 20 steps eta 0") == {"demo, 20 steps eta 0: auto does no harm": True}


def test_corrections_fits_statistics_of_each_eta_and_leaves_the_bundle_alone(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"id": str(i), "text": "a soft note", "split": split} for i, split in enumerate(("calib", "validate"))]
    save_lines(bundle.prompts, rows, Stamp("prompts"))
    bundle.recipe.write_text("[sampling]\nsteps = 4\nguidance = 2.0\n[stats]\ntrajectories = 4\n")
    collect_error_stats(
        bundle,
        StatsSettings(trajectories=4),
        SamplingSettings(steps=4, guidance=2.0),
        stamp=Stamp("stats"),
        progress=quiet(),
    )
    before = digest_file(bundle.error_stats("ort-cpu"))
    options = ["--trajectories", "4", "--correct", "d2-deterministic", "--keep", str(tmp_path / "keep")]
    corrections.main([str(bundle.root), *options])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert set(figures) == {
        f"tiny, 4 steps eta {eta} {name}" for eta in (0, 1) for name in ("none", "d2-deterministic")
    }
    assert figures["tiny, 4 steps eta 1 none"]["ratio to none"]["value"] == 1.0
    assert 0 < figures["tiny, 4 steps eta 0 d2-deterministic"]["ratio to none"]["value"] != 1.0
    assert digest_file(bundle.error_stats("ort-cpu")) == before
    (tmp_path / "elsewhere").mkdir()
    moved = bundle.root.rename(tmp_path / "elsewhere" / bundle.root.name)
    corrections.main([str(moved), *options])  # its links led to where it was
