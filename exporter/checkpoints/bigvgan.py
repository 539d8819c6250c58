"""BigVGAN (arXiv:2206.04658), log-mel [B, 1, M, T] -> waveform [B, N]: HiFi-GAN whose activations do not alias.

    snake_beta(x) = x + sin^2(a x) / b        per channel; snake has b = a; exp(a), exp(b) when `snake_logscale`

is taken at twice the rate: an activation is upsample by 2, snake, low-pass and decimate by 2. The low-pass is a sinc
of cut-off c = 1/4 (of the doubled rate) under a Kaiser window of transition width 0.3 and 12 taps,

    h_n = 2 c w_n sinc(2 c (n + 1/2)),        sum h = 1

with edges repeated. Every stage is a transposed convolution and the mean of residual blocks of several kernel sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.vocoder import multiplied_out
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]

TAPS, CUTOFF, TRANSITION = 12, 0.25, 0.3
FILTERS = (".upsample.filter", ".lowpass.filter")  # in a checkpoint beside each activation, all the same


@dataclass(frozen=True)
class Shape:
    """The configuration of a checkpoint, in its own names; the defaults are Make-An-Audio's."""

    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    snake_logscale: bool = True


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a configuration describes. Raises: RecipeError for a BigVGAN of another kind."""
    if str(config.get("resblock", "1")) != "1" or not config.get("use_tanh_at_final", True):
        raise RecipeError("this BigVGAN has resblock 2 or no final tanh, expected the published form: name another")
    known = {key: config[key] for key in Shape.__dataclass_fields__ if key in config}
    return Shape(**{key: _frozen(value) for key, value in known.items()})


def load_bigvgan(shape: Shape, tensors: Weights, *, what: str) -> torch.nn.Module:
    """mel [B, 1, M, T] -> waveform [B, N], of the `tensors` of a generator.

    Raises: RecipeError where they do not fit.
    """
    torch = need("torch", extra="export")
    plain = {k: v.float() for k, v in multiplied_out(tensors).items() if not k.endswith(FILTERS)}
    stages, blocks = len(shape.upsample_rates), len(shape.resblock_kernel_sizes)
    found = len({key.split(".")[1] for key in plain if key.startswith("resblocks.")})
    if found != stages * blocks or f"ups.{stages - 1}.0.weight" not in plain or f"ups.{stages}.0.weight" in plain:
        raise RecipeError(
            f"{what} holds {found} residual blocks, its configuration describes {stages} x {blocks}: "
            "put its own configuration beside it"
        )

    class BigVGAN(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            for key, value in plain.items():
                self.register_buffer(key.replace(".", "/"), value)
            self.register_buffer("lowpass", lowpass())

        def forward(self, mel: Any) -> Any:
            weights = {name.replace("/", "."): value for name, value in self.named_buffers()}
            return waveform(mel.squeeze(1), weights, shape)

    return BigVGAN().eval()


def waveform(mel: torch.Tensor, weights: Weights, shape: Shape) -> torch.Tensor:
    """The waveform [B, N] of log-mel [B, M, T]."""
    torch = need("torch", extra="export")
    x, n = _conv(mel, weights, "conv_pre"), len(shape.resblock_kernel_sizes)
    for i, (rate, kernel) in enumerate(zip(shape.upsample_rates, shape.upsample_kernel_sizes, strict=True)):
        up = f"ups.{i}.0"
        x = torch.nn.functional.conv_transpose1d(
            x, weights[f"{up}.weight"], weights[f"{up}.bias"], stride=rate, padding=(kernel - rate) // 2
        )
        x = sum(_block(x, weights, f"resblocks.{i * n + j}", d, shape) for j, d in enumerate(_dilations(shape))) / n
    return torch.tanh(_conv(_activate(x, weights, "activation_post", shape), weights, "conv_post")).squeeze(1)


def lowpass() -> torch.Tensor:
    """The taps h [TAPS] of the filter on either side of an activation."""
    torch = need("torch", extra="export")
    half = TAPS // 2
    ripple = 2.285 * (half - 1) * math.pi * 4 * TRANSITION + 7.95  # dB, Kaiser's formula
    beta = 0.1102 * (ripple - 8.7) if ripple > 50 else 0.5842 * (ripple - 21) ** 0.4 + 0.07886 * (ripple - 21)
    window = torch.kaiser_window(TAPS, periodic=False, beta=beta)
    taps = 2 * CUTOFF * window * torch.sinc(2 * CUTOFF * (torch.arange(-half, half) + 0.5))
    return taps / taps.sum()


def _block(x: torch.Tensor, weights: Weights, name: str, dilations: tuple[int, ...], shape: Shape) -> torch.Tensor:
    for i, dilation in enumerate(dilations):
        y = _conv(_activate(x, weights, f"{name}.activations.{2 * i}", shape), weights, f"{name}.convs1.{i}", dilation)
        x = x + _conv(_activate(y, weights, f"{name}.activations.{2 * i + 1}", shape), weights, f"{name}.convs2.{i}")
    return x


def _activate(x: torch.Tensor, weights: Weights, name: str, shape: Shape) -> torch.Tensor:
    """The snake of x [B, C, T] at twice the rate."""
    torch = need("torch", extra="export")
    channels, f = x.shape[1], torch.nn.functional
    taps = weights["lowpass"].expand(channels, 1, TAPS)
    edge = TAPS // 2 - 1
    cut = 2 * edge + edge
    y = 2 * f.conv_transpose1d(f.pad(x, (edge, edge), mode="replicate"), taps, stride=2, groups=channels)
    y = snake(y[..., cut:-cut], weights, f"{name}.act", shape.snake_logscale)
    return f.conv1d(f.pad(y, (edge, edge + 1), mode="replicate"), taps, stride=2, groups=channels)


def snake(x: torch.Tensor, weights: Weights, name: str, logscale: bool) -> torch.Tensor:
    """x [B, C, T] + sin^2(a x) / b."""
    a = weights[f"{name}.alpha"].reshape(-1, 1)
    b = weights.get(f"{name}.beta", a).reshape(-1, 1)
    a, b = (a.exp(), b.exp()) if logscale else (a, b)
    return x + (a * x).sin().square() / (b + 1e-9)


def _conv(x: torch.Tensor, weights: Weights, name: str, dilation: int = 1) -> torch.Tensor:
    """A convolution that keeps the length."""
    kernel, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    padding = dilation * (kernel.shape[-1] - 1) // 2
    return need("torch", extra="export").nn.functional.conv1d(x, kernel, bias, padding=padding, dilation=dilation)


def _dilations(shape: Shape) -> tuple[tuple[int, ...], ...]:
    return shape.resblock_dilation_sizes


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
