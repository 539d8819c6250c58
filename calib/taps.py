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

from quaver.calib.graph import read_model
from quaver.calib.moments import Moments
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

# Where a model that comes as bytes finds its external weights (onnxruntime, session configuration keys).
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
SUMMARY, COUNT, ENDS = "quaver.tap.summary", "quaver.tap.count", "quaver.tap.ends"
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # feeds by name -> outputs by name


def tap_summaries(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Add to `model` the outputs COUNT int64 [E] and SUMMARY [4 E]: mean, m2, min and max of each edge."""
    onnx = need("onnx", extra="calib")
    _tap_each(model, edges, _count_nodes, _summary_nodes)
    parts = [_names(index)[key] for index in range(len(edges)) for key in ("mean", "m2", "min", "max")]
    _add_output(model, SUMMARY, onnx.TensorProto.FLOAT, parts)
    _add_output(model, COUNT, onnx.TensorProto.INT64, [_names(index)["count"] for index in range(len(edges))])


def tap_samples(model: onnx.ModelProto, edges: Sequence[str], most: int) -> None:
    """Add to `model` the outputs ENDS [3 E], mean, min and max of each edge, and `sample_name` of each edge's index.

    A sample is every k-th value of an edge of n, k = ceil(n / most) or one more: at most `most` evenly spaced ones. k
    is odd, so that it meets every row and column of a power of two.
    """
    onnx = need("onnx", extra="calib")
    for name, value in {"zero": 0, "one": 1, "two": 2, "twice": 2 * most, "less": most - 1, "end": 1 << 62}.items():
        _add_constant(model, f"quaver.tap.{name}", np.array([value], np.int64))
    _tap_each(model, edges, _count_nodes, _sample_nodes)
    for index in range(len(edges)):
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(sample_name(index), onnx.TensorProto.FLOAT, [sample_name(index)])
        )
    parts = [_names(index)[key] for index in range(len(edges)) for key in ("mean", "min", "max")]
    _add_output(model, ENDS, onnx.TensorProto.FLOAT, parts)


def tap_tensors(model: onnx.ModelProto, edges: Sequence[str]) -> None:
    """Make the tensors of `edges` outputs of `model`."""
    onnx = need("onnx", extra="calib")
    _require_edges(model, edges)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=edge) for edge in edges if edge not in present)


def sample_name(index: int) -> str:
    """The output with values of the edge of an index."""
    return f"quaver.tap.{index}.sample"


def read_summaries(outputs: Mapping[str, np.ndarray]) -> Moments:
    """The moments [E] of one call of a model with `tap_summaries`."""
    mean, m2, low, high = outputs[SUMMARY].astype(np.float64).reshape(-1, 4).T
    return Moments(outputs[COUNT].astype(np.float64), mean, m2, low, high)


@contextmanager
def open_tapped(
    path: Path, tap: Callable[[Any], None], *, outputs: Sequence[str] = (), threads: int | None = None
) -> Iterator[Run]:
    """Run the model at `path` in onnxruntime after `tap` has changed it; `outputs` are those wanted (all when empty).

    Only the graph is rewritten, in memory: weights stay on disk, mapped from the file itself, and nothing is written.
    Raises: ArtifactError when the file is missing, EngineError when onnxruntime refuses the graph.
    """
    ort = need("onnxruntime", extra="calib")
    model = read_model(path)
    tap(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # else taps come last, and every edge waits for its own
    options.enable_mem_pattern = False  # a second run would plan for one large piece, beside what the first holds
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent.resolve()))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen classes of its own
        raise EngineError(f"onnxruntime refuses {path.name} with taps ({error}): trace the model anew") from error
    names = list(outputs) or [output.name for output in session.get_outputs()]
    yield lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _tap_each(model: onnx.ModelProto, edges: Sequence[str], *parts: Callable[..., list[Any]]) -> None:
    """Add the nodes of `parts` for every edge, right behind the node that makes it."""
    make_node = need("onnx", extra="calib").helper.make_node
    _require_edges(model, edges)
    _add_constant(model, "quaver.tap.flat", np.array([-1], np.int64))
    taps = {e: [n for part in parts for n in part(make_node, e, _names(index))] for index, e in enumerate(edges)}
    nodes = [tap for value in model.graph.input for tap in taps.get(value.name, ())]
    for node in model.graph.node:
        nodes += [node, *(tap for edge in node.output for tap in taps.get(edge, ()))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _count_nodes(node: Callable[..., Any], edge: str, names: Mapping[str, str]) -> list[Any]:
    return [
        node("Reshape", [edge, "quaver.tap.flat"], [names["flat"]]),
        node("Shape", [names["flat"]], [names["count"]]),
    ]


def _sample_nodes(node: Callable[..., Any], edge: str, names: Mapping[str, str]) -> list[Any]:
    """k = 2 floor((n + most - 1) / (2 most)) + 1, which is ceil(n / most) made odd."""
    along = ("quaver.tap.zero", "quaver.tap.end", "quaver.tap.zero")
    return [
        node("Add", [names["count"], "quaver.tap.less"], [names["more"]]),
        node("Div", [names["more"], "quaver.tap.twice"], [names["half"]]),
        node("Mul", [names["half"], "quaver.tap.two"], [names["even"]]),
        node("Add", [names["even"], "quaver.tap.one"], [names["odd"]]),
        node("Slice", [names["flat"], *along, names["odd"]], [names["sample"]]),
        node("ReduceMean", [names["flat"]], [names["mean"]], keepdims=1),
        node("ReduceMin", [names["flat"]], [names["min"]], keepdims=1),
        node("ReduceMax", [names["flat"]], [names["max"]], keepdims=1),
    ]


def _summary_nodes(node: Callable[..., Any], edge: str, names: Mapping[str, str]) -> list[Any]:
    return [
        node("ReduceMean", [names["flat"]], [names["mean"]], keepdims=1),
        node("Sub", [names["flat"], names["mean"]], [names["centred"]]),
        node("ReduceSumSquare", [names["centred"]], [names["m2"]], keepdims=1),
        node("ReduceMin", [names["flat"]], [names["min"]], keepdims=1),
        node("ReduceMax", [names["flat"]], [names["max"]], keepdims=1),
    ]


def _names(index: int) -> dict[str, str]:
    keys = ("flat", "count", "mean", "centred", "m2", "min", "max", "more", "half", "even", "odd", "sample")
    return {key: f"quaver.tap.{index}.{key}" for key in keys}


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
