"""Your real clips through a model's own autoencoder and vocoder, whose losses then do not count as the U-Net's.

    python examples/vocoded_reference.py cvssp/audioldm-s-full-v2 clips/ vocoded/
    quaver validate engines/audioldm-s-w8a8.toml --set validate.reference=vocoded

    clip --> m[b, t] = ln max(sum_f B[b, f] |X[f, t]|, 1e-5) --encoder--> mean --decoder--> mel --vocoder--> clip

For a hub id or folder with an AutoencoderKL and a SpeechT5HifiGan, as AudioLDM and AudioLDM 2 have them; their mels are
Slaney's, 0 Hz to half the rate, of 1,024 samples under a Hann window. Rate, bands and hop are the vocoder's own.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from quaver.runtime.audio import write_wav
from quaver.runtime.measure.reference import load_clips

FFT = 1024


def log_mel(clip: np.ndarray, *, rate: int, bands: int, hop: int) -> np.ndarray:
    """What the autoencoder of AudioLDM sees of a clip [samples]: [samples // hop, bands]."""
    bank = mel_filter_bank(FFT // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    window = window_function(FFT, "hann")
    found = spectrogram(clip, window, FFT, hop, mel_filters=bank, mel_floor=1e-5, log_mel="log")
    return found.T[: len(clip) // hop]


@torch.inference_mode()
def main(model: str, clips: str, out: str, seconds: str = "10.24") -> None:
    if Path(out).resolve().is_relative_to(Path(clips).resolve()):
        raise SystemExit(f"{out} is in {clips}, whose clips it would replace or join: name another folder")
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").eval()
    vocoder = SpeechT5HifiGan.from_pretrained(model, subfolder="vocoder").eval()
    rate, bands = vocoder.config.sampling_rate, vocoder.config.model_in_dim
    hop = prod(vocoder.config.upsample_rates)
    frame = hop * 2 ** (len(vae.config.block_out_channels) - 1)  # samples that one row of a latent stands for
    found = load_clips(Path(clips), rate=rate, samples=round(float(seconds) * rate) // frame * frame)
    for name, clip in zip(found.files, found.waveforms, strict=True):
        mel = torch.from_numpy(log_mel(clip, rate=rate, bands=bands, hop=hop))[None, None]
        seen = vae.decode(vae.encode(mel).latent_dist.mean).sample
        path = Path(out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, vocoder(seen[:, 0])[0].numpy(), rate)
    print(out, f"{len(found.files)} clips", *found.notes, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
