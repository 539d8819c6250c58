"""Torch modules as engines: a peer of the onnxruntime backend."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.backends import eager
from quaver.runtime.denoise import denoiser, initial_noise, step_noise
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import EngineError
from quaver.runtime.sample import sample_ddim
from quaver.runtime.session import open_bundle

torch = pytest.importorskip("torch")


class TinyUNet(torch.nn.Module):
    """The layers of the tiny bundle's graph, with its weights."""

    def __init__(self, weights):
        super().__init__()
        for name in ("w1", "w2", "wc", "wt"):
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(weights[name].copy())))

    def forward(self, sample, timestep, class_labels):
        bias = class_labels @ self.wc + timestep[:, None].float() @ self.wt
        h = torch.nn.functional.conv2d(sample, self.w1, padding=1) + bias[:, :, None, None]
        return torch.nn.functional.conv2d(torch.tanh(h), self.w2, padding=1)


@pytest.fixture
def module(made_bundle):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(made_bundle.float_unet).graph
    return TinyUNet({t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer})


def feeds(as_array):
    rng = np.random.default_rng(0)
    return {
        "sample": as_array(rng.standard_normal((3, 2, 4, 4)).astype(np.float32)),
        "timestep": as_array(np.full(3, 501)),
        "class_labels": as_array(rng.standard_normal((3, 6)).astype(np.float32)),
    }


def test_a_module_and_its_graph_answer_alike_in_the_kind_they_were_asked(module, made_bundle):
    with open_engine(module, backend="eager") as engine, open_engine(made_bundle.float_unet) as graph:
        assert engine.inputs == graph.inputs
        from_numpy, from_torch = engine(feeds(np.asarray)), engine(feeds(torch.from_numpy))
        assert isinstance(from_numpy, np.ndarray)
        assert isinstance(from_torch, torch.Tensor)
        np.testing.assert_allclose(from_numpy, graph(feeds(np.asarray)), atol=1e-5)
        np.testing.assert_array_equal(from_numpy, from_torch.numpy())
        assert not from_torch.requires_grad
    assert eager.available()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_loop_samples_from_torch_and_from_onnxruntime(module, made_bundle, guidance):
    with open_bundle(made_bundle, engine_file="float") as session, open_engine(module, backend="eager") as engine:
        cond = session.family.embed(session.parts, ["a soft cello", "drum"])
        x_T = initial_noise([1, 2], session.latent_shape)
        settings = {"steps": 10, "eta": 1.0, "noise": step_noise([1, 2])}

        def sample(engine, kind):
            rows = [{name: kind(value) for name, value in part.items()} for part in (cond, session.uncond)]
            denoise = denoiser(engine, session.family, *rows, session.schedule, guidance)
            return sample_ddim(denoise, kind(x_T), session.schedule, **settings)

        by_graph, by_module = sample(session.engine, np.asarray), sample(engine, torch.from_numpy)
    assert isinstance(by_module, torch.Tensor)
    np.testing.assert_allclose(by_module.numpy(), by_graph, atol=1e-4)


def test_the_digest_is_that_of_the_weights(module):
    first = open_engine(module, backend="eager").digest
    again = open_engine(module, backend="eager").digest
    with torch.no_grad():
        module.w1[0, 0, 0, 0] += 1
    assert first == again
    assert first.startswith("sha256:")
    assert open_engine(module, backend="eager").digest != first


def test_what_does_not_fit_is_said_in_one_line(module, made_bundle):
    with pytest.raises(EngineError, match="use backend 'onnxruntime'"):
        open_engine(made_bundle.float_unet, backend="eager")
    with open_engine(module, backend="eager") as engine:
        with pytest.raises(EngineError, match="TinyUNet takes sample, timestep, class_labels"):
            engine({"sample": np.zeros(1)})
        with pytest.raises(EngineError, match="TinyUNet failed"):
            engine(feeds(np.asarray) | {"class_labels": np.zeros((3, 5), np.float32)})
    with pytest.raises(EngineError, match="closed"):
        engine(feeds(np.asarray))
