"""The example that sends real clips through a pipeline's autoencoder and vocoder."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import digest_folder
from quaver.runtime.audio import read_wav, write_wav
from quaver.runtime.errors import ArtifactError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

RATE, BANDS, HOP = 16_000, 16, 128


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(Path(__file__).parents[3] / "examples" / "vocoded_reference.py"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    diffusers.AutoencoderKL(**sizes, **blocks, latent_channels=4).save_pretrained(tmp_path / "model" / "vae")
    kernels = {"upsample_rates": [16, 8], "upsample_kernel_sizes": [32, 16], "upsample_initial_channel": 16}
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=BANDS, normalize_before=False, **kernels)
    vocoder = transformers.SpeechT5HifiGan(config)
    for weight in vocoder.parameters():  # its own initialization is silence in 16 bits
        weight.data = torch.randn(weight.shape) * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1)
    vocoder.save_pretrained(tmp_path / "model" / "vocoder")
    return tmp_path / "model"


def write_clips(folder: Path, *, rate: int = RATE) -> Path:
    (folder / "loud").mkdir(parents=True)
    tone = np.sin(2 * np.pi * 440 * np.arange(6000) / RATE)
    write_wav(folder / "a.wav", 0.1 * tone, rate)
    write_wav(folder / "loud" / "b.wav", 0.8 * tone, rate)
    return folder


def test_each_clip_comes_back_under_its_name_as_model_and_vocoder_render_it(
    example: dict, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clips = write_clips(tmp_path / "clips")
    example["main"](str(model), str(clips), str(tmp_path / "out"), "0.3")
    assert "2 clips" in capsys.readouterr().out
    vae = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae").eval()
    vocoder = transformers.SpeechT5HifiGan.from_pretrained(model, subfolder="vocoder").eval()
    for name in ("a.wav", "loud/b.wav"):
        found, rate = read_wav(tmp_path / "out" / name)
        assert rate == RATE and len(found) == 4608  # 0.3 s, in whole frames of two hops
        mel = torch.from_numpy(slaney(read_wav(clips / name)[0][:4608])).float()
        with torch.inference_mode():
            expected = vocoder(vae(mel[None, None]).sample[:, 0])[0].numpy()
        assert found.std() > 0.01 and np.abs(found - expected).max() < 1e-4  # 16 bits


def slaney(clip: np.ndarray) -> np.ndarray:
    """ln of mel amplitudes [frames, BANDS] by torch's transform and Slaney's scale: linear to 1 kHz, then geometric."""
    spectrum = torch.stft(
        torch.from_numpy(clip).double(), 1024, HOP, window=torch.hann_window(1024).double(), return_complex=True
    ).abs()
    top = 15 + 27 * np.log(8) / np.log(6.4)  # 8 kHz, in mels
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    grid = np.linspace(0, RATE / 2, 513)
    bank = np.array([np.interp(grid, edges[i : i + 3], [0, 2 / (edges[i + 2] - edges[i]), 0]) for i in range(BANDS)])
    return np.log(np.maximum(bank @ spectrum.numpy(), 1e-5)).T[: len(clip) // HOP]


def test_the_mel_is_that_of_an_independent_implementation(example: dict):
    clip = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 0.1
    found = example["log_mel"](clip, rate=RATE, bands=BANDS, hop=HOP)
    assert found.shape == (31, BANDS)
    assert np.abs(found - slaney(clip)).max() < 1e-4


@pytest.mark.parametrize("inside", ["", "vocoded"])
def test_what_is_written_does_not_come_among_what_is_read(example: dict, model: Path, tmp_path: Path, inside: str):
    clips = write_clips(tmp_path / "clips")
    before = digest_folder(clips)
    with pytest.raises(SystemExit, match=r"is in .*clips, whose clips it would replace or join: name another folder"):
        example["main"](str(model), str(clips), str(clips / inside))
    assert digest_folder(clips) == before


def test_clips_at_another_rate_are_refused(example: dict, model: Path, tmp_path: Path):
    clips = write_clips(tmp_path / "clips", rate=8000)
    with pytest.raises(ArtifactError, match="is at 8000 Hz, expected 16000 Hz: resample it"):
        example["main"](str(model), str(clips), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
