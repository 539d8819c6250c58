"""A graph under construction: constants at their real width, new nodes before a node or behind an edge.

4-bit codes are stored two to a byte. Scales take the type of the floats they make: float16 in a float16 part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from quaver.calib.graph import MODULE_KEY
from quaver.calib.quant import Format, pack_int4
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Nodes = list["onnx.NodeProto"]
Read = Callable[["onnx.TensorProto"], np.ndarray]  # the values of a constant, wherever they lie
Keep = Callable[["onnx.TensorProto"], "onnx.TensorProto"]  # a new constant, its values put wherever they shall lie


@dataclass
class Draft:
    """Constants by name; new nodes before a node (by name) or behind an edge; coded: what was coded -> its edge."""

    constants: dict[str, onnx.TensorProto]
    read: Read
    keep: Keep
    before: dict[str, Nodes] = field(default_factory=lambda: defaultdict(list))
    behind: dict[str, Nodes] = field(default_factory=lambda: defaultdict(list))
    coded: dict[tuple[str, str, bool], str] = field(default_factory=dict)  # (edge, format, in float16) -> its twin


def constant(draft: Draft, name: str, value: np.ndarray, fmt: Format | None = None) -> str:
    """An initializer, at the width of `fmt` when that is not numpy's; returns its name."""
    onnx = need("onnx", extra="export")
    if fmt is not None and fmt.bits == 4:
        raw = pack_int4(value).tobytes()
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, value.shape, raw, raw=True)
    else:
        if fmt is not None and fmt.kind == "float8":
            value = value.astype(need("ml_dtypes", extra="export").float8_e4m3fn)
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
    draft.constants[name] = draft.keep(tensor)
    return name


def real(draft: Draft, name: str, value: ArrayLike, *, half: bool) -> str:
    """A float constant in float32 or float16."""
    return constant(draft, name, np.asarray(value, np.float16 if half else np.float32))


def zero_point(draft: Draft, name: str, zero: np.ndarray, fmt: Format) -> str:
    """A zero-point constant; equal ones are stored once."""
    if not zero.any():
        name = f"zero.{fmt.name}.{'x'.join(map(str, zero.shape))}"
    return constant(draft, name, zero.astype(fmt.dtype), fmt)


def node(op: str, inputs: Sequence[str], output: str, module: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output, with the module it serves."""
    made = need("onnx", extra="export").helper.make_node(op, inputs, [output], output, **attributes)
    if module:
        made.metadata_props.add(key=MODULE_KEY, value=module)
    return made


def dequantize(
    draft: Draft, codes: str, scale: np.ndarray, fmt: Format, result: str, module: str, *, half: bool, **attributes: int
) -> onnx.NodeProto:
    """DequantizeLinear of symmetric codes with a scale [], [C] or per block."""
    names = [real(draft, f"{result}.scale", scale, half=half)]
    if "block_size" not in attributes:  # where it may be left out, it takes no space
        names.append(zero_point(draft, f"{result}.zero", np.zeros(np.shape(scale), np.int32), fmt))
    return node("DequantizeLinear", [codes, *names], result, module, **attributes)


def assemble(model: onnx.ModelProto, draft: Draft) -> None:
    """Put the new nodes where they belong; the order stays topological."""
    nodes: Nodes = [new for value in model.graph.input for new in _behind(draft, value.name)]
    for old in model.graph.node:
        nodes += [*draft.before[old.name], old, *(new for edge in old.output for new in _behind(draft, edge))]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(draft.constants.values())


def _behind(draft: Draft, edge: str) -> Nodes:
    """What follows an edge: its new nodes, and what follows those."""
    found: Nodes = []
    for new in draft.behind[edge]:
        found += [new, *(after for made in new.output for after in _behind(draft, made))]
    return found
