"""Blocks: the parts of a graph whose output is reconstructed together.

A layer belongs to the block that is the shortest leading part of its module path which a pattern matches, the first
such pattern counting; a layer that none matches is a block of its own. With "*.resnets.*",

    down_blocks.0.resnets.0.conv1, .conv2, .time_emb_proj  ->  down_blocks.0.resnets.0

The block's nodes are those its learned layers' results pass through before they leave the module; what lies ahead of
its first learned layer computes nothing that rounding could change and stays outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quaver.calib.graph import Layer
from quaver.calib.reconstruct.replay import Graph, Node
from quaver.runtime.errors import RecipeError

# residual and transformer blocks, as in BRECQ and Q-Diffusion; resamplers
PATTERNS = ("*.resnets.*", "*.transformer_blocks.*", "*.downsamplers.*", "*.upsamplers.*")


@dataclass(frozen=True)
class Block:
    """A part of the graph: the layers to learn (names), its nodes in order, the edges it reads and those it gives."""

    name: str
    layers: tuple[str, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def single_layers(graph: Graph, layers: Sequence[Layer]) -> list[Block]:
    """Every layer as a block of its own, in the graph's order."""
    nodes = {node.name: node for node in graph.nodes}
    return [_block(graph, layer.name, [layer], [nodes[layer.node]]) for layer in layers]


def find_blocks(graph: Graph, layers: Sequence[Layer], patterns: Sequence[str]) -> list[Block]:
    """The blocks of `layers`, ordered by their first layer.

    Raises: RecipeError for a pattern that matches no layer, unless it is one of PATTERNS.
    """
    names = {layer.name: block_of(layer.name, patterns) for layer in layers}
    for pattern in patterns:
        if pattern not in PATTERNS and not any(fnmatchcase(name, pattern) for name in names.values()):
            raise RecipeError(
                f"reconstruct.blocks: {pattern!r} is the block of none of the {len(names)} layers to learn; one is "
                f"{next(iter(names), '')!r}"
            )
    grouped: dict[str, list[Layer]] = {}
    for layer in layers:
        grouped.setdefault(names[layer.name], []).append(layer)
    return [_block(graph, name, members, _between(graph, name, members)) for name, members in grouped.items()]


def block_of(name: str, patterns: Iterable[str]) -> str:
    """The name of a layer's block; a module that runs more than once ("#2") is left alone."""
    parts = name.split(".")
    leading = [".".join(parts[: i + 1]) for i in range(len(parts))]
    matching = (part for pattern in patterns for part in leading if fnmatchcase(part, pattern))
    return name if "#" in name else next(matching, name)


def _between(graph: Graph, name: str, layers: Sequence[Layer]) -> list[Node]:
    """The nodes of a module, and what lies between them, that depend on one of `layers`."""
    first = {layer.node for layer in layers}
    inside = {n.name for n in graph.nodes if n.name in first or n.module == name or n.module.startswith(f"{name}.")}
    return _downstream(_upstream(_downstream(graph.nodes, inside), inside), first)


def _downstream(nodes: Iterable[Node], start: set[str]) -> list[Node]:
    """Those of `nodes` that are in `start` or read what such a node gave."""
    edges: set[str] = set()
    found = []
    for node in nodes:
        if node.name in start or edges.intersection(node.inputs):
            found.append(node)
            edges.update(node.outputs)
    return found


def _upstream(nodes: Sequence[Node], end: set[str]) -> list[Node]:
    """Those of `nodes` that are in `end` or give what such a node reads."""
    edges: set[str] = set()
    found = []
    for node in reversed(nodes):
        if node.name in end or edges.intersection(node.outputs):
            found.append(node)
            edges.update(node.inputs)
    return found[::-1]


def _block(graph: Graph, name: str, layers: Sequence[Layer], nodes: Sequence[Node]) -> Block:
    inside = {node.name for node in nodes}
    made = {edge for node in nodes for edge in node.outputs}
    read = dict.fromkeys(e for n in nodes for e in n.inputs if e and e not in made and e not in graph.constants)
    outside = {edge for node in graph.nodes if node.name not in inside for edge in node.inputs} | {*graph.outputs}
    given = tuple(edge for node in nodes for edge in node.outputs if edge in outside)
    return Block(name, tuple(layer.name for layer in layers), tuple(nodes), tuple(read), given)
