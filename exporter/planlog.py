"""What TensorRT's build log says about a plan: every compiled layer, its kernel class and data types.

With detailed verbosity the builder prints one line per compiled layer,

    Name: .., LayerType: gemm, Inputs: [ { .., Datatype: Int8, .. } ], Constants: [ .. ], Outputs: [ .. ], ..
    Metadata: [ONNX Layer: <node>][ONNX Layer: <node>]..

so which kernel runs a layer of the model is known without a GPU. A layer counts as compiled to INT8 when a kernel that
multiplies (not one that only moves or scales) names its node and takes an 8-bit activation and an integer weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# kernels that move, scale or convert; everything else multiplies
MOVERS = frozenset({"kgen", "reshape", "cast", "signal", "wait", "shape_call", "memcpy", "move", "transpose", "myelin"})
ACTIVATIONS = frozenset({"Int8", "FP8"})
WEIGHTS = frozenset({"Int8", "Int4", "FP8"})
_KIND = re.compile(r"Name: (.*?), LayerType: (\w+)")
_TYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Compiled:
    """One layer of a plan: its name, kernel class, data types, and the ONNX nodes it runs."""

    name: str
    kernel: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def integer(self) -> bool:
        """Whether it multiplies coded activations by coded weights (held, or unpacked from 4 bits by a mover)."""
        weights = (*self.inputs[1:], *self.constants)
        typed = bool(ACTIVATIONS.intersection(self.inputs[:1])) and bool(WEIGHTS.intersection(weights))
        return self.kernel not in MOVERS and typed


def compiled_layers(lines: Iterable[str]) -> Iterator[Compiled]:
    """The layers in a build log, line by line."""
    for line in lines:
        found = _KIND.search(line)
        if found and "Inputs: [" in line and "Metadata:" in line:
            _, rest = line.split("Inputs: [", 1)
            inputs, rest = rest.split("Constants: [", 1) if "Constants: [" in rest else ("", rest)
            constants, rest = rest.split("Outputs: [", 1)
            outputs, metadata = rest.rsplit("Metadata:", 1)
            read, held, made = (tuple(_TYPE.findall(part)) for part in (inputs, constants, outputs))
            yield Compiled(found[1], found[2], read, held, made, tuple(_NODE.findall(metadata)))


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
        "missed": [{"layer": layer["name"], "kernels": _kernels(plan, layer["node"])} for layer in missed],
    }


def _kernels(plan: Sequence[Compiled], node: str) -> list[str]:
    """How the kernels that name a node read their data: "gemm Float x Float"."""
    return [f"{c.kernel} {' x '.join([*c.inputs[:1], *c.constants[:1]])}".strip() for c in plan if node in c.nodes]
