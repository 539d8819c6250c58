"""A network run as far as it has been asked for, and no further.

What later nodes will still read of what was computed is kept, batch by batch, so that asking block after block runs
every node once. Where that takes more than `hold` bytes it is let go, and the next question starts at the inputs again:
slower, and the same values, since every node sees the same batches either way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.reconstruct.coding import Coding, hard_layers
from quaver.calib.reconstruct.operators import torch
from quaver.calib.reconstruct.replay import Graph, Node, needed, run

if TYPE_CHECKING:
    from torch import Tensor

Feeds = Sequence[Mapping[str, np.ndarray]]  # inputs of the network, batch by batch


@dataclass
class Prefix:
    """The values alive after the nodes `done` (names), by edge and batch; at first the network's inputs."""

    graph: Graph
    feeds: Feeds
    hold: int
    alive: list[dict[str, Tensor]] = field(init=False)
    done: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Go back to the inputs."""
        device = self.graph.device
        tensors = (
            {name: torch().from_numpy(np.ascontiguousarray(x)) for name, x in feed.items()} for feed in self.feeds
        )
        self.alive = [{name: x.to(device) for name, x in feed.items()} for feed in tensors]
        self.done = set()


def advance(prefix: Prefix, wanted: Collection[str], codings: Mapping[str, Coding]) -> dict[str, Tensor]:
    """The values [N, ...] of the `wanted` edges over all feeds, layers coded as `codings` say (none: the float model).

    `codings` may change between calls only for layers that no call has needed yet.
    """
    graph = prefix.graph
    nodes = needed(graph, wanted, prefix.alive[0])
    if not reachable(graph, nodes, wanted, prefix.alive[0]):  # asked for what only nodes that are done read
        prefix.restart()
        nodes = needed(graph, wanted, prefix.alive[0])
    prefix.done.update(node.name for node in nodes)
    layers = hard_layers(codings, nodes, graph.device)
    read = {edge for node in graph.nodes if node.name not in prefix.done for edge in node.inputs}
    kept = {*wanted, *(edge for edge in prefix.alive[0] if edge in read)}
    kept |= {edge for node in nodes for edge in node.outputs if edge in read}
    with torch().no_grad():
        prefix.alive = [run(graph, given, kept, layers=layers, nodes=nodes) for given in prefix.alive]
    found = {edge: torch().cat([values[edge] for values in prefix.alive]) for edge in wanted}
    if sum(x.nbytes for values in prefix.alive for x in values.values()) > prefix.hold:
        prefix.restart()
    return found


def reachable(graph: Graph, nodes: Sequence[Node], wanted: Collection[str], given: Collection[str]) -> bool:
    """Whether `nodes` and `wanted` read nothing but constants, what is given, and what the nodes make."""
    read = {*wanted, *(edge for node in nodes for edge in node.inputs)}
    return read <= {"", *graph.constants, *given, *(edge for node in nodes for edge in node.outputs)}
