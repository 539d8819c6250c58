"""ONNX operators as differentiable functions: those that occur in diffusion U-Nets.

    function(inputs, attributes) -> tensor, or a tuple of tensors

An input left out of a node is None. Meaning and defaults are those of opset 21; what a U-Net never uses (cubic
resizing, recurrent cells) is not here, and a graph that has it is refused by name (`replay.read_graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Sequence[Any]  # of tensors, None where an optional one is left out
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes], Any]


def torch() -> Any:
    """The torch package."""
    return need("torch", extra="export")


def conv(inputs: Inputs, at: Attributes) -> Tensor:
    """Conv of x [N, C, ...], weight [M, C / group, ...] and bias [M]."""
    x, weight, bias = _padded(inputs, 3)
    rank = x.ndim - 2
    if at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise EngineError(f"a Conv pads by {at['auto_pad']}, expected explicit pads: trace the model anew")
    low, high = _halves(at.get("pads") or [0] * 2 * rank)
    if low != high:
        x, low = torch().nn.functional.pad(x, _reversed_pairs(low, high)), [0] * rank
    function = getattr(torch().nn.functional, f"conv{rank}d")
    strides, dilations = at.get("strides", [1] * rank), at.get("dilations", [1] * rank)
    return function(x, weight, bias, strides, low, dilations, at.get("group", 1))


def gemm(inputs: Inputs, at: Attributes) -> Tensor:
    """alpha A' B' + beta C."""
    a, b, c = _padded(inputs, 3)
    a, b = (a.T if at.get("transA") else a), (b.T if at.get("transB") else b)
    product = at.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + at.get("beta", 1.0) * c


def instance_norm(inputs: Inputs, at: Attributes) -> Tensor:
    """InstanceNormalization: every channel of every sample whitened, then scale [C] and bias [C]."""
    x, scale, bias = inputs
    return torch().nn.functional.instance_norm(x, weight=scale, bias=bias, eps=at.get("epsilon", 1e-5))


def group_norm(inputs: Inputs, at: Attributes) -> Tensor:
    """GroupNormalization, scale and bias [C]."""
    x, scale, bias = inputs
    return torch().nn.functional.group_norm(x, at["num_groups"], scale, bias, at.get("epsilon", 1e-5))


def layer_norm(inputs: Inputs, at: Attributes) -> Tensor:
    """LayerNormalization from an axis to the last."""
    x, scale, bias = _padded(inputs, 3)
    shape = x.shape[at.get("axis", -1) % x.ndim :]
    return torch().nn.functional.layer_norm(x, shape, scale, bias, at.get("epsilon", 1e-5))


def reshape(inputs: Inputs, at: Attributes) -> Tensor:
    """Reshape: 0 keeps a dimension unless allowzero, -1 is what is left."""
    x, shape = inputs[0], inputs[1].tolist()
    if not at.get("allowzero"):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def transpose(inputs: Inputs, at: Attributes) -> Tensor:
    """Transpose; all dimensions reversed without perm."""
    (x,) = inputs
    return x.permute(at.get("perm") or list(range(x.ndim))[::-1])


def split(inputs: Inputs, at: Attributes) -> tuple[Tensor, ...]:
    """Split into given sizes, or num_outputs parts of which the last ones may be smaller."""
    x, sizes = _padded(inputs, 2)
    axis = at.get("axis", 0)
    if sizes is not None:
        return x.split(sizes.tolist(), axis)
    whole, count = x.shape[axis], at["num_outputs"]
    part = -(-whole // count)
    return x.split([max(0, min(part, whole - i * part)) for i in range(count)], axis)


def slices(inputs: Inputs, at: Attributes) -> Tensor:
    """Slice with positive steps."""
    x, starts, ends, axes, steps = _padded(inputs, 5)
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def resize(inputs: Inputs, at: Attributes) -> Tensor:
    """Resize: nearest as U-Nets upsample, or linear with half-pixel centres."""
    x, _, scales, sizes = _padded(inputs, 4)
    mode, rounding = at.get("mode", "nearest"), at.get("nearest_mode", "round_prefer_floor")
    centres = at.get("coordinate_transformation_mode", "half_pixel")
    size = [round(a * b) for a, b in zip(x.shape, scales.tolist(), strict=True)] if sizes is None else sizes.tolist()
    if (mode, centres, rounding) == ("nearest", "asymmetric", "floor"):
        return torch().nn.functional.interpolate(x, size=size[2:], mode="nearest")
    if (mode, centres) == ("linear", "half_pixel"):
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2]
        return torch().nn.functional.interpolate(x, size=size[2:], mode=kind, align_corners=False)
    raise EngineError(
        f"a Resize is {mode}, {centres}, {rounding}: the replay knows nearest-asymmetric-floor and linear"
    )


def cast(inputs: Inputs, at: Attributes) -> Tensor:
    """Cast to a TensorProto type."""
    dtype = need("onnx", extra="export").helper.tensor_dtype_to_np_dtype(at["to"])
    return inputs[0].to(getattr(torch(), dtype.name))


def unsqueeze(inputs: Inputs, at: Attributes) -> Tensor:
    """Unsqueeze at axes of the result."""
    x, axes = inputs
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(inputs: Inputs, at: Attributes) -> Tensor:
    """Squeeze axes, or every dimension of size 1."""
    x, axes = _padded(inputs, 2)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def reduce_mean(inputs: Inputs, at: Attributes) -> Tensor:
    """ReduceMean over axes, or over all."""
    x, axes = _padded(inputs, 2)
    dims = list(range(x.ndim)) if axes is None else axes.tolist()
    return x.mean(dims, keepdim=bool(at.get("keepdims", 1)))


def average_pool(inputs: Inputs, at: Attributes) -> Tensor:
    """AveragePool without padding."""
    kernel = at["kernel_shape"]
    if any(at.get("pads", [])) or at.get("ceil_mode") or at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise EngineError("an AveragePool pads, which the replay does not know")
    strides = at.get("strides", [1] * len(kernel))
    return getattr(torch().nn.functional, f"avg_pool{len(kernel)}d")(inputs[0], kernel, strides)


def gather(inputs: Inputs, at: Attributes) -> Tensor:
    """Gather along one axis."""
    x, index = inputs
    axis = at.get("axis", 0) % x.ndim
    picked = x.index_select(axis, index.reshape(-1) % x.shape[axis])
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def shape(inputs: Inputs, at: Attributes) -> Tensor:
    """Shape, as int64."""
    (x,) = inputs
    return torch().tensor(list(x.shape)[at.get("start", 0) : at.get("end", x.ndim)])


def gelu(inputs: Inputs, at: Attributes) -> Tensor:
    """Gelu, exact or by tanh."""
    return torch().nn.functional.gelu(inputs[0], approximate=at.get("approximate", "none"))


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda x, at: x[0] + x[1],
    "AveragePool": average_pool,
    "Cast": cast,
    "Clip": lambda x, at: x[0].clamp(*_padded(x[1:], 2)),
    "Concat": lambda x, at: torch().cat(list(x), at["axis"]),
    "Conv": conv,
    "Cos": lambda x, at: x[0].cos(),
    "Div": lambda x, at: x[0] / x[1] if x[0].is_floating_point() else x[0].div(x[1], rounding_mode="trunc"),
    "Erf": lambda x, at: x[0].erf(),
    "Exp": lambda x, at: x[0].exp(),
    "Expand": lambda x, at: x[0].expand(torch().broadcast_shapes(x[0].shape, x[1].tolist())),
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "Identity": lambda x, at: x[0],
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "MatMul": lambda x, at: x[0] @ x[1],
    "Mul": lambda x, at: x[0] * x[1],
    "Neg": lambda x, at: -x[0],
    "Pow": lambda x, at: x[0].pow(x[1]),
    "Reciprocal": lambda x, at: x[0].reciprocal(),
    "ReduceMean": reduce_mean,
    "Relu": lambda x, at: x[0].relu(),
    "Reshape": reshape,
    "Resize": resize,
    "Shape": shape,
    "Sigmoid": lambda x, at: x[0].sigmoid(),
    "Sin": lambda x, at: x[0].sin(),
    "Slice": slices,
    "Softmax": lambda x, at: x[0].softmax(at.get("axis", -1)),
    "Split": split,
    "Sqrt": lambda x, at: x[0].sqrt(),
    "Squeeze": squeeze,
    "Sub": lambda x, at: x[0] - x[1],
    "Tanh": lambda x, at: x[0].tanh(),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}


def _padded(inputs: Inputs, count: int) -> list[Any]:
    """`inputs` with None for optional ones at the end that are left out."""
    return [*inputs, *[None] * (count - len(inputs))]


def _halves(pads: Sequence[int]) -> tuple[list[int], list[int]]:
    return list(pads[: len(pads) // 2]), list(pads[len(pads) // 2 :])


def _reversed_pairs(low: Sequence[int], high: Sequence[int]) -> list[int]:
    """ONNX pads by dimension as torch wants them: the last dimension first."""
    return [size for pair in reversed(list(zip(low, high, strict=True))) for size in pair]
