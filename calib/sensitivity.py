"""Sensitivity: what quantizing each layer alone does to the output of the network.

    S[s]    = sum |f(x)|^2                 over the records at timestep s, both guidance branches
    N[l, s] = sum |f_l(x) - f(x)|^2        f_l: layer l reads codes and has a coded weight, all else is float
    SNR[l]  = 10 log10(sum_s S / sum_s N[l])                    [dB], and SNR[l, s] timestep by timestep

Errors of different layers are taken as independent: their powers add, N[Q] = sum of N[l] over the layers l in Q. So
the layers that must stay float for an output SNR are the noisiest ones, down to where the powers of the others fit.
`together` measures what a set really does.

One walk along the graph serves all layers: at layer l the values alive there are those of the float network, and only
the nodes from l on run again. That is half of what L runs cost, in the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.reconstruct.coding import Coding, hard_layers
from quaver.calib.reconstruct.operators import torch
from quaver.calib.reconstruct.replay import Graph, LayerRun, run
from quaver.calib.records import Feeds, Records, batches, branches
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-20  # of the signal: noise below it counts as this much, 200 dB
FEW = 0.1  # share of the layers that counts as the sensitive ones when a claim is held against the ranks
# what PTQ4ADM (arXiv:2409.13894, section 6.2) says is sensitive: "initial and final U-Net backbone layers"
ENDS = ("conv_in", "conv_out")


@dataclass(frozen=True)
class SensitivitySettings:
    """The table [sensitivity] of a recipe."""

    records: int = 2  # of each timestep
    batch: int = 4  # records run together
    weight: str = ""  # format of every layer's weight, "int8" or "int4"; "" for the one the recipe gives most layers
    activation: str = ""  # "int8" or "float"; "" likewise
    keep: float = 10.0  # percent of the layers to propose as float
    snr: float = 0.0  # dB at the output to propose float layers for; 0 goes by `keep`
    seed: int = 0  # of the records drawn

    def __post_init__(self) -> None:
        for name, least in {"records": 1, "batch": 1, "snr": 0, "seed": 0}.items():
            if not least <= getattr(self, name) < np.inf:
                raise RecipeError(f"sensitivity.{name} is {getattr(self, name)}, expected {least} or more")
        if not 0 <= self.keep <= 100:
            raise RecipeError(f"sensitivity.keep is {self.keep}, expected 0 to 100 percent of the layers")


@dataclass(frozen=True)
class Sensitivity:
    """Powers at the output: signal [S] of the float network, noise [L, S] of each layer, at timesteps [S]."""

    layers: tuple[str, ...]
    timesteps: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Noise power [L] over all timesteps."""
        return np.asarray(self.noise.sum(axis=1))

    @property
    def snr(self) -> np.ndarray:
        """SNR [L] over all timesteps, dB."""
        return decibels(self.signal.sum(), self.total)

    @property
    def snr_t(self) -> np.ndarray:
        """SNR [L, S] timestep by timestep, dB."""
        return decibels(self.signal, self.noise)

    @property
    def ranking(self) -> np.ndarray:
        """Indices [L] of the layers, the most sensitive first."""
        return np.argsort(-self.total, kind="stable")


def measure(
    graph: Graph, codings: Mapping[str, Coding], drawn: Records, feeds: Feeds, *, batch: int, progress: Progress
) -> Sensitivity:
    """The powers of every coded layer alone, on all of the records `drawn`."""
    coded = {coding.layer.node: coding.layer.name for coding in codings.values()}
    runs = hard_layers(codings, graph.nodes, graph.device)
    names = tuple(coded[node.name] for node in graph.nodes if node.name in coded)
    timesteps, at = np.unique(drawn.t, return_inverse=True)
    signal, noise = np.zeros(len(timesteps)), np.zeros((len(names), len(timesteps)))
    with progress.bar(len(names) * len(drawn.t), "sensitivity") as bar:
        for rows, given in fed(graph, drawn, feeds, batch):
            clean = run(graph, given, graph.outputs)[graph.outputs[0]]
            np.add.at(signal, at[rows], power(clean, len(rows)))
            for row, noisy in enumerate(alone(graph, given, runs)):
                np.add.at(noise[row], at[rows], power(noisy - clean, len(rows)))
                bar.step(len(rows))
    return Sensitivity(names, timesteps, signal, noise)


def alone(graph: Graph, given: Mapping[str, Tensor], runs: Mapping[str, LayerRun]) -> Iterator[Tensor]:
    """The network's output with one node of `runs` coded and all others float, node after node in the graph's order."""
    alive, done = dict(given), 0
    for place, node in enumerate(graph.nodes):
        if node.name in runs:
            rest = graph.nodes[place:]
            read = {*graph.outputs, *(edge for later in rest for edge in later.inputs)}
            alive, done = run(graph, alive, read, nodes=graph.nodes[done:place]), place
            yield run(graph, alive, graph.outputs, layers={node.name: runs[node.name]}, nodes=rest)[graph.outputs[0]]


def together(graph: Graph, codings: Mapping[str, Coding], drawn: Records, feeds: Feeds, *, batch: int) -> float:
    """The output SNR (dB) with all of `codings` at once, on the records `drawn`."""
    runs, signal, noise = hard_layers(codings, graph.nodes, graph.device), 0.0, 0.0
    for rows, given in fed(graph, drawn, feeds, batch):
        clean, noisy = (run(graph, given, graph.outputs, layers=layers)[graph.outputs[0]] for layers in (None, runs))
        signal += power(clean, len(rows)).sum()
        noise += power(noisy - clean, len(rows)).sum()
    return float(decibels(signal, noise))


def fed(graph: Graph, drawn: Records, feeds: Feeds, batch: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Indices of records and the inputs of both their branches, batch by batch."""
    for rows in batches(np.arange(len(drawn.t)), batch):
        arrays = branches(drawn, rows, feeds)
        yield rows, {n: torch().from_numpy(np.ascontiguousarray(x)).to(graph.device) for n, x in arrays.items()}


def power(x: Tensor, records: int) -> np.ndarray:
    """Sum of squares [B] of x [branches * B, ...] per record, over its branches."""
    return np.asarray(x.double().reshape(-1, records, x[0].numel()).square().sum(dim=(0, 2)).cpu())


def draw(t: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most `each` records of every timestep in t [K], in the order of the file."""
    mixed = rng.permutation(len(t))
    return np.sort(np.concatenate([mixed[t[mixed] == step][:each] for step in np.unique(t)]))


def decibels(signal: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    """10 log10(signal / noise), at most 200."""
    signal = np.maximum(signal, np.finfo(np.float64).tiny)
    return np.asarray(10 * np.log10(signal / np.maximum(noise, FLOOR * signal)))


def predicted(found: Sensitivity, kept: Sequence[int]) -> float:
    """The output SNR (dB) with all layers coded but those `kept` (indices), if powers add."""
    return float(decibels(found.signal.sum(), np.delete(found.total, kept).sum()))


def keep_share(found: Sensitivity, percent: float) -> list[int]:
    """The most sensitive `percent` of the layers, rounded up."""
    return found.ranking[: int(np.ceil(len(found.layers) * percent / 100 - 1e-9))].tolist()


def keep_for(found: Sensitivity, snr: float) -> list[int]:
    """The fewest layers to keep for an output SNR of `snr` dB, if powers add."""
    ranking = found.ranking.tolist()
    return next(ranking[:n] for n in range(len(ranking) + 1) if predicted(found, ranking[:n]) >= min(snr, 200.0))


def ranks(found: Sensitivity, wanted: Callable[[str], bool]) -> dict[str, int]:
    """Rank, 1 for the most sensitive, of the layers whose name is `wanted`."""
    order = {found.layers[layer]: rank for rank, layer in enumerate(found.ranking.tolist(), 1)}
    return {name: order[name] for name in found.layers if wanted(name)}


def ends_are_sensitive(found: Sensitivity) -> bool | None:
    """Whether the first and the last convolution are among the most sensitive tenth; None where one is missing."""
    there = ranks(found, ENDS.__contains__)
    limit = np.ceil(FEW * len(found.layers))
    return all(rank <= limit for rank in there.values()) if len(there) == len(ENDS) else None
