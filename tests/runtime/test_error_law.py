"""The law of the error, the record of the statistics, and what they belong to."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, load_tensors, save_tensors
from quaver.runtime.error_law import PARTS, Gaussian, Local, check_binding, error_law, load_stats, save_stats
from quaver.runtime.errors import ArtifactError
from tests.runtime.gaussians import BINDING, TIMESTEPS, gaussian_stats, joint


@pytest.mark.parametrize("over", [1.0, 1.0 + 1e-9, 1.3])
def test_a_covariance_that_rounding_made_indefinite_keeps_a_positive_residual(over):
    cov = np.array([[1.0, 0.2 * over], [0.2 * over, 0.04]])
    law = error_law(gaussian_stats((0.0, 0.0), cov))
    assert law.rho.max() == 0.9999
    assert 0 < law.var.min() < 1e-4
    np.testing.assert_allclose(law.slope, 0.2, rtol=2e-4)


def test_negative_zero_variance_of_the_error_counts_as_none():
    law = error_law(gaussian_stats((0.0, 0.0), np.array([[1.0, 1e-20], [1e-20, -1e-18]])))
    assert law.var.max() == 0.0
    assert law.slope.max() == 0.0


def test_statistics_survive_their_file(tmp_path):
    draw = np.random.default_rng(6)
    shapes = ((3, 8, 16, 3, 3), (3, 8), (3, 8))
    parts = {name: Local(*(draw.standard_normal(shape) for shape in shapes)) for name in ("local", "path")}
    parts["branches"] = Gaussian(draw.standard_normal((3, 8, 4)), draw.standard_normal((3, 8, 4, 4)))
    parts["simulated"] = Gaussian(draw.standard_normal((3, 8, 2)), draw.standard_normal((3, 8, 2, 2)))
    assert set(parts) == set(PARTS)
    stats = replace(gaussian_stats(*joint(0.7), channels=8), **parts)
    save_stats(tmp_path / "e.safetensors", stats, Stamp("error_stats"))
    back = load_stats(tmp_path / "e.safetensors")
    assert back.binding == BINDING
    for name in ("timesteps", "mean", "cov", "count"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stats, name))
        assert getattr(back, name).dtype == (np.int64 if name == "timesteps" else np.float64)
    for part in parts:
        for name, values in vars(getattr(stats, part)).items():
            np.testing.assert_array_equal(getattr(getattr(back, part), name), values)


def test_a_file_without_a_part_says_which_and_how_to_mend_it(tmp_path):
    save_tensors(tmp_path / "e.safetensors", {"timesteps": TIMESTEPS}, Stamp("error_stats"), meta={})
    with pytest.raises(ArtifactError, match=r"mean.*quaver stats"):
        load_stats(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "sha256:" + "c" * 64},
        {"backend": "tensorrt"},
        {"sampler": "ddpm"},
        {"steps": 50},
        {"eta": 1.0},
        {"guidance": 1.0},
        {"prediction": "epsilon"},
        {"latent_shape": (8, 32, 16)},
    ],
)
def test_statistics_of_another_run_are_refused_with_the_command_to_refit(change):
    """Statement 19: engine, sampler, steps, eta, guidance, shape; statement 7: another scale raises.

    Statistics of another sampling lie beside the recipe's own, and the command says all of it.
    """
    stats, (name,) = gaussian_stats(*joint(0.5)), change
    check_binding(stats, replace(BINDING, reference="sha256:other"))
    sampling = {"sampler": "ddim", "steps": 3, "eta": 0, "guidance": 3} | change
    options = "".join(f" --{name} {sampling[name]:{'' if name == 'sampler' else 'g'}}" for name in list(sampling)[:4])
    command = f"quaver stats RECIPE{options if name in ('sampler', 'steps', 'eta', 'guidance') else ''}'"
    with pytest.raises(ArtifactError, match=rf"fitted on {name} .*{re.escape(command)}"):
        check_binding(stats, replace(BINDING, **change))


def test_statistics_that_do_not_say_where_they_are_from_are_refused():
    with pytest.raises(ArtifactError, match="quaver stats"):
        check_binding(replace(gaussian_stats(*joint(0.5)), binding=None), BINDING)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": np.array([9.0, 1.0, 9.0])}, "1 pairs at timestep 501"),
        ({"mean": np.full((3, 1, 2), np.nan)}, "not finite"),
        ({"cov": np.zeros((3, 2, 2, 2))}, "expected"),
        ({"timesteps": np.array([951, 951, 1])}, "each once"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change, says):
    with pytest.raises(ArtifactError, match=says):
        replace(gaussian_stats(*joint(0.5)), **change)


@pytest.mark.parametrize(
    ("weight", "bias", "var"),
    [
        ((3, 8, 8, 3, 3), (3, 8), (3, 8)),  # of q alone
        ((3, 8, 16, 3, 1), (3, 8), (3, 8)),  # not square
        ((3, 8, 16, 2, 2), (3, 8), (3, 8)),  # no middle
        ((3, 8, 16), (3, 8), (3, 8)),
        ((3, 8, 16, 3, 3), (3, 1), (3, 8)),
        ((3, 8, 16, 3, 3), (3, 8), (3, 4)),
        ((3, 4, 8, 3, 3), (3, 4), (3, 4)),  # of another latent than the Gaussian
    ],
)
def test_a_law_that_is_no_convolution_of_these_channels_is_refused_when_it_is_read(weight, bias, var, tmp_path):
    path, stats = tmp_path / "e.safetensors", gaussian_stats(*joint(0.5), channels=8)
    save_stats(path, replace(stats, path=Local(np.ones((3, 8, 16, 3, 3)), np.ones((3, 8)), np.ones((3, 8)))), Stamp(""))
    tensors, meta = load_tensors(path, "error_stats")
    wrong = {
        f"path.{name}": np.ones(shape)
        for name, shape in zip(("weight", "bias", "var"), (weight, bias, var), strict=True)
    }
    save_tensors(path, tensors | wrong, Stamp("error_stats"), meta=meta)
    with pytest.raises(
        ArtifactError, match=rf"law 'path' .* {re.escape(str(weight))}, .* expected \[S, C, 2 C, k, k\].*quaver stats"
    ):
        load_stats(path)
