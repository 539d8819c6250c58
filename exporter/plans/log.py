"""What TensorRT's build log says about a plan: every compiled layer, its kernel class and data types.

With detailed verbosity the builder prints one line per compiled layer,

    Name: .., LayerType: gemm, Inputs: [ { Name: .., Datatype: Int8, .. } ], Constants: [ .. ], Outputs: [ .. ], ..
    Metadata: [ONNX Layer: <node>][ONNX Layer: <node>]..

(TensorRT-RTX; TensorRT writes "Format/Datatype: Thirty-two wide .. Int8 format" and Weights: {"Type": "Int8", ..} for
its own convolutions), so which kernel runs a layer of the model is known without a GPU. A layer counts as compiled to
INT8 when a kernel that multiplies (not one that only moves or scales) names its node and takes an 8-bit activation and
an integer weight.

The log speaks once for a plan, however many compute capabilities it is for: they share one compiled graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# kernels that move, scale or convert, of TensorRT-RTX and of TensorRT; everything else multiplies
MOVERS = frozenset(
    {"kgen", "reshape", "cast", "signal", "wait", "shape_call", "memcpy", "move", "transpose", "myelin"}
    | {"runtime_function"}
) | frozenset(
    {"Reformat", "Shuffle", "NoOp", "Constant", "Scale", "PointWise", "PointWiseV2", "Reduce", "SoftMax", "SoftMaxV2"}
    | {"Slice", "Gather", "Concatenation", "Resize", "Cast", "Signal", "Wait", "ShapeHostToDevice", "DeviceToShapeHost"}
)
ACTIVATIONS = frozenset({"Int8", "FP8"})
WEIGHTS = frozenset({"Int8", "Int4", "FP8"})
FLOATS = frozenset({"Float", "Half", "BFloat16"})
_SPELLINGS = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT4": "Int4", "FP8E4M3": "FP8"}
_KIND = re.compile(r"Name: (.*?), LayerType: (\w+)")
_TENSOR = re.compile(r"\{ Name: (.*?), (?:Location: \w+, )?Dimensions: .*?Datatype: ([^,}]*)")
_HELD = re.compile(r'Weights: \{"Type": "(\w+)"')
_MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Compiled:
    """One layer of a plan: its name, kernel class, data types, the ONNX nodes it runs, the tensors it connects."""

    name: str
    kernel: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        """Whether it does more than move, scale or convert."""
        return self.kernel not in MOVERS

    @property
    def integer(self) -> bool:
        """Whether it multiplies coded activations by coded weights (held, or unpacked from 4 bits by a mover)."""
        weights = (*self.inputs[1:], *self.constants)
        typed = bool(ACTIVATIONS.intersection(self.inputs[:1])) and bool(WEIGHTS.intersection(weights))
        return self.multiplies and typed

    def __str__(self) -> str:
        """Kernel and what it multiplies: "gemm Int8 x Int8"."""
        return f"{self.kernel} {' x '.join([*self.inputs[:1], *(self.inputs[1:2] or self.constants[:1])])}".strip()


def compiled_layers(lines: Iterable[str]) -> Iterator[Compiled]:
    """The layers in a build log, line by line."""
    for line in lines:
        found = _KIND.search(line)
        if found and "Inputs: [" in line and "Metadata:" in line:
            yield _compiled(found[1], found[2], line.split("Inputs: [", 1)[1])


def kernel_coverage(plan: Sequence[Compiled], meant: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of the layers meant for integers ({name, node, macs}) that have such a kernel, and the others' kernels."""
    integer = {node for layer in plan if layer.integer for node in layer.nodes}
    missed = [layer for layer in meant if layer["node"] not in integer]
    macs = sum(layer["macs"] or 0 for layer in meant)
    return {
        "meant": len(meant),
        "integer": len(meant) - len(missed),
        "by_count": 1 - len(missed) / max(len(meant), 1),
        "by_macs": 1 - sum(layer["macs"] or 0 for layer in missed) / max(macs, 1),
        "missed": [
            {"layer": layer["name"], "kernels": [str(c) for c in plan if layer["node"] in c.nodes]} for layer in missed
        ],
    }


def memory(lines: Iterable[str]) -> dict[str, int]:
    """Bytes on the GPU that the log promises: {"weights", "activation"}, the latter at the largest shapes."""
    return {match[1].lower(): int(match[2]) for match in map(_MEMORY.search, lines) if match}


def _compiled(name: str, kernel: str, rest: str) -> Compiled:
    """One layer from what follows "Inputs: [" in its line."""
    rest, metadata = rest.rsplit("Metadata:", 1)
    rest, _, made = rest.partition("Outputs: [")
    made, _, options = made.partition("}]")
    read, _, held = rest.partition("Constants: [")
    inputs, constants, outputs = (_TENSOR.findall(part) for part in (read, held, f"{made}}}"))
    weights = _HELD.findall(options)
    return Compiled(
        name,
        kernel,
        tuple(_type(words) for _, words in inputs),
        tuple(_type(words) for words in [*(words for _, words in constants), *weights]),
        tuple(_type(words) for _, words in outputs),
        tuple(_NODE.findall(metadata)),
        tuple(name for name, _ in inputs),
        tuple(name for name, _ in outputs),
    )


def _type(words: str) -> str:
    """The data type in "Int8", "Row major linear FP32" or "Thirty-two wide .. row major Int8 format"."""
    known = (_SPELLINGS.get(word, word) for word in words.split())
    return next((word for word in known if word in FLOATS | WEIGHTS | ACTIVATIONS), words.strip())
