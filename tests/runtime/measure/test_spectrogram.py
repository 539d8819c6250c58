from __future__ import annotations

import io
import zlib

import numpy as np
import pytest

from quaver.runtime.measure import spectrogram


def test_a_sine_is_a_bright_line_at_its_mel_band():
    wave = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    level = spectrogram.log_spectrogram(wave, rate=16000, bands=160, columns=400)
    assert level.shape == (160, 400)
    assert level.max() == 0.0 and level.min() == -80.0
    low, high = spectrogram.hz_to_mel(40.0), spectrogram.hz_to_mel(8000.0)
    expected = (spectrogram.hz_to_mel(1000.0) - low) / (high - low) * 159
    assert level[:, 200].argmax() == pytest.approx(expected, abs=1)


def test_mel_is_inverted_exactly():
    assert spectrogram.mel_to_hz(spectrogram.hz_to_mel(1234.5)) == pytest.approx(1234.5)
    assert spectrogram.hz_to_mel(1000.0) == pytest.approx(1000, abs=0.1)


def test_silence_is_a_flat_picture_and_not_an_error():
    assert (spectrogram.log_spectrogram(np.zeros(4000), rate=16000) == -80.0).all()


def test_palette_lightness_rises_evenly():
    rgb = spectrogram.palette() / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])  # CIE lightness but for a constant
    assert (np.diff(lightness[4:]) > -1e-3).all()
    assert np.corrcoef(lightness, np.arange(256))[0, 1] > 0.995


def test_png_decodes_to_the_same_pixels():
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    body = spectrogram.png(indices, spectrogram.palette())
    at = body.index(b"IDAT")
    rows = zlib.decompress(body[at + 4 : at + 4 + int.from_bytes(body[at - 4 : at], "big")])
    assert rows == b"".join(b"\0" + row.tobytes() for row in indices)
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(body))
    image.load()
    assert (np.asarray(image.convert("RGB")) == spectrogram.palette()[indices]).all()
