"""Somebody else's ONNX file, read with suspicion: whole, standard, float, and with no reference out of its folder.

The graph comes with references to where its weights lie, and they are read one by one (`read_values`). A file may be a
link, as in the caches of model hubs; its folder is then that of the file itself, `path.resolve().parent`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.lazy import need
from quaver.runtime.modelproto import read_weightless

if TYPE_CHECKING:
    import onnx

OLDEST = 13
STANDARD = ("", "ai.onnx")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def open_file(path: Path) -> onnx.ModelProto:
    """The float model of a file, as `open_graph` reads it.

    Raises: RecipeError as `open_graph`, and when it is too old, quantized, or made of operators that only one runtime
    has.
    """
    require_file(path, "an .onnx file as model.source, relative to where quaver runs")
    model = open_graph(path)
    opset = next((o.version for o in model.opset_import if o.domain in STANDARD), 0)
    if opset < OLDEST:
        raise RecipeError(f"{path} has opset {opset}, expected {OLDEST} or later: export it with opset_version=21")
    check_operators(model, path)
    return model


def open_graph(path: Path) -> onnx.ModelProto:
    """The model of anybody's file, its functions inlined, its large weights left where they are and found to be there.

    Raises: RecipeError naming the file and what to do when it is missing, truncated or no ONNX, or when its weights are
    not all in its own folder.
    """
    model = _parsed(path)
    if not model.graph.node:
        raise RecipeError(f"{path} holds no ONNX graph: export the model again")
    check_references(model, path)
    return need("onnx", extra="export").inliner.inline_local_functions(model) if len(model.functions) else model


def require_file(path: Path, wanted: str = "an .onnx file") -> None:
    """Raises: RecipeError when there is nothing at a path, or a folder."""
    if not path.is_file():
        raise RecipeError(f"{path} {'is not a file' if path.exists() else 'does not exist'}: name {wanted}")


def check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Raises: RecipeError for operators outside the ONNX standard, or a graph that is quantized already."""
    nodes = list(_nodes(model.graph))
    if foreign := Counter(f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in STANDARD):
        raise RecipeError(
            f"{path} has operators that are no standard ONNX ({', '.join(sorted(foreign)[:4])}): export it without a "
            "runtime's own optimisation"
        )
    if coded := sum(n.op_type in QUANTIZED for n in nodes):
        raise RecipeError(f"{path} is quantized already ({coded} such nodes): name the float file it was made from")
    if len(model.graph.sparse_initializer):
        raise RecipeError(f"{path} has sparse weights, which are not read: export them dense")


def check_references(model: onnx.ModelProto, path: Path) -> None:
    """Hold every reference to a weight against the files beside the one that `path` names.

    Raises: RecipeError naming the weight whose file is missing, too short, or outside the folder of `path`.
    """
    for tensor in tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL or len(tensor.external_data):
            _check_reference(tensor, path.resolve())


def referenced_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights. Raises: as `open_graph`, before any of them is opened."""
    model, path = _parsed(path), path.resolve()
    check_references(model, path)
    places = {entry.value for t in tensors(model.graph) for entry in t.external_data if entry.key == "location"}
    return [path.parent / place for place in sorted(places - {path.name})]


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those in attributes and in graphs below it too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)
            for below in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from tensors(below)


def read_values(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The numbers of a constant, which may lie in a file of `folder`: onnx itself refuses one that has two names.

    Raises: ArtifactError when they are not there.
    """
    onnx = need("onnx", extra="export")
    said = {entry.key: entry.value for entry in tensor.external_data}
    try:
        if said:
            with (folder / said["location"]).open("rb") as file:
                file.seek(int(said.get("offset", 0)))
                raw = file.read(nbytes(tensor))
            tensor = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the weight {tensor.name} cannot be read ({error}): put its data file back") from error


def _parsed(path: Path) -> onnx.ModelProto:
    require_file(path)
    try:
        return need("onnx", extra="export").ModelProto.FromString(read_weightless(path.resolve()))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except Exception as error:  # protobuf raises a class of its own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RecipeError(f"{path} is no ONNX file, or a truncated one ({line}): copy or export it again") from error


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for below in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(below)


def _check_reference(tensor: onnx.TensorProto, path: Path) -> None:
    said = {entry.key: entry.value for entry in tensor.external_data}
    place, folder = said.get("location", ""), path.parent
    file = (folder / place).resolve()
    if not place or Path(place).is_absolute() or not file.is_relative_to(folder):
        raise RecipeError(
            f"{path}: the weight {tensor.name!r} refers to {place!r}, outside the model's own folder: that is not "
            "opened; put the weights beside the graph and export it again"
        )
    if not file.is_file():
        raise RecipeError(f"{path}: the file {place!r} with the weight {tensor.name!r} is missing: copy it beside it")
    start, size = _number(said, "offset", 0), nbytes(tensor)
    length = _number(said, "length", size)
    if length != size or start < 0 or start + length > file.stat().st_size:
        raise RecipeError(
            f"{path}: the weight {tensor.name!r} is said to be {length} bytes at {start} of {place!r} (its shape needs "
            f"{size}, the file has {file.stat().st_size}): the file is truncated or another model's, copy it again"
        )


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values; those of 2 and 4 bits share bytes."""
    onnx = need("onnx", extra="export")
    kind, dtype = (
        onnx.TensorProto.DataType.Name(tensor.data_type),
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type),
    )
    bits = 4 if kind.endswith(("INT4", "E2M1")) else 2 if kind.endswith("INT2") else 8 * dtype.itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def _number(said: dict[str, str], key: str, default: int) -> int:
    """An offset or length; -1, which fits nothing, for what is no number."""
    text = said.get(key, str(default))
    return int(text) if text.isdecimal() else -1
