"""The embedded model's networks beside its U-Net, as torch modules with exportable `forward`s.

text_encoder: input_ids, attention_mask [B, L] -> text_embeds [B, D].  vae_decoder: latents [B, C, T, F] -> mel
[B, 1, T', M].  vocoder: mel -> waveform [B, N].  probe: waveform -> features
[B, 64] and one logits output per attribute.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MODEL = Path(__file__).parent / "model"


def load_components(folder: Path = MODEL) -> dict[str, nn.Module]:
    """Load the networks of a model folder, in evaluation mode, by component name."""
    from quaver.demo.autoencoder import load_autoencoder
    from quaver.demo.probe import Listener, load_probe
    from quaver.demo.text_encoder import load_text_encoder
    from quaver.demo.vocoder import load_vocoder

    return {
        "text_encoder": load_text_encoder(folder / "text_encoder"),
        "vae_decoder": load_autoencoder(folder / "vae"),
        "vocoder": load_vocoder(folder / "vocoder"),
        "probe": Listener(load_probe(folder / "probe")),
    }
