import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import families, full_size
from benchmarks.fixtures import judge, off

FOUND = {"s": 2.0, "processor s": 1.0, "peak": 3 * 10**9, "bytes": 10**9}


@pytest.fixture
def shape(tmp_path, monkeypatch):
    """A shape of one number, and a place for what is measured of it."""
    (tmp_path / "tiny.json").write_text(json.dumps({"latent": [1, 2, 3], "parameters": 7}))
    monkeypatch.setattr(full_size, "ARCHS", tmp_path)
    monkeypatch.setattr(full_size, "OUT", tmp_path / "out")
    monkeypatch.setattr(full_size, "CELLS", {"trace": lambda name: {}, "float": lambda name: {}})
    return tmp_path / "tiny.json"


def test_a_cell_is_measured_once_and_again_when_its_shape_has_changed(shape, monkeypatch):
    ran = []

    def run(name, cell):
        ran.append(cell)
        full_size.save_json(full_size.part(name, cell), {"found": FOUND}, full_size.stamp(name, cell))
        full_size.folder_of(name).mkdir(exist_ok=True)
        (full_size.folder_of(name) / full_size.RECORDS).touch()
        return FOUND

    monkeypatch.setattr(full_size, "run", run)
    for _ in range(2):
        rows = list(full_size.measured(["tiny"], ["trace", "float"]))
    assert ran == ["trace", "float"] and rows[1] == {"shape": "tiny", "cell": "float", **FOUND}
    shape.write_text(json.dumps({"latent": [1, 2, 4], "parameters": 7}))
    assert full_size.kept("tiny", "float") is None


def test_graphs_go_when_all_cells_of_their_shape_are_there(shape, monkeypatch):
    there: set[str] = set()
    monkeypatch.setattr(full_size, "kept", lambda name, cell: FOUND if cell in there else None)
    monkeypatch.setattr(full_size, "run", lambda name, cell: {})
    folder = full_size.folder_of("tiny")
    folder.mkdir(parents=True)
    for cell, left in (("trace", True), ("float", False)):
        there.add(cell)
        list(full_size.measured(["tiny"], ["trace", "float"]))
        assert folder.exists() == left
    assert folder.name == "tiny-1x2x3"


def test_a_missing_cell_makes_anew_what_it_reads_of_those_that_are_kept(shape, monkeypatch):
    ran = []

    def run(name, cell):
        ran.append(cell)
        left = full_size.folder_of(name) / full_size.needs("kernels-4w8a").get(cell, "nothing")
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        return FOUND

    monkeypatch.setattr(full_size, "run", run)
    full_size.made("tiny", "call-4w8a")
    assert ran == ["trace", "ranges", "float", "export-4w8a", "call-4w8a"]
    full_size.made("tiny", "rtx-4w8a")
    full_size.made("tiny", "kernels-8w8a")
    assert ran[5:] == ["rtx-4w8a", "export-8w8a", "kernels-8w8a"]


def test_what_was_not_measured_stays_empty_and_reaches_nothing():
    cells = {("m", cell): {} for cell in full_size.CELLS}
    cells["m", "export-8w8a"] = FOUND
    row = families.cpu_row("m", "8w8a", cells)
    assert (row["export s"], row["export GB"], row["file GB"], row["call s"]) == (1.0, 3.0, 1.0, "")
    ((claim, true),) = families.full_claims(row)
    assert "m 8w8a" in claim and not true
    assert dict(families.full_claims({"model": "m", "a s": 1.0})) == {"m: all steps run (a s)": True}


def test_an_error_is_relative_and_sees_past_a_dimension_of_one():
    assert off(np.array([[3.0, 4.0]]), np.array([[[3.0, 0.0]]])) == pytest.approx(4 / 3)


@pytest.mark.slow
def test_tangos_fixture_comes_without_a_unet_and_is_judged_all_the_same(tmp_path):
    pytest.importorskip("diffusers")
    folder = Path(__file__).parents[1] / "data" / "checkpoints" / "tango"
    rows = {row["network"]: row for row in judge(folder, tmp_path)}
    assert set(rows) == {"text_encoder", "vae_decoder", "vocoder"}
    assert max(row["torch"] for row in rows.values()) <= 1e-4 and max(row["ONNX"] for row in rows.values()) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "percent"), {"tango": (44.2, 66.3), "make-an-audio": (41.0, 61.4)}.items())
def test_all_but_attention_saves_what_its_share_of_the_weights_says(name, percent):
    """44.2 and 66.3% of TANGO, 41.0 and 61.4% of Make-An-Audio."""
    pytest.importorskip("diffusers")
    assert [row["paper %"] for row in families.saved(name)] == pytest.approx(percent, abs=0.15)
