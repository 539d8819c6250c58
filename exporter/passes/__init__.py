"""Clean-ups of an ONNX graph: one file each, `run(model) -> bool` changes the model in place and says whether it did.

The order of TRACED matters: provenance is read before the exporter's metadata goes, names before layers are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaver.exporter.passes import group_norm, names, provenance, transpose_keys, unused

if TYPE_CHECKING:
    import onnx

TRACED = (provenance, transpose_keys, group_norm, unused, names)


def clean(model: onnx.ModelProto) -> list[str]:
    """Run the passes for a freshly traced graph; returns the names of those that changed it."""
    return [step.__name__.rpartition(".")[2] for step in TRACED if step.run(model)]
