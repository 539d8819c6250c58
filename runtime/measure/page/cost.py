"""What engines cost: loading, calls, a whole generation, memory and bytes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure.markup import Markup, h, join
from quaver.runtime.measure.page.elements import Report, again, called, cell, line, note, section, several, table
from quaver.runtime.measure.units import counted, giga, megabytes, milliseconds, percent, spoken

NOTHING = Markup("<td>–</td>")


def cost(report: Report) -> Markup:
    """Bytes, loading and calls of each engine and of the float models."""
    call = report["engines"][0]["call"]
    peak = max(engine["call"]["peak_rss_bytes"] for engine in report["engines"])
    lede = (
        f"One U-Net call on a batch of {call['batch']}, {call['threads']}, times as they were taken. The error is that"
        f" of one call, on states of the float trajectory. Peak memory of the process that made this page, float and"
        f" engine both open: {megabytes(peak)}."
    )
    command = again(f"quaver bench {' '.join(shlex.quote(engine['bundle']) for engine in report['engines'])}")
    return section("cost", "What it costs", lede, calls(report), generations(report), command)


def calls(report: Report) -> Markup:
    """One line per engine and float model."""
    head = ("", "median", "95th percentile", "first call", "loading", "error of a call", "BOPs", "file", "smaller")
    work = {e["reference"]: e["sites"].get("bops", {}).get("float") for e in report["engines"]}
    whole = {r["name"]: r["bytes"] for r in report["references"]}
    body = [
        line(r["name"], *times(r["call"]), NOTHING, bops(work[r["name"]]), h("td", megabytes(r["bytes"])), NOTHING)
        for r in report["references"]
    ]
    for engine in report["engines"]:
        timing, ratio = engine["call"]["engines"][engine["target"]], whole[engine["reference"]] / engine["bytes"]
        found = engine["sites"].get("bops", {})
        cells = [*times(timing), cell(engine["call"]["error"], percent), bops(found.get("stored"), found.get("float"))]
        cells.append(h("td", megabytes(engine["bytes"])))
        body.append(line(called(report, engine), *cells, h("td", f"{ratio:.1f}×"), strong=not several(report)))
    return table("One U-Net call, and files", head, body)


def bops(count: float | None, whole: float | None = None) -> Markup:
    """Bit operations of one call, and how many times fewer than the float model's."""
    if not count:
        return NOTHING
    return h("td", giga(count), h("small", f"{whole / count:.1f}× fewer") if whole else None)


def generations(report: Report) -> Markup | None:
    """Whole generations, each engine in a process of its own, or why there are none."""
    rows = [(r["name"], r["generation"], False) for r in report["references"]]
    for engine in report["engines"]:
        rows.append((called(report, engine), engine["generation"], not several(report)))
    timed = [(name, found, strong) for name, found, strong in rows if found and "missing" not in found]
    remarks = [note(f"{name}: {found['missing']}") for name, found, _ in rows if found and "missing" in found]
    if not timed:
        return join(*remarks) if remarks else None
    first = timed[0][1]
    caption = (
        f"From prompt to clip: {first['steps']} steps, batch {first['batch']}, {counted(first['threads'], 'thread')},"
        f" {counted(first['runs'], 'run')} after {first['warmup']} of warm-up, each engine in a process of its own"
    )
    head = ("", "median", "95th percentile", "first", "opening", "peak memory", "of it before opening")
    body = [
        line(
            h("span", name, f", {spoken(found['correct'])}" if name not in floats(report) else None),
            *times(found),
            h("td", megabytes(found["peak_rss_bytes"])),
            h("td", megabytes(found["idle_rss_bytes"])),
            strong=strong,
        )
        for name, found, strong in timed
    ]
    return join(table(caption, head, body), *remarks)


def floats(report: Report) -> list[str]:
    """Names of the float models."""
    return [reference["name"] for reference in report["references"]]


def times(timing: Mapping[str, Any]) -> list[Markup]:
    """Cells of a timing."""
    return [h("td", milliseconds(timing[key])) for key in ("median_s", "p95_s", "first_s", "load_s")]
