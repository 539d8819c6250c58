"""AudioLDM-shaped models (arXiv:2301.12503): one text vector conditions the U-Net like a class label.

    prompt --text_encoder--> text_embeds [B, D], |.| = 1      unconditional: the embedding of ""
    U-Net: sample [N, C, T, F], timestep [N], class_labels [N, D] -> out [N, C, T, F]
    latents --vae_decoder--> mel [B, 1, T', M] --vocoder--> waveform [B, N]

The model embedded in quaver has this shape too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quaver.runtime.family import Array, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.text import tokenize


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """class_labels [B, D] float32 of prompts [B]."""
    input_ids, attention_mask = tokenize(parts.tokenizer, prompts)
    feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {"class_labels": np.asarray(parts.engines["text_encoder"](feeds), dtype=np.float32)}


def feeds(x: Array, t: Array, rows: Rows) -> dict[str, Array]:
    """Inputs of the U-Net: x_t [N, C, T, F], t [N] int64, class_labels [N, D]."""
    return {"sample": x, "timestep": t, "class_labels": rows["class_labels"]}


def decode(parts: Parts, latents: Array) -> dict[str, Array]:
    """mel [B, 1, T', M] and waveform [B, N] of latents [B, C, T, F]."""
    mel = _run(parts, "vae_decoder", latents)
    return {"mel": mel, "waveform": _run(parts, "vocoder", mel)}


def _run(parts: Parts, name: str, value: Array) -> Any:
    engine = parts.engines[name]
    return engine({engine.inputs[0]: value})


def published(*hub: str) -> Published:
    """A size of AudioLDM: all were trained and are sampled alike, for 10.24 s."""
    return Published(
        hub=hub,
        latent=(8, 256, 16),
        scheduler=latent_diffusion(0.0015, 0.0195),
        sampling={"sampler": "ddim", "steps": 200, "eta": 1.0, "guidance": 2.5},
        licence="CC BY-NC-SA 4.0",
        sample_rate=16_000,
        text_encoder="CLAP, RoBERTa tower",
        tokenizer="FacebookAI/roberta-base",
        vocoder="HiFi-GAN, 64 mel bins",
    )


MODELS = {
    "audioldm-s": published("cvssp/audioldm", "cvssp/audioldm-s-full-v2"),
    "audioldm-m": published("cvssp/audioldm-m-full"),
    "audioldm-l": published("cvssp/audioldm-l-full"),
}
PARTS = ("text_encoder", "vae_decoder", "vocoder")
FAMILY = Family("audioldm", "sound", PARTS, embed, feeds, decode, free_length=True, models=MODELS)
