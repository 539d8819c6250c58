"""A denoiser described by its card: what it is fed, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.families.onnx import fit, sigmas
from quaver.runtime.schedule import Schedule

SCHEDULE = Schedule(np.array([0.9, 0.5, 0.1]))
X, T = np.ones((2, 1, 2, 2), np.float32), np.array([1, 2])


def fed(**said):
    card = {"sample": "x", "time": "t", "dtype": "float32", "column": False, "sigma": False, "scaling": "vp"}
    return fit({"inputs": card | said}, SCHEDULE).feeds(X, T, {"context": np.zeros((2, 3))})


def test_names_types_and_shapes_are_the_cards():
    plain = fed()
    assert list(plain) == ["x", "t", "context"] and plain["t"].dtype == np.float32
    assert plain["x"] is X and plain["t"].tolist() == [1, 2]
    column = fed(time="timestep", dtype="int64", column=True)
    assert column["timestep"].dtype == np.int64 and column["timestep"].tolist() == [[1], [2]]


def test_sigma_is_the_ratio_of_noise_to_signal():
    np.testing.assert_allclose(sigmas(SCHEDULE), [1 / 3, 1, 3])
    np.testing.assert_allclose(fed(sigma=True)["t"], [1, 3], rtol=1e-6)


def test_a_sample_in_ve_scaling_has_its_signal_at_one():
    scaled = fed(sigma=True, scaling="ve")["x"]
    np.testing.assert_allclose(scaled[:, 0, 0, 0], [1 / np.sqrt(0.5), 1 / np.sqrt(0.1)], rtol=1e-6)
    assert scaled.dtype == np.float32


def test_other_arrays_are_fed_as_such():
    torch = pytest.importorskip("torch")
    card = {"sample": "x", "time": "s", "dtype": "float32", "column": True, "sigma": True, "scaling": "ve"}
    found = fit({"inputs": card}, SCHEDULE).feeds(torch.ones(2, 1, 2, 2), torch.tensor([1, 2]), {})
    assert isinstance(found["x"], torch.Tensor) and found["s"].dtype == torch.float32
    np.testing.assert_allclose(found["s"].numpy(), [[1], [3]], rtol=1e-6)
