"""Parity: where an engine leaves the graph it was made from, and where that graph leaves the float network.

    engine   E[e] against X[e]       onnxruntime's integer kernels, against what the nodes of the graph say
             E[e] against T(E)[e]    the same, against the segment of e in torch, fed with the engine's own values
    exact    X[e] against T(X)[e]    onnxruntime with nothing optimized against torch: two readings of one graph
    cost     X[e] against F[e]       what the nodes say, against the float graph
             T(F)[e] against F[e]    the same, the segment fed with float values: what this layer alone costs

The first of each pair is what has piled up by e, the second is local. Only local differences say whose fault something
is (`difference`): the first edge in topological order where rounding does not explain one is the bad one. Weights are
held against the float graph's as well, and dequantizers against their quantizers (`verdict`).

Edges are looked at in groups of at most `memory` MiB over all calls and runs; of a group, sums are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.exporter.model.onnxfile import open_graph
from quaver.exporter.parity.executors import (
    Executor,
    Feeds,
    align,
    engine_names,
    executor,
    made_by,
    open_engine,
    run,
    sizes,
)
from quaver.exporter.parity.rows import Row, compare_edge
from quaver.exporter.parity.segments import Cut, carriers, cut, raw, segment, twins
from quaver.exporter.parity.weights import WeightError, compare_weights
from quaver.runtime.errors import EngineError
from quaver.runtime.progress import Progress

BYTES = 8  # of an element while it is compared


@dataclass(frozen=True)
class Report:
    """The graph, its edges in topological order, its coded weights.

    kernels: how often the engine runs each operator. signed: onnxruntime took the graph only with signed activations
    allowed. calls: inputs it was fed.
    """

    whole: Cut
    rows: list[Row]
    weights: list[WeightError]
    kernels: Mapping[str, int]
    signed: bool
    calls: int


@dataclass(frozen=True)
class Runs:
    """The executors by name, and of each: edges of the quantized graph that it can give to a segment -> its own names.

    twin: edges -> edges of the float graph to compare with. kernels: edges of the engine -> what computes them.
    """

    whole: Cut
    executors: Mapping[str, Executor]
    names: Mapping[str, dict[str, str]]
    twin: dict[str, str]
    kernels: Mapping[str, str]


def measure(
    quantized: Path,
    floats: Path | None,
    calls: Sequence[Feeds],
    *,
    engine: bool = True,
    memory: float = 512,
    progress: Progress,
) -> Report:
    """Run and compare a quantized graph, and a float one if there is one, on the inputs of `calls`.

    Without `engine` the exact graph stands alone: its target is not onnxruntime.
    Raises: RecipeError for files that cannot be read, EngineError when a graph does not run.
    """
    quantized, floats = quantized.resolve(), floats and floats.resolve()  # onnxruntime looks for weights beside these
    whole = cut(open_graph(quantized), quantized.parent)
    reference = None if floats is None else executor("float", open_graph(floats), floats.parent)
    if not whole.edges:
        raise EngineError(f"{quantized} computes nothing from its inputs: name a quantized denoiser")
    opened = open_engine(quantized) if engine else nullcontext()
    with opened as kernels, progress.bar(len(whole.edges), "parity") as bar:
        runs = _runs(whole, kernels, reference)
        count = sizes(runs.executors["exact"], list(whole.edges), calls[0])
        held = {edge: n * BYTES * len(calls) * len(runs.executors) for edge, n in count.items()}
        rows: list[Row] = []
        for group in groups(runs, held, memory * 2**20):
            rows += _look(runs, group, calls)
            bar.step(len(group))
    weights = [] if reference is None else compare_weights(whole, reference.model, reference.folder)
    used = Counter(node.op_type for node in kernels.model.graph.node) if kernels else {}
    return Report(whole, rows, weights, used, bool(kernels and kernels.options), len(calls))


def groups(runs: Runs, size: Mapping[str, int], limit: float) -> Iterator[list[str]]:
    """Consecutive edges whose bytes, with those of the edges that their segments read, stay within `limit`."""
    group: list[str] = []
    held: set[str] = set()
    for edge in runs.whole.edges:
        needs = {edge}.union(*(segment(runs.whole, edge, known)[1] for known in runs.names.values()))
        if group and sum(size.get(name, 0) for name in held | needs) > limit:
            yield group
            group, held = [], set()
        group.append(edge)
        held |= needs
    if group:
        yield group


def _runs(whole: Cut, engine: Executor | None, reference: Executor | None) -> Runs:
    executors = {"exact": executor("exact", whole.model, whole.folder)}
    everywhere = {carrier: carrier for edge in whole.edges for carrier in carriers(whole, edge)}
    names, twin = {"exact": everywhere}, {}
    if engine is not None:
        executors["engine"], names["engine"] = engine, engine_names(whole, engine)
    if reference is not None:
        executors["float"], twin = reference, twins(whole, reference.edges)
        coded = {raw(whole, edge) for edge in whole.edges}
        names["float"] = {edge: edge for edge in {*everywhere, *coded} if edge in reference.edges}
    inputs = {value.name: value.name for value in whole.model.graph.input}
    known = {name: {**inputs, **edges} for name, edges in names.items()}
    return Runs(whole, executors, known, twin, made_by(engine) if engine else {})


def _look(runs: Runs, group: Sequence[str], calls: Sequence[Feeds]) -> list[Row]:
    """The rows of a group; one graph is open at a time."""
    parts = {name: {edge: segment(runs.whole, edge, known) for edge in group} for name, known in runs.names.items()}
    source = {edge: {name: _source(runs, name, edge) for name in runs.names} for edge in group}
    here = {
        name: {source[edge][name] for edge in group} - {""}
        | {edge for _, read in parts[name].values() for edge in read}
        for name in runs.names
    }
    here["exact"] |= {edge for name in here for edge in here[name] if edge in runs.executors["exact"].edges}
    values = {name: _values(runs, name, edges, calls) for name, edges in here.items()}
    for name in values.keys() - {"exact"}:
        values[name] = [
            {edge: there for edge, found in call.items() if (there := _fit(name, found, exact.get(edge))) is not None}
            for call, exact in zip(values[name], values["exact"], strict=True)
        ]
    if lost := {(name, edge) for name in here for edge in here[name] - values[name][0].keys()}:
        for name, edge in lost:  # names that the optimizer, or the float graph, uses for something else
            runs.names[name].pop(edge, None)
            for key in [key for key, twin in runs.twin.items() if name == "float" and twin == edge]:
                del runs.twin[key]
        return _look(runs, group, calls)
    return [
        compare_edge(
            runs.whole,
            edge,
            values,
            source[edge],
            {name: parts[name][edge] for name in parts},
            runs.kernels.get(runs.names.get("engine", {}).get(source[edge].get("engine", ""), ""), ""),
        )
        for edge in group
    ]


def _fit(name: str, found: np.ndarray, exact: np.ndarray | None) -> np.ndarray | None:
    """A run's values as the exact graph's are laid out and typed, None when they are something else."""
    if exact is None:
        return found
    if name == "engine":
        return align(found, exact)
    return found.astype(exact.dtype, copy=False) if found.shape == exact.shape else None


def _values(runs: Runs, name: str, edges: set[str], calls: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """What a run has on some edges, call by call."""
    wanted = {edge: runs.names[name].get(edge, edge) for edge in edges}
    answers = run(runs.executors[name], sorted(set(wanted.values())), calls)
    return [{edge: call[at] for edge, at in wanted.items()} for call in answers]


def _source(runs: Runs, name: str, edge: str) -> str:
    """The edge that a run has in place of `edge`, "" when it has none."""
    if name == "float":
        return runs.twin.get(edge, "")
    return next((carrier for carrier in carriers(runs.whole, edge) if carrier in runs.names[name]), "")
