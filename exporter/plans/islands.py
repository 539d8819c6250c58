"""What a plan does besides multiplying in integers: weights it unpacks, and floats between its integer layers.

    unpacked   coded weights -> floats, by a kernel of their own each time the plan runs: the layer gained a smaller
               file and lost speed (weight-only convolutions, products with 4-bit weights of one scale per channel)
    island     kernels that multiply floats, reached from one integer kernel and reaching another, joined where only
               movers lie between them: the attention of a U-Net whose convolutions are in integers

A kernel that alone names a product of activations multiplies it, whatever its class: attention in 16 bits becomes one
generated kernel. Both findings are read off the tensors that the compiled layers pass on, so what the compiler fused or
split is judged as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from quaver.exporter.plans.log import FLOATS, WEIGHTS, Compiled

Modules = Mapping[str, str]  # ONNX node -> path of the torch module it came from


def unpacked(plan: Sequence[Compiled], modules: Modules) -> list[dict[str, Any]]:
    """Weights that a kernel of their own turns into floats: {layer, from, to}, in the plan's order."""
    found = []
    for layer in plan:
        coded, made = WEIGHTS.intersection(layer.constants), FLOATS.intersection(layer.outputs)
        if not layer.multiplies and not _data(layer) and coded and made:
            names = _named(layer.nodes, modules)
            found += [{"layer": name, "from": min(coded), "to": min(made)} for name in names]
    return found


def islands(plan: Sequence[Compiled], modules: Modules, products: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Floats between integer layers: {within, kernels, layers}, `within` the module path its layers share.

    `products` are the ONNX nodes that multiply.
    """
    multiplied = {node for layer in plan if layer.multiplies for node in layer.nodes}
    left = set(products) - multiplied
    works = [layer.multiplies or not left.isdisjoint(layer.nodes) for layer in plan]
    after = _consumers(plan)
    before = _reverse(after)
    starts = {index for index, layer in enumerate(plan) if layer.integer}
    between = _reach(starts, after) & _reach(starts, before)
    floats = [i for i in sorted(between) if works[i] and _float(plan[i])]
    return [_island([plan[i] for i in group], modules) for group in _joined(floats, works, after)]


def named(plan: Iterable[Compiled], modules: Modules) -> list[dict[str, Any]]:
    """The compiled layers as rows of a sidecar: kernel, data types, ONNX nodes, torch modules."""
    keys = ("name", "kernel", "inputs", "constants", "outputs", "nodes")
    return [{key: getattr(c, key) for key in keys} | {"modules": _named(c.nodes, modules)} for c in plan]


def _data(layer: Compiled) -> bool:
    """Whether a layer reads activations: what drives the compiler's own addresses is none."""
    return any(kind in FLOATS | WEIGHTS for kind in layer.inputs)


def _float(layer: Compiled) -> bool:
    return not layer.integer and bool(FLOATS.intersection(layer.inputs[:1]))


def _consumers(plan: Sequence[Compiled]) -> dict[int, set[int]]:
    """Who reads what each layer writes."""
    made = {tensor: index for index, layer in enumerate(plan) for tensor in layer.writes}
    after = defaultdict[int, set[int]](set)
    for index, layer in enumerate(plan):
        for tensor in layer.reads:
            if tensor in made:
                after[made[tensor]].add(index)
    return after


def _reverse(after: Mapping[int, set[int]]) -> dict[int, set[int]]:
    before = defaultdict[int, set[int]](set)
    for index, readers in after.items():
        for reader in readers:
            before[reader].add(index)
    return before


def _reach(starts: Iterable[int], edges: Mapping[int, set[int]]) -> set[int]:
    """All layers behind any of `starts`."""
    found, left = set[int](), list(starts)
    while left:
        new = edges.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _joined(members: Sequence[int], works: Sequence[bool], after: Mapping[int, set[int]]) -> list[list[int]]:
    """Members in groups: two are joined when one reads the other through movers alone."""
    group = {index: index for index in members}

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for index in members:
        seen, left = set[int](), [index]
        while left:
            for reader in after.get(left.pop(), set()) - seen:
                seen.add(reader)
                if reader in group:
                    group[root(reader)] = root(index)
                elif not works[reader]:
                    left.append(reader)
    together = defaultdict[int, list[int]](list)
    for index in members:
        together[root(index)].append(index)
    return list(together.values())


def _island(group: Sequence[Compiled], modules: Modules) -> dict[str, Any]:
    layers = _named([node for layer in group for node in layer.nodes], modules)
    return {"within": _shared(layers), "kernels": [str(layer) for layer in group], "layers": layers}


def _shared(names: Sequence[str]) -> str:
    """The module path that all names start with; the first name when they share none."""
    steps = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)) or "".join(names[:1])


def _named(nodes: Iterable[str], modules: Modules) -> list[str]:
    """The modules of some nodes, each once; a node without one stands for itself."""
    return list(dict.fromkeys(modules.get(node) or node for node in nodes))
