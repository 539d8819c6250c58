"""What trajectories have shown of the error: joint moments of shards, merged as they come.

    total = ((shard_1 + shard_2) + shard_3) + ...            in their order, whoever ran them

The moments of (phi, D), two halves at every timestep, are most of a shard, and symmetric: a file has their upper
triangle. After every `EVERY` shards the total is a file and theirs are gone, so what lies on the disk does not grow
with the trajectories, and a run that is killed goes on from the total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.fanout import HERE, KIND, Fanout, Shard, Work, map_shards
from quaver.calib.moments import Joint, merge_joint
from quaver.runtime.artifact import Stamp, load_tensors, read_stamp, save_tensors
from quaver.runtime.error_law import Binding
from quaver.runtime.errors import ArtifactError
from quaver.runtime.progress import Progress

JOINTS = ("halves", "channels", "simulated")
EVERY = 32  # shards


@dataclass(frozen=True)
class Seen:
    """What was seen: halves [2, S], channels and simulated [S, C]; dropped [S], trajectories that were not finite.

    loss [2]: relative errors of the finished latents of a corrected teacher, their sum and number.
    """

    halves: Joint
    channels: Joint
    dropped: np.ndarray
    simulated: Joint | None = None
    loss: np.ndarray = field(default_factory=lambda: np.zeros(2))


Found = tuple[Seen, dict[str, Any]]  # with the binding of the engines that were seen


def gather(
    work: Work,
    shards: Sequence[Shard],
    folder: Path,
    *,
    fanout: Fanout = HERE,
    progress: Progress,
    label: str,
) -> tuple[Seen, Binding]:
    """What all shards have seen together, and what all of them were bound to; runs those that were not.

    Raises: ArtifactError when two shards were run on different engines; whatever `map_shards` raises.
    """
    path, stamp = folder / "total.safetensors", Stamp(KIND, settings=work.key)
    total, done = resume(path, stamp)
    merged: list[Path] = []
    for file in map_shards(work, shards, folder, fanout=fanout, progress=progress, label=label, first=done):
        total = add(total, read_shard(file)) if total else read_shard(file)
        merged.append(file)
        if len(merged) == EVERY:
            done += EVERY
            save_tensors(path, to_tensors(total[0]), stamp, meta={"binding": total[1], "shards": done})
            while merged:
                merged.pop().unlink(missing_ok=True)
    assert total is not None  # there are trajectories
    return total[0], bound_to(total)


def resume(path: Path, stamp: Stamp) -> tuple[Found | None, int]:
    """The total of an earlier run of the same work, and how many shards are in it."""
    if read_stamp(path) != stamp:
        return None, 0
    return read_shard(path), int(load_tensors(path, KIND)[1]["shards"])


def merge_shards(files: Iterable[Path]) -> tuple[Seen, Binding]:
    """What all shards have seen together, and what all of them were bound to.

    Raises: ArtifactError when two shards were run on different engines.
    """
    total = reduce(add, map(read_shard, files))
    return total[0], bound_to(total)


def bound_to(found: Found) -> Binding:
    """What was seen is bound to."""
    return Binding(**{**found[1], "latent_shape": tuple(found[1]["latent_shape"])})


def read_shard(path: Path) -> Found:
    """What a shard has seen, and its binding."""
    tensors, meta = load_tensors(path, KIND)
    return from_tensors(tensors), meta["binding"]


def add(a: Found, b: Found) -> Found:
    """Two shards, or sums of them, as one."""
    (one, bound), (two, other) = a, b
    if bound != other:
        raise ArtifactError(
            f"shards ran on different engines ({bound['engine']} and {other['engine']}): let every worker see the same"
            " bundle, and run the stage again"
        )
    sums = {name: merge_joint(getattr(one, name), getattr(two, name)) for name in JOINTS if getattr(one, name)}
    return Seen(**sums, dropped=one.dropped + two.dropped, loss=one.loss + two.loss), bound


def to_tensors(seen: Seen) -> dict[str, np.ndarray]:
    """As tensors of a file; of m2 of the halves the upper triangle."""
    joints = {name: joint for name in JOINTS if (joint := getattr(seen, name))}
    tensors = {f"{name}.{key}": value for name, joint in joints.items() for key, value in vars(joint).items()}
    upper = np.triu_indices(seen.halves.m2.shape[-1])
    packed = {"halves.m2": seen.halves.m2[..., upper[0], upper[1]]}
    return {**tensors, **packed, "dropped": seen.dropped, "loss": seen.loss}


def from_tensors(tensors: Mapping[str, np.ndarray]) -> Seen:
    """What `to_tensors` wrote."""
    there = [name for name in JOINTS if f"{name}.m2" in tensors]
    joints = {name: Joint(*(tensors[f"{name}.{key}"] for key in ("count", "mean", "m2"))) for name in there}
    size = joints["halves"].mean.shape[-1]
    m2, (i, j) = np.empty((*joints["halves"].mean.shape, size)), np.triu_indices(size)
    m2[..., i, j] = m2[..., j, i] = joints["halves"].m2
    joints["halves"] = replace(joints["halves"], m2=m2)
    return Seen(**joints, dropped=tensors["dropped"], loss=tensors["loss"])
