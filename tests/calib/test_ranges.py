"""Ranges of the edges of a hand-made denoiser against numpy on every activation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from quaver.calib import activations, fanout, ranges
from quaver.calib.activations import Shard, Source, plan_shards, split
from quaver.calib.capture import CaptureSettings, capture
from quaver.calib.fanout import Fanout, Work, map_shards
from quaver.calib.observers import ObserverOptions
from quaver.calib.ranges import RangeSettings, collect_ranges, read_graph
from quaver.calib.records import branches, load_records
from quaver.calib.taps import open_tapped, tap_tensors
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.families.audioldm import feeds
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings

MINMAX = RangeSettings(observer="minmax", batch=3)


@pytest.fixture
def captured(bundle: Bundle) -> Bundle:
    settings = CaptureSettings(records=30, batch=4)
    capture(bundle, settings, SamplingSettings(steps=4, guidance=2.0), stamp=Stamp("capture"), progress=quiet())
    return bundle


def collect(bundle: Bundle, settings: RangeSettings) -> tuple[dict, dict]:
    assert collect_ranges(bundle, settings, stamp=Stamp("ranges"), progress=quiet()) == bundle.ranges
    return load_tensors(bundle.ranges, "ranges")


def values_of(bundle: Bundle, edges: list[str]) -> dict[int, dict[str, np.ndarray]]:
    """Every value of every edge, by timestep."""
    records = load_records(bundle.samples)
    with open_tapped(bundle.float_unet, lambda model: tap_tensors(model, edges), outputs=edges) as run:
        parts = {int(t): run(branches(records, np.flatnonzero(records.t == t), feeds)) for t in np.unique(records.t)}
    return {t: {edge: values.ravel() for edge, values in part.items()} for t, part in parts.items()}


def test_minmax_ranges_are_the_extremes_of_both_branches_at_every_timestep(captured: Bundle) -> None:
    got, meta = collect(captured, MINMAX)
    edges = meta["edges"]
    assert {"sample", "class_labels", "h_act", "raw"} <= set(edges)
    stored = values_of(captured, edges)
    assert got["timesteps"].tolist() == sorted(stored) and got["records"].sum() == 30
    for e, edge in enumerate(edges):
        lows, highs = zip(*((values[edge].min(), values[edge].max()) for values in stored.values()), strict=True)
        np.testing.assert_allclose(got["amin_t"][e], lows, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["amax_t"][e], highs, rtol=1e-5, atol=1e-6)
        assert got["amin"][e] == got["amin_t"][e].min() and got["amax"][e] == got["amax_t"][e].max()


def test_percentile_100_reads_the_same_extremes_from_the_values(captured: Bundle) -> None:
    extremes = collect(captured, MINMAX)[0]
    seen = collect(captured, RangeSettings(percentile=100.0))[0]
    for name in ("amin", "amax", "amin_t", "amax_t"):
        np.testing.assert_allclose(seen[name], extremes[name], rtol=1e-5, atol=1e-6)


def test_a_percentile_range_keeps_what_it_says(captured: Bundle) -> None:
    got, meta = collect(captured, RangeSettings(percentile=98.0))
    stored = values_of(captured, meta["edges"])
    e = meta["edges"].index("h_act")
    values = np.concatenate([part["h_act"] for part in stored.values()])
    kept = np.mean((values >= got["amin"][e]) & (values <= got["amax"][e]))
    assert 0.98 <= kept < 0.995


@pytest.mark.parametrize("observer", ["minmax", "percentile"])
def test_batches_and_passes_do_not_change_a_range(captured: Bundle, observer: str) -> None:
    settings = RangeSettings(observer=observer)
    whole = collect(captured, settings)[0]
    split_up = collect(captured, replace(settings, batch=5, memory=0.01))[0]
    for name, values in whole.items():
        np.testing.assert_allclose(split_up[name], values, rtol=2e-3, atol=2e-3)


def test_mse_ranges_lie_within_the_extremes(captured: Bundle) -> None:
    ends, found = (collect(captured, RangeSettings(observer=name))[0] for name in ("minmax", "mse"))
    tight = 1e-5 + 1e-3 * (ends["amax"] - ends["amin"])
    assert (found["amin"] >= ends["amin"] - tight).all() and (found["amax"] <= ends["amax"] + tight).all()
    assert (found["amax"] > found["amin"]).all()


def test_policies_are_what_they_say(captured: Bundle) -> None:
    policies = ("all", "max", "mean", "percentile", "weighted")
    got = {p: collect(captured, RangeSettings(percentile=90.0, policy=p))[0] for p in policies}
    low, high = got["max"]["amin_t"], got["max"]["amax_t"]
    np.testing.assert_array_equal(got["max"]["amax"], high.max(axis=1))
    np.testing.assert_allclose(got["mean"]["amax"], high.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(got["percentile"]["amax"], np.percentile(high, 90, axis=1), rtol=1e-6)
    np.testing.assert_allclose(got["percentile"]["amin"], np.percentile(low, 10, axis=1), rtol=1e-6)
    assert (got["all"]["amax"] <= got["max"]["amax"]).all()


def test_weighted_counts_the_records_drawn_for_the_layers_that_read_an_edge(captured: Bundle) -> None:
    got, meta = collect(captured, RangeSettings(percentile=90.0, policy="weighted"))
    records = load_records(captured.samples)
    for edge, reader in (("h_act", "conv_out"), ("sample", "conv_in"), ("raw", None)):
        e = meta["edges"].index(edge)
        tagged = records.layer == records.layers.index(reader) if reader else np.full(len(records.t), True)
        weight = np.array([np.mean(records.t[tagged] == t) for t in got["timesteps"]])
        assert got["amax"][e] == pytest.approx(float(weight @ got["amax_t"][e]), rel=1e-5)
        assert got["amin"][e] == pytest.approx(float(weight @ got["amin_t"][e]), rel=1e-5)


def test_entropy_ranges_lie_within_the_extremes(captured: Bundle) -> None:
    ends, found = (collect(captured, RangeSettings(observer=name))[0] for name in ("minmax", "entropy"))
    slack = 1e-5 + 1e-3 * (ends["amax"] - ends["amin"])
    assert (found["amin"] >= ends["amin"] - slack).all() and (found["amax"] <= ends["amax"] + slack).all()


def test_an_edge_of_no_width_is_recorded(captured: Bundle) -> None:
    model = onnx.load(captured.float_unet)
    weight = next(t for t in model.graph.initializer if t.name == "w_time")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 8), np.float32), "w_time"))
    onnx.save(model, captured.float_unet)
    got, meta = collect(captured, MINMAX)
    assert meta["constant"] == ["t_emb"]
    assert got["amax"][meta["edges"].index("t_emb")] == 0


@pytest.mark.parametrize("observer", ["minmax", "percentile"])
def test_an_edge_that_is_not_finite_is_refused_by_name(captured: Bundle, observer: str) -> None:
    model = onnx.load(captured.float_unet)
    weight = next(t for t in model.graph.initializer if t.name == "w_class")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 8), np.inf, np.float32), "w_class"))
    onnx.save(model, captured.float_unet)
    with pytest.raises(EngineError, match=r"c_emb is not finite at timestep 1 "):
        collect(captured, RangeSettings(observer=observer))


@pytest.mark.parametrize(("few", "shards"), [(1, 4), (20, 2), (32, 1)])
def test_timesteps_of_few_records_share_a_shard_and_no_range_shows_it(
    captured: Bundle, monkeypatch: pytest.MonkeyPatch, few: int, shards: int
) -> None:
    collect(captured, RangeSettings())
    whole, planned = captured.ranges.read_bytes(), list[Shard]()
    monkeypatch.setattr(activations, "FEW", few)
    plan = activations.plan_shards
    monkeypatch.setattr(ranges, "plan_shards", lambda *how: planned.extend(plan(*how)) or list(planned))
    collect(captured, RangeSettings())
    assert len(planned) == shards and captured.ranges.read_bytes() == whole


def test_a_run_that_stops_goes_on_with_the_shards_that_ended(captured: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "FEW", 15)
    settings = RangeSettings(percentile=98.0, batch=3, memory=0.005)
    collect(captured, settings)
    whole, finish, run = captured.ranges.read_bytes(), fanout.finish, list[Shard]()

    def finish_five(task: fanout.Task, compute: fanout.Compute) -> None:
        if len(run) == 5:
            raise KeyboardInterrupt
        finish(task, compute)
        run.append(task.shard)

    monkeypatch.setattr(fanout, "finish", finish_five)
    with pytest.raises(KeyboardInterrupt):
        collect(captured, settings)
    monkeypatch.setattr(fanout, "finish", lambda task, compute: (finish(task, compute), run.append(task.shard)))
    collect(captured, settings)
    assert captured.ranges.read_bytes() == whole and not captured.shards("ranges").exists()
    passes, parts = (list(dict.fromkeys(getattr(shard, name) for shard in run)) for name in ("edges", "timesteps"))
    assert len(passes) > 2 and len(parts) > 1
    assert run == [Shard(part, edges) for edges in passes for part in parts], "each once, in order"


def test_shards_of_other_settings_or_of_another_model_are_not_used(captured: Bundle) -> None:
    edges, records = read_graph(captured.float_unet)[0], load_records(captured.samples)
    source = Source(captured, "percentile", ObserverOptions(), 3, 10)
    work = Work("quaver.calib.activations:open_activations", source, "sha256:other")
    shards = plan_shards(source, records, edges, 512)
    settings = RangeSettings(batch=3)
    collect(captured, settings)
    whole = captured.ranges.read_bytes()
    list(map_shards(work, shards, captured.shards("ranges"), progress=quiet(), label="of another recipe"))
    collect(captured, settings)
    assert captured.ranges.read_bytes() == whole


@pytest.mark.slow
def test_an_edge_that_is_not_finite_is_named_by_a_worker_too(captured: Bundle) -> None:
    model = onnx.load(captured.float_unet)
    weight = next(t for t in model.graph.initializer if t.name == "w_class")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 8), np.inf, np.float32), "w_class"))
    onnx.save(model, captured.float_unet)
    how = {"stamp": Stamp("ranges"), "progress": quiet(), "fanout": Fanout(workers=2)}
    with pytest.raises(EngineError, match=r"c_emb is not finite at timestep 1 "):
        collect_ranges(captured, MINMAX, **how)


def test_edges_are_split_by_their_size_in_order() -> None:
    assert split(np.array([3.0, 3, 3, 9, 1]), 6) == [[0, 1], [2], [3], [4]]


def test_the_extremes_stay_exact_when_values_are_thinned(captured: Bundle) -> None:
    few = collect(captured, replace(MINMAX, observer="percentile", percentile=99.0, values=50))[0]
    all_of_them = collect(captured, MINMAX)[0]
    width = all_of_them["amax"] - all_of_them["amin"]
    assert (few["amax"] <= all_of_them["amax"]).all() and (few["amin"] >= all_of_them["amin"]).all()
    assert (np.abs(few["amax"] - all_of_them["amax"]) < 0.5 * width + 1e-6).all()


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"percentile is 40, expected more than 50"):
        RangeSettings(percentile=40)
    with pytest.raises(RecipeError, match=r"over_t is 20, expected 50 to 100"):
        RangeSettings(over_t=20)
    with pytest.raises(RecipeError, match=r"ranges\.bits is 0"):
        RangeSettings(bits=0)
