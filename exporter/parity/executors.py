"""The three runs that are compared, each by onnxruntime, none with more than a group of edges in memory.

    engine   the quantized graph after onnxruntime's optimizer: real integer kernels
    exact    the quantized graph with nothing optimized: what its nodes say, in floats
    float    the float graph

An output that is added before optimizing keeps operators from fusing and changes what is measured. So the engine's
graph is optimized once, kept in a temporary folder, and run from there as it is: edges that fusion left alive can be
looked at, under their own names or those of the kernels that make them; the others do not exist. Graphs are handed over
without their weights, which onnxruntime reads from disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.taps import WEIGHTS_FOLDER, tap_tensors
from quaver.exporter.parity.segments import Cut, carriers, layer_of
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Feeds = Mapping[str, np.ndarray]
SIGNED = "session.qdqisint8allowed"  # run signed activations as they are, slowly, where turning them unsigned fails
COUNT = "quaver.parity.count"
SERIAL = re.compile(r"_token_\d+$")  # that onnxruntime adds to the name of a node it replaces
# what an optimizer puts between an operator and the edge that it writes
LAYOUT = ("Transpose", "ReorderOutput", "Reshape", "Identity")


@dataclass(frozen=True)
class Executor:
    """A graph to run as it stands, the folder of its weights, and the edges whose values it has."""

    name: str
    model: onnx.ModelProto
    folder: Path
    edges: frozenset[str]
    options: tuple[tuple[str, str], ...] = ()


def executor(name: str, model: onnx.ModelProto, folder: Path, options: tuple[tuple[str, str], ...] = ()) -> Executor:
    """An executor of a graph whose weights may be left on disk."""
    edges = {edge for node in model.graph.node for edge in node.output if edge}
    return Executor(name, model, folder, frozenset(edges | {value.name for value in model.graph.input}), options)


@contextmanager
def open_engine(path: Path) -> Iterator[Executor]:
    """The engine of a quantized graph; its optimized form is removed when the block ends.

    Raises: EngineError with onnxruntime's words when it refuses the graph.
    """
    onnx = need("onnx", extra="export")
    with TemporaryDirectory(prefix="quaver-parity-") as kept:
        saved = Path(kept) / "engine.onnx"
        entries = {
            "session.optimized_model_external_initializers_file_name": "engine.onnx.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        options = _optimize(path, entries, saved)
        yield executor("engine", onnx.load(saved, load_external_data=False), Path(kept), options)


def run(chosen: Executor, edges: Collection[str], calls: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """The values of some edges, call by call. Raises: EngineError when onnxruntime fails."""
    wanted = [edge for edge in edges if edge not in calls[0]]
    with _restored(chosen.model) as model:
        tap_tensors(model, wanted)
        return [{**feeds, **found} for feeds, found in zip(calls, _answers(chosen, wanted, calls), strict=True)]


def sizes(chosen: Executor, edges: Sequence[str], feeds: Feeds) -> dict[str, int]:
    """How many elements each edge has in one call."""
    onnx = need("onnx", extra="export")
    names = [f"{COUNT}.{index}" for index in range(len(edges))]
    with _restored(chosen.model) as model:
        for edge, name in zip(edges, names, strict=True):
            model.graph.node.append(onnx.helper.make_node("Size", [edge], [name]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []))
        (found,) = _answers(chosen, names, [feeds])
    return {edge: int(found[name]) for edge, name in zip(edges, names, strict=True)}


def made_by(engine: Executor) -> dict[str, str]:
    """The operator that computes each edge of an engine, seen through what only moves its values."""
    maker = {edge: node for node in engine.model.graph.node for edge in node.output}

    def find(edge: str) -> str:
        node = maker[edge]
        while node.op_type in LAYOUT and node.input[0] in maker:
            node = maker[node.input[0]]
        return str(node.op_type)

    return {edge: find(edge) for edge in maker}


def engine_names(whole: Cut, engine: Executor) -> dict[str, str]:
    """Edges of a quantized graph whose values an engine has -> its edge; another type or layout is possible (`align`).

    Most keep their names. Where the optimizer has turned a layout around, the kernel still bears the name of the node
    that it came from, and its result a new one.
    """
    old = {edge for node in whole.nodes.values() for edge in node.outputs}
    named = Counter(node.name for node in engine.model.graph.node)
    made = {
        SERIAL.sub("", node.name): node.output[0]
        for node in engine.model.graph.node
        if node.name and named[node.name] == 1 and node.output[0] not in old
    }
    found: dict[str, str] = {}
    for edge in whole.edges:
        same = [name for name in carriers(whole, edge) if name in engine.edges]
        maker = layer_of(whole, edge)
        found |= {name: name for name in same} if same else {edge: made[maker.node]} if maker.node in made else {}
    return found


def align(found: np.ndarray, exact: np.ndarray) -> np.ndarray | None:
    """An engine's values in the layout of the exact graph's, channels second; None when they are something else."""
    turned = [found, np.moveaxis(found, -1, 1)] if found.ndim > 2 else [found]
    fitting = [x for x in turned if x.shape == exact.shape and x.dtype == exact.dtype]
    if len(fitting) < 2:
        return next(iter(fitting), None)
    return min(fitting, key=lambda x: float(np.abs(np.subtract(x, exact, dtype=np.float32)).mean()))


def _optimize(path: Path, entries: Mapping[str, str], saved: Path) -> tuple[tuple[str, str], ...]:
    """Write the optimized form of a graph; returns the options that onnxruntime needed to take it."""
    try:
        _open(str(path), entries, saved=saved)
        return ()
    except Exception:  # onnxruntime raises a dozen classes of its own
        signed = {SIGNED: "1"}
    try:
        _open(str(path), {**entries, **signed}, saved=saved)
        return tuple(signed.items())
    except Exception as error:
        raise EngineError(f"onnxruntime refuses {path} ({_first_line(error)}): run 'quaver export' again") from error


@contextmanager
def _restored(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """A model to add nodes and outputs to, which leave it when the block ends; a copy would double its weights."""
    nodes, outputs = len(model.graph.node), len(model.graph.output)
    try:
        yield model
    finally:
        del model.graph.node[nodes:], model.graph.output[outputs:]


def _answers(chosen: Executor, wanted: Sequence[str], calls: Sequence[Feeds]) -> Iterator[dict[str, np.ndarray]]:
    """The `wanted` outputs of an executor's model as it stands now, call by call."""
    try:
        session = _open(chosen.model.SerializeToString(), {WEIGHTS_FOLDER: str(chosen.folder), **dict(chosen.options)})
        for feeds in calls:
            yield dict(zip(wanted, session.run(list(wanted), dict(feeds)), strict=True)) if wanted else {}
    except Exception as error:  # onnxruntime raises a dozen classes of its own
        raise EngineError(f"the {chosen.name} graph does not run ({_first_line(error)}): do the inputs fit?") from error


def _open(model: str | bytes, entries: Mapping[str, str], *, saved: Path | None = None) -> Any:
    """A session: optimized and `saved`, or run as it stands."""
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if saved is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(saved)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
