"""Other people's ONNX files, for tests: imported, held against what they become, made of a few nodes."""

import numpy as np
import pytest

from quaver.exporter.trace import ModelSettings, trace
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import quiet

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}


def run(place, tmp_path, model=None, **settings):
    if model is not None:
        onnx.save(model, place / "unet.onnx")
    bundle = Bundle(tmp_path / "bundle")
    given = {"samples": str(place / "samples.npz"), "scheduler": SCHEDULER, **settings}
    trace(
        bundle,
        ModelSettings(family="onnx", source=str(place / "unet.onnx"), **given),
        stamp=Stamp("trace"),
        progress=quiet(),
    )
    return bundle


def refused(place, tmp_path, match, model=None, error=RecipeError, **settings):
    with pytest.raises(error, match=match):
        run(place, tmp_path, model, **settings)
    left = [path.name for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert left == []


def answers(path, feeds, output="eps"):
    return ort.InferenceSession(str(path)).run([output], feeds)[0]


def make_feeds(batch, seed=0):
    draw = np.random.default_rng(seed)
    return {
        "x": draw.standard_normal((batch, 4, 8, 8), np.float32),
        "t": np.linspace(1, 999, batch).astype(np.float32),
        "context": draw.standard_normal((batch, 6, 16), np.float32),
    }


def agrees(bundle, place, batches=(1, 3)):
    for batch in batches:
        feeds = make_feeds(batch, batch)
        expected = answers(place / "unet.onnx", feeds)
        found = answers(bundle.float_unet, feeds)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def simple(nodes, time, *, constants=None, output=(4, 8, 8)):
    """x [B, 4, 8, 8] and a time -> out, of a few nodes."""
    infos = [("x", ["B", 4, 8, 8]), time, ("out", ["B", *output])]
    values = [helper.make_tensor_value_info(name, 1, dims) for name, dims in infos]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3:] or ({},))[0]) for n in nodes], "g", values[:2], values[2:], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scaled_by_time(time, *, before=()):
    """out = x * t / 1000 for each row."""
    return simple(
        [
            *before,
            ("Div", ["rows", "thousand"], ["u"]),
            ("Reshape", ["u", "column"], ["c"]),
            ("Mul", ["x", "c"], ["out"]),
        ],
        time,
        constants={"thousand": np.float32(1000), "column": np.array([-1, 1, 1, 1]), "zero": np.array([0])},
    )


def samples(place, **arrays):
    found = {"context": np.zeros((4, 6, 16), np.float32), **arrays}
    np.savez(place / "samples.npz", **{k: v for k, v in found.items() if v is not None})
