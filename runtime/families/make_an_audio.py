"""Make-An-Audio (arXiv:2301.12661): latent diffusion over log-mel pictures, frequency first.

    prompt --text_encoder (CLAP)--> encoder_hidden_states [B, 77, D]        unconditional: those of ""
    U-Net: sample [N, 4, 10, T], timestep [N], encoder_hidden_states -> out [N, 4, 10, T]
    latents --vae_decoder--> mel [B, 1, 80, 8 T] --vocoder (BigVGAN)--> waveform [B, N]

T is 7.8 a second, a multiple of 4. The vocoder is a checkpoint of its own: without it, generating ends at the mel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quaver.runtime.families.audioldm import decode
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Card, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.schedule import Schedule
from quaver.runtime.text import tokenize


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 77, D] float32 of prompts [B]."""
    input_ids, mask = tokenize(parts.tokenizer, prompts)
    states = parts.engines["text_encoder"]({"input_ids": input_ids, "attention_mask": mask})
    return {"encoder_hidden_states": np.asarray(states, dtype=np.float32)}


def end_at_mel(parts: Parts, latents: Array) -> dict[str, Array]:
    """mel [B, 1, 80, 8 T] of latents [B, 4, 10, T]."""
    engine = parts.engines["vae_decoder"]
    return {"mel": engine({engine.inputs[0]: latents})}


def fit(card: Card, schedule: Schedule) -> Family:
    """The family of one model: what has no vocoder ends at the mel."""
    if "vocoder" in card["components"]:
        return FAMILY
    return replace(FAMILY, media="mels", components=PARTS[:2], decode=end_at_mel)


MAKE_AN_AUDIO = Published(
    hub=(),
    latent=(4, 10, 80),
    scheduler=latent_diffusion(0.00085, 0.012),
    sampling={"sampler": "ddim", "steps": 100, "eta": 0.0, "guidance": 3.0},
    licence="MIT, the licence of its repository",
    sample_rate=16_000,
    text_encoder="CLAP of 2022, BERT tower",
    tokenizer="google-bert/bert-base-uncased",
    vocoder="BigVGAN, 80 mel bins",
)
PARTS = ("text_encoder", "vae_decoder", "vocoder")
MODELS = {"make-an-audio": MAKE_AN_AUDIO}
FAMILY = Family("make-an-audio", "sound", PARTS, embed, feeds, decode, fit=fit, models=MODELS)
