from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import int8, model
from quaver.runtime.artifact import Stamp, save_lines
from quaver.runtime.bundle import Bundle


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
