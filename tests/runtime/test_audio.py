"""WAV files against the standard library's reader."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.audio import read_wav, write_wav
from quaver.runtime.errors import ArtifactError, EngineError


def test_samples_come_back_within_half_a_step(tmp_path):
    waveform = np.sin(np.linspace(0, 40, 3200)).astype(np.float32)
    assert write_wav(tmp_path / "a.wav", waveform, 16_000) == 0
    back, rate = read_wav(tmp_path / "a.wav")
    assert rate == 16_000
    assert np.abs(back - waveform).max() <= 0.5 / 32767 + 1e-7
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getnframes()) == (1, 2, 3200)


@pytest.mark.parametrize("samples", [0, 1, 4410])
def test_the_bytes_are_those_of_the_standard_librarys_writer(tmp_path, samples):
    codes = np.random.default_rng(0).integers(-32767, 32768, samples).astype("<i2")
    write_wav(tmp_path / "ours.wav", codes / 32767, 44_100)
    with wave.open(str(tmp_path / "theirs.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(codes.tobytes())
    assert (tmp_path / "ours.wav").read_bytes() == (tmp_path / "theirs.wav").read_bytes()


def test_what_is_louder_than_full_scale_is_clipped_and_counted(tmp_path):
    assert write_wav(tmp_path / "a.wav", np.array([0.0, 1.0, -1.0, 1.001, -7.0]), 16_000) == 2
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav")[0], [0, 1, -1, 1, -1])


def test_stereo_is_read_as_two_columns(tmp_path):
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array([[1, -2], [3, -4]], dtype="<i2").tobytes())
    samples, rate = read_wav(tmp_path / "s.wav")
    np.testing.assert_allclose(samples * 32767, [[1, -2], [3, -4]], rtol=1e-6)
    assert rate == 8000


def test_of_a_file_that_was_cut_off_the_whole_frames_are_read(tmp_path):
    path, channels = tmp_path / "stereo.wav", np.arange(8, dtype="<i2").reshape(4, 2)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(channels.tobytes())
    whole = path.read_bytes()
    for cut in (1, 2, 3):
        path.write_bytes(whole[:-cut])
        assert np.array_equal(np.round(read_wav(path)[0] * 32767), channels[:3])


@pytest.mark.parametrize("waveform", [np.array([0.0, np.nan]), np.zeros((2, 3))])
def test_what_is_no_waveform_leaves_no_file(tmp_path, waveform):
    with pytest.raises(EngineError, match="expected finite"):
        write_wav(tmp_path / "a.wav", waveform, 16_000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", np.zeros(8), 16_000)
    before = (tmp_path / "a.wav").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="disk is full"):
        write_wav(tmp_path / "a.wav", np.ones(8), 16_000)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_other_files_are_refused_with_what_is_expected(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_wav(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ArtifactError, match="16-bit PCM"):
        read_wav(tmp_path / "text.wav")
    with wave.open(str(tmp_path / "eight.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * 10)
    with pytest.raises(ArtifactError, match="8-bit samples, expected 16"):
        read_wav(tmp_path / "eight.wav")
