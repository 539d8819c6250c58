"""Looking inside a float ONNX denoiser while it runs in onnxruntime.

A tap is an edge whose tensor, or whose summary, becomes an output of the graph. Summaries are computed in the graph,

    n,  mean = sum x / n,  m2 = sum (x - mean)^2,  min x,  max x         over all elements of the edge in one call,

so what leaves a call is five numbers per edge, whatever the size of the activations. m2 is centred in the graph: in
float32 the difference of sums of squares would lose the variance of edges with a large mean. Calls are merged in
float64 (`moments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.moments import Moments
from quaver.runtime.errors import ArtifactError, EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

# Where a model that comes as bytes finds its external weights (onnxruntime, session configuration keys).
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
SUMMARY, COUNT = "quaver.tap.summary", "quaver.tap.count"
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # feeds by name -> outputs by name


def tap_counts(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Add to `model` the output COUNT int64 [E]: how many elements each edge has in a call."""
    onnx = need("onnx", extra="calib")
    _require_edges(model, edges)
    _add_constant(model, "quaver.tap.flat", np.array([-1], np.int64))
    for index, edge in enumerate(edges):
        model.graph.node.extend(_count_nodes(onnx.helper.make_node, edge, _names(index)))
    _add_output(model, COUNT, onnx.TensorProto.INT64, [_names(index)["count"] for index in range(len(edges))])


def tap_summaries(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Add to `model` the outputs COUNT int64 [E] and SUMMARY [4 E]: mean, m2, min and max of each edge."""
    onnx = need("onnx", extra="calib")
    tap_counts(model, edges)
    for index in range(len(edges)):
        model.graph.node.extend(_summary_nodes(onnx.helper.make_node, _names(index)))
    parts = [_names(index)[key] for index in range(len(edges)) for key in ("mean", "m2", "min", "max")]
    _add_output(model, SUMMARY, onnx.TensorProto.FLOAT, parts)


def tap_tensors(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Make the tensors of `edges` outputs of `model`."""
    onnx = need("onnx", extra="calib")
    _require_edges(model, edges)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=edge) for edge in edges if edge not in present)


def read_summaries(outputs: Mapping[str, np.ndarray]) -> Moments:
    """The moments [E] of one call of a model with `tap_summaries`."""
    mean, m2, low, high = outputs[SUMMARY].astype(np.float64).reshape(-1, 4).T
    return Moments(outputs[COUNT].astype(np.float64), mean, m2, low, high)


@contextmanager
def open_tapped(
    path: Path, tap: Callable[[Any], None], *, outputs: Sequence[str] = (), threads: int | None = None
) -> Iterator[Run]:
    """Run the model at `path` in onnxruntime after `tap` has changed it; `outputs` are those wanted (all when empty).

    Only the graph is rewritten, in memory: external weights stay on disk, and nothing is written.
    Raises: ArtifactError when the file is missing, EngineError when onnxruntime refuses the graph.
    """
    onnx, ort = need("onnx", extra="calib"), need("onnxruntime", extra="calib")
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: 'quaver run RECIPE' writes it")
    model = onnx.load(path, load_external_data=False)
    tap(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent.resolve()))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen classes of its own
        raise EngineError(f"onnxruntime refuses {path.name} with taps ({error}): trace the model anew") from error
    del model  # weights that lie in the file are in the session now
    names = list(outputs) or [output.name for output in session.get_outputs()]
    yield lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _count_nodes(node: Callable[..., Any], edge: str, names: Mapping[str, str]) -> list[Any]:
    return [
        node("Reshape", [edge, "quaver.tap.flat"], [names["flat"]]),
        node("Shape", [names["flat"]], [names["count"]]),
    ]


def _summary_nodes(node: Callable[..., Any], names: Mapping[str, str]) -> list[Any]:
    return [
        node("ReduceMean", [names["flat"]], [names["mean"]], keepdims=1),
        node("Sub", [names["flat"], names["mean"]], [names["centred"]]),
        node("ReduceSumSquare", [names["centred"]], [names["m2"]], keepdims=1),
        node("ReduceMin", [names["flat"]], [names["min"]], keepdims=1),
        node("ReduceMax", [names["flat"]], [names["max"]], keepdims=1),
    ]


def _names(index: int) -> dict[str, str]:
    return {key: f"quaver.tap.{index}.{key}" for key in ("flat", "count", "mean", "centred", "m2", "min", "max")}


def _add_output(model: onnx.ModelProto, name: str, kind: int, parts: Sequence[str]) -> None:
    """Make the tensors [1] named in `parts`, end to end, an output of `model`."""
    helper = need("onnx", extra="calib").helper
    model.graph.node.append(helper.make_node("Concat", parts, [name], axis=0))
    model.graph.output.append(helper.make_tensor_value_info(name, kind, [len(parts)]))


def _add_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    model.graph.initializer.append(need("onnx", extra="calib").numpy_helper.from_array(value, name))


def _require_edges(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Raises: EngineError when the graph has no such edge."""
    known = {value.name for value in model.graph.input} | {out for node in model.graph.node for out in node.output}
    if missing := [edge for edge in edges if edge not in known]:
        raise EngineError(f"the graph has no edge {missing[0]!r} ({len(missing)} missing): it was traced anew since")
