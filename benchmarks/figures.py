"""The convention of the benchmarks: `python -m benchmarks.NAME` prints where it ran, a table, and one line of JSON.

    {"name": "latency", "figures": {"ratio": 1.53}, "reached": {"INT8 is faster than FP32": true}}

The last line is for programs; a claim under `reached` is a sentence that is true or false on this machine.
Medians and bootstrap intervals come from `quaver.runtime.measure.quality`; an `Interval` among the figures is written
as value, low and high.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from quaver.runtime.measure.cost import environment, installed
from quaver.runtime.measure.quality import Interval

LIBRARIES = ("torch", "onnx", "tensorrt-rtx-cu13")  # beside those that decide a latency


def machine() -> dict[str, str]:
    """What this ran on: processor, cores, system, Python, and the libraries that matter."""
    return environment() | {name: installed(name) for name in LIBRARIES}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as aligned text; the keys of the first are the columns."""
    rows = list(rows)
    if not rows:
        return "(no rows)"
    cells = [list(rows[0]), *([_cell(row.get(key, "")) for key in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def publish(
    name: str, rows: Iterable[Mapping[str, Any]], *, figures: Mapping[str, Any], reached: Mapping[str, bool]
) -> None:
    """Print machine and versions, the table, and as the last line the JSON object."""
    print(table({"": key, name: value} for key, value in machine().items()), end="\n\n")
    print(table(rows), end="\n\n")
    claims = {claim: bool(true) for claim, true in reached.items()}
    print(json.dumps({"name": name, "figures": dict(figures), "reached": claims}, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    return value.as_json() if isinstance(value, Interval) else value.tolist()


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
