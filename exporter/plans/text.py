"""The sidecar of a plan in words: one line for the log, and all that is worth knowing for `quaver show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

ROWS = 20


def summary(record: Mapping[str, Any]) -> str:
    """One line for the log."""
    covered, lint = record["coverage"], record["lint"]
    where, size = ", ".join(record["compute_capabilities"]) or "this GPU", record["plan"]["bytes"] / 1e6
    extra = f"; {len(record['unpacked'])} weights unpacked by their own kernels" if record["unpacked"] else ""
    return (
        f"{record['target']} plan for {where}, {size:.1f} MB: {covered['integer']} of {covered['meant']} layers "
        f"meant for INT8 run in INT8 kernels ({covered['by_macs']:.1%} of their multiply-accumulates){extra}; "
        f"lint was right on {lint['agree']} of {lint['products']}"
    )


def describe_plan(record: Mapping[str, Any]) -> Iterator[str]:
    """What a plan is for and what it runs, then what is not as meant; or why there is none."""
    if not record["built"]:
        yield f"no {record['target']} plan: {record['reason']}"
        return
    yield summary(record)
    yield from _facts(record)
    yield "kernels"
    kinds = Counter((layer["kernel"], *_operands(layer)) for layer in record["layers"])
    yield from (f"  {count:>5}  {kernel} {' x '.join(kinds)}" for (kernel, *kinds), count in kinds.most_common())
    missed = (f"{row['layer']}: {', '.join(row['kernels']) or 'no kernel'}" for row in record["coverage"]["missed"])
    yield from _listed("meant for INT8, and not run in it", missed)
    stray = (f"{row['layer']}: {row['from']} to {row['to']}" for row in record["unpacked"])
    yield from _listed("weights unpacked by a kernel of their own", stray)
    floats = (f"{row['within']}: {len(row['kernels'])} kernels" for row in record["islands"])
    yield from _listed("floats between integer layers", floats)
    wrong = (
        f"{row['layer']}: predicted {row['predicted']}, compiled {row['compiled'] or 'into another layer'}"
        for row in record["lint"]["disagreements"]
    )
    yield from _listed("where lint was wrong", wrong)
    yield from _listed("refused by lint, and built", iter(record["lint"]["refused"]))


def _facts(record: Mapping[str, Any]) -> Iterator[str]:
    for name, shapes in record["shapes"].items():
        yield f"  {name}  {' .. '.join(str(shape) for shape in shapes)}"
    memory = ", ".join(f"{size / 1e6:.1f} MB of {name}" for name, size in record["memory"].items())
    yield f"  on the GPU {memory or 'unknown'}; built in {record['seconds']} s"
    if record["options"]:
        yield f"  options {', '.join(record['options'])}"


def _operands(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """The types of what a kernel takes, or of what it makes when it takes nothing."""
    taken = (*layer["inputs"][:1], *(layer["inputs"][1:2] or layer["constants"][:1]))
    return taken or tuple(f"-> {kind}" for kind in layer["outputs"][:1])


def _listed(title: str, rows: Iterator[str]) -> Iterator[str]:
    """A title with its rows, the first ROWS of them; nothing when there are none."""
    found = list(rows)
    if found:
        yield f"{title} ({len(found)})"
        yield from (f"  {row}" for row in found[:ROWS])
        if len(found) > ROWS:
            yield f"  and {len(found) - ROWS} more"
