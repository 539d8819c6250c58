from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quaver.runtime.artifact import load_json
from quaver.runtime.audio import read_wav, write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.measure import joint, table, takes
from quaver.runtime.progress import quiet

RECIPE = """
[sampling]
steps = 4
guidance = 2.0
[validate]
corrections = ["none", "d2-deterministic"]
trajectories = 6
clips = 2
latency_runs = 2
latency_warmup = 1
generations = 0
batch = 4
"""


@pytest.fixture
def bundles(bundle: Bundle) -> list[Bundle]:
    """The tiny bundle, and another of the same float model whose engine is coarser; no correction fits that one."""
    bundle.recipe.write_text(RECIPE)
    other = Bundle(Path(shutil.copytree(bundle.root, bundle.root.with_name("coarse"))))
    other.recipe.write_text(
        RECIPE.replace(', "d2-deterministic"', "").replace("batch = 4", "max_latent_error = 1e-6\nbatch = 4")
    )
    model = onnx.load(other.qdq("ort-cpu"))
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.4), "scale"))
    onnx.save(model, other.qdq("ort-cpu"))
    return [bundle, other]


@pytest.fixture
def written(bundles: list[Bundle], tmp_path: Path) -> dict[str, Any]:
    paths = joint.compare([bundle.root for bundle in bundles], tmp_path / "joint", progress=quiet())
    assert [path.name for path in paths] == ["report.json", "report.html"]
    return load_json(paths[0], "validate")


def test_engines_of_one_float_model_share_its_take_and_have_a_verdict_each(written: dict[str, Any], tmp_path: Path):
    assert [engine["name"] for engine in written["engines"]] == ["tiny", "coarse"]
    assert [reference["name"] for reference in written["references"]] == ["float"]
    kept = list((tmp_path / "joint" / ".shards" / "validate").iterdir())
    assert len(kept) == 1 + 2 + 1
    first, second = written["engines"]
    assert second["corrections"][0]["latent_error"]["value"] > 2 * first["corrections"][0]["latent_error"]["value"]
    assert not second["verdict"]["checks"][0]["passed"]
    assert second["settings"]["max_latent_error"] == 1e-6 != first["settings"]["max_latent_error"]
    shown = [(take["engine"], take["correction"]) for take in written["clips"][0]["takes"]]
    assert shown == [(None, "float"), ("tiny", "none"), ("tiny", "d2-deterministic"), ("coarse", "none")]
    assert written["reproduce"].startswith("quaver validate ") and "--out" in written["reproduce"]


def test_an_engine_that_is_added_costs_no_take_but_its_own(
    bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[str] = []
    real = takes.take
    monkeypatch.setattr(takes, "take", lambda s, *a, **k: drawn.append(s.bundle.root.name) or real(s, *a, **k))
    joint.compare([bundles[0].root], tmp_path / "joint", progress=quiet())
    assert drawn == ["tiny"] * 3
    joint.compare([bundle.root for bundle in bundles], tmp_path / "joint", progress=quiet())
    assert drawn == [*["tiny"] * 3, "coarse"]
    joint.compare([bundles[1].root], tmp_path / "joint", progress=quiet())  # and those of no engine here go
    assert len(drawn) == 4 and len(list((tmp_path / "joint" / ".shards" / "validate").iterdir())) == 2


def test_engines_of_other_sample_rates_and_models_keep_their_own_reference(bundles: list[Bundle], tmp_path: Path):
    card = bundles[1].card.read_text().replace("16000", "8000")
    bundles[1].card.write_text(card)
    paths = joint.compare([bundle.root for bundle in bundles], tmp_path / "joint", progress=quiet())
    found = load_json(paths[0], "validate")
    assert [row["name"] for row in found["references"]] == ["float", "float of coarse"]
    assert [row["rate"] for row in found["references"]] == [16000, 8000]
    assert any("different sample rates (8000 Hz, 16000 Hz)" in note for note in found["notes"])
    assert any("different float models" in note for note in found["notes"])
    shown = found["clips"][0]["takes"]
    assert [take["correction"] for take in shown if take["engine"] is None] == ["float", "float of coarse"]
    # Each float model has files of its own, and stands before its engines.
    assert [(take["rate"], read_wav(paths[0].parent / "media" / take["file"])[1]) for take in shown] == [
        (take["rate"],) * 2 for take in shown
    ]
    assert {take["rate"] for take in shown} == {8000, 16000}
    captions = re.findall(r"<figcaption><span><b>([^<]+)", paths[1].read_text(encoding="utf-8"))
    assert list(dict.fromkeys(captions)) == ["float", "tiny", "float of coarse", "coarse"]


def test_a_table_has_a_row_per_engine_and_correction_with_bounds_in_columns(written: dict[str, Any], tmp_path: Path):
    rows = table.method_rows(written)
    path = table.write_csv(tmp_path / "table.csv", rows)
    with path.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["Method"] for row in read] == [
        "full precision",
        "tiny, no correction",
        "tiny, d2-deterministic",
        "coarse, no correction",
    ]
    none = written["engines"][0]["corrections"][0]
    assert float(read[1]["Latent error low"]) == none["latent_error"]["low"]
    assert read[0]["Latent error"] == "" and float(read[0]["Latency (ms)"]) > 0
    columns = list(read[0])
    assert columns.index("Reduction") < columns.index("KL") < columns.index("Latent error")
    assert columns[-3:] == ["Speed-up", "Speed-up low", "Speed-up high"]
    lines = table.write_markdown(tmp_path / "table.md", rows).read_text().splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1
    assert f"| {100 * none['latent_error']['value']:.1f}% (" in lines[3]


def test_the_float_row_has_its_own_distance_to_real_clips_and_floors_where_it_has_none(written: dict[str, Any]):
    def of(value: float) -> dict[str, float]:
        return dict.fromkeys(("value", "low", "high"), value)

    written["engines"][0]["sets"][0]["floors"] = [
        {"name": "float against float", "measures": {"distance": of(1.0)}},
        {"name": "real against real", "measures": {"distance to real": of(2.0)}},
        {"name": "float", "measures": {"distance to real": of(3.0)}},
    ]
    row = table.method_rows(written)[0]
    assert (row["distance"], row["distance to real"]) == (of(1.0), of(3.0))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["tiny", "tiny"], "tiny is named twice: name each engine once"),
        (["tiny", "nothing"], r"no .*nothing/recipe.toml: name a recipe that was run or a bundle; 'quaver run"),
        (["tiny", "joint"], r"--out .*joint is one of the bundles: name another folder"),
    ],
)
def test_engines_that_cannot_be_compared_are_refused(bundles: list[Bundle], sources: list[str], message: str):
    folder = bundles[0].root.parent
    shutil.copytree(bundles[0].root, folder / "joint")
    with pytest.raises(RecipeError, match=message):
        joint.compare([folder / name for name in sources], folder / "joint", progress=quiet())


def test_engines_whose_folders_share_a_name_are_told_apart(bundles: list[Bundle], tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(bundles[0].root, tmp_path / name / "demo")
    found = joint.find_subjects([tmp_path / "a" / "demo", tmp_path / "b" / "demo", bundles[1].root])
    assert [subject.name for subject in found] == ["a/demo", "b/demo", "coarse"]


def test_a_recipe_says_how_its_bundle_is_judged_and_overrides_replace_it(bundles: list[Bundle]):
    recipe = bundles[0].root.with_suffix(".toml")
    recipe.write_text("[validate]\nclips = 1\n[sampling]\nsteps = 7\n")
    (found,) = joint.find_subjects([recipe], ["validate.trajectories=9"])
    assert found.bundle == bundles[0] and found.sampling.steps == 7
    assert (found.settings.clips, found.settings.trajectories) == (1, 9)
    with pytest.raises(RecipeError, match=r"tiny\.toml: unknown key in \[validate\]"):
        joint.find_subjects([recipe], ["validate.trajectorys=9"])


def test_engines_that_are_compared_are_timed_alike(bundles: list[Bundle]):
    bundles[0].recipe.write_text(RECIPE.replace("latency_runs = 2", "latency_runs = 4\nthreads = 1"))
    timed = [subject.settings for subject in joint.find_subjects([bundle.root for bundle in bundles])]
    assert [(found.latency_runs, found.threads) for found in timed] == [(4, 1), (4, 1)]
    assert [found.max_latent_error for found in timed] == [0.1, 1e-6]  # the budget stays each engine's own


def test_a_joint_report_says_all_that_it_was_made_from(bundles: list[Bundle], tmp_path: Path):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_wav(clips / "a.wav", np.zeros(800, np.float32), 8000)
    places = [bundle.root for bundle in bundles]

    def stamped() -> dict[str, str]:
        return dict(joint.stamp_of(joint.find_subjects(places, [f"validate.reference={clips}"])).inputs)

    before = stamped()
    assert {"tiny/prompts.jsonl", "tiny/error_stats.ort-cpu.safetensors", "coarse/reference"} <= set(before)
    write_wav(clips / "a.wav", np.ones(800, np.float32), 8000)
    after = stamped()
    assert {name for name in before if before[name] != after[name]} == {"tiny/reference", "coarse/reference"}
