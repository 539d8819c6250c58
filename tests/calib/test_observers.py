"""Range estimators against numpy and closed forms."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from quaver.calib import observers
from quaver.calib.observers import BINS, OBSERVERS, Observed, ObserverOptions
from quaver.calib.quant import Format, fake_quant, scale_zero_point

OPTIONS = ObserverOptions()


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.standard_normal(200_000), [9.7, -30.0]]).astype(np.float32)


def see(parts: list[np.ndarray]) -> Observed:
    return reduce(observers.update, parts, observers.init())


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_shards_in_any_order_give_the_same_bits(values: np.ndarray, name: str) -> None:
    parts = np.array_split(np.random.default_rng(1).permutation(values), 7)
    whole = see([values])
    sharded = observers.merge(see(parts[4:]), observers.merge(see(parts[2:4]), see(parts[:2])))
    assert whole.counts is not None and whole.counts.sum() == len(values)
    assert np.array_equal(whole.counts, sharded.counts)
    assert OBSERVERS[name].finish(whole, OPTIONS) == OBSERVERS[name].finish(sharded, OPTIONS)


@pytest.mark.parametrize("doublings", [0, 1, 3, 10, 11, 12, 200])
def test_a_wider_histogram_counts_each_value_where_it_would_have_been_counted(doublings: int) -> None:
    rng = np.random.default_rng(doublings)
    values = (rng.standard_normal(10_000) * 10.0 ** rng.uniform(-4, 0, 10_000)).astype(np.float32)
    far = np.float32(np.ldexp(1.5, see([values]).exponent - 1 + min(doublings, 100)))
    state, wide = see([values]), see([values, np.array([far])])
    assert wide.counts is not None and state.exponent + min(doublings, 100) == wide.exponent
    width = np.ldexp(2.0, wide.exponent) / BINS
    index = np.floor(np.append(values, far).astype(np.float64) / width).astype(int) + BINS // 2
    np.testing.assert_array_equal(wide.counts, np.bincount(index, minlength=BINS))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 3.0, 1e37], ids=str)
def test_bins_are_exact_at_every_magnitude(scale: float) -> None:
    values = (np.random.default_rng(3).standard_normal(5000) * scale).astype(np.float32)
    state = see([values])
    index = np.floor(np.ldexp(values.astype(np.float64), int(np.log2(BINS)) - 1 - state.exponent)) + BINS // 2
    np.testing.assert_array_equal(state.counts, np.bincount(index.astype(int), minlength=BINS))


def test_states_come_out_of_a_file_as_they_went_in(values: np.ndarray) -> None:
    seen = [see([values]), see([np.zeros(3, np.float32)]), see([values[:5], values[5:9] * 1e-6])]
    for before, after in zip(seen, observers.unpack(observers.pack(seen)), strict=True):
        assert (before.amin, before.amax, before.exponent) == (after.amin, after.amax, after.exponent)
        np.testing.assert_array_equal(before.counts, after.counts)
    ends = [observers.extremes(-1.25, 3.5), observers.extremes(0.0, 1e-30)]
    assert observers.unpack(observers.pack(ends)) == ends


def test_minmax_keeps_everything_and_needs_only_extremes(values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    assert OBSERVERS["minmax"].finish(see([values]), OPTIONS) == (low, high)
    merged = observers.merge(observers.extremes(low, 1.0), observers.extremes(0.0, high))
    assert OBSERVERS["minmax"].finish(merged, OPTIONS) == (low, high)


@pytest.mark.parametrize("p", [99.0, 99.9, 99.99])
def test_percentile_equals_numpy_within_a_bin_and_never_cuts_more(values: np.ndarray, p: float) -> None:
    tail = (100 - p) / 2
    low, high = OBSERVERS["percentile"].finish(see([values]), ObserverOptions(percentile=p))
    width = 64 / BINS  # -30 needs [-32, 32)
    assert low == pytest.approx(np.percentile(values, tail), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 100 - tail), abs=2 * width)
    assert np.mean((values < low) | (values > high)) <= (100 - p) / 100


def test_percentile_100_is_minmax(values: np.ndarray) -> None:
    assert OBSERVERS["percentile"].finish(see([values]), ObserverOptions(percentile=100.0)) == (
        values.min(),
        values.max(),
    )


def test_mse_clips_outliers_and_beats_minmax(values: np.ndarray) -> None:
    options = ObserverOptions(format=Format(4, signed=False, symmetric=False), power=2.0)

    def cost(low: float, high: float) -> float:
        scale, zero = scale_zero_point(np.float32(low), np.float32(high), options.format)
        return float(np.mean((values - fake_quant(values, scale, zero, options.format)) ** 2))

    ends = OBSERVERS["mse"].finish(see([values]), options)
    # Sixteen levels on a standard normal: the best uniform step is 0.335 (Max 1960, table II), a range of 5.0.
    assert ends[1] - ends[0] < 15
    assert cost(*ends) < 0.25 * cost(float(values.min()), float(values.max()))


def test_mse_keeps_a_uniform_range_whole() -> None:
    values = np.linspace(-1, 3, 100_000, dtype=np.float32)
    low, high = OBSERVERS["mse"].finish(see([values]), OPTIONS)
    assert (low, high) == pytest.approx((-1, 3), abs=0.05)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_zeros_and_constants_have_a_range_of_no_width(name: str) -> None:
    finish = OBSERVERS[name].finish
    assert finish(see([np.zeros(10, np.float32)]), OPTIONS) == (0, 0)
    low, high = finish(see([np.full(10, 3.3, np.float32)]), OPTIONS)
    assert low == high or name == "mse"


def test_zeros_seen_first_do_not_coarsen_what_follows() -> None:
    small = np.float32([1e-3, 2e-3])
    assert see([np.zeros(5, np.float32), small]).exponent == see([small]).exponent


def test_memory_does_not_grow_with_what_was_seen(values: np.ndarray) -> None:
    counts = see([values * np.float32(10.0**k) for k in range(-6, 6)]).counts
    assert counts is not None and counts.size == BINS and counts.sum() == 12 * len(values)


def plain_divergence(counts: np.ndarray, cut: int, levels: int) -> float:
    """KL(P || Q) of one threshold, bin by bin."""
    counts = counts.astype(float)
    counts[0] = counts[1]
    p, q = counts[:cut].copy(), np.zeros(cut)
    p[-1] += counts[cut:].sum()
    for level in range(levels):
        inside = [j for j in range(cut) if (j * levels) // cut == level and counts[j] > 0]
        q[inside] = np.mean(counts[inside]) if inside else 0
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    if ((q == 0) & (p > 0)).any():
        return float("inf")
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


@pytest.mark.parametrize("levels", [4, 8, 16])
def test_divergences_equal_those_taken_bin_by_bin(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for counts in (rng.integers(0, 50, 90), rng.poisson(300 * np.exp(-np.arange(70) / 6)), np.full(40, 3)):
        expected = [plain_divergence(counts, cut, levels) for cut in range(levels, len(counts) + 1)]
        np.testing.assert_allclose(observers.divergences(counts, levels), expected, rtol=1e-9, atol=1e-12)


def test_entropy_cuts_a_tail_at_the_threshold_of_least_divergence(values: np.ndarray) -> None:
    state = see([values])
    assert state.counts is not None
    half = BINS // 2
    counts = (state.counts[half:] + state.counts[:half][::-1])[: int(np.ceil(30.0 * half / 32))]
    low, high = OBSERVERS["entropy"].finish(state, ObserverOptions(format=Format(4)))
    cut = round(high * half / 32)
    assert low == -high and 2 < high < 6
    least = plain_divergence(counts, cut, 8)
    assert all(least <= plain_divergence(counts, other, 8) for other in (8, cut - 1, cut + 1, 400, len(counts)))


def test_entropy_of_one_sided_values_keeps_the_short_side() -> None:
    x = np.random.default_rng(0).standard_normal(100_000)
    silu = (3 * x / (1 + np.exp(-3 * x))).astype(np.float32)
    low, high = OBSERVERS["entropy"].finish(see([silu]), OPTIONS)
    assert low == silu.min() and 0 < high <= silu.max()


def test_entropy_of_few_values_keeps_them_all() -> None:
    values = np.float32([0.0, -1.0, 0.5])
    assert OBSERVERS["entropy"].finish(see([values]), OPTIONS) == (-1, 0.5)
