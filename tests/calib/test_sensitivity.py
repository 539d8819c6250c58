"""Sensitivities of a hand-made denoiser against graphs that really are quantized, run by onnxruntime."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from quaver.calib.graph import Layer, layers
from quaver.calib.quant import INT4, UINT8, quantize, scale_zero_point
from quaver.calib.records import Records, branches
from quaver.calib.sensitivity import (
    Sensitivity,
    SensitivitySettings,
    draw,
    ends_are_sensitive,
    keep_for,
    keep_share,
    measure,
    predicted,
    ranks,
    together,
)
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.families.audioldm import feeds
from quaver.runtime.progress import quiet

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from quaver.calib.ranking import draw_ranking  # noqa: E402
from quaver.calib.reconstruct.coding import Coding, Grid, real_weight  # noqa: E402
from quaver.calib.reconstruct.replay import read_graph  # noqa: E402

RANGES = {"sample": (-2.0, 2.5), "t_row": (0.0, 1.0), "class_labels": (-2.0, 2.0), "h_act": (-1.0, 1.0)}


def records() -> Records:
    """Six records at three timesteps."""
    rng = np.random.default_rng(2)
    x, rows = rng.standard_normal((6, 3, 4, 5)).astype(np.float32), rng.standard_normal((6, 6)).astype(np.float32)
    none, tags = {"class_labels": np.zeros((1, 6), np.float32)}, np.zeros(6, np.int64)
    t = np.array([1, 901, 401, 401, 1, 901])
    return Records(x, t, {"class_labels": rows}, none, tags, tags - 1, tags, 2.0, ("p",), ())


def code(model: onnx.ModelProto, layer: Layer) -> Coding:
    """4-bit weights per channel, 8-bit inputs."""
    weight = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}[layer.weight]
    rows = np.moveaxis(weight, layer.axis, 0)
    scale = (np.abs(rows.reshape(len(rows), -1)).max(axis=1) / 7).astype(np.float32)
    step, zero = scale_zero_point(*RANGES[layer.input], UINT8)
    codes = quantize(weight, scale, np.int32(0), INT4, axis=layer.axis)
    return Coding(layer, INT4, scale, codes, Grid(float(step), int(zero), 0, 255))


def quantized(bundle: Bundle, codings: list[Coding]) -> onnx.ModelProto:
    """The float file with Q and DQ before those layers, and their weights in place."""
    model = onnx.load(bundle.float_unet)
    for coding in codings:
        layer, grid = coding.layer, coding.input
        place = next(i for i, node in enumerate(model.graph.node) if node.name == layer.node)
        (weight,) = [t for t in model.graph.initializer if t.name == layer.weight]
        weight.CopyFrom(onnx.numpy_helper.from_array(real_weight(coding), layer.weight))
        ends = {"scale": np.float32(grid.scale), "zero": np.uint8(grid.zero)}
        names = [f"{layer.node}.{end}" for end in ends]
        model.graph.initializer.extend(map(onnx.numpy_helper.from_array, map(np.array, ends.values()), names))
        codes, back = f"{layer.node}.codes", f"{layer.node}.back"
        model.graph.node[place].input[0] = back
        model.graph.node.insert(place, onnx.helper.make_node("DequantizeLinear", [codes, *names], [back]))
        model.graph.node.insert(place, onnx.helper.make_node("QuantizeLinear", [layer.input, *names], [codes]))
    return model


def outputs(model: onnx.ModelProto, given: Records) -> np.ndarray:
    """What the model answers [branches, K, ...]."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, branches(given, np.arange(len(given.t)), feeds))
    return out.reshape(2, len(given.t), -1).astype(np.float64)


@pytest.fixture
def coded(bundle: Bundle) -> dict[str, Coding]:
    model = onnx.load(bundle.float_unet)
    return {layer.name: code(model, layer) for layer in layers(model)}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_layer_coded_alone_is_the_graph_with_that_layer_quantized(bundle, coded, batch) -> None:
    graph, given = read_graph(onnx.load(bundle.float_unet)), records()
    found = measure(graph, coded, given, feeds, batch=batch, progress=quiet())
    assert found.layers == tuple(coded) == ("conv_in", "time", "class", "conv_out")
    assert found.timesteps.tolist() == [1, 401, 901]
    clean = outputs(onnx.load(bundle.float_unet), given)
    for s, t in enumerate(found.timesteps):
        at = given.t == t
        assert found.signal[s] == pytest.approx((clean[:, at] ** 2).sum(), rel=1e-5)
        for row, name in enumerate(found.layers):
            noisy = outputs(quantized(bundle, [coded[name]]), given)
            assert found.noise[row, s] == pytest.approx(((noisy - clean)[:, at] ** 2).sum(), rel=1e-3)


def test_a_set_is_the_graph_with_all_of_them_quantized(bundle, coded) -> None:
    graph, given = read_graph(onnx.load(bundle.float_unet)), records()
    some = {name: coded[name] for name in ("conv_in", "conv_out")}
    clean, noisy = outputs(onnx.load(bundle.float_unet), given), outputs(quantized(bundle, [*some.values()]), given)
    want = 10 * np.log10((clean**2).sum() / ((noisy - clean) ** 2).sum())
    assert together(graph, some, given, feeds, batch=4) == pytest.approx(want, abs=0.01)
    assert together(graph, {}, given, feeds, batch=4) == 200


def made(*totals: float) -> Sensitivity:
    """A signal of 1000 and these noises, half of each at either timestep."""
    names = ("conv_in", *(f"down.{i}" for i in range(len(totals) - 2)), "conv_out")
    return Sensitivity(names, np.array([1, 501]), np.full(2, 500.0), np.outer(totals, [0.5, 0.5]))


def test_powers_add() -> None:
    found = made(1, 100, 10, 0)
    np.testing.assert_allclose(found.snr, [30, 10, 20, 200])
    np.testing.assert_allclose(found.snr_t[1], [10, 10])
    assert found.ranking.tolist() == [1, 2, 0, 3]
    assert predicted(found, []) == pytest.approx(10 * np.log10(1000 / 111))
    assert predicted(found, [1, 2]) == pytest.approx(30)


@pytest.mark.parametrize(
    ("snr", "kept"), [(5, []), (12, [1]), (19.5, [1]), (20, [1, 2]), (31, [1, 2, 0]), (999, [1, 2, 0])]
)
def test_a_budget_keeps_the_fewest_layers_that_meet_it(snr, kept) -> None:
    assert keep_for(made(1, 100, 10, 0), snr) == kept


@pytest.mark.parametrize(("percent", "kept"), [(0, []), (10, [1]), (25, [1]), (26, [1, 2]), (100, [1, 2, 0, 3])])
def test_a_share_is_rounded_up(percent, kept) -> None:
    assert keep_share(made(1, 100, 10, 0), percent) == kept


def test_the_papers_claim_is_both_ends_in_the_worst_tenth() -> None:
    inner = [1.0] * 18  # 20 layers: a tenth is two
    assert ends_are_sensitive(made(9, *inner, 8)) is True
    assert ends_are_sensitive(made(9, 8.5, *inner[1:], 8)) is False
    assert ranks(made(9, 8.5, *inner[1:], 8), lambda name: name.startswith("conv")) == {"conv_in": 1, "conv_out": 3}
    assert ends_are_sensitive(Sensitivity(("a",), np.array([1]), np.ones(1), np.ones((1, 1)))) is None


def test_so_many_records_of_every_timestep_are_drawn() -> None:
    t = np.repeat([1, 51, 101], [5, 1, 9])
    got = draw(t, 2, np.random.default_rng(0))
    assert np.unique(t[got], return_counts=True)[1].tolist() == [2, 1, 2] and got.tolist() == sorted(set(got.tolist()))


def test_the_picture_has_a_dot_for_every_layer_and_a_mark_for_every_one_kept() -> None:
    picture = ElementTree.fromstring(draw_ranking(made(1, 100, 10, 0), [1], title="<t>", said="4 layers").encode())
    parts = [(part.tag.rpartition("}")[2], part.get("class")) for part in picture.iter()]
    assert parts.count(("circle", "mark")) == parts.count(("rect", "mark")) == 1
    assert parts.count(("circle", "point")) == 3 and parts.count(("circle", "end")) == 2
    assert "<t>" in "".join(picture.itertext())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"records": 0}, "sensitivity.records is 0, expected 1 or more"),
        ({"snr": -3.0}, "sensitivity.snr is -3.0, expected 0 or more"),
        ({"snr": float("nan")}, "sensitivity.snr is nan, expected 0 or more"),
        ({"snr": float("inf")}, "sensitivity.snr is inf, expected 0 or more"),
        ({"keep": float("nan")}, "sensitivity.keep is nan, expected 0 to 100 percent"),
        ({"keep": 101.0}, "sensitivity.keep is 101.0, expected 0 to 100 percent"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message) -> None:
    with pytest.raises(RecipeError, match=message):
        SensitivitySettings(**settings)
