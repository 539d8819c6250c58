"""What engines were calibrated on: the aspects its prompts cover, and how ranges move over the timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quaver.runtime.measure import chart, heat
from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, again, card, grouped, pair, section, several
from quaver.runtime.measure.units import whole_percent

LEDE = "Which sounds the calibration prompts ask for, and what one scale for all timesteps has to cover."


def calibration(report: Report) -> Markup:
    """Coverage of prompts and ranges over timesteps; engines that share them share the charts."""
    blocks: list[Markup] = []
    for names, found in grouped(report, "coverage"):
        blocks.append(coverage(names if several(report) else [], found))
    for names, found in grouped(report, "ranges"):
        blocks.append(ranges(names if several(report) else [], found))
    rows = [pair(*blocks[i : i + 2]) for i in range(0, len(blocks), 2)]
    return section("calibration", "Calibration", LEDE, *rows, again("quaver run RECIPE --until ranges"))


def coverage(names: Sequence[str], found: Mapping[str, Any]) -> Markup:
    """Share of prompts that name each aspect of sound."""
    title = " · ".join(["Prompts by aspect", *names])
    if "missing" in found:
        return card(title, found["missing"], "")
    calib, held = (max(found["splits"].get(split, 0), 1) for split in ("calib", "validate"))
    rows = [(row["name"], row["calib"] / calib, row["validate"] / held) for row in found["aspects"]]
    text = (
        f"Bar: share of the {calib} calibration prompts that name an aspect; mark: of the held-out ones."
        f" {found['distinct']} different combinations; two prompts say the same with a chance of"
        f" {whole_percent(found['redundancy'])}; {found['uncovered']} name none."
    )
    return card(title, text, heat.tallies(rows, label="Prompts by aspect"))


def ranges(names: Sequence[str], found: Mapping[str, Any]) -> Markup:
    """How wide edges are at each timestep, of their widest: over all edges, and of those that move most."""
    title = " · ".join(["Ranges over timesteps", *names])
    if "missing" in found:
        return card(title, found["missing"], "")
    at = found["timesteps"]
    curves = [
        chart.Curve("nine in ten edges below", found["high"], "quiet dash"),
        chart.Curve("one in ten below", found["low"], "quiet"),
        chart.Curve("median edge", found["mid"], "accent"),
    ]
    text = (
        f"Width of an edge's range over the widest it has at any timestep, {found['edges']} edges. One scale serves all"
        " timesteps, so an edge at 50% leaves one bit unused there."
    )
    drawn = chart.lines(curves, x="timestep", y="width", label=title, fmt=whole_percent, at=at)
    rows = [(row["edge"], f"{row['ratio']:.1f}×", widths(row["amin"], row["amax"])) for row in found["varying"]]
    heated = heat.strips(rows, at=at, x="timestep", label="Ranges of the most varying edges")
    most = h("h3", "Edges that move most", class_="sub")
    key = h("p", "Full colour: as wide as it gets. The number: widest over narrowest.")
    return card(title, text, drawn, most, key, Markup(heated))


def widths(amin: Sequence[float], amax: Sequence[float]) -> list[float]:
    """Widths of a range over its timesteps, as shares of the widest."""
    width = [high - low for low, high in zip(amin, amax, strict=True)]
    return [value / max(width) for value in width]
