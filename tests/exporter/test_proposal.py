"""The sensitivity analysis on a traced U-Net: what it writes, says and proposes."""

import shutil

import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.records import Records, save_records
from quaver.calib.rules import Rule, preset, resolve
from quaver.calib.sensitivity import SensitivitySettings
from quaver.exporter import proposal
from quaver.exporter.export import ExportSettings
from quaver.exporter.proposal import describe, propose, usual_rule
from quaver.exporter.recipe import Recipe
from quaver.runtime.artifact import Stamp, load_json, read_stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml, to_config
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import quiet

onnx = pytest.importorskip("onnx")
STAMP = Stamp("sensitivity", settings="s")


@pytest.fixture(scope="module")
def measured(traced, feeds, tmp_path_factory):
    """A bundle with three records, and its sensitivities. Shared: read only."""
    bundle = Bundle(tmp_path_factory.mktemp("measured") / "bundle")
    shutil.copytree(traced.root, bundle.root)
    none, tags = {"class_labels": np.zeros((1, 16), np.float32)}, np.zeros(3, np.int64)
    rows = {"class_labels": feeds["class_labels"]}
    given = Records(feeds["sample"], feeds["timestep"], rows, none, tags, tags - 1, tags, 2.0, ("p",), ())
    save_records(bundle.samples, given, Stamp("samples"))
    analyse(bundle)
    return bundle


def analyse(bundle, *, export=None, **settings):
    propose(bundle, SensitivitySettings(**settings), export or ExportSettings(), stamp=STAMP, progress=quiet())
    return load_json(bundle.sensitivity, "sensitivity")


def copy(bundle, folder):
    shutil.copytree(bundle.root, folder / "bundle")
    return Bundle(folder / "bundle")


def test_every_layer_is_ranked_and_the_worst_tenth_proposed(measured):
    table = load_json(measured.sensitivity, "sensitivity")
    names = [layer.name for layer in layers(onnx.load(measured.float_unet))]
    assert sorted(row["name"] for row in table["layers"]) == sorted(names)
    snr = [row["snr"] for row in table["layers"]]
    assert snr == sorted(snr) and np.shape(table["layers"][0]["noise"]) == (3,)
    assert sum(row["macs"] for row in table["layers"]) == pytest.approx(1)
    kept = table["proposal"]["kept"]
    assert kept == [row["name"] for row in table["layers"]][: -(-len(names) // 10)]
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= table["ends"].keys()
    assert read_stamp(measured.sensitivity) == STAMP and measured.media("sensitivity.svg").exists()


def test_what_is_predicted_is_measured_within_three_decibels(measured):
    proposal_made = load_json(measured.sensitivity, "sensitivity")["proposal"]
    assert proposal_made["measured"] == pytest.approx(proposal_made["predicted"], abs=3)


def test_the_printed_rules_are_a_recipe_that_keeps_exactly_those(measured, tmp_path):
    table = load_json(measured.sensitivity, "sensitivity")
    recipe, text = tmp_path / "r.toml", describe(table)
    recipe.write_text(text[text.index("[[export.rules]]") :])
    export = to_config(Recipe, read_toml(recipe)).export
    decided = resolve((*export.rules, *preset(export.preset)), [row["name"] for row in table["layers"]])
    assert [name for name, rule in decided.items() if not rule.quantized] == table["proposal"]["kept"]


def test_another_aim_measures_nothing_anew_and_another_format_does(measured, tmp_path, monkeypatch):
    bundle = copy(measured, tmp_path)
    monkeypatch.setattr(proposal, "measure", lambda *given, **named: pytest.fail("measured again"))
    before = load_json(bundle.sensitivity, "sensitivity")
    snr = before["proposal"]["predicted"] + 1
    table = analyse(bundle, snr=snr)
    assert table["layers"] == before["layers"] and table["proposal"]["predicted"] >= snr
    assert len(table["proposal"]["kept"]) > len(before["proposal"]["kept"])
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        analyse(bundle, weight="int4")


def test_four_bits_are_noisier_than_eight(measured, tmp_path):
    eight = load_json(measured.sensitivity, "sensitivity")
    four = analyse(copy(measured, tmp_path), weight="int4", keep=0.0)
    assert four["weight"] == "int4" and four["proposal"]["kept"] == []
    assert four["layers"][0]["snr"] < eight["layers"][0]["snr"] - 6


def test_formats_are_those_of_most_layers():
    names = ["conv_in", "a.conv1", "a.conv2", "b.conv1", "conv_out"]
    assert (usual_rule(preset("d2-4w8a"), names).weight, usual_rule(preset("float"), names).weight) == ("int4", "int8")
    assert usual_rule((Rule("*conv*", "int8", "float"),), names).activation == "float"


def test_what_cannot_be_measured_is_refused(measured):
    with pytest.raises(RecipeError, match=r"float8 weights .*: set sensitivity.weight to 'int8' or 'int4'"):
        analyse(measured, weight="float8")
    with pytest.raises(RecipeError, match=r"export\.targets is empty"):
        analyse(measured, export=ExportSettings(targets=()))
