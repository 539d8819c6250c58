from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks import corrections
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.trajectories import Pairs
from quaver.runtime.sample import SamplingSettings

NAMES = ("none", "d2-deterministic", "d2-consistent")


@pytest.mark.parametrize(
    ("sampling", "taken"),
    [
        (SamplingSettings(eta=0.0), "d2-deterministic"),
        (SamplingSettings(eta=1.0), "d2-consistent"),
        (SamplingSettings(sampler="ddpm"), "d2-consistent"),  # whose eta is 0 and whose noise is its own
    ],
)
def test_both_modes_of_d_d2_are_one_only_where_no_noise_is_to_be_reduced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampling: SamplingSettings, taken: str
):
    asked = []

    def drawn(session: str, pairs: Pairs, sampling: SamplingSettings, correct: str, batch: int, keep: Path):
        asked.append((session, correct))
        return np.ones((1, 1, 1, 1))

    monkeypatch.setattr(corrections, "open_bundle", lambda bundle, *, engine_file: nullcontext(engine_file))
    monkeypatch.setattr(corrections, "drawn", drawn)
    found = corrections.draw(Bundle(tmp_path), "ort-cpu", Pairs((), ()), sampling, NAMES, batch=1, keep=tmp_path)
    assert list(found) == ["float", *NAMES]
    assert asked == [("float", "none"), ("ort-cpu", "none"), ("ort-cpu", "d2-deterministic"), ("ort-cpu", taken)]


def test_the_error_of_a_correction_is_held_against_that_of_none():
    rng = np.random.default_rng(0)
    float_ends = rng.standard_normal((64, 2, 4, 4))
    wrong = rng.standard_normal(float_ends.shape)
    drawn = {"float": float_ends, "none": float_ends + 0.1 * wrong, "auto": float_ends + 0.05 * wrong}
    none, auto = corrections.compare("tiny", SamplingSettings(), drawn)
    assert (none["ratio to none"].low, none["ratio to none"].high) == (1.0, 1.0)
    assert auto["ratio to none"].value == pytest.approx(0.5) and auto["samples"] == 64
    assert auto["latent error"].value == pytest.approx(none["latent error"].value / 2)
    assert auto["SNR dB"].value == pytest.approx(none["SNR dB"].value + 20 * np.log10(2))
    where = corrections.cell(auto)
    simpler = [none, {**none, "correction": "mean"}, {**none, "correction": "ptqd"}]
    assert corrections.claims([*simpler, auto], where) == {
        f"{where}: D2 beats none, mean, ptqd": True,
        f"{where}: auto does no harm": True,
    }
    assert not any(corrections.claims([*simpler, {**none, "correction": "d2-local"}], where).values())
