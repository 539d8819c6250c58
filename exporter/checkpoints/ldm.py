"""The U-Net of latent diffusion (arXiv:2112.10752) in the layout of its authors, as a U-Net of diffusers.

    input_blocks.n     n = 0 the first convolution, then per level R blocks [resnet, attention] and one that halves
    middle_block       resnet, attention, resnet
    output_blocks.n    per level from the deepest, R + 1 blocks [resnet, attention]; the last one doubles

A level at 1/d of the size has attention when d is among `attention_resolutions`. What conditions the U-Net decides the
class: a spatial transformer is `UNet2DConditionModel`, attention over pixels alone `UNet2DModel`. Three things that a
configuration of diffusers cannot say are set on the modules: heads per level, the fused q, k, v, and the norm in the
middle of a U-Net with scale and shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.places import assign, build
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

GROUPS = 32
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PIXELS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "film_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
NO_MATTER = {"use_checkpoint", "use_fp16", "dropout", "legacy", "dims"}  # to what is computed


@dataclass(frozen=True)
class Shape:
    """`unet_config.params` of an LDM configuration, in its own names."""

    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    image_size: int | None = None
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    extra_film_condition_dim: int | None = None
    extra_film_use_concat: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level."""
        return tuple(self.model_channels * m for m in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return 2**level in self.attention_resolutions

    def heads(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels


def read_shape(params: Mapping[str, Any]) -> Shape:
    """The shape that a configuration describes. Raises: RecipeError for what no U-Net of diffusers computes."""
    known: dict[str, Any] = {key: value for key, value in params.items() if key in Shape.__dataclass_fields__}
    odd = [key for key, value in params.items() if key not in known and key not in NO_MATTER and value]
    if odd:
        raise RecipeError(f"unet_config sets {odd[0]} = {params[odd[0]]!r}, which is not supported: remove it")
    try:
        shape = Shape(**{**known, **{key: tuple(v) for key, v in known.items() if isinstance(v, list)}})
    except TypeError as error:
        raise RecipeError(f"unet_config lacks {str(error).rpartition(':')[2].strip()}: give the whole one") from error
    if shape.num_heads == shape.num_head_channels == -1:
        raise RecipeError("unet_config says neither num_heads nor num_head_channels: give the whole one")
    if shape.use_spatial_transformer and (shape.resblock_updown or shape.use_scale_shift_norm):
        raise RecipeError("unet_config joins use_spatial_transformer and resblock_updown or scale-shift: unsupported")
    return shape


def make_unet(shape: Shape) -> torch.nn.Module:
    """The U-Net of a shape on the meta device; every attention has its own number of heads."""
    diffusers = need("diffusers", extra="export")
    kind, config = configuration(shape)
    unet = build(lambda: getattr(diffusers, kind)(**config))
    if kind == "UNet2DModel":
        attention = need("diffusers.models.attention_processor", extra="export").Attention
        for module in unet.modules():
            if isinstance(module, attention):
                module.heads = shape.heads(module.inner_dim)
                module.scale = (module.inner_dim // module.heads) ** -0.5
    return unet


def load_unet(shape: Shape, tensors: Mapping[str, torch.Tensor], *, what: str) -> torch.nn.Module:
    """The U-Net of a shape with the weights `tensors`, keyed as below `model.diffusion_model.`.

    Raises: RecipeError where they do not fit.
    """
    return assign(make_unet(shape), split_heads(tensors, shape), dict(places(shape)), what=what)


def configuration(shape: Shape) -> tuple[str, dict[str, Any]]:
    """The class of diffusers for a shape, and its arguments."""
    levels = range(len(shape.widths))
    said: dict[str, Any] = {
        "sample_size": shape.image_size,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": tuple(_block("Down", shape, level) for level in levels),
        "up_block_types": tuple(_block("Up", shape, level) for level in reversed(levels)),
        "norm_num_groups": GROUPS,
        "norm_eps": 1e-5,
    }
    if shape.use_spatial_transformer:
        return "UNet2DConditionModel", said | _conditioned(shape)
    sampling = "resnet" if shape.resblock_updown else "conv"
    narrowest = gcd(*shape.widths)
    return "UNet2DModel", said | {
        "attention_head_dim": narrowest // shape.heads(narrowest),
        "attn_norm_num_groups": GROUPS,  # or the middle attention of a scale-shift U-Net has no norm
        "resnet_time_scale_shift": "scale_shift" if shape.use_scale_shift_norm else "default",
        "downsample_type": sampling,
        "upsample_type": sampling,
    }


def places(shape: Shape) -> Iterator[tuple[str, str]]:
    """(module of diffusers, module of the checkpoint) for everything that has weights."""
    yield from ENDS.items()
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1", shape)
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    n, last = 1, len(shape.widths) - 1
    for level in range(last + 1):
        block = f"down_blocks.{level}"
        for layer in range(shape.num_res_blocks):
            yield from _layer(block, layer, f"input_blocks.{n}", level, shape)
            n += 1
        if level < last:
            yield from _resampler(f"{block}.downsamplers.0", f"input_blocks.{n}.0", "op", shape)
            n += 1
    n = 0
    for level in reversed(range(last + 1)):
        block = f"up_blocks.{last - level}"
        for layer in range(shape.num_res_blocks + 1):
            yield from _layer(block, layer, f"output_blocks.{n}", level, shape)
            n += 1
        if level:
            theirs = f"output_blocks.{n - 1}.{1 + shape.attends(level)}"
            yield from _resampler(f"{block}.upsamplers.0", theirs, "conv", shape)


def split_heads(tensors: Mapping[str, torch.Tensor], shape: Shape) -> dict[str, torch.Tensor]:
    """The tensors with each fused qkv [3C, C, 1] as q, k, v [C, C, 1]; its rows go head by head, [H, 3, C/H]."""
    split = {}
    for key, tensor in tensors.items():
        module, _, kind = key.rpartition(".")
        if not module.endswith(".qkv"):
            split[key] = tensor
            continue
        width = len(tensor) // 3
        rows = tensor.unflatten(0, (shape.heads(width), 3, -1))
        for place, name in enumerate("qkv"):
            split[f"{module.removesuffix('qkv')}{name}.{kind}"] = rows[:, place].flatten(0, 1)
    return split


def _conditioned(shape: Shape) -> dict[str, Any]:
    """What `UNet2DConditionModel` alone is told; its attention_head_dim counts heads."""
    said = {
        "attention_head_dim": tuple(map(shape.heads, shape.widths)),
        "cross_attention_dim": shape.context_dim or shape.widths,
        "transformer_layers_per_block": shape.transformer_depth,
    }
    if not shape.extra_film_condition_dim:
        return said
    return said | {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": shape.extra_film_condition_dim,
        "class_embeddings_concat": shape.extra_film_use_concat,
    }


def _block(way: str, shape: Shape, level: int) -> str:
    """The class of a block on the way "Down" or "Up"; only `Resnet…sampleBlock2D` resamples in a resnet on its own."""
    if shape.attends(level):
        return f"{'CrossAttn' if shape.use_spatial_transformer else 'Attn'}{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if shape.resblock_updown else f"{way}Block2D"


def _layer(block: str, layer: int, theirs: str, level: int, shape: Shape) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{block}.resnets.{layer}", f"{theirs}.0")
    if shape.attends(level):
        yield from _attention(f"{block}.attentions.{layer}", f"{theirs}.1", shape)


def _resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{one}", f"{theirs}.{other}") for one, other in RESNET.items())


def _attention(ours: str, theirs: str, shape: Shape) -> Iterator[tuple[str, str]]:
    if shape.use_spatial_transformer:
        return iter([(ours, theirs)])  # diffusers kept the names inside
    return ((f"{ours}.{one}", f"{theirs}.{other}") for one, other in PIXELS.items())


def _resampler(ours: str, theirs: str, conv: str, shape: Shape) -> Iterator[tuple[str, str]]:
    return _resnet(ours, theirs) if shape.resblock_updown else iter([(f"{ours}.conv", f"{theirs}.{conv}")])
