"""The kernel onnxruntime gives a product on a CPU, by the rules of its own graph optimizer.

    DQ(x) DQ(w) -> Conv -> Q                 QLinearConv                  a coded output is a must
    DQ(x) DQ(w) -> Gemm [-> Q]               QGemm                        with a coded bias, or with a coded output
    DQ(x) DQ(w) -> MatMul [-> Q]             MatMulIntegerToFloat, QLinearMatMul
    DQ(w) -> MatMul, Gemm                    MatMulNBits                  8-bit activations made on the fly
    DynamicQuantizeLinear -> MatMulInteger   DynamicQuantizeMatMul

Every reason below was read from graphs that onnxruntime 1.32 writes when asked for what it runs (x86-64), and is held
against them by the tests. Signed activations become unsigned on x86; 4-bit codes must be cast before their DQ.
"""

from __future__ import annotations

from collections.abc import Iterator

from quaver.exporter.lint.edges import Shape
from quaver.exporter.lint.kernels import ORT_TYPES, Kernel
from quaver.exporter.lint.operands import Codes, Operand
from quaver.exporter.lint.products import NATIVE, Product

EIGHT = ("int8", "uint8")
# what its optimizer moves a DQ across, to the product behind
MOVED = {"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Dropout"}
PER_OUTPUT = "integer kernels take one scale per output channel: quantize along that axis"
SLOW = "signed activations: converted at load on x86, six times slower where not; use uint8"


def predict(product: Product) -> Kernel:
    """The kernel of a product."""
    if product.op in NATIVE:
        return Kernel(_native(product), "INT8", refused=_fails(product))
    kind = ORT_TYPES.get(product.op, f"float {product.op}")
    why = next(_why_float(product), "")
    if not why:
        signed = product.left.codes is not None and product.left.codes.format == "int8"
        return Kernel(_integer(product), "INT8", refused=_fails(product), warning=SLOW if signed else "")
    if _counts_bits(product):
        return Kernel("MatMulNBits", "INT8")
    return Kernel(kind, "32 bit", why, refused=_loads(product))


def _native(product: Product) -> str:
    fused = product.op == "MatMulInteger" and product.left.behind == "DynamicQuantizeLinear"
    if not fused or product.after[:2] != ("Cast", "Mul"):
        return product.op
    return "DynamicQuantizeMatMul" if product.left.readers == 1 else "MatMulIntegerToFloat"


def _integer(product: Product) -> str:
    coded = product.output.codes is not None
    return {"Conv": "QLinearConv", "Gemm": "QGemm"}.get(
        product.op, "QLinearMatMul" if coded else "MatMulIntegerToFloat"
    )


def _why_float(product: Product) -> Iterator[str]:
    """Reasons why a product stays float, the first of them the one to mend first."""
    op, left, right, output = product.op, product.left, product.right, product.output
    if op not in ("Conv", "Gemm", "MatMul"):
        yield f"{op} has no integer kernel" + ("; write it as MatMul" if op == "Einsum" else "")
    yield from _why_operand("input" if right.constant else "left operand", left)
    if left.constant and left.codes is not None and left.codes.format == "int8":
        yield "a weight on the left must be uint8"
    if right.codes is None and right.constant:
        yield from _why_uncoded_weight(product)
    else:
        yield from _why_operand("weight" if right.constant else "right operand", right)
    if op == "Conv" and output.codes is None:
        yield f"its output is not quantized (read by {', '.join(output.readers)}), which QLinearConv needs"
    if output.codes is not None and output.codes.format not in EIGHT:
        yield f"its output has {output.codes.format} codes"
    passed = MOVED.union(("Relu", "Clip") if output.lowest else ())
    if output.codes is not None and not passed.issuperset(output.through):
        yield f"{next(op for op in output.through if op not in passed)} stands between it and its Q"
    if op == "Conv" and product.bias_off:
        yield "its bias codes have another scale than input scale * weight scale"
    if op == "Gemm":
        yield from _why_gemm(product)
    if op == "MatMul" and output.codes is None and _becomes_gemm(product):
        yield "it is merged with the Add behind into a float Gemm; write Gemm with a coded bias, or quantize its output"
    if op == "MatMul" and output.codes is not None and _axis_off(product):
        yield f"its weight has a scale per {_along(product)}"


def _why_operand(role: str, operand: Operand) -> Iterator[str]:
    codes = operand.codes
    allowed = {"Transpose", "Identity"} if operand.constant else MOVED
    if codes is None:
        between = f": {operand.behind} stands between it and the Q/DQ" if operand.past else ""
        yield f"no Q/DQ on its {role}{between}"
        return
    if not allowed.issuperset(operand.moved):
        yield f"{', '.join(m for m in operand.moved if m not in allowed)} between its {role} and the DQ"
    if codes.format not in EIGHT:
        cast = "; put Cast(int8) before its DequantizeLinear" if codes.format == "int4" else ""
        yield f"its {role} has {codes.format} codes{cast}"
    if codes.real != "float32":
        yield f"the scales of its {role} are {codes.real}; onnxruntime fuses float32 ones on CPUs"
    if not operand.constant and codes.format == "int8" and (operand.readers > 1 or not codes.zero):
        how = "has no zero point" if not codes.zero else f"is read by {operand.readers} nodes"
        yield f"its {role} is signed and {how}, so it is not made unsigned; use uint8"


def _why_uncoded_weight(product: Product) -> Iterator[str]:
    """A float weight is coded by onnxruntime itself, when input and output of the layer are."""
    if product.op == "MatMul" or product.output.codes is None:
        yield "no DQ on its weight"


def _why_gemm(product: Product) -> Iterator[str]:
    bias, coded = product.bias, product.output.codes is not None
    if bias is not None and (bias.codes is None or bias.codes.format != "int32") and not (coded and bias.constant):
        yield "its bias is not int32 codes"
    if bias is not None and product.attributes.get("beta", 1.0) != 1.0:
        yield "its bias is scaled by beta"
    if _axis_off(product):
        yield f"its weight has a scale per {_along(product)}"
    if product.left.codes is not None and product.left.codes.scales != "tensor":
        yield "its input has a scale per channel"


def _becomes_gemm(product: Product) -> bool:
    """Whether MatMul and a lone Add are merged: what is added fits a row, and of higher ranks all sizes are known."""
    left, right, added = product.left.shape, product.right.shape, product.output.added
    if product.output.readers != ("Add",) or not left or not right or len(right) != 2 or not added:
        return False
    if len(left) == 2:
        return added in ((right[1],), (1, right[1]), (left[0], right[1]))
    return added == (right[1],) and None not in left


def _counts_bits(product: Product) -> bool:
    """Whether a product by coded weights alone becomes MatMulNBits."""
    left, right = product.left, product.right
    codes, coded, attributes = right.codes, left.codes, product.attributes
    if product.op not in ("MatMul", "Gemm") or not right.constant or codes is None or right.moved or right.readers > 1:
        return False
    if coded is not None and "16" not in coded.format and MOVED.issuperset(left.moved):
        return False
    plain = attributes.get("transA", 0) == attributes.get("transB", 0) == 0
    plain = plain and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    output = product.output.codes
    if not plain or (output is not None and output.format in EIGHT) or codes.chain.count("DequantizeLinear") > 1:
        return False
    wide = codes.scales == "block" and codes.axis == 0 and codes.block >= 16 and codes.block & (codes.block - 1) == 0
    scaled = codes.scales == "tensor" or wide or (codes.scales == "channel" and codes.axis in (1, -1))
    return scaled and codes.format in (*EIGHT, "int4", "uint4") and len(right.shape or ()) == 2


def _fails(product: Product) -> str:
    """Why onnxruntime fails on an integer kernel, or computes something else, although it chooses it."""
    left, right = product.left.codes, product.right.codes
    if left is not None and left.scales != "tensor":
        return f"{_integer(product)} fails when it runs: activations take one scale, not one per channel"
    if right is not None and product.op not in NATIVE and (right.scales == "block" or _axis_off(product)):
        return f"{_integer(product)} fails or is wrong with a scale per {_along(product)}: {PER_OUTPUT}"
    if product.bias_off:
        return "QGemm adds bias codes as they are: give them the scale input scale * weight scale"
    return _loads(product)


def _loads(product: Product) -> str:
    """Why onnxruntime does not load the graph."""
    for codes in (product.left.codes, product.right.codes, product.output.codes):
        if codes is not None and codes.declared and codes.format == "int8" and codes.zero and not _held(product, codes):
            return (
                "onnxruntime on x86 does not load signed activations whose Q has an output_dtype: leave that attribute "
                "out, or use uint8"
            )
    return ""


def _held(product: Product, codes: Codes) -> bool:
    return any(o.constant and o.codes is codes for o in (product.left, product.right))


def _axis_off(product: Product) -> bool:
    """Whether the weight has scales along another axis than its output channels."""
    codes, shape = product.right.codes, product.right.shape
    if codes is None or codes.scales == "tensor" or not product.right.constant or not shape:
        return False
    return codes.scales == "block" or codes.axis % len(shape) != output_axis(product, shape)


def output_axis(product: Product, shape: Shape) -> int:
    """The axis of output channels in a weight as it is stored."""
    first = product.op == "Conv" or product.attributes.get("transB", 0) == 1
    return (
        (0 if first else len(shape) - 1) if "Transpose" not in product.right.moved else (len(shape) - 1 if first else 0)
    )


def _along(product: Product) -> str:
    codes = product.right.codes
    return "block" if codes is not None and codes.scales == "block" else "input channel"
