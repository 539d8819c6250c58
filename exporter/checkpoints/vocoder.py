"""Vocoders, mel [B, 1, T, M] -> waveform [B, N]: HiFi-GAN (arXiv:2010.05646).

Weight normalization is a way to train, w = g v / |v|, and is multiplied out; checkpoints hold either.

    |v|    over all dimensions but the first
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.places import assign, build
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

NORMED = {".weight_g": ".weight_v", ".parametrizations.weight.original0": ".parametrizations.weight.original1"}
HIFIGAN: dict[str, Any] = {  # 16 kHz, 64 mel bins, hop 160: what AudioLDM and TANGO were published with
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}


def multiplied_out(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with every weight that is a norm and a direction as one, in fp32."""
    plain = {}
    for key, tensor in tensors.items():
        if norm := next((end for end in NORMED if key.endswith(end)), ""):
            module, direction = key.removesuffix(norm), tensors[key.removesuffix(norm) + NORMED[norm]].float()
            length = direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.ndim - 1))
            plain[f"{module}.weight"] = tensor.float() * direction / length
        elif not key.endswith(tuple(NORMED.values())):
            plain[key] = tensor
    return plain


def load_hifigan(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, *, what: str
) -> torch.nn.Module:
    """mel [B, 1, T, M] -> waveform [B, N], of `tensors` as below `vocoder.`; widths are read off them.

    Raises: RecipeError where they do not fit.
    """
    transformers = need("transformers", extra="export")
    plain, said = multiplied_out(tensors), HIFIGAN | dict(config or {})
    first = plain.get("conv_pre.weight")
    width, bins = (first.shape[0], first.shape[1]) if first is not None else (0, 0)
    shape = transformers.SpeechT5HifiGanConfig(
        model_in_dim=bins,
        upsample_initial_channel=width,
        normalize_before=False,
        **{key: said[key] for key in HIFIGAN},
    )
    network = build(lambda: transformers.SpeechT5HifiGan(shape))
    network.mean = network.scale = None  # of an input that is normalized, which this one is not
    upsamplers = {f"upsampler.{i}": f"ups.{i}" for i in range(len(said["upsample_rates"]))}
    return as_vocoder(assign(network, plain, upsamplers, what=what))


def as_vocoder(network: torch.nn.Module) -> torch.nn.Module:
    """A network of frames [B, T, M] as one of mel [B, 1, T, M], a module to trace."""
    nn = need("torch", extra="export").nn

    class Vocoder(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            return self.network(mel.squeeze(1))

    return Vocoder().eval()
