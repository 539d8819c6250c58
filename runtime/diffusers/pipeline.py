"""A bundle as a `diffusers.AudioLDMPipeline`: the class as it is, every network in it one of the bundle's engines.

    prompt --tokenizer, text_encoder--> text_embeds [B, D]     U-Net, scheduler: latents [B, C, T, F]
    latents --vae.decode--> mel [B, 1, T', M] --vocoder--> waveform [B, N]

The pipeline computes sizes from configurations: T = seconds * sampling_rate / (upsampling 2^(blocks - 1)), F from M the
same way, so these are what one decoded latent of zeros is seen to have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.bundle import Bundle
from quaver.runtime.diffusers.course import KINDS
from quaver.runtime.diffusers.unet import EngineUNet, Placed, array
from quaver.runtime.engine import Engine
from quaver.runtime.errors import ArtifactError
from quaver.runtime.families.audioldm import PARTS
from quaver.runtime.lazy import need
from quaver.runtime.session import DEFAULT_TARGET, Session, sampling_of
from quaver.runtime.text import tokenize

if TYPE_CHECKING:
    import torch
    from diffusers import AudioLDMPipeline


def pipeline(
    bundle: Bundle | Path | str, *, engine: str | Path = DEFAULT_TARGET, threads: int | None = None
) -> AudioLDMPipeline:
    """The pipeline of a bundle, its U-Net one of the bundle's engines, its scheduler the bundle's own sampler.

    Raises: ArtifactError for a bundle of another family, or as `open_bundle`.
    """
    unet = EngineUNet.from_bundle(bundle, engine=engine, threads=threads)
    session = unet.session
    assert session is not None
    if session.family.components != PARTS:
        unet.close()
        raise ArtifactError(
            f"{session.bundle.root} has not what an AudioLDMPipeline is made of ({', '.join(PARTS)}): put its U-Net "
            "into the pipeline of its model, pipe.unet = EngineUNet.from_bundle(...)"
        )
    sizes, parts = decoded_sizes(session), session.parts.engines
    return need("diffusers", extra="export").AudioLDMPipeline(
        vae=Decoder(parts["vae_decoder"], sizes),
        text_encoder=TextEncoder(parts["text_encoder"]),
        tokenizer=Tokenizer(session.parts.tokenizer),
        unet=unet,
        scheduler=own_scheduler(session),
        vocoder=Vocoder(parts["vocoder"], sizes),
    )


def own_scheduler(session: Session) -> Any:
    """The bundle's sampler as diffusers has it; each of its classes has defaults of its own, so spacing is said."""
    diffusers = need("diffusers", extra="export")
    name, settings = KINDS[sampling_of(session).sampler]
    config = json.loads(session.bundle.scheduler.read_text(encoding="utf-8"))
    spaced = {"timestep_spacing": session.schedule.spacing, "steps_offset": session.schedule.steps_offset}
    return getattr(diffusers, name).from_config(config, **spaced, **settings)


def decoded_sizes(session: Session) -> SimpleNamespace:
    """What the pipeline reads of the decoder's and the vocoder's configurations."""
    zeros = np.zeros((1, *session.latent_shape), np.float32)
    heard = session.family.decode(session.parts, zeros)
    frames, bands = heard["mel"].shape[2:]
    return SimpleNamespace(
        scaling_factor=1.0,
        block_out_channels=[0] * (1 + round(math.log2(frames / session.latent_shape[1]))),
        model_in_dim=bands,
        sampling_rate=session.sample_rate,
        upsample_rates=[heard["waveform"].shape[1] / frames],
    )


class Tokenizer:
    """The bundle's tokenizer, called as those of transformers are; it pads and cuts to its own maximum."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.model_max_length = (tokenizer.truncation or {}).get("max_length", 2**31)

    def __call__(self, text: str | Sequence[str], **rest: Any) -> SimpleNamespace:
        """input_ids and attention_mask, each [B, L]; what is said of lengths is left to the tokenizer."""
        torch = need("torch", extra="export")
        ids, mask = tokenize(self.tokenizer, [text] if isinstance(text, str) else text)
        return SimpleNamespace(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))


class Network(Placed):
    """A component of a bundle and what a pipeline reads of its configuration."""

    def __init__(self, engine: Engine, config: SimpleNamespace | None = None) -> None:
        self.engine, self.config = engine, config

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The engine's answer to its inputs, in its order."""
        feeds = {name: array(value) for name, value in zip(self.engine.inputs, inputs, strict=True)}
        return need("torch", extra="export").as_tensor(self.engine(feeds)).to(inputs[0].device)


class TextEncoder(Network):
    """input_ids, attention_mask [B, L] -> text_embeds [B, D]."""

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """The embedding of each prompt."""
        return SimpleNamespace(text_embeds=self.run(input_ids, attention_mask))


class Decoder(Network):
    """Latents [B, C, T, F] -> mel [B, 1, T', M]."""

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        """The spectrogram of each latent."""
        return SimpleNamespace(sample=self.run(latents))


class Vocoder(Network):
    """mel [B, T', M] -> waveform [B, N]."""

    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        """The sound of each spectrogram."""
        return self.run(mel[:, None])
