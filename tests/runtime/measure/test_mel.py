from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import mel

RATE = 16_000


def test_a_gain_of_ten_percent_is_twenty_decibels_and_the_phase_is_free():
    y = np.random.default_rng(0).normal(size=(3, 8000))
    assert mel.mel_snr_db(1.1 * y, y, rate=RATE) == pytest.approx([20.0] * 3)
    assert (mel.mel_snr_db(-y, y, rate=RATE) > 250).all()


def test_a_tone_sounds_in_the_band_whose_centre_it_has():
    bands = 40
    centres = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(RATE / 2), bands + 2))[1:-1]
    time = np.arange(8192) / RATE
    tones = np.sin(2 * np.pi * centres[12:36:4, None] * time)
    loudest = mel.mel_amplitude(tones, rate=RATE, bands=bands)[:, 16].argmax(axis=1)
    assert loudest.tolist() == list(range(12, 36, 4))


def test_triangles_sum_to_one_between_the_first_and_the_last_centre():
    bank = mel.mel_bank(RATE, bands=20, n_fft=4096)
    grid = np.linspace(0, RATE / 2, 2049)
    centres = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(RATE / 2), 22))[1:-1]
    inside = (grid >= centres[0]) & (grid <= centres[-1])
    assert bank.sum(axis=0)[inside] == pytest.approx(1.0)
    assert bank.min() >= 0 and bank.max() <= 1
