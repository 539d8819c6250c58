"""AudioLDM 2 (arXiv:2308.05734) as `AudioLDM2Pipeline` saves it: two text encoders, and a language model after them.

    c = CLAP(prompt) [B, D], |.| = 1        h = T5(prompt) [B, L, D1]
    u_0 = [sos, W c, eos, sos_1, W_1 h, eos_1]      projection_model
    g_n = GPT2([u_0, g_1, ..., g_{n-1}])_last       n = 1..N: the states it says next, fed back to it

The U-Net attends to g [B, N, D2] and to h under its mask. One turn is one graph; the runtime takes N of them
(`runtime.families.audioldm2`). Padding is out of every softmax and takes no position, so that a prompt's g is what the
pipeline says of it alone. For "" that differs: the pipeline pads it to the length of the prompt and counts those
positions, here it is one thing for all prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.audioldm import TOKENS
from quaver.exporter.checkpoints.original import example, first_published
from quaver.exporter.checkpoints.tango import example_mask
from quaver.exporter.checkpoints.text_encoder import as_encoder
from quaver.exporter.model.source import Model, load_unet, read_config
from quaver.exporter.pipelines.audioldm import load_clap, sound_latent
from quaver.exporter.pipelines.networks import kind_of, load_network, sound_parts
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

TURNS = 8  # N, where the language model does not say
PROJECTION = "AudioLDM2ProjectionModel"
LANGUAGE = ("GPT2LMHeadModel", "GPT2Model")


def load(folder: Path) -> Model:
    """The model of a saved pipeline. Raises: RecipeError when a part is missing or damaged, or it speaks (VITS)."""
    if (kind := kind_of(folder, "text_encoder_2")) != "T5EncoderModel":
        raise RecipeError(f"{folder} has a {kind} as text_encoder_2, expected T5EncoderModel: speech is not supported")
    unet, published = load_unet(folder), first_published("audioldm2")
    t5, gpt2 = load_network(folder, "text_encoder_2", kind), load_gpt2(folder)
    turns = int(read_config(folder / "language_model" / "config.json").get("max_new_tokens") or TURNS)
    parts, voice = sound_parts(folder)
    rows = {
        "encoder_hidden_states": example(turns, gpt2.config.hidden_size),
        "encoder_hidden_states_1": example(TOKENS, t5.config.d_model),
        "encoder_attention_mask_1": example_mask(TOKENS),
    }
    text = {
        "text_encoder": load_clap(folder),
        "text_encoder_2": as_encoder(lambda ids, mask: t5(ids, mask).last_hidden_state, [t5], ("states",)),
        "projection_model": as_projection(load_network(folder, "projection_model", PROJECTION, "diffusers")),
        "language_model": as_turn(gpt2),
    }
    return Model(
        folder=folder,
        unet=unet,
        parts={**text, **parts},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        latent=sound_latent(folder, unet, voice["model_in_dim"]),
        rows=rows,
        card={"sample_rate": int(voice["sampling_rate"]), "sampler": published.sampling, "turns": turns},
        tokens=TOKENS,
    )


def load_gpt2(folder: Path) -> Any:
    """The language model without its head, where it was saved with one. Raises: RecipeError when it is no GPT-2."""
    if (kind := kind_of(folder, "language_model")) not in LANGUAGE:
        raise RecipeError(f"{folder} has a {kind} as language_model, expected {' or '.join(LANGUAGE)}: copy it again")
    network = load_network(folder, "language_model", kind)
    return getattr(network, "transformer", network)


def as_projection(project: Any) -> torch.nn.Module:
    """text_embeds [B, D], states [B, L, D1] -> told [B, L + 5, D2], u_0, as a module to trace."""
    nn = need("torch", extra="export").nn

    class Projection(nn.Module):  # type: ignore[name-defined]
        outputs = ("told",)

        def __init__(self) -> None:
            super().__init__()
            self.project = project

        def forward(self, text_embeds: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            return self.project(text_embeds[:, None], states).hidden_states

    return Projection().eval()


def as_turn(gpt2: Any) -> torch.nn.Module:
    """told [B, S, D2], told_mask [B, S] -> the state said next [B, 1, D2], as a module to trace."""
    nn = need("torch", extra="export").nn

    class Turn(nn.Module):  # type: ignore[name-defined]
        outputs = ("said",)

        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = gpt2

        def forward(self, told: torch.Tensor, told_mask: torch.Tensor) -> torch.Tensor:
            at = (told_mask.cumsum(1) - 1).clamp_min(0)
            answer = self.gpt2(inputs_embeds=told, attention_mask=told_mask, position_ids=at, use_cache=False)
            return answer.last_hidden_state[:, -1:]

    return Turn().eval()
