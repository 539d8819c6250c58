"""How far an engine's samples are from the float model's: at the end, along the way, and in single calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure import chart
from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import (
    Report,
    again,
    card,
    facts,
    featured_rows,
    line,
    pair,
    section,
    table,
    titled,
)
from quaver.runtime.measure.units import decibel, percent, spoken, whole_percent
from quaver.runtime.measure.verdict import best_row

LEAST = -1.0  # explained of a single call, drawn


def accuracy(report: Report) -> Markup:
    """Error of the finished latent, drift, drift beside the seeds' spread, and what single calls explain."""
    sampling = report["engines"][0]["sampling"]
    lede = (
        f"{report['trajectories']} seeds of {report['prompts']} prompts that no stage has seen,"
        f" {sampling['steps']} steps, eta {sampling['eta']:g}, guidance {sampling['guidance']:g}."
        " Error is the norm of the difference to the float latent over the norm of the float latent; intervals are"
        " bootstrapped over samples, 95%."
    )
    limits = sorted({engine["settings"]["max_latent_error"] for engine in report["engines"]})
    single = limits[0] if len(limits) == 1 else None
    budget = f"; dashed: the budget, {chart.short(percent(single))}" if single else ""
    return section(
        "accuracy",
        "How far from full precision",
        lede,
        pair(
            card("Error of the finished latent", f"Mean and interval{budget}.", error_marks(report, single)),
            card("Drift along the trajectory", "The same error after every sampling step.", drift(report)),
        ),
        steps(report),
        pair(
            card("Drift beside the seeds' own spread", departure(report), drift(report, beyond=True)),
            explained(report),
        ),
        again(report["reproduce"]),
    )


def error_marks(report: Report, limit: float | None) -> str:
    """A mark with its whisker per shown correction."""
    marks = [
        chart.Row(name, e["value"], e["low"], e["high"], style.partition(" ")[0])
        for name, row, style in featured_rows(report)
        for e in [row["latent_error"]]
    ]
    return chart.intervals(marks, label="Latent error", fmt=percent, limit=limit)


def drift(report: Report, *, beyond: bool = False) -> str:
    """The drift of every shown correction, on its own or below the distance of other seeds."""
    curves = [chart.Curve(name, row["drift"], style) for name, row, style in featured_rows(report)]
    # Of several float models, that whose seeds lie nearest at each step.
    nearest = [min(step) for step in zip(*(r["seed_spread"] for r in report["references"]), strict=False)]
    spread = chart.Curve("as far as another seed", nearest, "region") if beyond else None
    label = "Drift and seeds" if beyond else "Drift"
    return chart.lines(curves, x="sampling step", y="relative error", label=label, fmt=percent, beyond=spread)


def steps(report: Report) -> Markup:
    """The drift in numbers, error and SNR after every step, unfolded on request."""
    names, rows, _ = zip(*featured_rows(report), strict=True)
    body = [line(str(i + 1), *(after(row, i) for row in rows)) for i in range(max(len(row["drift"]) for row in rows))]
    found = table("Error and SNR after every step", ("step", *names), body)
    return h("details", h("summary", "Error and SNR after every step, in numbers"), found)


def after(row: Mapping[str, Any], i: int) -> Markup:
    """Error and SNR after step `i`, from 0; engines may take fewer steps than others."""
    if i >= len(row["drift"]):
        return h("td", "–")
    return h("td", percent(row["drift"][i]), h("small", decibel(row["drift_snr_db"][i])))


def departure(report: Report) -> str:
    """Whether and when an engine's error moves a sample as far as another seed would."""
    lost = [
        f"{titled(report, engine)} at step {row['leaves_seeds_at'] + 1}"
        for engine in report["engines"]
        for row in [best_row(engine["corrections"])]
        if row["leaves_seeds_at"] is not None
    ]
    said = f"reached by {', '.join(lost)}" if lost else "never reached"
    return f"Shaded: as far apart as two seeds of one prompt, all but the nearest twentieth of the pairs; {said}."


def explained(report: Report) -> Markup:
    """What corrections take off the squared error of single calls."""
    curves = [
        chart.Curve(name, [max(value, LEAST) for value in row["explained"]], style)
        for name, row, style in featured_rows(report)
        if row["explained"]
    ]
    title = "Explained of a single call"
    if not curves:
        return card(title, "No correction was measured that takes anything off.", "")
    text = (
        "Share of the squared error of one call that a correction takes off, on the float model's own states; below 0"
        f" it adds, and {whole_percent(LEAST)} is drawn for anything less."
    )
    drawn = chart.lines(curves, x="sampling step", y="share", label=title, fmt=whole_percent)
    clipped = [
        (titled(report, engine, spoken(row["name"])), f"residual clipped at {row['clipped_steps']} steps")
        for engine in report["engines"]
        for row in engine["corrections"]
        if row["clipped_steps"]
    ]
    return card(title, text, drawn, facts(clipped) if clipped else None)
