from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_json, save_lines, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure import evidence

LAYERS = [
    {"name": "conv", "node": "conv", "op": "Conv", "macs": 80},
    {"name": "mix", "node": "mix", "op": "MatMul", "macs": 15},
    {"name": "time", "node": "time", "op": "Gemm", "macs": 5},
]


def site(layer: str, role: str, kind: str, reason: str = "") -> dict[str, str]:
    return {"layer": layer, "node": layer, "role": role, "format": kind, "reason": reason, "compute": "float32"}


SITES = [
    site("conv", "input", "uint8"),
    site("conv", "weight", "int8"),
    site("conv", "output", "uint8"),
    site("mix", "weight", "int4"),
    site("time", "layer", "float", "time embedding stays float (preset)"),
    site("", "product", "float", "the product stays float"),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    coverage = {"layers": 1, "of_layers": 3, "by_count": 1 / 3, "by_macs": 0.8}
    table = {"target": "ort-cpu", "coverage": coverage, "layers": LAYERS, "sites": SITES}
    save_json(Bundle(tmp_path).sites("ort-cpu"), table, Stamp("export"))
    return Bundle(tmp_path)


def test_kernel_types_have_their_share_of_the_work_and_kept_layers_their_reason(bundle: Bundle):
    found = evidence.site_facts(bundle, "ort-cpu")
    assert found["kernels"] == [
        {"type": "Conv uint8 × int8", "layers": 1, "macs": 0.8},
        {"type": "MatMul float32 × int4", "layers": 1, "macs": 0.15},
        {"type": "Gemm float32", "layers": 1, "macs": 0.05},
    ]
    reason = "time embedding stays float (preset)"
    assert found["kept"] == [{"layer": "time", "op": "Gemm", "macs": 0.05, "reason": reason}]
    bits = {"stored": 80 * 64 + 20 * 1024, "kernels": 80 * 64 + 20 * 1024, "float": 100 * 1024}
    assert found["bops"] == bits  # the weights in four bits meet floats
    assert found["products"] == {"float": 1} and found["by_macs"] == 0.8


@pytest.mark.parametrize(
    ("weights", "inputs", "expected"),
    [(["int4", "int4", "int8"], ["uint8"] * 3, "W4A8"), (["int8"], ["uint16"], "W8A16"), (["int8"], [], "W8A32")],
)
def test_bits_are_those_of_most_coded_layers(weights: list[str], inputs: list[str], expected: str):
    sites = [site("a", "weight", kind) for kind in weights] + [site("a", "input", kind) for kind in inputs]
    assert evidence.bits(sites) == expected


def test_prompts_are_counted_by_aspect_and_by_what_says_the_same(tmp_path: Path):
    rows = [
        {"text": "a", "split": "calib", "coverage": ["music", "pitch"]},
        {"text": "b", "split": "calib", "coverage": ["pitch", "music"]},
        {"text": "c", "split": "calib", "coverage": []},
        {"text": "d", "split": "validate", "coverage": ["music"]},
    ]
    save_lines(Bundle(tmp_path).prompts, rows, Stamp("prompts"))
    found = evidence.prompt_facts(Bundle(tmp_path))
    assert found["splits"] == {"calib": 3, "validate": 1}
    assert found["aspects"] == [
        {"name": "music", "calib": 2, "validate": 1},
        {"name": "pitch", "calib": 2, "validate": 0},
    ]
    assert (found["uncovered"], found["distinct"], found["redundancy"]) == (1, 2, pytest.approx(2 / 6))
    save_lines(Bundle(tmp_path).prompts, [{"text": "row 0", "split": "calib"}], Stamp("prompts"))
    assert "no coverage" in evidence.prompt_facts(Bundle(tmp_path))["missing"]


def test_ranges_run_from_noise_to_sound_and_the_most_varying_come_first(tmp_path: Path):
    low = np.array([[-1.0, -1.0], [-1.0, -4.0], [0.0, 0.0]])
    high = np.array([[1.0, 1.0], [1.0, 4.0], [0.0, 1.0]])  # the last has no width at t = 1: left out
    tensors = {"amin_t": low, "amax_t": high, "timesteps": np.array([1, 501])}
    meta = {"edges": ["same", "moves", "empty"]}
    save_tensors(Bundle(tmp_path).ranges, tensors, Stamp("ranges"), meta=meta)
    found = evidence.range_facts(Bundle(tmp_path))
    assert found["timesteps"] == [501, 1] and found["edges"] == 3
    assert [row["edge"] for row in found["varying"]] == ["moves", "same"]
    assert found["varying"][0] == {"edge": "moves", "amin": [-4.0, -1.0], "amax": [4.0, 1.0], "ratio": 4.0}
    assert found["mid"] == pytest.approx([1.0, 0.625])


def test_what_is_not_there_is_said_with_the_command_that_writes_it(tmp_path: Path):
    assert "'quaver export RECIPE'" in evidence.site_facts(Bundle(tmp_path), "ort-cpu")["missing"]
    assert "'quaver ranges RECIPE'" in evidence.range_facts(Bundle(tmp_path))["missing"]
