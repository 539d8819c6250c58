"""Forward hooks on a torch U-Net against the taps in its traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.hooks import layer_names, open_hooked
from quaver.calib.moments import variance
from quaver.calib.taps import COUNT, SUMMARY, open_tapped, read_summaries, tap_summaries
from quaver.calib.trajectories import Trajectories, observe
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError
from quaver.runtime.families.audioldm import feeds
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import load_schedule
from tests.exporter import conftest as exporter

onnx, torch, diffusers = (pytest.importorskip(name) for name in ("onnx", "torch", "diffusers"))
model_folder, traced = exporter.model_folder, exporter.traced  # fixtures: a U-Net, and its graph
SHAPE, EMBEDDING = exporter.SHAPE, exporter.EMBEDDING


@pytest.fixture(scope="module")
def unet(model_folder: Path) -> Any:
    return diffusers.UNet2DConditionModel.from_pretrained(model_folder / "unet").eval()


@pytest.fixture(scope="module")
def graph(traced: Bundle) -> Path:
    return traced.float_unet


def call(unet: Any, named: Mapping[str, Any]) -> Any:
    return unet(named["sample"], named["timestep"], None, class_labels=named["class_labels"]).sample


def some_feeds(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    x, rows = rng.standard_normal((batch, *SHAPE), np.float32), rng.standard_normal((batch, EMBEDDING), np.float32)
    return feeds(x, np.linspace(1, 951, batch).astype(np.int64), {"class_labels": rows})


@pytest.mark.slow
def test_hooks_see_what_the_taps_of_the_traced_graph_see(unet: Any, graph: Path) -> None:
    found = layers(onnx.load(graph))
    names = [layer.name for layer in found]
    assert sorted(names) == sorted(layer_names(unet))
    edges = list(dict.fromkeys(layer.input for layer in found))
    rows = [edges.index(layer.input) for layer in found]
    with (
        open_hooked(unet, partial(call, unet), names) as hooked,
        open_tapped(graph, partial(tap_summaries, edges=edges)) as tapped,
    ):
        for batch in (1, 4):
            seen, expected = hooked(some_feeds(batch)), tapped(some_feeds(batch))
            np.testing.assert_allclose(seen["out"], expected["out"], rtol=1e-3, atol=1e-4)
            got, there = read_summaries(seen), read_summaries(expected)
            assert got.count.tolist() == there.count[rows].tolist()
            np.testing.assert_allclose(got.mean, there.mean[rows], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(variance(got), variance(there)[rows], rtol=1e-3, atol=1e-9)
            np.testing.assert_allclose(got.amin, there.amin[rows], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(got.amax, there.amax[rows], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_one_capture_serves_both(unet: Any, graph: Path, bundle: Any) -> None:
    found = layers(onnx.load(graph))
    readers = {layer.input: layer.name for layer in reversed(found)}
    session: Any = SimpleNamespace(
        family=SimpleNamespace(feeds=feeds),
        schedule=load_schedule(bundle.scheduler),
        latent_shape=SHAPE,
        uncond={"class_labels": np.zeros((1, EMBEDDING), np.float32)},
    )
    rows = {"class_labels": np.random.default_rng(1).standard_normal((5, EMBEDDING), np.float32)}
    sampling = SamplingSettings(steps=3, guidance=2.0)
    with (
        open_hooked(unet, partial(call, unet), list(readers.values())) as hooked,
        open_tapped(graph, partial(tap_summaries, edges=list(readers))) as tapped,
    ):
        grids = [observe(Trajectories(session, run, rows, range(5), sampling), readers)[0] for run in (hooked, tapped)]
    assert grids[0].count.shape == (len(readers), 3)
    np.testing.assert_allclose(variance(grids[0]), variance(grids[1]), rtol=2e-3, atol=1e-9)
    np.testing.assert_allclose(grids[0].amax, grids[1].amax, rtol=2e-3, atol=1e-5)


def test_moments_equal_numpy_on_the_stored_activations(unet: Any) -> None:
    stored = []
    handle = unet.mid_block.resnets[0].conv1.register_forward_pre_hook(
        lambda m, x: stored.append(x[0].double().numpy())
    )
    with open_hooked(unet, partial(call, unet), ["mid_block.resnets.0.conv1"]) as run:
        got = read_summaries(run(some_feeds(3)))
    handle.remove()
    x = stored[0]
    np.testing.assert_allclose([got.mean[0], variance(got)[0]], [x.mean(), x.var()], rtol=1e-12, atol=1e-15)
    assert (got.count[0], got.amin[0], got.amax[0]) == (x.size, x.min(), x.max())


def test_a_layer_that_runs_twice_is_counted_as_in_the_graph() -> None:
    network = torch.nn.Linear(2, 2)
    twice = torch.nn.Sequential(network, torch.nn.Tanh(), network)
    with open_hooked(twice, lambda named: twice(named["x"]), ["0", "0#2"]) as run:
        seen = run({"x": np.ones((1, 2), np.float32)})
    assert seen[COUNT].tolist() == [2, 2] and seen[SUMMARY][0] == 1 and abs(seen[SUMMARY][4]) < 1


def test_hooks_go_and_wrong_names_are_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(EngineError, match=r"no layer 'conv' \(1 missing\)"), open_hooked(network, network, ["conv"]):
        pass
    with (
        open_hooked(network, lambda named: named["x"], ["0"]) as run,
        pytest.raises(EngineError, match=r"'0' did not run"),
    ):
        run({"x": np.ones((1, 2), np.float32)})
    assert not network[0]._forward_pre_hooks
