"""The sampling law of Algorithm 2 and of its baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quaver.calib import select
from quaver.calib.select import Field
from quaver.runtime.errors import RecipeError

TIMESTEPS = np.arange(951, 0, -50)


def chi_square_limit(freedom: int, z: float = 3.1) -> float:
    """The 99.9% quantile, after Wilson and Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + z * np.sqrt(2 / (9 * freedom))) ** 3


def chi_square(index: np.ndarray, p: np.ndarray) -> tuple[float, int]:
    drawn, expected = np.bincount(index, minlength=p.size)[p > 0], p[p > 0] * len(index)
    return float(((drawn - expected) ** 2 / expected).sum()), int((p > 0).sum()) - 1


@pytest.fixture
def field() -> Field:
    rng = np.random.default_rng(5)
    variance = rng.gamma(2.0, 1.0, (6, 20)) * np.array([[1e-4], [1], [3], [20], [0.5], [0]])
    return Field(variance, TIMESTEPS, 1000)


@pytest.mark.parametrize("mode", ["paper", "normalized"])
def test_pairs_are_drawn_in_proportion_to_their_variance(field: Field, mode: str) -> None:
    layer, step = select.activation(field, 20_000, np.random.default_rng(1), mode=mode, tau=0.0)
    weight = field.variance[:5] / (field.variance[:5].mean(axis=1, keepdims=True) if mode == "normalized" else 1)
    p = np.zeros((6, 20))
    p[:5] = weight / weight.sum()
    found, freedom = chi_square(layer * 20 + step, p.ravel())
    assert found < chi_square_limit(freedom)
    assert not (layer == 5).any(), "a layer of zero variance is never drawn"


def test_marginals_are_those_of_the_paper(field: Field) -> None:
    p = select.pair_probabilities(field.variance, mode="paper", tau=0.0)
    np.testing.assert_allclose(p.sum(axis=1), field.variance.sum(axis=1) / field.variance.sum())
    by_layer = select.pair_probabilities(field.variance, mode="normalized", tau=0.0).sum(axis=1)
    np.testing.assert_allclose(by_layer, [0.2] * 5 + [0])


def test_nothing_below_the_threshold_is_drawn(field: Field) -> None:
    p = select.pair_probabilities(field.variance, mode="paper", tau=0.1)
    assert np.array_equal(p > 0, field.variance >= 0.1 * field.variance.max())
    assert p.sum() == pytest.approx(1)


def test_a_threshold_above_the_maximum_is_halved_until_a_pair_qualifies() -> None:
    assert np.array_equal(select.qualifying(np.array([1.0, 3.0, 0.1]), 8.0), [False, True, False])
    p = select.pair_probabilities(np.array([[1.0, 3.0]]), mode="paper", tau=1.9)
    assert np.array_equal(p, [[0, 1]])


def test_equal_variances_and_zero_variances_both_mean_uniform() -> None:
    for variance in (np.ones((4, 5)), np.zeros((4, 5))):
        np.testing.assert_allclose(select.pair_probabilities(variance), np.full((4, 5), 0.05))


def test_a_broken_variance_is_refused() -> None:
    with pytest.raises(RecipeError, match="capture again"):
        select.pair_probabilities(np.array([[1.0, np.nan]]))
    with pytest.raises(RecipeError, match="'paper' or 'normalized'"):
        select.pair_probabilities(np.ones((1, 1)), mode="both")


@pytest.mark.parametrize("name", sorted(select.SELECT))
def test_every_selection_gives_exactly_k_records_and_repeats_with_its_seed(field: Field, name: str) -> None:
    draws = [select.SELECT[name](field, 137, np.random.default_rng(9)) for _ in range(2)]
    assert all(layer.shape == step.shape == (137,) for layer, step in draws)
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))


def test_uniform_passes_chi_square_and_even_is_even(field: Field) -> None:
    _, step = select.uniform(field, 20_000, np.random.default_rng(2))
    found, freedom = chi_square(step, np.full(20, 0.05))
    assert found < chi_square_limit(freedom)
    _, step = select.even(field, 50, np.random.default_rng(2))
    assert set(np.bincount(step)) == {2, 3}


def test_normal_draws_the_nearest_timestep_of_a_clipped_gaussian(field: Field) -> None:
    _, step = select.normal(field, 50_000, np.random.default_rng(4))
    middles = [*((TIMESTEPS[:-1] + TIMESTEPS[1:]) / 2), -np.inf]  # between 951 and 901, 901 and 851, ...
    below = np.array([0.5 * (1 + math.erf((m - 400) / (400 * math.sqrt(2)))) for m in middles])
    found, freedom = chi_square(step, -np.diff([1.0, *below]))  # what lies beyond an end falls on it
    assert found < chi_square_limit(freedom)


@pytest.mark.parametrize("mode", ["paper", "normalized"])
def test_layers_and_timesteps_are_drawn_by_the_marginals(field: Field, mode: str) -> None:
    p = select.pair_probabilities(field.variance, mode=mode, tau=0.1)
    layer, step = select.activation(field, 20_000, np.random.default_rng(11), mode=mode, tau=0.1)
    for index, marginal in ((layer, p.sum(axis=1)), (step, p.sum(axis=0))):
        found, freedom = chi_square(index, marginal)
        assert found < chi_square_limit(max(freedom, 1)) and set(index) <= set(np.flatnonzero(marginal))


@pytest.mark.parametrize("tau", [np.inf, np.nan, -1.0])
def test_a_threshold_that_never_ends_is_refused(tau: float) -> None:
    with pytest.raises(RecipeError, match=r"capture\.tau is .*expected a finite number"):
        select.pair_probabilities(np.ones((2, 2)), tau=tau)


def test_prompts_are_capped_and_an_x_t_repeats_as_late_as_possible() -> None:
    rng = np.random.default_rng(0)
    step = rng.integers(4, size=64)
    prompt = select.assign_prompts(step, 16, rng, cap=5)
    assert np.bincount(prompt).max() <= 5
    step = np.repeat(np.arange(4), 16)
    prompt = select.assign_prompts(step, 16, rng)
    assert len({*zip(step.tolist(), prompt.tolist(), strict=True)}) == 64


def test_more_records_than_exist_are_refused_with_the_knobs() -> None:
    with pytest.raises(RecipeError, match=r"10 records from 3 prompts at most 2 times each.*capture\.cap"):
        select.assign_prompts(np.zeros(10, int), 3, np.random.default_rng(0), cap=2)
