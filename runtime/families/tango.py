"""TANGO (arXiv:2304.13731): every token of the prompt conditions the U-Net, through cross-attention with a mask.

    prompt --text_encoder (FLAN-T5)--> encoder_hidden_states [B, L, D]      unconditional: those of ""
    U-Net: sample [N, C, T, F], timestep [N], encoder_hidden_states, encoder_attention_mask [N, L] -> v [N, C, T, F]
    latents --vae_decoder--> mel [B, 1, T', M] --vocoder--> waveform [B, N]         both AudioLDM's

L is the length that the tokenizer pads to. The mask takes what is padded out of every softmax, so L changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quaver.runtime.families.audioldm import decode
from quaver.runtime.family import Array, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.text import tokenize


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, L, D] and encoder_attention_mask [B, L], both float32, of prompts [B]."""
    input_ids, mask = tokenize(parts.tokenizer, prompts)
    states = parts.engines["text_encoder"]({"input_ids": input_ids, "attention_mask": mask})
    return {
        "encoder_hidden_states": np.asarray(states, dtype=np.float32),
        "encoder_attention_mask": mask.astype(np.float32),
    }


def feeds(x: Array, t: Array, rows: Rows) -> dict[str, Array]:
    """Inputs of the U-Net: x_t [N, C, T, F], t [N] int64, the states [N, L, D] and their mask [N, L]."""
    return {"sample": x, "timestep": t, **rows}


TANGO = Published(
    hub=("declare-lab/tango", "declare-lab/tango-full", "declare-lab/tango2"),
    latent=(8, 256, 16),
    scheduler=latent_diffusion(0.00085, 0.012, _class_name="DDPMScheduler", prediction_type="v_prediction"),
    sampling={"sampler": "ddpm", "steps": 200, "guidance": 3.0},
    licence="CC BY-NC-SA 4.0",
    sample_rate=16_000,
    text_encoder="google/flan-t5-large",
    tokenizer="google/flan-t5-large",
    vocoder="HiFi-GAN, 64 mel bins",
)
PARTS = ("text_encoder", "vae_decoder", "vocoder")
FAMILY = Family("tango", "sound", PARTS, embed, feeds, decode, models={"tango": TANGO})
