from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import quality


def test_relative_error_and_snr_are_the_closed_form_of_a_scaled_copy():
    y = np.random.default_rng(0).normal(size=(3, 4, 5))
    scale = np.array([1.1, 1.0, 0.5])
    q = y * scale[:, None, None]
    assert quality.relative_error(q, y) == pytest.approx([0.1, 0.0, 0.5])
    assert quality.snr_db(q, y) == pytest.approx([20.0, np.inf, 20 * np.log10(2)])


def test_a_silent_reference_has_error_zero_or_infinite():
    assert quality.relative_error(np.array([[0.0], [1.0]]), np.zeros((2, 1))).tolist() == [0.0, np.inf]


def test_drift_is_the_relative_error_of_every_step():
    y = np.ones((4, 2, 3))
    q = y * (1 + np.arange(4)[:, None, None] / 10)
    assert quality.drift(q, y) == pytest.approx(np.repeat(np.arange(4)[:, None] / 10, 2, axis=1))


def test_log_spectral_distance_of_a_gain_is_the_gain_in_db():
    noise = np.random.default_rng(1).normal(size=(2, 8000))
    half = quality.log_spectral_distance(0.5 * noise, noise, floor_db=-200)
    assert half == pytest.approx(np.full(2, 20 * np.log10(2)), rel=1e-9)
    assert quality.log_spectral_distance(noise, noise) == pytest.approx(np.zeros(2))


def test_power_spectrum_of_a_sine_peaks_at_its_bin_with_the_energy_of_the_window():
    n, k = 1024, 64
    sine = np.sin(2 * np.pi * k * np.arange(4 * n) / n)
    frame = quality.power(sine, n_fft=n, hop=n)[2]
    assert frame.argmax() == k
    assert frame[k] == pytest.approx((n / 4) ** 2, rel=1e-9)  # amplitude 1, Hann window sum n / 2


def test_bootstrap_of_a_mean_matches_the_normal_interval():
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    interval = quality.mean_interval(values, rng=np.random.default_rng(3))
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert [interval.low, interval.high] == pytest.approx(
        [values.mean() - half_width, values.mean() + half_width], abs=0.03
    )


def test_samples_of_one_prompt_are_drawn_together():
    """Sixteen prompts of deviation 1, four seeds each of 0.1: the mean has a deviation of 1/4, not of 1/8."""
    rng = np.random.default_rng(6)
    each = rng.normal(size=16)
    values, prompts = np.tile(each, 4) + 0.1 * rng.normal(size=64), [f"prompt {i % 16}" for i in range(64)]
    for groups, deviation in ((prompts, values.reshape(4, 16).mean(axis=0).std() / 4), (None, values.std() / 8)):
        found = quality.mean_interval(values, rng=np.random.default_rng(7), groups=groups)
        assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)
        assert found.value == pytest.approx(values.mean())


def test_prompts_drawn_once_and_too_few_prompts_are_resampled_by_sample():
    values = np.random.default_rng(6).normal(size=12)
    alone = quality.mean_interval(values, rng=np.random.default_rng(7))
    for groups in (list("abcdefghijkl"), ["a", "b"] * 6, ["a"] * 12):
        assert quality.mean_interval(values, rng=np.random.default_rng(7), groups=groups) == alone


def test_paired_bootstrap_is_narrow_when_the_pairs_move_together():
    difficulty = np.random.default_rng(4).lognormal(0, 1, 100)
    ratio = quality.ratio_interval(0.5 * difficulty, difficulty, rng=np.random.default_rng(5))
    assert [ratio.low, ratio.value, ratio.high] == pytest.approx([0.5, 0.5, 0.5])


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match=r"paired arrays differ in shape: \(2, 3\) and \(3, 3\)"):
        quality.relative_error(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"paired columns differ in length: \[2, 3\]"):
        quality.ratio_interval(np.ones(2), np.ones(3), rng=np.random.default_rng())


def test_a_drift_of_a_tenth_is_twenty_decibels_at_every_step():
    y = np.random.default_rng(0).normal(size=(3, 2, 8))
    assert quality.decibels(quality.drift(y * np.array([1.1, 1.01, 1.0])[:, None, None], y))[:2] == pytest.approx(
        np.array([[20.0, 20.0], [40.0, 40.0]])
    )
