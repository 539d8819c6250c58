from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from quaver.calib.quant import INT4
from quaver.calib.reconstruct import brecq
from quaver.calib.reconstruct.blocks import PATTERNS, find_blocks, single_layers
from quaver.calib.reconstruct.brecq import Learner, Objective, Seen, learn
from quaver.calib.reconstruct.coding import Coding, Grid, on_grid
from quaver.calib.reconstruct.prefix import Prefix
from quaver.calib.reconstruct.replay import read_graph
from quaver.calib.reconstruct.sequence import see
from quaver.runtime.progress import quiet

torch = pytest.importorskip("torch")
BRECQ = Objective(iterations=150, batch=8, rate=0.03, weight=0.01, warmup=0.2, input_drop=0.0, drop=0.0)
QDROP = replace(BRECQ, input_drop=0.5, drop=0.5)


def learned(model, codings, feeds, objective, block=1, seed=0, **given):
    graph = read_graph(model)
    found = find_blocks(graph, [coding.layer for coding in codings.values()], PATTERNS)[block]
    seen = see(found, codings, Prefix(graph, feeds, 0), Prefix(graph, feeds, 0), objective.input_drop)
    with quiet().bar(1, "") as bar:
        return learn(graph, found, codings, seen, objective, seed=(seed, block), bar=bar, **given)


def same(first, second):
    return all(np.array_equal(codes, second[name]) for name, codes in first.items())


@pytest.mark.parametrize("objective", [BRECQ, QDROP, replace(BRECQ, input_drop=1.0)], ids=["brecq", "qdrop", "float"])
def test_hard_codes_keep_the_output_better_than_rounding_to_nearest(model, codings, feeds, objective):
    found = learned(model, codings, feeds, objective)
    assert found.error < 0.7 * found.nearest
    for name, codes in found.codes.items():
        assert codes.dtype == np.int8 and np.abs(codes - codings[name].codes).max() == 1
        assert codes.min() >= INT4.qmin and codes.max() <= INT4.qmax


def test_the_same_seed_gives_the_same_codes_and_another_does_not(model, codings, feeds):
    first, again, other = (learned(model, codings, feeds, QDROP, seed=seed).codes for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


def test_qdrop_reads_half_of_a_blocks_inputs_from_the_float_model_drawn_anew_every_time(model, codings, monkeypatch):
    graph, given = read_graph(model), []
    block = find_blocks(graph, [coding.layer for coding in codings.values()], PATTERNS)[1]
    real = brecq.run
    monkeypatch.setattr(brecq, "run", lambda graph, x, *a, **k: given.append(x["h0"]) or real(graph, x, *a, **k))
    ones = torch.ones(8, 6, 5, 5)
    seen = Seen({"h0": ones}, {"h0": 0 * ones}, {"h1": ones})
    with quiet().bar(1, "") as bar:
        learn(graph, block, codings, seen, replace(QDROP, iterations=2), seed=(0, 0), bar=bar)
    first, second = given[:2]
    for x in (first, second):
        assert set(x.unique().tolist()) == {0.0, 1.0} and float(x.mean()) == pytest.approx(0.5, abs=0.05)
    assert float((first == second).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_qdrop_leaves_half_of_the_activations_float():
    grid, x = Grid(0.5, 128, 0, 255), torch.linspace(-3, 3, 4001)
    generator = torch.Generator().manual_seed(0)
    made = brecq.dropping(0.5, Learner({}, {}, {}, {}), generator)(x, "h0", grid)
    kept, coded = made == x, made == on_grid(x, "h0", grid)
    assert bool((kept | coded).all()) and float(kept.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_with_every_activation_dropped_codes_are_learned_as_if_there_were_no_grids(model, codings, feeds):
    coarse = {name: replace(c, input=replace(c.input, scale=0.5)) for name, c in codings.items()}
    bare = {name: replace(c, input=None) for name, c in codings.items()}
    dropped, coded = (learned(model, coarse, feeds, replace(BRECQ, drop=d), block=0).codes for d in (1.0, 0.0))
    assert same(dropped, learned(model, bare, feeds, BRECQ, block=0).codes) and not same(dropped, coded)


def test_codes_that_do_no_better_stay_those_rounded_to_nearest(model, codings, feeds):
    spoilt = replace(BRECQ, iterations=3, rate=50.0)
    found = learned(model, codings, feeds, spoilt)
    assert found.error == found.nearest
    assert all(codes is codings[name].codes for name, codes in found.codes.items())


def test_steps_are_learned_for_the_edges_asked_for(model, codings, feeds):
    coarse = {name: replace(c, input=replace(c.input, scale=0.2, zero=128)) for name, c in codings.items()}
    objective = replace(BRECQ, step_rate=0.02)
    found = learned(model, coarse, feeds, objective, edges={"h0"})
    assert list(found.steps) == ["h0"] and 0.01 < found.steps["h0"] < 0.1
    assert found.error < learned(model, coarse, feeds, objective).error


def test_adaround_finds_the_best_of_all_roundings_of_a_small_layer(model, codings, feeds):
    """One output of six inputs that go together: 2^6 roundings, tried one by one."""
    onnx = pytest.importorskip("onnx")
    from quaver.calib.graph import layers

    rng = np.random.default_rng(1)
    weight = rng.uniform(-1, 1, (6, 1)).astype(np.float32)
    x = (rng.standard_normal((64, 1)) + 0.2 * rng.standard_normal((64, 6))).astype(np.float32)
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", size]) for name, size in (("x", 6), ("y", 1))]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    tiny = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    scale = np.array([1 / 7], np.float32)
    nearest = np.round(weight / scale).astype(np.int8)
    (layer,) = layers(tiny)
    coding = {layer.name: Coding(layer, INT4, scale, nearest)}

    def error(codes):
        return float(np.mean((x @ (codes * scale - weight)) ** 2))

    floor = np.floor(weight / scale)
    best = min(error(floor + np.reshape(up, (6, 1))) for up in product((0, 1), repeat=6))
    replay = read_graph(tiny)
    (block,) = single_layers(replay, [layer])
    seen = see(block, coding, Prefix(replay, [{"x": x}], 0), Prefix(replay, [{"x": x}], 0), 0.0)
    with quiet().bar(1, "") as bar:
        found = learn(replay, block, coding, seen, replace(BRECQ, iterations=400, weight=0.001), seed=(0, 0), bar=bar)
    assert error(found.codes[layer.name]) <= min(2 * best, 0.5 * error(nearest))
    assert found.error == pytest.approx(error(found.codes[layer.name]), rel=1e-3)
