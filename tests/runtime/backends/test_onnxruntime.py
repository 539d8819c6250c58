"""The onnxruntime backend: what it answers, and what it says to what does not fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from quaver.runtime.artifact import digest_file
from quaver.runtime.backends import onnxruntime as backend
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import EngineError, RecipeError


@pytest.fixture
def feeds():
    return {
        "sample": np.ones((3, 2, 4, 4), np.float32),
        "timestep": np.full(3, 501),
        "class_labels": np.ones((3, 6), np.float32),
    }


def test_an_onnx_file_answers_with_one_array(made_bundle, feeds):
    with open_engine(made_bundle.float_unet, threads=1) as engine:
        assert engine.inputs == ("sample", "timestep", "class_labels")
        assert engine.digest == digest_file(made_bundle.float_unet)
        out = engine(feeds)
    assert out.shape == (3, 2, 4, 4)
    assert out.dtype == np.float32
    assert backend.available()


def test_tensors_that_are_not_contiguous_are_fed_all_the_same(made_bundle, feeds):
    with open_engine(made_bundle.float_unet, threads=1) as engine:
        x = np.random.default_rng(0).standard_normal((4, 4, 2, 3)).astype(np.float32)
        turned = engine({**feeds, "sample": x.T})
        np.testing.assert_array_equal(turned, engine({**feeds, "sample": x.T.copy()}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample": np.ones((3, 2, 4, 4))}, r"sample float64 \[3, 2, 4, 4\], expected float32"),
        ({"sample": np.ones((3, 2, 4, 5), np.float32)}, r"\[3, 2, 4, 5\], expected float32 \['B', 2, 4, 4\]"),
        ({"sample": np.ones((3, 2, 4), np.float32)}, r"sample float32 \[3, 2, 4\], expected"),
        ({"timestep": np.full(3, 501, np.int32)}, "timestep int32 .* expected int64"),
        ({"encoder_hidden_states": np.ones(1)}, "takes sample, timestep, class_labels, but was fed"),
        ({"class_labels": np.ones((2, 6), np.float32)}, r"unet\.float\.onnx failed: "),
    ],
)
def test_feeds_that_do_not_fit_say_observed_and_expected(made_bundle, feeds, change, says):
    with open_engine(made_bundle.float_unet, threads=1) as engine, pytest.raises(EngineError, match=says):
        engine(feeds | change)


def test_a_missing_input_is_named(made_bundle, feeds):
    del feeds["timestep"]
    with (
        open_engine(made_bundle.float_unet, threads=1) as engine,
        pytest.raises(EngineError, match="takes sample, timestep"),
    ):
        engine(feeds)


def test_a_closed_engine_says_so(made_bundle, feeds):
    engine = open_engine(made_bundle.float_unet, threads=1)
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine(feeds)


@pytest.mark.parametrize("keep", [0, 50, 0.5, 0.99])
def test_a_truncated_file_is_one_line_with_the_command(tiny_bundle, keep):
    data = tiny_bundle.float_unet.read_bytes()
    tiny_bundle.float_unet.write_bytes(data[: keep if keep >= 1 else int(len(data) * keep)])
    with pytest.raises(EngineError, match="quaver run RECIPE") as caught:
        open_engine(tiny_bundle.float_unet)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line_with_the_command(tmp_path):
    with pytest.raises(EngineError, match=r"does not exist: 'quaver run RECIPE'"):
        open_engine(tmp_path / "unet.onnx")


def test_an_unknown_backend_names_the_nearest(made_bundle):
    with pytest.raises(RecipeError, match="did you mean 'onnxruntime'"):
        open_engine(made_bundle.float_unet, backend="onnx-runtime")


def test_an_execution_provider_that_is_not_there_names_those_that_are(made_bundle, feeds):
    with pytest.raises(EngineError, match=r"no execution provider 'quantum' \(it has: .*cpu.*\): pip install"):
        backend.open_engine(made_bundle.float_unet, provider="quantum")
    with backend.open_engine(made_bundle.float_unet, threads=1, provider="cpu") as engine:
        assert engine.session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("threads", [0, -3])
def test_less_than_one_thread_is_refused(made_bundle, threads):
    with pytest.raises(EngineError, match=rf"threads is {threads}, expected 1 or more"):
        open_engine(made_bundle.float_unet, threads=threads)


def test_options_of_a_provider_go_with_its_name(monkeypatch):
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    assert backend.find_provider("cuda") == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert backend.find_provider("cpu") == ("CPUExecutionProvider", {})


def test_an_engine_leaves_the_callers_denormals_alone(made_bundle):
    code = f"""
import numpy as np
from quaver.runtime.engine import open_engine
engine = open_engine({str(made_bundle.float_unet)!r}, threads=1)
assert engine.session.get_session_options().intra_op_num_threads == 1
assert np.float32(1e-40) * np.float32(1.0) > 0.0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
