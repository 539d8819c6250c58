"""Capture against numpy on every activation, and the records it keeps."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from quaver.calib.capture import CaptureSettings, capture
from quaver.calib.records import load_records
from quaver.calib.taps import open_tapped, tap_tensors
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.generate import generate
from quaver.runtime.progress import Progress, quiet
from quaver.runtime.sample import SamplingSettings

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
SETTINGS = CaptureSettings(records=20, batch=3)
EDGES = {"conv_in": "sample", "time": "t_row", "class": "class_labels", "conv_out": "h_act"}
TEXTS = ["a b c d e f", "b c d e f", "c d e f", "d e f", "e f", "f", "a b c d e f", "b c d e f"]


def run(bundle: Bundle, settings: CaptureSettings = SETTINGS, sampling: SamplingSettings = SAMPLING) -> None:
    assert capture(bundle, settings, sampling, stamp=Stamp("capture"), progress=quiet()) == bundle.samples


def steps_of(bundle: Bundle, seed: int, text: str, sampling: SamplingSettings = SAMPLING) -> list:
    seen: list = []
    pairs = generate(bundle, [text], [seed], engine_file="float", steps=sampling.steps, guidance=sampling.guidance,
                     eta=sampling.eta, on_step=seen.append)  # fmt: skip
    list(pairs)
    return seen


def test_moments_equal_numpy_on_the_stored_activations(bundle: Bundle) -> None:
    run(bundle)
    got, meta = load_tensors(bundle.moments, "moments")
    assert list(meta["layers"]) == list(EDGES)
    stored: dict = {}
    with open_tapped(
        bundle.float_unet, lambda m: tap_tensors(m, list(EDGES.values())), outputs=[*EDGES.values()]
    ) as tap:
        uncond = load_records(bundle.samples).uncond["class_labels"]
        conds = conditioning(bundle)
        for i, text in enumerate(TEXTS):
            for step in steps_of(bundle, SETTINGS.seed + i, text):
                feeds = {"sample": np.concatenate([step.x_t] * 2), "timestep": np.full(2, step.t, np.int64)}
                outputs = tap({**feeds, "class_labels": np.concatenate([uncond, conds[[i]]])})
                for layer, edge in EDGES.items():
                    stored.setdefault((layer, step.index), []).append(outputs[edge].ravel())
    for row, layer in enumerate(EDGES):
        for s in range(4):
            values = np.concatenate(stored[layer, s]).astype(np.float64)
            assert got["count"][row, s] == values.size
            np.testing.assert_allclose(got["variance"][row, s], values.var(), rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(got["mean"][row, s], values.mean(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                [got["amin"][row, s], got["amax"][row, s]], [values.min(), values.max()], rtol=1e-4
            )


def conditioning(bundle: Bundle) -> np.ndarray:
    records = load_records(bundle.samples)
    return np.stack([records.cond["class_labels"][np.flatnonzero(records.prompt == i)[0]] for i in range(8)])


def test_records_are_points_of_the_float_trajectories(bundle: Bundle) -> None:
    run(bundle)
    records = load_records(bundle.samples)
    assert records.x_t.shape == (20, 3, 4, 5) and records.guidance == 2.0
    assert np.bincount(records.prompt).max() <= 3
    for k in range(20):
        i = records.prompt[k]
        step = next(s for s in steps_of(bundle, SETTINGS.seed + i, TEXTS[i]) if s.t == records.t[k])
        np.testing.assert_allclose(records.x_t[k], step.x_t[0], rtol=1e-4, atol=1e-5)
        assert records.seed[k] == SETTINGS.seed + i and records.prompts[i] == f"p{i}"
    assert set(records.layer) <= {0, 1, 2, 3}


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_running_the_drawn_prompts_again_gives_the_same_bytes(bundle: Bundle, eta: float) -> None:
    sampling = replace(SAMPLING, eta=eta)
    run(bundle, SETTINGS, sampling)
    held = bundle.samples.read_bytes(), bundle.moments.read_bytes()
    run(bundle, replace(SETTINGS, hold=0), sampling)
    again = load_records(bundle.samples)
    assert bundle.samples.read_bytes() == held[0]
    assert np.unique(again.t).size > 1


def test_batches_change_neither_moments_nor_records(bundle: Bundle) -> None:
    run(bundle)
    moments, records = load_tensors(bundle.moments, "moments")[0], load_records(bundle.samples)
    run(bundle, replace(SETTINGS, batch=8))
    np.testing.assert_allclose(load_tensors(bundle.moments, "moments")[0]["variance"], moments["variance"], rtol=1e-5)
    np.testing.assert_array_equal(load_records(bundle.samples).t, records.t)


@pytest.mark.parametrize("name", ["uniform", "normal", "even"])
def test_baselines_run_on_the_same_interface(bundle: Bundle, name: str) -> None:
    run(bundle, replace(SETTINGS, select=name))
    assert set(load_records(bundle.samples).layer) == {-1}


def test_guidance_of_one_has_one_branch(bundle: Bundle) -> None:
    run(bundle, SETTINGS, replace(SAMPLING, guidance=1.0))
    assert load_tensors(bundle.moments, "moments")[0]["count"][0, 0] == 8 * 3 * 4 * 5


def test_more_records_than_the_cap_allows_are_refused(bundle: Bundle) -> None:
    with pytest.raises(RecipeError, match=r"100 records from 8 prompts at most 2 times each"):
        run(bundle, replace(SETTINGS, records=100, cap=2), replace(SAMPLING, steps=20))
    with pytest.raises(RecipeError, match=r"capture\.records is 33, 8 prompts of 4 steps have 32 x_t: lower it"):
        run(bundle, replace(SETTINGS, records=33))
    with pytest.raises(RecipeError, match=r"capture\.prompts is 9, there are 8 prompts"):
        run(bundle, replace(SETTINGS, prompts=9))
    with pytest.raises(RecipeError, match=r"capture\.records is 0, expected 1 or more"):
        CaptureSettings(records=0)


def two_convs(shape: tuple[int, ...]) -> onnx.ModelProto:
    """conv_in, conv_mid and conv_out in a row: what is broken in one goes through those behind it."""
    names, edges = ("conv_in", "conv_mid", "conv_out"), ("sample", "h", "g", "out")
    ends = [("sample", 1, ["B", *shape]), ("timestep", 7, ["B"]), ("class_labels", 1, ["B", 6])]
    weights = [onnx.numpy_helper.from_array(np.eye(shape[0], dtype=np.float32)[..., None, None], n) for n in names]
    nodes = [onnx.helper.make_node("Conv", [edges[i], name], [edges[i + 1]], name) for i, name in enumerate(names)]
    inputs = [onnx.helper.make_tensor_value_info(*end) for end in ends]
    out = onnx.helper.make_tensor_value_info("out", 1, ["B", *shape])
    graph = onnx.helper.make_graph(nodes, "deep", inputs, [out], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("conv_in", r"the input of conv_mid is not finite at timestep 751 \(2 of 3 places"),
        ("conv_mid", r"the input of conv_out is not finite at timestep 751 \(1 of 3 places"),
        ("conv_out", "the network's output is not finite at timestep 751"),
    ],
)
def test_a_broken_model_is_refused_with_its_first_layer_and_the_timestep(
    bundle: Bundle, broken: str, named: str
) -> None:
    model = two_convs((3, 4, 5))
    weight = next(t for t in model.graph.initializer if t.name == broken)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((3, 3, 1, 1), np.nan, np.float32), broken))
    onnx.save(model, bundle.float_unet)
    with pytest.raises(EngineError, match=named):
        run(bundle)
    assert not bundle.moments.exists() and not bundle.samples.exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_threshold_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(RecipeError, match=r"capture\.tau is (inf|nan), expected 0 or more"):
        CaptureSettings(tau=value)


def test_variances_that_are_all_zero_are_said_and_drawn_uniformly(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quaver.calib.capture.resolved_variance", lambda grid: np.zeros_like(grid.mean))
    said = io.StringIO()
    capture(bundle, SETTINGS, SAMPLING, stamp=Stamp("capture"), progress=Progress(said))
    assert "every activation variance is 0: pairs are drawn uniformly" in said.getvalue()
    assert set(load_records(bundle.samples).layer) == {0, 1, 2, 3}


def test_the_heat_map_lies_beside_and_shows_what_was_drawn(bundle: Bundle) -> None:
    run(bundle)
    picture = ElementTree.parse(bundle.media("variance.svg")).getroot()
    records = load_records(bundle.samples)
    dots = [part for part in picture.iter() if part.get("class") == "dot"]
    assert len(dots) == len({*zip(records.layer.tolist(), records.t.tolist(), strict=True)})
    assert "4 layers, 4 timesteps; 20 records drawn" in "".join(picture.itertext())


def test_damaged_records_and_moments_are_refused(bundle: Bundle) -> None:
    run(bundle)
    for path, load in (
        (bundle.samples, load_records),
        (bundle.moments, lambda path: load_tensors(path, "moments")),
    ):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ArtifactError, match=rf"{path.name} is damaged .*quaver run RECIPE"):
            load(path)


def test_nothing_but_the_artifacts_is_left(bundle: Bundle) -> None:
    run(bundle)
    assert [path.name for path in bundle.samples.parent.iterdir()] == [bundle.samples.name]
