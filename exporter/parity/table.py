"""A report of parity as a text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from quaver.exporter.parity import Report
from quaver.exporter.parity.difference import Difference
from quaver.exporter.parity.rows import Row
from quaver.exporter.parity.segments import layer_of
from quaver.exporter.parity.verdict import Finding
from quaver.exporter.parity.weights import WeightError

ROWS = 10  # costliest layers that the text shows
LEVELS = (40, 30, 20, 10)  # dB below which the accumulated cost is pointed out
DIFFERENCES = ("engine", "engine_local", "exact_local", "total", "cost", "cost_local")
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "MatMulNBits", "QAttention")


def text(report: Report, findings: Sequence[Finding]) -> str:
    """What was compared, how far apart the runs are, the costliest layers, and what is bad."""
    return "\n".join(_lines(report, findings))


def table(report: Report, findings: Sequence[Finding]) -> dict[str, Any]:
    """Every edge, weight and finding, to be written as JSON."""
    return {
        "calls": report.calls,
        "findings": [asdict(finding) for finding in findings],
        "edges": [_edge(report, row) for row in report.rows],
        "weights": [_weight(report, weight) for weight in report.weights],
    }


def _lines(report: Report, findings: Sequence[Finding]) -> Iterator[str]:
    rows = report.rows
    integer = {kernel: n for kernel, n in report.kernels.items() if kernel.startswith(INTEGER)}
    named = ", ".join(f"{n} {kernel}" for kernel, n in sorted(integer.items(), key=lambda item: -item[1])) or "none"
    yield f"{len(rows)} edges, {report.calls} calls; integer kernels: {named if report.kernels else 'not run'}"
    if report.signed:
        yield "signed activations: onnxruntime stands in for the target here, on its slow path for them"
    if report.kernels:
        yield f"engine  {_agreement(rows, 'engine_local')}"
    yield f"exact   {_agreement(rows, 'exact_local')}"
    if report.kernels:
        yield f"output  engine against exact: {_db(rows[-1].engine)} dB"
    if any(row.cost for row in rows):
        yield f"output  exact against float: {_db(rows[-1].cost)} dB, engine against float: {_db(rows[-1].total)} dB"
        yield from _cost(report)
    firsts = {finding.kind: finding for finding in reversed(findings)}
    for kind, first in sorted(firsts.items(), key=lambda item: item[1].place):
        others = sum(finding.kind == kind for finding in findings) - 1
        yield f"bad     {kind}: {first.layer}: {first.why}" + f" (and {others} more)" * bool(others)
    if not findings:
        yield "good    every edge is where rounding puts it"


def _agreement(rows: Sequence[Row], name: str) -> str:
    """How far a run is at most from what its own values demand."""
    found: list[tuple[Row, Difference]] = [(row, local) for row in rows if (local := getattr(row, name))]
    codes = [local for row, local in found if row.coded]
    floats = [local for row, local in found if not (row.coded or row.half)]
    parts = [f"{len(found)} edges, fed alike"]
    if codes:
        share = max(local.share for local in codes)
        parts.append(f"codes move by {max(local.largest for local in codes):.3g} at most, {share:.3%} of an edge")
    if floats:
        parts.append(f"floats agree to {_db(min(floats, key=lambda local: local.snr))} dB")
    return "; ".join(parts)


def _cost(report: Report) -> Iterator[str]:
    """Where the accumulated cost passes LEVELS, and the layers that cost most alone, in topological order."""
    rows = [(row, row.cost, row.cost_local) for row in report.rows if row.cost and row.cost_local]
    for level in LEVELS:
        if first := next((row for row, cost, _ in rows if cost.snr < level), None):
            yield f"        below {level} dB from {layer_of(report.whole, first.edge)}"
    worst = {row.edge for row, _, _ in sorted(rows, key=lambda item: item[2].snr)[:ROWS]}
    heads = ("cost", "alone", "engine", "alone")
    yield "\n" + f"{'costliest layers, dB':<74} {'kernel':<20}" + "".join(f"{head:>8}" for head in heads)
    for row, cost, alone in rows:
        if row.edge in worst:
            numbers = "".join(f"{_db(found):>8}" for found in (cost, alone, row.engine, row.engine_local))
            yield f"{str(layer_of(report.whole, row.edge))[:74]:<74} {row.kernel[:20]:<20}{numbers}"
    yield ""


def _db(found: Difference | None) -> str:
    return "-" if found is None else f"{found.snr:.1f}"


def _edge(report: Report, row: Row) -> dict[str, Any]:
    numbers = {
        name: None if (found := getattr(row, name)) is None else _numbers(found, coded=row.coded)
        for name in DIFFERENCES
    }
    return {
        "edge": row.edge,
        **asdict(layer_of(report.whole, row.edge)),
        "kernel": row.kernel,
        "nans": row.nans,
        **numbers,
    }


def _weight(report: Report, weight: WeightError) -> dict[str, Any]:
    layer = str(layer_of(report.whole, weight.edge))
    return {"edge": weight.edge, "steps": _finite(weight.steps), "snr": _finite(weight.snr), "layer": layer}


def _numbers(found: Difference, *, coded: bool) -> dict[str, float | None]:
    steps = (
        {"largest_steps": _finite(found.largest), "moved": found.share}
        if coded
        else {"largest": _finite(found.largest)}
    )
    return {"snr": _finite(found.snr), **steps}


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None
