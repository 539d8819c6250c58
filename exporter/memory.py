"""The memory a stage will need, told before it starts: what is killed for lack of it is killed late.

    need = libraries + w W + r A + kept        [bytes]

    W   float weights of the network, in fp32
    A   activations of one row: max over nodes of the edges that are made by then and still to be read
    w   how many copies of the weights a stage holds at its peak, fitted to `benchmarks.full_size` from above
    r   rows that run together; kept: what a stage collects meanwhile

The sum errs on the high side: mapped files count, and runtimes reuse more than edges say. What a machine can give is
the least of MemAvailable (what Linux can hand out without swapping) and what is left of each control group around this
process; elsewhere the free pages, or the machine's memory where nothing else is told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.calib.graph import edge_shapes, without_weights
from quaver.exporter.modelfile import size_of
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

GIGA = 10**9
FLOAT = 4  # bytes of an activation
ROOT = Path("/")


@dataclass(frozen=True)
class Need:
    """Bytes that a stage will take, and what makes them fewer, as the end of a sentence ("" for nothing)."""

    bytes: int
    fewer: str = ""


@dataclass(frozen=True)
class MachineSettings:
    """The table [machine] of a recipe: choices of the moment, which no digest contains."""

    memory: float = 0.0  # GB that a stage may take; 0: what is free when it starts

    def __post_init__(self) -> None:
        if not 0 <= self.memory < math.inf:
            raise RecipeError(f"machine.memory is {self.memory}, expected 0 or more")


def require(stage: str, wanted: Need, room: int | None) -> None:
    """Refuse to start what does not fit into `room` bytes (None: nobody knows).

    Raises: RecipeError with what is needed, what there is, and what to type.
    """
    if room is not None and wanted.bytes > room:
        ways = ["close other programs", *filter(None, [wanted.fewer])]
        raise RecipeError(
            f"{stage} needs about {wanted.bytes / GIGA:.1f} GB of memory and {room / GIGA:.1f} GB are free: "
            f"{', '.join(ways)}, or go on all the same with --set machine.memory={math.ceil(wanted.bytes / GIGA)}"
        )


def available(root: Path = ROOT) -> int | None:
    """Bytes that this machine can give now, None when it does not say; `root` is the root of its files."""
    found = [*_meminfo(root), *_groups(root)]
    return min(found) if found else _pages()


def weights(model: onnx.ModelProto) -> int:
    """W of a graph: bytes of its constants, wherever they lie."""
    return sum(map(size_of, model.graph.initializer))


def alive(model: onnx.ModelProto) -> list[int]:
    """Bytes of the edges that are alive while each node runs, in a call of one row; sizes left open count as 1."""
    described = need("onnx", extra="export").shape_inference.infer_shapes(without_weights(model), data_prop=True)
    constants = {tensor.name for tensor in model.graph.initializer}
    size = {e: FLOAT * math.prod(d or 1 for d in dims) for e, dims in edge_shapes(described).items()}
    size |= dict.fromkeys(constants, 0)
    last = {edge: index for index, node in enumerate(model.graph.node) for edge in node.input}
    last |= dict.fromkeys((value.name for value in model.graph.output), len(model.graph.node))
    held, found = sum(size.get(value.name, 0) for value in model.graph.input), []
    for index, node in enumerate(model.graph.node):
        held += sum(size.get(edge, 0) for edge in node.output)
        found.append(held)
        done = {edge for edge in (*node.input, *node.output) if last.get(edge, index) == index}
        held -= sum(size.get(edge, 0) for edge in done)
    return found


def _meminfo(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _groups(root: Path) -> Iterator[int]:
    """What is left of each control group around this process that has a limit: limit - used + files it can drop."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if not kinds:
                yield from _left(root / "sys/fs/cgroup", place, ("memory.max", "memory.current", "inactive_file"))
            elif "memory" in kinds.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _left(root / "sys/fs/cgroup/memory", place, names)


def _left(mount: Path, place: str, names: Sequence[str]) -> Iterator[int]:
    limit, used, dropped = names
    own = mount / place.strip("/")
    for group in (own, *(parent for parent in own.parents if parent.is_relative_to(mount))):
        with suppress(OSError, ValueError):  # no such file, or the limit is "max"
            free = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(free + int(stat.get(dropped, 0)), 0)


def _pages() -> int | None:
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        with suppress(AttributeError, ValueError, OSError):  # no such name here
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return None
