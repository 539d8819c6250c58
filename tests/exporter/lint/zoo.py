"""Small graphs, quantized in every way met in the wild: one product called "layer", random weights and scales."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

TYPES = {
    "uint8": np.uint8,
    "int8": np.int8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float8": ml_dtypes.float8_e4m3fn,
}
MIDDLE = {"uint8": 128, "uint4": 8}
LIMITS = {"uint8": (0, 255), "int8": (-127, 127), "int16": (-3000, 3000), "uint4": (0, 15), "int4": (-7, 7)}


class Graph:
    """A graph under construction; every method returns the edge it made."""

    def __init__(self, *, opset: int = 21, half: bool = False) -> None:
        self.nodes, self.constants, self.inputs = [], [], []
        self.opset, self.real = opset, np.float16 if half else np.float32
        self.draw = np.random.default_rng(0)

    def input(self, *shape: int | str, name: str = "x") -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.real))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def floats(self, *shape: int) -> str:
        return self.constant((self.draw.standard_normal(shape) * 0.1).astype(self.real))

    def node(self, op: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, domain=domain, **attributes))
        return f"{name}_out"

    def scales(self, shape: Sequence[int] = ()) -> str:
        """Random ones: equal scales are folded by some compilers as if they were one."""
        return self.constant(self.draw.uniform(0.01, 0.03, shape).astype(self.real))

    def scale_of(self, edge: str) -> np.ndarray:
        """The scale of the DQ that makes an edge."""
        name = next(node.input[1] for node in self.nodes if edge in node.output)
        return numpy_helper.to_array(next(tensor for tensor in self.constants if tensor.name == name))

    def quantize(self, x: str, kind: str, *, zero: int | None = None, channels: int = 0, scale: str = "") -> list[str]:
        """Codes, scale and zero point."""
        shape = (channels,) if channels else ()
        zeros = np.full(shape, MIDDLE.get(kind, 0) if zero is None else zero).astype(TYPES[kind])
        ends = [scale or self.scales(shape), self.constant(zeros)]
        return [self.node("QuantizeLinear", x, *ends, **({"axis": 1} if channels else {})), *ends]

    def coded(self, x: str, kind: str, **how: Any) -> str:
        """x -> Q -> DQ."""
        axis = {"axis": 1} if how.get("channels") else {}
        return self.node("DequantizeLinear", *self.quantize(x, kind, **how), **axis)

    def codes(self, kind: str, shape: Sequence[int]) -> str:
        spread = 20 if kind.endswith(("8", "16")) else 3
        numbers = np.round(self.draw.standard_normal(shape) * spread) + MIDDLE.get(kind, 0)
        return self.constant(np.clip(numbers, *LIMITS.get(kind, (-200, 200))).astype(TYPES[kind]))

    def weight(
        self,
        kind: str,
        shape: Sequence[int],
        *,
        axis: int = 0,
        per: str = "channel",
        block: int = 0,
        pattern: str = "",
        zero: int | None = None,
    ) -> str:
        """A coded weight; pattern: "" (DQ), "cast", "unscaled" (DQ, Cast, DQ), "float" (Q and DQ)."""
        if not kind:
            return self.floats(*shape)
        attributes = {"axis": axis} if per == "channel" else {}
        scales: Sequence[int] = (shape[axis],) if per == "channel" else ()
        if block:
            attributes = {"axis": axis, "block_size": block}
            scales = [n // block if i == axis else n for i, n in enumerate(shape)]
        final = "int8" if pattern in ("cast", "unscaled") else kind
        zeros = self.constant(np.full(scales, MIDDLE.get(kind, 0) if zero is None else zero).astype(TYPES[final]))
        ends = [self.scales(scales), zeros]
        if pattern == "float":
            return self.node(
                "DequantizeLinear",
                self.node("QuantizeLinear", self.floats(*shape), *ends, **attributes),
                *ends,
                **attributes,
            )
        codes = self.codes(kind, shape)
        if pattern == "unscaled":
            codes = self.node("DequantizeLinear", codes, self.constant(self.real(1)))
        if pattern in ("cast", "unscaled"):
            codes = self.node("Cast", codes, to=onnx.TensorProto.INT8)
        return self.node("DequantizeLinear", codes, *ends, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, [], self.constants)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.real))
        for value in inferred.graph.output:
            if not value.type.HasField("tensor_type"):
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, None))
        return inferred


Make = Callable[[], onnx.ModelProto]


def conv(
    x: str = "uint8",
    w: str = "int8",
    y: str = "uint8",
    *,
    bias: bool = False,
    before: Callable[[Graph, str], str] = lambda g, e: e,
    after: Callable[[Graph, str], str] = lambda g, e: e,
    channels: tuple[int, int] = (16, 16),
    group: int = 1,
    opset: int = 21,
    half: bool = False,
    how: dict[str, Any] | None = None,
    out: dict[str, Any] | None = None,
    **weight: Any,
) -> Make:
    """x -> Q/DQ -> [before] -> Conv -> [after] -> Q/DQ; "" for what is not quantized."""

    def make() -> onnx.ModelProto:
        g = Graph(opset=opset, half=half)
        edge = g.input(1, channels[0], 8, 8)
        edge = before(g, g.coded(edge, x, **(how or {})) if x else edge)
        held = [g.weight(w, (channels[1], channels[0] // group, 3, 3), **weight)]
        held += [g.floats(channels[1])] if bias else []
        edge = after(g, g.node("Conv", edge, *held, name="layer", pads=[1] * 4, group=group))
        return g.model(g.coded(edge, y, **(out or {})) if y else edge)

    return make


def product(
    op: str = "MatMul",
    x: str = "uint8",
    w: str = "int8",
    y: str = "",
    *,
    bias: str = "",
    rows: Sequence[int | str] = (8,),
    before: Callable[[Graph, str], str] = lambda g, e: e,
    after: Callable[[Graph, str], str] = lambda g, e: e,
    opset: int = 21,
    half: bool = False,
    how: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    **weight: Any,
) -> Make:
    """x [.., 64] -> Q/DQ -> MatMul or Gemm by [64, 32] -> Q/DQ."""

    def make() -> onnx.ModelProto:
        g = Graph(opset=opset, half=half)
        edge = g.input(*rows, 64)
        edge = before(g, g.coded(edge, x, **(how or {})) if x else edge)
        shape = (32, 64) if (attributes or {}).get("transB") else (64, 32)
        held = [g.weight(w, shape, **{"axis": 1, **weight})]
        held += [g.floats(32)] if bias == "float" else []
        if bias in ("int32", "int32, wrong"):
            scale = g.scale_of(edge) * g.scale_of(held[0]) * (1 if bias == "int32" else 50)
            ends = [g.constant(scale), g.constant(np.zeros(32, np.int32))]
            held += [g.node("DequantizeLinear", g.constant(np.arange(32, dtype=np.int32)), *ends, axis=0)]
        edge = after(g, g.node(op, edge, *held, name="layer", **(attributes or {})))
        return g.model(g.coded(edge, y) if y else edge)

    return make


def pair(x: str, y: str, out: str = "", *, op: str = "MatMul", half: bool = False, **attributes: Any) -> Make:
    """A product of two activations."""

    def make() -> onnx.ModelProto:
        g = Graph(half=half)
        left, right = g.input(2, 4, 8, 16), g.input(2, 4, *((8, 16) if op == "Einsum" else (16, 8)), name="y")
        edge = g.node(
            op,
            g.coded(left, x) if x else left,
            g.coded(right, y) if y else right,
            name="layer",
            **attributes,
        )
        return g.model(g.coded(edge, out) if out else edge)

    return make


def through(op: str, *constants: Any, **attributes: Any) -> Callable[[Graph, str], str]:
    """An operator to put before or after a product."""
    return lambda g, edge: g.node(op, edge, *(g.constant(np.array(c)) for c in constants), **attributes)


def add(*shape: int) -> Callable[[Graph, str], str]:
    """A bias added after a product."""
    return lambda g, edge: g.node("Add", edge, g.floats(*shape))


def concat(*, equal: bool) -> Make:
    """Two coded halves joined before a convolution."""

    def make() -> onnx.ModelProto:
        g = Graph()
        scale = g.scales()
        parts = [g.input(1, 8, 8, 8, name=name) for name in ("x", "y")]
        parts = [g.coded(part, "int8", scale=scale if equal else "") for part in parts]
        joined = g.node("Concat", *parts, axis=1)
        return g.model(g.node("Conv", joined, g.weight("int8", (16, 16, 3, 3)), name="layer", pads=[1] * 4))

    return make


def native(op: str) -> Make:
    """An operator on codes, with what stands around it in files of onnxruntime's quantizers."""

    def make() -> onnx.ModelProto:
        g = Graph()
        conv = "Conv" in op
        x = g.input(*((1, 16, 8, 8) if conv else (8, 64)))
        weight = g.codes("int8", (16, 16, 3, 3) if conv else (64, 32))
        if op.endswith("Integer"):
            g.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], ["q", "s", "z"], "dynamic"))
            edge = g.node("Cast", g.node(op, "q", weight, "z", name="layer"), to=1)
            return g.model(g.node("Mul", edge, g.node("Mul", "s", g.scales())))
        codes, scale, zero = g.quantize(x, "uint8")
        held = [codes, scale, zero, weight, g.scales(), g.constant(np.int8(0))]
        if op == "QGemm":
            return g.model(g.node(op, *held, name="layer", domain="com.microsoft"))
        edge = g.node(op, *held, scale, zero, name="layer")
        return g.model(g.node("DequantizeLinear", edge, scale, zero))

    return make


def attention(kind: str = "", *, half: bool = False) -> Make:
    """Q K^T, softmax, and its product with V."""

    def make() -> onnx.ModelProto:
        g = Graph(half=half)
        q, k, v = (g.input(2, 4, 64, 32, name=name) for name in "qkv")
        code = (lambda edge: g.coded(edge, kind)) if kind else (lambda edge: edge)
        scores = g.node("MatMul", code(q), g.node("Transpose", code(k), perm=[0, 1, 3, 2]), name="layer")
        soft = g.node("Softmax", scores, axis=-1)
        return g.model(g.node("MatMul", code(soft), code(v), name="layer2"))

    return make
