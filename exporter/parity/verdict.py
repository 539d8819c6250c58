"""What is bad, by kind, in topological order.

    not finite    NaN where the float graph has none
    engine        an integer kernel left the codes that its own inputs demand
    exact         onnxruntime and torch read the same nodes differently
    grid          a dequantizer reads other codes than its quantizer wrote
    weight        a coded weight lies further from its float than rounding puts it
    cost          fed with floats, the coded layer alone loses more than `Tolerance.cost` leaves

Everything is judged by local differences, so what comes first is where something happened, not where it showed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quaver.exporter.parity import Report
from quaver.exporter.parity.difference import Tolerance, beyond_rounding
from quaver.exporter.parity.rows import Row
from quaver.exporter.parity.segments import layer_of, mismatches

KINDS = ("not finite", "grid", "weight", "exact", "engine", "cost")  # of one place, causes first


@dataclass(frozen=True)
class Finding:
    """A bad edge: its kind, its place in the graph, and why."""

    kind: str
    edge: str
    place: int
    layer: str
    why: str


def judge(report: Report, tolerance: Tolerance) -> list[Finding]:
    """Everything bad, the first in topological order first."""
    whole = report.whole
    found = [("grid", edge, why) for edge, why in mismatches(whole).items()]
    found += [
        (
            "weight",
            w.edge,
            f"its weight is {w.steps:.3g} steps off its float where rounding explains {tolerance.weight:g}",
        )
        for w in report.weights
        if w.steps > tolerance.weight
    ]
    found += [(kind, edge, why) for row in report.rows for kind, edge, why in _bad(row, tolerance)]
    findings = [
        Finding(kind, edge, whole.place[whole.maker[edge]], str(layer_of(whole, edge)), why)
        for kind, edge, why in found
    ]
    return sorted(findings, key=lambda finding: (finding.place, KINDS.index(finding.kind)))


def _bad(row: Row, tolerance: Tolerance) -> Iterator[tuple[str, str, str]]:
    """Kind, edge and reason of what is bad about a row; the engine's layer may lie before the edge that shows it."""
    if nan := {name: count for name, count in row.nans.items() if count}:
        counts = ", ".join(f"{count} of the {name} run" for name, count in nan.items())
        yield "not finite", row.edge, f"elements are NaN: {counts}"
    if row.exact_local and (why := beyond_rounding(row.exact_local, tolerance, coded=row.coded, loose=row.half)):
        yield "exact", row.edge, why
    loose = row.half or row.hidden
    if row.engine_local and (why := beyond_rounding(row.engine_local, tolerance, coded=row.coded, loose=loose)):
        edge = row.layers[0] if row.layers else row.edge
        yield "engine", edge, f"{why}, seen at {row.edge} ({row.kernel})"
    if row.cost_local and row.cost_local.snr < tolerance.cost:
        clipped = f", {row.cost_local.share:.1%} of its codes over half a step off" if row.coded else ""
        yield "cost", row.edge, f"alone it leaves {row.cost_local.snr:.1f} dB of the float layer{clipped}"
