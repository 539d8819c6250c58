"""The kernel that TensorRT and TensorRT-RTX give a product: strongly typed, so Q and DQ around it decide.

    Q/DQ(x), Q/DQ(w), int8 or FP8              Conv, Gemm, MatMul, Einsum    INT8, FP8
    one of them, or scales along another axis  MatMul                        unpacked in the kernel: FP16 x INT8
                                               Conv                          dequantized by a kernel of its own
    DQ(w) alone                                MatMul, int8, FP8, int4 blocks    FP16 x INT8, FP16 x INT4
                                               Conv; int4 per channel        dequantized by a kernel of its own

Every rule was read from build logs of TensorRT-RTX 1.7 (SM75 to SM120) and is held against them by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quaver.exporter.lint.kernels import AFTER, FLOATS, Kernel
from quaver.exporter.lint.operands import Codes, Operand
from quaver.exporter.lint.products import NATIVE, Product
from quaver.exporter.plans.capability import LACKS
from quaver.exporter.targets import Target, find_way

KINDS = {"int8": "INT8", "uint8": "INT8", "int4": "INT4", "uint4": "INT4", "float8": "FP8"}
WIDTHS = {"FP16": "16 bit", "BF16": "16 bit", "FP32": "32 bit"}
CONVS = ("Conv", "ConvTranspose")


def predict(product: Product, target: Target, capabilities: Sequence[str]) -> Kernel:
    """The kernel of a product in a plan for all of these compute capabilities."""
    real = FLOATS.get(product.left.real, "FP32")
    if product.op in NATIVE:
        return Kernel(
            real, WIDTHS[real], refused=f"{product.op} is not known to TensorRT: write Q/DQ around a float one"
        )
    why = next(_why_float(product), "")
    turing = "SM75" in capabilities and real == "FP32"
    refused = next(_refusals(product, target, capabilities, turing=turing), "")
    if not why and turing and product.op in CONVS:
        why = "SM75 is among the capabilities, and takes all INT8 convolutions of a float32 graph to float, silently"
    if not why:
        kind = KINDS.get(product.left.codes.format, "INT8") if product.left.codes else "INT8"
        return Kernel(kind, kind, refused=refused, warning=_warning(product, target))
    return Kernel(_float_type(product, real), WIDTHS[real], why, refused)


def _why_float(product: Product) -> Iterator[str]:
    """Reasons why a product multiplies floats, the first of them the one to mend first."""
    left, right = product.left, product.right
    if product.op == "ConvTranspose":
        yield "ConvTranspose has no INT8 kernel"
    for role, operand in _roles(product):
        if operand.codes is None:
            between = f": {operand.behind} stands between it and the Q/DQ" if operand.past else ""
            yield f"no Q/DQ on its {role}{between}"
        elif operand.codes.scales != "tensor" and not operand.constant:
            yield f"its {role} has a scale per channel; one per tensor is needed"
    if _axis(product, right) not in (None, _scaled_axis(right)):
        yield "its weight has a scale per input channel; one per output channel is needed"
    if left.codes and right.codes and KINDS.get(right.codes.format) == "INT4" and product.op in CONVS:
        yield "plain 4-bit weights"


def _roles(product: Product) -> Iterator[tuple[str, Operand]]:
    sides = (("left operand", product.left), ("right operand", product.right))
    for role, operand in sides:
        weighted = product.left.constant or product.right.constant
        yield ("weight" if operand.constant else "input" if weighted else role), operand


def _float_type(product: Product, real: str) -> str:
    """FP16, FP16 x INT8 or FP16 after dequantize."""
    left, right = product.left, product.right
    if product.op in CONVS:
        return real + (AFTER if right.codes else "")
    if right.codes is not None and not _unpacked_apart(right):
        return f"{real} x {KINDS.get(right.codes.format, 'INT8')}"
    if left.codes is not None and right.constant:
        return f"{real} x {KINDS.get(left.codes.format, 'INT8')}"
    return real + (AFTER if right.codes else "")


def _unpacked_apart(operand: Operand) -> bool:
    """Whether codes are decoded by a kernel of their own: 4 bits without blocks, 8 bits with."""
    return operand.codes is not None and _blocked(operand) != (KINDS.get(operand.codes.format) == "INT4")


def _blocked(operand: Operand) -> bool:
    """Whether an operand has scales for more than one block of a channel."""
    codes, shape = operand.codes, operand.shape or ()
    if codes is None or codes.scales != "block":
        return False
    return not -len(shape) <= codes.axis < len(shape) or shape[codes.axis] != codes.block


def _refusals(product: Product, target: Target, capabilities: Sequence[str], *, turing: bool) -> Iterator[str]:
    """Why TensorRT does not build a product, or builds something else than the graph says."""
    left, right = product.left.codes, product.right.codes
    for codes in filter(None, (left, right)):
        for kind in {codes.format, codes.stored} & {"int4", "float8"}:
            for name in capabilities:
                if kind in LACKS.get(name, {}):
                    yield f"{name} has no {kind}: {LACKS[name][kind]}"
        if codes.stored == "int4" and codes.chain[-1:] == ("Cast",):
            yield "int4 may feed a DequantizeLinear alone: write DequantizeLinear(scale 1) -> Cast -> DequantizeLinear"
    if turing and product.op not in CONVS:
        yield "SM75 has no float32 products: leave it out, or make the graph float16"
    if right and right.scales == "block" and product.op in CONVS and right.axis < len(product.right.shape or ()) - 2:
        yield "blocks lie along the last two axes only: use one scale per output channel"
    if left and right and product.op != "ConvTranspose":
        yield from _refused_pair(product, target, left, right)


def _refused_pair(product: Product, target: Target, left: Codes, right: Codes) -> Iterator[str]:
    kinds = KINDS.get(left.format), KINDS.get(right.format)
    if "FP8" in kinds and kinds[0] != kinds[1]:
        yield f"{left.format} by {right.format}: both operands must have one format"
    if _blocked(product.right) and product.right.constant and "INT" in str(kinds[0]):
        yield (
            "blocked weights by INT8 activations do not build, or take the first scales for all channels: use one "
            "scale per output channel"
        )
    if kinds[1] == "INT4" and kinds[0] == "INT8" and product.op in CONVS:
        yield "plain int4 -> Conv does not build: write DequantizeLinear(scale 1) -> Cast(int8) -> DequantizeLinear"
    if kinds[1] == "INT4" and right.scales == "tensor":
        yield "int4 weights with one scale by INT8 activations do not build: use one scale per output channel"
    if right.stored == "int4" and isinstance(way := find_way(target, "int4", "int8", "MatMul"), str):
        yield way


def _warning(product: Product, target: Target) -> str:
    """What runs in INT8 but should not be so: unsigned codes, layers too small to gain."""
    if product.left.codes is not None and product.left.codes.format == "uint8":
        return "uint8 activations are compiled as int8: codes above 127 do not fit; use int8"
    shape = product.right.shape or ()
    channels = min((d for d in shape[:2] if d), default=0) if product.weight is not None and len(shape) > 1 else 0
    if 0 < channels < target.min_channels:
        return f"{channels} channels: INT8 gains nothing below {target.min_channels}"
    return ""


def _scaled_axis(weight: Operand) -> int | None:
    """The axis along which a weight has scales, None for one scale, blocks, or no weight."""
    codes = weight.codes
    return None if codes is None or codes.scales != "channel" else codes.axis % len(weight.shape or (1,))


def _axis(product: Product, weight: Operand) -> int | None:
    """The axis that a weight's scales must lie along, None where there is no choice or a reshape hides it."""
    rank = len(weight.shape or ())
    if not rank or not weight.constant or "Reshape" in weight.moved or _scaled_axis(weight) is None:
        return None
    last = product.op not in CONVS and product.attributes.get("transB", 0) != 1
    return rank - 1 if last != ("Transpose" in weight.moved) else 0
