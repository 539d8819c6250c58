"""The blocks of a network in their order, each learned on what those before it made of its inputs.

    block k:  z = float model,  inputs = quantized model with the learned codes of blocks 1 .. k-1

Both models are run along with the blocks (`prefix`). A run that was killed goes on at the block it was at: every
finished block lies in a file of its own, and has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from quaver.calib.reconstruct.blocks import Block
from quaver.calib.reconstruct.brecq import Learned, Objective, Seen, learn
from quaver.calib.reconstruct.coding import Coding, regridded
from quaver.calib.reconstruct.prefix import Feeds, Prefix, advance
from quaver.calib.reconstruct.replay import Graph
from quaver.runtime.artifact import Stamp, load_tensors, read_stamp, save_tensors
from quaver.runtime.errors import ArtifactError
from quaver.runtime.progress import Progress

Part = Callable[[int], Path]  # where a finished block is kept


def learn_all(
    graph: Graph,
    blocks: Sequence[Block],
    codings: Mapping[str, Coding],
    feeds: Feeds,
    objective: Objective,
    *,
    steps: bool,
    hold: int,
    seed: int,
    part: Part,
    stamp: Stamp,
    progress: Progress,
) -> dict[str, Coding]:
    """`codings`, by layer name, with the codes (and activation `steps`) that the blocks learned, one after another.

    A block that `part` has with this stamp is read back. `hold`: bytes that a model's live values may take.
    """
    whole, coded = Prefix(graph, feeds, hold), Prefix(graph, feeds, hold)
    codings, done = dict(codings), set[str]()
    for index, block in enumerate(blocks):
        edges = {edge for name in block.layers for edge in codings[name].grids} if steps else set()
        learned = load_part(part(index), stamp)
        if learned is None:
            with progress.bar(objective.iterations, f"reconstruct {index + 1}/{len(blocks)} {block.name}") as bar:
                seen = see(block, codings, whole, coded, objective.input_drop)
                seeds = (seed, index)
                learned = learn(graph, block, codings, seen, objective, edges=edges - done, seed=seeds, bar=bar)
            progress.say(f"{block.name}: error {learned.nearest:.3g} rounded to nearest, {learned.error:.3g} learned")
            save_part(part(index), learned, stamp)
        codings = regridded(codings, learned.codes, learned.steps)
        done |= edges
    return codings


def see(block: Block, codings: Mapping[str, Coding], whole: Prefix, coded: Prefix, input_drop: float) -> Seen:
    """What both models show of a block; inputs that `input_drop` never takes from one model are the other's."""
    found = advance(whole, {*block.outputs, *(block.inputs if input_drop > 0 else ())}, {})
    inputs = advance(coded, set(block.inputs), codings) if input_drop < 1 else found
    float_in, coded_in = (
        {edge: side[edge] for edge in block.inputs} for side in (found if input_drop else inputs, inputs)
    )
    return Seen(float_in, coded_in, {edge: found[edge] for edge in block.outputs})


def save_part(path: Path, learned: Learned, stamp: Stamp) -> Path:
    """Keep what a block learned."""
    meta = {"steps": learned.steps, "nearest": learned.nearest, "error": learned.error}
    return save_tensors(path, learned.codes, stamp, meta=meta)


def load_part(path: Path, stamp: Stamp) -> Learned | None:
    """What a block learned, if its file is whole and carries `stamp`."""
    if read_stamp(path) != stamp:
        return None
    with suppress(ArtifactError):
        codes, meta = load_tensors(path, stamp.kind)
        return Learned(codes, **meta)
    return None
