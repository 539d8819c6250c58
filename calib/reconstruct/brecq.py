"""BRECQ: the roundings of all layers of a block are learned together, so that the block's output stays what it was.

    min over V    mean_n sum_c (z - z~(V))^2 + lambda sum_layers f(V_layer)

z: the float model's output of the block; z~: the block with soft codes on the inputs that the quantized model gives it.
A block of a single layer makes this AdaRound; inputs and activations mixed make it QDrop. The squared error is not
weighted by the Fisher information: D2-DPM, Q-Diffusion and PTQD leave it out too.

Source: Li et al. 2021 (arXiv:2102.05426), equation 10; AdaRound's equation 21 for the regularizer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.reconstruct.adaround import hard_codes, regularizer, soft_codes, start, temperature
from quaver.calib.reconstruct.blocks import Block
from quaver.calib.reconstruct.coding import (
    Coding,
    Grid,
    Quantize,
    along,
    coded_layer,
    hard_layers,
    on_grid,
    on_learned_grid,
    regridded,
)
from quaver.calib.reconstruct.operators import torch
from quaver.calib.reconstruct.qdrop import mix
from quaver.calib.reconstruct.replay import Graph, LayerRun, run
from quaver.runtime.progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

Values = Mapping[str, "Tensor"]  # by edge, [N, ...]


@dataclass(frozen=True)
class Objective:
    """How a block is learned.

    rate: of Adam, for V. weight: lambda. warmup: share of the iterations without f. input_drop: share of the inputs'
    elements that the float model gives. drop: share of the activations that are not quantized. step_rate: of Adam, for
    the logarithm of activation steps.
    """

    iterations: int
    batch: int
    rate: float
    weight: float
    warmup: float
    input_drop: float
    drop: float
    step_rate: float = 1e-3


@dataclass(frozen=True)
class Seen:
    """What N calibration rows show of a block: its inputs in the float and the quantized model, its float outputs."""

    float_in: Values
    coded_in: Values
    outputs: Values

    @property
    def rows(self) -> int:
        """N."""
        return len(next(iter(self.outputs.values())))


@dataclass(frozen=True)
class Learner:
    """The variables of one block: floor(w / s), V and s by layer, the logarithm of a step's growth by edge."""

    floors: dict[str, Tensor]
    v: dict[str, Tensor]
    scales: dict[str, Tensor]
    growth: dict[str, Tensor]


@dataclass(frozen=True)
class Learned:
    """What came out of a block: codes by layer, steps by edge, its mean squared error with nearest and these codes."""

    codes: dict[str, np.ndarray]
    steps: dict[str, float]
    nearest: float
    error: float


def learn(
    graph: Graph,
    block: Block,
    codings: Mapping[str, Coding],
    seen: Seen,
    objective: Objective,
    *,
    edges: Collection[str] = (),
    seed: tuple[int, ...],
    bar: Bar,
) -> Learned:
    """Learn a block's roundings, and the activation steps of `edges`; where that does no better, nearest stays.

    `codings` by layer name. Deterministic for a seed, a device and a number of threads.
    """
    learner = make_learner(graph, block, codings, edges)
    minimise(graph, block, codings, seen, objective, learner, seed=seed, bar=bar)
    hard = {n: hard_codes(learner.floors[n], v.detach(), codings[n].format) for n, v in learner.v.items()}
    grids = {e: g for name in block.layers for e, g in codings[name].grids.items()}
    steps = {edge: grids[edge].scale * float(growth.detach().exp()) for edge, growth in learner.growth.items()}
    nearest = error(graph, block, codings, seen)
    after = error(graph, block, regridded(codings, hard, steps), seen)
    if after < nearest:
        return Learned(hard, steps, nearest, after)
    return Learned({name: codings[name].codes for name in block.layers}, {}, nearest, nearest)


def minimise(
    graph: Graph,
    block: Block,
    codings: Mapping[str, Coding],
    seen: Seen,
    objective: Objective,
    learner: Learner,
    *,
    seed: tuple[int, ...],
    bar: Bar,
) -> None:
    """Run the iterations, changing the variables of `learner`."""
    rng = np.random.default_rng(seed)
    generator = torch().Generator(graph.device).manual_seed(int(rng.integers(2**62)))
    layers = soft_layers(graph, block, codings, learner, dropping(objective.drop, learner, generator))
    groups = [{"params": [*learner.v.values()], "lr": objective.rate}]
    groups += [{"params": [*learner.growth.values()], "lr": objective.step_rate}] if learner.growth else []
    optimizer = torch().optim.Adam(groups)
    for step in range(objective.iterations):
        rows = torch().from_numpy(rng.choice(seen.rows, min(objective.batch, seen.rows), replace=False))
        given = {
            e: mix(seen.float_in[e][rows], x[rows], objective.input_drop, generator) for e, x in seen.coded_in.items()
        }
        made = run(graph, given, block.outputs, layers=layers, nodes=block.nodes)
        loss = sum(squared(made[edge], seen.outputs[edge][rows]) for edge in block.outputs)
        if (beta := temperature(step, objective.iterations, objective.warmup)) is not None:
            loss = loss + objective.weight * sum(regularizer(v, beta) for v in learner.v.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.step()


def make_learner(graph: Graph, block: Block, codings: Mapping[str, Coding], edges: Collection[str]) -> Learner:
    """Variables at the float weights and, for `edges`, at the given steps."""
    learner = Learner({}, {}, {}, {})
    for coding in (codings[name] for name in block.layers):
        name, weight = coding.layer.name, graph.constants[coding.layer.weight]
        learner.scales[name] = torch().from_numpy(along(coding.scale, coding.layer)).to(graph.device)
        ratio = weight / learner.scales[name]
        learner.floors[name], learner.v[name] = ratio.floor(), start(ratio).requires_grad_()
        for edge in coding.grids.keys() & {*edges}:
            learner.growth[edge] = torch().zeros((), device=graph.device, requires_grad=True)
    return learner


def soft_layers(
    graph: Graph, block: Block, codings: Mapping[str, Coding], learner: Learner, quantize: Quantize
) -> dict[str, LayerRun]:
    """The coded layers by node: those to learn with soft codes, the block's others as they are."""

    def weight(coding: Coding) -> Tensor:
        name = coding.layer.name
        return soft_codes(learner.floors[name], learner.v[name], coding.format) * learner.scales[name]

    soft = {codings[name].layer.node: codings[name] for name in block.layers}
    layers = {node: coded_layer(coding, partial(weight, coding), quantize) for node, coding in soft.items()}
    return {**hard_layers(codings, block.nodes, graph.device), **layers}


def dropping(drop: float, learner: Learner, generator: Any) -> Quantize:
    """Quantization of activations with a share of them left as they are, on learned steps where there are any."""

    def quantize(x: Tensor, edge: str, grid: Grid) -> Tensor:
        growth = learner.growth.get(edge)
        coded = on_grid(x, edge, grid) if growth is None else on_learned_grid(x, grid.scale * growth.exp(), grid)
        return mix(x, coded, drop, generator)

    return quantize


def squared(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, summed over dimension 1 and averaged over the others, as the published code has it."""
    return (made - wanted).square().sum(1).mean()


def error(graph: Graph, block: Block, codings: Mapping[str, Coding], seen: Seen, *, batch: int = 32) -> float:
    """Mean squared error of the block's outputs over all rows, with the codes and grids of `codings`."""
    layers, total = hard_layers(codings, block.nodes, graph.device), 0.0
    with torch().no_grad():
        for first in range(0, seen.rows, batch):
            part = slice(first, first + batch)
            given = {edge: x[part] for edge, x in seen.coded_in.items()}
            made = run(graph, given, block.outputs, layers=layers, nodes=block.nodes)
            total += sum(float((made[e] - seen.outputs[e][part]).double().square().sum()) for e in block.outputs)
    return total / sum(x.numel() for x in seen.outputs.values())
