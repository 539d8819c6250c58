from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.audio import write_wav
from quaver.runtime.errors import ArtifactError
from quaver.runtime.measure import probe, reference

RATE = 16_000


def tone(seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * 440 * np.arange(int(RATE * seconds)) / RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five clips: two good, one silent, one clipped, one short."""
    made = {"a": tone(), "b": tone(1.5), "c": tone(level=0.0), "d": tone(level=4.0), "e": tone(0.5)}
    for name, clip in made.items():
        write_wav(tmp_path / f"{name}.wav", clip, RATE)
    return tmp_path


def test_clips_are_read_in_order_and_cut_to_one_length(folder: Path):
    found = reference.load_clips(folder, rate=RATE, samples=RATE)
    assert found.waveforms.shape == (5, RATE) and found.files == ("a.wav", "b.wav", "c.wav", "d.wav", "e.wav")
    assert found.waveforms[1] == pytest.approx(tone(), abs=1e-4)
    assert found.waveforms[4, : RATE // 2] == pytest.approx(tone(0.5), abs=1e-4)
    assert not found.waveforms[4, RATE // 2 :].any()


def test_silent_clipped_short_and_missing_clips_are_counted(folder: Path):
    assert reference.load_clips(folder, rate=RATE, samples=RATE, count=8).notes == (
        "5 reference clips of 8 asked for",
        "1 of 5 reference clips are shorter than 1.00 s and end in silence",
        "1 of 5 reference clips are silent (below -60 dB)",
        "1 of 5 reference clips are clipped (0.1% of samples at full scale, or more)",
    )
    two = reference.load_clips(folder, rate=RATE, samples=RATE, count=2)
    assert (len(two.waveforms), two.notes) == (2, ())


def test_another_rate_is_refused_and_both_are_named(folder: Path):
    write_wav(folder / "f.wav", tone(), 44_100)
    with pytest.raises(ArtifactError, match=r"f.wav is at 44100 Hz, expected 16000 Hz: resample it.*-ar 16000"):
        reference.load_clips(folder, rate=RATE, samples=RATE)


def test_a_missing_or_empty_folder_says_what_to_put_there(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"no reference set at .*nothing: name a folder of WAV files at 16000 Hz"):
        reference.load_clips(tmp_path / "nothing", rate=RATE, samples=RATE)
    with pytest.raises(ArtifactError, match="holds no WAV file"):
        reference.load_clips(tmp_path, rate=RATE, samples=RATE)


def test_the_first_of_several_channels_is_taken(tmp_path: Path):
    codes = np.stack([np.full(100, 8192), np.full(100, -8192)], axis=1).astype("<i2")
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(codes.tobytes())
    assert reference.load_clips(tmp_path, rate=RATE, samples=100).waveforms == pytest.approx(0.25, abs=1e-4)


def test_features_come_back_as_they_were_kept_and_of_no_other_network(tmp_path: Path):
    features = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    path = reference.save_features(tmp_path / "set.safetensors", features, network="VGGish")
    found, note = reference.load_features(path, network="VGGish")
    assert np.array_equal(found, features) and note == ""
    with pytest.raises(ArtifactError, match="holds features of VGGish, expected embedded probe"):
        reference.load_features(path, network="embedded probe")
    with pytest.raises(ArtifactError, match="no reference set at"):
        reference.load_features(tmp_path / "other.safetensors", network="VGGish")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="holds no reference features"):
        reference.load_features(tmp_path / "bad.safetensors", network="VGGish")


def test_the_embedded_models_own_clips_are_named_as_its_probe_and_say_what_they_are():
    name = probe.embedded("", rate=RATE, probe=Path(__file__)).name
    features, note = reference.load_features(reference.located("demo"), network=name)
    assert features.shape == (500, 64) and np.isfinite(features).all()
    assert note.startswith("the reference is 500 real clips of other captions")
    assert reference.located("clips") == Path("clips")
