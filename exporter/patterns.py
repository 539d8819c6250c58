"""How a layer's weight becomes codes, and stored codes the weight again.

    dequantize                   codes -> DQ(s)                          integer kernels, TensorRT's fused ones
    cast-dequantize              INT4 -> Cast(INT8) -> DQ(s)             folded by onnxruntime when it loads the file
    dequantize-cast-dequantize   INT4 -> DQ(1) -> Cast(INT8) -> DQ(s)    TensorRT, convolutions with INT8 inputs
    cast-multiply                codes -> Cast(float) -> Mul(s)          likewise folded: runs as a float layer
    cast                         float16 -> Cast(float)                  likewise

Which of them is the target's affair (targets.Way), written into the site of the weight.
"""

from __future__ import annotations

import numpy as np

from quaver.calib.graph import Layer
from quaver.calib.quant import FLOAT8, FLOAT16_MAX, INT4, INT8, INT32, UINT8, UINT16
from quaver.exporter.draft import Draft, constant, dequantize, node, real
from quaver.exporter.placement import Site
from quaver.exporter.targets import Target
from quaver.exporter.weights import Coded, code_blocks, code_weight
from quaver.runtime.errors import ArtifactError
from quaver.runtime.lazy import need

FORMATS = {fmt.name: fmt for fmt in (INT8, UINT8, UINT16, INT4, INT32, FLOAT8)}


def code(
    weight: np.ndarray, layer: Layer, site: Site, target: Target, bias: np.ndarray | None, input_scale: float | None
) -> Coded:
    """Codes of a weight in a site's format; float16 codes are the weight itself."""
    if site.format == "float16":
        return Coded(
            np.clip(weight, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16), np.ones(weight.shape[layer.axis], np.float32)
        )
    if site.block:
        return code_blocks(
            weight, FORMATS[site.format], axis=layer.axis, block=site.block, half=site.compute == "float16"
        )
    return code_weight(
        weight,
        FORMATS[site.format],
        axis=layer.axis,
        bias=bias,
        input_scale=input_scale,
        pair_limit=pair_limit(target, site, coded_input=input_scale is not None),
        half=site.compute == "float16",
    )


def pair_limit(target: Target, site: Site, *, coded_input: bool) -> int | None:
    """The limit of neighbouring codes (targets) for the weight of a site; None where no kernel multiplies its codes."""
    return target.pair_limit if coded_input and site.pattern != "cast-multiply" else None


def write_weight(draft: Draft, layer: Layer, coded: Coded, site: Site, module: str) -> str:
    """The chain from stored codes to the real weight; returns the edge that carries it."""
    name, chain = f"{layer.name}.weight", draft.before[layer.node]
    kinds = need("onnx", extra="export").TensorProto
    if site.pattern == "cast":
        chain += [node("Cast", [constant(draft, f"{name}.float16", coded.codes)], f"{name}.dq", module, to=kinds.FLOAT)]
        return f"{name}.dq"
    fmt = FORMATS[site.format]
    if site.pattern == "cast-multiply":
        return _multiplied(draft, layer, coded, site, module)
    codes = constant(draft, f"{name}.codes", coded.codes, fmt)
    if site.pattern == "dequantize-cast-dequantize":
        chain += [
            dequantize(
                draft, codes, np.ones((), np.float32), INT4, f"{name}.unscaled", module, half=site.compute == "float16"
            )
        ]
        codes = f"{name}.unscaled"
    if site.pattern in ("cast-dequantize", "dequantize-cast-dequantize"):
        chain += [node("Cast", [codes], f"{name}.int8", module, to=kinds.INT8)]
        codes, fmt = f"{name}.int8", INT8
    along = {"axis": _inputs(layer), "block_size": site.block} if site.block else {"axis": layer.axis}
    chain += [dequantize(draft, codes, coded.scale, fmt, f"{name}.dq", module, half=site.compute == "float16", **along)]
    return f"{name}.dq"


def _multiplied(draft: Draft, layer: Layer, coded: Coded, site: Site, module: str) -> str:
    """codes [.., K / B, B, ..] -> Cast -> Mul(s [.., K / B, 1, ..]) -> Reshape; without blocks s [C, 1, ..]."""
    name, chain, float32 = (
        f"{layer.name}.weight",
        draft.before[layer.node],
        need("onnx", extra="export").TensorProto.FLOAT,
    )
    shape, axis = layer.weight_shape, _inputs(layer)
    split = (*shape[:axis], -1, site.block, *shape[axis + 1 :]) if site.block else shape
    column = [-1 if d == layer.axis else 1 for d in range(len(shape))]
    scale = np.expand_dims(coded.scale, axis + 1) if site.block else coded.scale.reshape(column)
    codes = constant(draft, f"{name}.codes", coded.codes.reshape(split), FORMATS[site.format])
    names = real(draft, f"{name}.scale", scale, half=False)
    chain += [node("Cast", [codes], f"{name}.float", module, to=float32)]
    if not site.block:
        chain += [node("Mul", [f"{name}.float", names], f"{name}.dq", module)]
        return f"{name}.dq"
    whole = constant(draft, f"{name}.shape", np.array(shape, np.int64))
    chain += [node("Mul", [f"{name}.float", names], f"{name}.scaled", module)]
    chain += [node("Reshape", [f"{name}.scaled", whole], f"{name}.dq", module)]
    return f"{name}.dq"


def _inputs(layer: Layer) -> int:
    """The axis of the inputs in a layer's weight."""
    return 1 if layer.axis == 0 else len(layer.weight_shape) - 2


def finite(weight: np.ndarray, layer: Layer) -> np.ndarray:
    if not np.isfinite(weight).all():
        bad = int((~np.isfinite(weight)).sum())
        raise ArtifactError(
            f"{bad} of {weight.size} weights of layer {layer.name} are not finite: train or convert the model again, "
            "then 'quaver trace RECIPE'"
        )
    return weight
