"""The differences of one edge, over all calls and runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from quaver.calib.reconstruct.replay import Node
from quaver.exporter.parity.difference import Difference, add, compare
from quaver.exporter.parity.segments import WEIGHTED, Cut, real, replay_segment, step

Part = tuple[Sequence[Node], set[str]]  # the nodes of a segment, and the known edges that they read
Values = Mapping[str, Sequence[Mapping[str, np.ndarray]]]  # run -> call -> edge -> array


@dataclass(frozen=True)
class Row:
    """An edge, the kernel that computed it, and its differences; None where a run does not have it.

    layers: what the engine computes since the edges that could be looked at before, by first output. coded, half: its
    values are codes, or of 16-bit floats. hidden: there are codes between. nans: elements that are NaN, by run.
    """

    edge: str
    kernel: str
    layers: tuple[str, ...]
    coded: bool
    half: bool
    hidden: bool
    engine: Difference | None
    engine_local: Difference | None
    exact_local: Difference | None
    total: Difference | None
    cost: Difference | None
    cost_local: Difference | None
    nans: Mapping[str, int]


def compare_edge(
    whole: Cut, edge: str, values: Values, source: Mapping[str, str], parts: Mapping[str, Part], kernel: str
) -> Row:
    """The row of an edge, from what the runs have on it (on their edge `source`) and on what its segments read."""
    sample = values["exact"][0][edge]
    seen: dict[str, list[np.ndarray]] = {}
    for name, at in source.items():
        if at in values[name][0] and values[name][0][at].shape == sample.shape:
            seen[name] = [real(whole, at, call[at]) if name != "float" else call[at] for call in values[name]]
    local = {
        name: [real(whole, edge, x) for x in replay_segment(whole, edge, nodes, _fed(values[name], read))]
        for name, (nodes, read) in parts.items()
        if name in seen
    }
    since, _ = parts.get("engine", parts["exact"])
    size = step(whole, edge, sample.ndim)
    return Row(
        edge,
        kernel,
        tuple(node.name for node in since if node.op in WEIGHTED),
        coded=edge in whole.grids,
        half=sample.dtype == np.float16 or (edge in whole.grids and whole.grids[edge].half),
        hidden=any(name in whole.grids and name != edge for node in since for name in node.outputs),
        engine=_total(seen.get("engine"), seen["exact"], size),
        engine_local=_total(seen.get("engine"), local.get("engine"), size),
        exact_local=_total(seen["exact"], local["exact"], size),
        total=_total(seen.get("engine"), seen.get("float"), size),
        cost=_total(seen["exact"], seen.get("float"), size),
        cost_local=_total(local.get("float"), seen.get("float"), size),
        nans={name: sum(int(np.isnan(x).sum()) for x in arrays) for name, arrays in seen.items()},
    )


def _fed(calls: Sequence[Mapping[str, np.ndarray]], read: set[str]) -> Iterable[dict[str, np.ndarray]]:
    return ({edge: call[edge] for edge in read} for call in calls)


def _total(
    found: Sequence[np.ndarray] | None, reference: Sequence[np.ndarray] | None, size: np.ndarray | None
) -> Difference | None:
    if found is None or reference is None:
        return None
    return reduce(add, (compare(a, b, size) for a, b in zip(found, reference, strict=True)))
