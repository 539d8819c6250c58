"""AudioLDM 2 (arXiv:2308.05734): the U-Net attends to the states of T5 and to those that a language model says of them.

prompt --text_encoder (CLAP)--> text_embeds [B, D]
prompt --text_encoder_2 (T5)--> encoder_hidden_states_1 [B, L, D1], with their mask [B, L]
both --language_model (GPT-2, 8 turns)--> encoder_hidden_states [B, 8, D2]             unconditional: those of ""
U-Net: sample [N, C, T, F], timestep [N] and these three -> out [N, C, T, F]
latents --vae_decoder--> mel [B, 1, T', M] --vocoder--> waveform [B, N]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quaver.runtime.engine import Engine
from quaver.runtime.families import audioldm
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.text import tokenize


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 8, D2], encoder_hidden_states_1 [B, L, D1] and its mask [B, L] of prompts [B]."""
    input_ids, mask = tokenize(parts.tokenizer_2, prompts)
    states = parts.engines["text_encoder_2"]({"input_ids": input_ids, "attention_mask": mask})
    heard = audioldm.embed(parts, prompts)["class_labels"]
    told = parts.engines["projection_model"]({"text_embeds": heard, "states": states})
    turns = int(parts.card["turns"])
    return {
        "encoder_hidden_states": np.asarray(say(parts.engines["language_model"], told, mask, turns), dtype=np.float32),
        "encoder_hidden_states_1": np.asarray(states, dtype=np.float32),
        "encoder_attention_mask_1": mask.astype(np.float32),
    }


def say(language_model: Engine, told: Array, mask: Array, turns: int) -> Array:
    """The states [B, turns, D2] that a language model says after `told` [B, L + 5, D2]; `mask` [B, L] is of the L."""
    mask = np.pad(mask, ((0, 0), (4, 1)), constant_values=1)
    for _ in range(turns):
        told = np.concatenate([told, language_model({"told": told, "told_mask": mask})], 1)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    return told[:, -turns:]


AUDIOLDM2 = Published(
    hub=("cvssp/audioldm2", "cvssp/audioldm2-music"),
    latent=(8, 256, 16),
    scheduler=latent_diffusion(0.0015, 0.0195),
    sampling={"sampler": "ddim", "steps": 200, "eta": 0.0, "guidance": 3.5},
    licence="CC BY-NC-SA 4.0",
    sample_rate=16_000,
    text_encoder="CLAP, RoBERTa tower; google/flan-t5-large; GPT-2",
    vocoder="HiFi-GAN, 64 mel bins",
)
PARTS = ("text_encoder", "text_encoder_2", "projection_model", "language_model", "vae_decoder", "vocoder")
FAMILY = Family(
    "audioldm2", "sound", PARTS, embed, feeds, audioldm.decode, free_length=True, models={"audioldm2": AUDIOLDM2}
)
