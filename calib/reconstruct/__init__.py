"""Learned rounding: weight codes that keep the network's outputs, where rounding to nearest keeps its weights.

    nearest     no learning: codes rounded to nearest on scales of least error, to compare with
    adaround    layer by layer, inputs from the quantized model                            (`adaround`)
    brecq       block by block, inputs from the quantized model                            (`brecq`)
    qdrop       block by block, inputs and activations quantized half of the time          (`qdrop`)

The float graph is replayed in torch (`operators`, `replay`), cut into blocks (`blocks`), each learned in turn
(`sequence`). How the target codes each layer comes as data (`coding`). Layers of the narrowest weight format are
learned; wider ones, the first and last at 8 bits among 4-bit ones, are rounded to nearest, as D2-DPM does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quaver.calib.reconstruct.blocks import PATTERNS, Block, find_blocks, single_layers
from quaver.calib.reconstruct.brecq import Objective
from quaver.calib.reconstruct.coding import Coding
from quaver.calib.reconstruct.prefix import Feeds
from quaver.calib.reconstruct.replay import Graph, read_graph
from quaver.calib.reconstruct.sequence import Part, learn_all
from quaver.runtime.artifact import Stamp
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress

if TYPE_CHECKING:
    import onnx

INPUTS = {"quantized": 0.0, "mixed": 0.5, "float": 1.0}  # share of a block's inputs that the float model gives


@dataclass(frozen=True)
class ReconstructSettings:
    """The table [reconstruct] of a recipe. Published: 10,000 to 20,000 iterations at rate 0.001, batches of 8 to 32."""

    method: Literal["none", "nearest", "adaround", "brecq", "qdrop"] = "none"  # "none": weights as export rounds them
    iterations: int = 2000  # per block
    batch: int = 16  # rows of an iteration; a guided record is two rows
    records: int = 256  # of capture's records, drawn at random; 0: all
    inputs: Literal["method", "quantized", "mixed", "float"] = "method"  # of a block; "method": its paper's
    drop: float = 0.5  # share of activations that qdrop leaves float
    rate: float = 1e-2  # of Adam
    weight: float = 0.01  # of the regularizer
    warmup: float = 0.2  # share of the iterations without it
    learn_steps: bool = False  # LSQ: learn the steps of activations too
    blocks: tuple[str, ...] = PATTERNS  # a block is the shortest leading part of a layer's name that one matches
    hold: int = 4096  # MiB of activations between blocks kept in memory, for each of the two models
    seed: int = 0
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        for name, least, most in (
            ("iterations", 1, None),
            ("batch", 1, None),
            ("records", 0, None),
            ("drop", 0, 1),
            ("rate", 0, None),
            ("weight", 0, None),
            ("warmup", 0, 1),
            ("hold", 0, None),
            ("seed", 0, None),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                expected = f"{least} or more" if most is None else f"from {least} to {most}"
                raise RecipeError(f"reconstruct.{name} is {value}, expected {expected}")


def reconstruct(
    model: onnx.ModelProto,
    codings: Mapping[str, Coding],
    feeds: Feeds,
    settings: ReconstructSettings,
    *,
    part: Part,
    stamp: Stamp,
    progress: Progress,
) -> dict[str, Coding]:
    """The codings of a float model's layers, by name, with learned codes.

    `feeds` are inputs of the network, `part` says where a finished block is kept until all are.
    Raises: EngineError for operators that cannot be replayed; RecipeError for blocks that cannot be meant.
    """
    if settings.method == "nearest":
        return dict(codings)
    graph = read_graph(model, device=settings.device)
    return learn_all(
        graph,
        blocks_of(graph, codings, settings),
        codings,
        feeds,
        objective_of(settings),
        steps=settings.learn_steps,
        hold=settings.hold << 20,
        seed=settings.seed,
        part=part,
        stamp=stamp,
        progress=progress,
    )


def blocks_of(graph: Graph, codings: Mapping[str, Coding], settings: ReconstructSettings) -> list[Block]:
    """The blocks of the layers that are to be learned."""
    layers = [coding.layer for coding in codings.values() if coding.learned]
    return (
        single_layers(graph, layers) if settings.method == "adaround" else find_blocks(graph, layers, settings.blocks)
    )


def objective_of(settings: ReconstructSettings) -> Objective:
    """The objective of a method: AdaRound and BRECQ on quantized inputs, QDrop on mixed ones."""
    own = "mixed" if settings.method == "qdrop" else "quantized"
    return Objective(
        iterations=settings.iterations,
        batch=settings.batch,
        rate=settings.rate,
        weight=settings.weight,
        warmup=settings.warmup,
        input_drop=INPUTS[own if settings.inputs == "method" else settings.inputs],
        drop=settings.drop if settings.method == "qdrop" else 0.0,
    )
