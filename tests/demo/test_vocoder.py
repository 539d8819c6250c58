"""Claims about the embedded model's vocoder and its ear."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.demo import spectrogram

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def vocoder():
    from quaver.demo.vocoder import Vocoder

    return Vocoder().eval()


def test_the_transform_is_that_of_numpy_and_its_inverse_gives_the_signal_back(vocoder):
    wave = np.random.default_rng(0).uniform(-1, 1, spectrogram.SAMPLES)
    signal = torch.nn.functional.pad(torch.tensor(wave, dtype=torch.float32)[None], (512, 256))
    spectrum = vocoder.analyse(signal)
    magnitude = torch.linalg.vector_norm(spectrum[0], dim=1).numpy() / (spectrogram.N_FFT / 4)
    assert np.abs(magnitude - spectrogram.magnitude(wave)).max() < 1e-5
    back = vocoder.synthesise(spectrum)[0, 512 : 512 + spectrogram.SAMPLES].numpy()
    assert np.abs(back - wave)[: -spectrogram.N_FFT].max() < 1e-4


def test_a_tone_comes_back_at_its_pitch(vocoder):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(spectrogram.SAMPLES) / spectrogram.SAMPLE_RATE)
    picture = torch.tensor(spectrogram.log_spectrogram(wave))[None, None]
    with torch.no_grad():
        heard = vocoder(picture)[0].numpy()[4096:-4096]
    peak = np.argmax(np.abs(np.fft.rfft(heard))) * spectrogram.SAMPLE_RATE / len(heard)
    assert peak == pytest.approx(440, abs=8)


def test_silence_stays_silence_in_torch_and_in_onnxruntime(vocoder, tmp_path):
    import onnxruntime

    silence = torch.full((1, 1, spectrogram.FRAMES, spectrogram.BANDS), -1.0)
    torch.onnx.export(vocoder, (silence,), dynamo=True, opset_version=21, verbose=False).save(tmp_path / "vocoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "vocoder.onnx", providers=["CPUExecutionProvider"])
    (heard,) = session.run(None, {session.get_inputs()[0].name: silence.numpy()})
    assert np.array_equal(heard, np.zeros_like(heard))
    assert torch.equal(vocoder(silence), torch.zeros(1, spectrogram.SAMPLES))


def test_the_probe_hears_the_spectrogram_the_dataset_was_made_with():
    from quaver.demo.probe import Listener, Probe

    wave = np.random.default_rng(1).standard_normal(spectrogram.SAMPLES) * 0.05
    heard = Listener(Probe()).spectrogram(torch.tensor(wave, dtype=torch.float32)[None])[0, 0].numpy()
    assert np.abs(heard - spectrogram.log_spectrogram(wave)).max() < 1e-3
