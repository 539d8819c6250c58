"""What engines cost: loading, calls, a whole generation, memory and bytes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, again, cell, line, section, several, table
from quaver.runtime.measure.units import megabytes, milliseconds, percent

NOTHING = Markup("<td>–</td>")


def cost(report: Report) -> Markup:
    """Bytes, loading and calls of each engine and of the float models."""
    call = report["engines"][0]["call"]
    peak = max(engine["call"]["peak_rss_bytes"] for engine in report["engines"])
    lede = (
        f"One U-Net call on a batch of {call['batch']}, {call['threads']}. The error is that of one call, on states of"
        f" the float trajectory. Peak memory of the process that made this page, float and engine both open:"
        f" {megabytes(peak)}."
    )
    again_ = again(f"quaver bench {' '.join(shlex.quote(engine['bundle']) for engine in report['engines'])}")
    return section("cost", "What it costs", lede, calls(report), again_)


def calls(report: Report) -> Markup:
    """One line per engine and float model."""
    head = ("", "median", "95th percentile", "first call", "loading", "error of a call", "file", "smaller")
    whole = {r["name"]: r["bytes"] for r in report["references"]}
    body = [
        line(r["name"], *times(r["call"]), NOTHING, h("td", megabytes(r["bytes"])), NOTHING)
        for r in report["references"]
    ]
    for engine in report["engines"]:
        timing, ratio = engine["call"]["engines"][engine["target"]], whole[engine["reference"]] / engine["bytes"]
        cells = [*times(timing), cell(engine["call"]["error"], percent), h("td", megabytes(engine["bytes"]))]
        name = engine["name"] if several(report) else engine["target"]
        body.append(line(name, *cells, h("td", f"{ratio:.1f}×"), strong=not several(report)))
    return table("One U-Net call, and files", head, body)


def times(timing: Mapping[str, Any]) -> list[Markup]:
    """Cells of a timing."""
    return [h("td", milliseconds(timing[key])) for key in ("median_s", "p95_s", "first_s", "load_s")]
