"""The first stage of latent diffusion, latents back to pixels or mel bins (arXiv:2112.10752, section 3.1).

    z' = z / scale_factor                                   KL:  what the U-Net sees has variance 1
    z_q = e_k,   k = argmin_j |z' - e_j|^2                  VQ:  the nearest codebook vector, place by place
    x  = decoder(post_quant_conv(z'))

    argmin_j |z - e_j|^2 = argmax_j (z . e_j - |e_j|^2 / 2)

Only the decoder is needed to sample; the encoder, the losses and the vocoder that lie under the same prefix are not
read here. Layout: `decoder.up.i` is level i counted from the output, diffusers counts from the latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.layout import section
from quaver.exporter.checkpoints.ldm import GROUPS
from quaver.exporter.checkpoints.places import assign, build
from quaver.exporter.checkpoints.tensors import under
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
IGNORED = ("encoder.", "quant_conv.", "loss.", "vocoder.", "quantize.")  # quantize: the codebook is taken apart
CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True)
class Shape:
    """`ddconfig` of a first stage, in its own names, and the latent channels `embed_dim`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    out_ch: int
    resolution: int
    embed_dim: int
    attn_resolutions: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, from the output."""
        return tuple(self.ch * m for m in self.ch_mult)

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return self.resolution // 2**level in self.attn_resolutions


def read_shape(params: Mapping[str, Any]) -> Shape:
    """The shape of `first_stage_config.params`. Raises: RecipeError when it says too little."""
    said = {"embed_dim": params.get("embed_dim"), **params.get("ddconfig", {})}
    known: dict[str, Any] = {key: said[key] for key in Shape.__dataclass_fields__ if said.get(key) is not None}
    try:
        return Shape(**{**known, **{key: tuple(v) for key, v in known.items() if isinstance(v, list)}})
    except TypeError as error:
        lacks = str(error).rpartition(":")[2].strip()
        raise RecipeError(f"first_stage_config lacks {lacks}: give the whole configuration") from error


def load_decoder(
    shape: Shape, tensors: Mapping[str, torch.Tensor], *, scale: float = 1.0, what: str
) -> torch.nn.Module:
    """latents [B, C, H, W] -> pictures or mel [B, out_ch, H', W'], of `tensors` as below `first_stage_model.`.

    Quantizes where there is a codebook [N, C]. Raises: RecipeError where the weights do not fit.
    """
    nn = need("torch", extra="export").nn
    stage = nn.Module()
    stage.post_quant_conv = build(lambda: nn.Conv2d(shape.embed_dim, shape.z_channels, 1))
    stage.decoder = make_decoder(shape)
    assign(stage, tensors, dict(places(shape)), what=what, ignored=IGNORED)
    codebook = tensors[CODEBOOK].float() if CODEBOOK in tensors else None
    return as_decoder(stage, scale, codebook)


def read_decoder(
    tensors: Mapping[str, torch.Tensor], params: Mapping[str, Any], *, where: Path, what: Path
) -> torch.nn.Module:
    """The decoder of a whole checkpoint `what` of latent diffusion, `params` of its configuration `where`.

    Raises: RecipeError where weights and configuration do not fit.
    """
    return load_decoder(
        read_shape(section(params, "first_stage_config", "params", where=where)),
        under(tensors, "first_stage_model."),
        scale=float(tensors.get("scale_factor", 1.0)),
        what=f"the first stage of {what}",
    )


def make_decoder(shape: Shape) -> torch.nn.Module:
    """The decoder of a shape on the meta device."""
    vae = need("diffusers.models.autoencoders.vae", extra="export")
    levels = reversed(range(len(shape.widths)))
    kinds = tuple("AttnUpDecoderBlock2D" if shape.attends(level) else "UpDecoderBlock2D" for level in levels)
    return build(lambda: vae.Decoder(shape.z_channels, shape.out_ch, kinds, shape.widths, shape.num_res_blocks, GROUPS))


def places(shape: Shape) -> Iterator[tuple[str, str]]:
    """(module of diffusers, module of the checkpoint) for everything of the decoder that has another name."""
    yield "decoder.conv_norm_out", "decoder.norm_out"
    for layer, theirs in enumerate(("block_1", "block_2")):
        yield f"decoder.mid_block.resnets.{layer}", f"decoder.mid.{theirs}"
    yield from _attention("decoder.mid_block.attentions.0", "decoder.mid.attn_1")
    for level in range(len(shape.widths)):
        ours, theirs = f"decoder.up_blocks.{len(shape.widths) - 1 - level}", f"decoder.up.{level}"
        yield f"{ours}.upsamplers.0", f"{theirs}.upsample"
        for layer in range(shape.num_res_blocks + 1):
            yield f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}"
            yield f"{ours}.resnets.{layer}.conv_shortcut", f"{theirs}.block.{layer}.nin_shortcut"
            yield from _attention(f"{ours}.attentions.{layer}", f"{theirs}.attn.{layer}")


def nearest(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest vector of a codebook [N, C] at every place of latents [B, C, H, W]."""
    scores = latents.movedim(1, -1) @ codebook.mT - codebook.square().sum(1) / 2
    return codebook[scores.argmax(-1)].movedim(-1, 1)


def as_decoder(stage: torch.nn.Module, scale: float, codebook: torch.Tensor | None) -> torch.nn.Module:
    """The whole way from latents back, as a module to trace."""
    nn = need("torch", extra="export").nn

    class Decoder(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stage = stage
            self.register_buffer("codebook", codebook)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            z = latents / scale
            z = z if self.codebook is None else nearest(z, self.codebook)
            return self.stage.decoder(self.stage.post_quant_conv(z))

    return Decoder().eval()


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{one}", f"{theirs}.{other}") for one, other in ATTENTION.items())
