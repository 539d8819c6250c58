"""Accuracy against time: every engine and correction as a point, the Pareto line, and the table behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure import chart, scatter
from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import (
    Report,
    again,
    called,
    card,
    cell,
    line,
    pair,
    section,
    several,
    subject,
    table,
    titled,
    tone,
)
from quaver.runtime.measure.units import counted, decibel, megabytes, milliseconds, percent, spoken, times
from quaver.runtime.measure.verdict import best_row, corrected_speedup
from quaver.runtime.session import FLOAT

MEASURES = (
    ("snr_db", "SNR", decibel),
    ("log_spectral_db", "log-spectral", decibel),
    ("mel_snr_db", "mel SNR", decibel),
    ("psnr_db", "PSNR", decibel),
    ("ssim", "SSIM", lambda value: f"{value:.3f}"),
)


def tradeoff(report: Report) -> Markup:
    """The scatter, the times of a call, and one line per engine and correction."""
    engines = report["engines"]
    call = engines[0]["call"]
    lede = (
        f"One U-Net call on a batch of {call['batch']}, with what the correction adds to it, against the error of the"
        f" finished latent. {counted(call['runs'], 'pair of calls')}, float and engine in turns, after"
        f" {call['warmup']} of warm-up, {call['threads']}; whiskers are 95% intervals, that of time once an engine. No"
        " engine beats a point on the dashed line in both."
    )
    return section(
        "tradeoff",
        "Accuracy against time",
        lede,
        pair(
            card("Every engine and correction", "Left is faster, down is closer to float.", scatter_chart(report)),
            card(
                "Time of one call",
                "Float's median over the paired speed-up; the whisker ends at its 95% bound.",
                Markup(chart.bars(call_rows(report), label="Time of a call", fmt=milliseconds)),
                h("h3", "Size of the U-Net", class_="sub"),
                Markup(size_bars(report)),
            ),
        ),
        rows(report),
        again(report["reproduce"]),
    )


def scatter_chart(report: Report) -> str:
    """All points with the float models at zero error."""
    names = corrections(report)
    shapes = {name: scatter.SHAPES[i % len(scatter.SHAPES)] for i, name in enumerate(names)}
    points = [float_point(reference) for reference in report["references"]]
    for engine in report["engines"]:
        best = best_row(engine["corrections"])
        for row in engine["corrections"]:
            style = tone(report, engine) if several(report) or row is best else "ink"
            points.append(
                scatter.Point(
                    titled(report, engine, spoken(row["name"])),
                    call_times(report, engine, row) if row is best else (call_times(report, engine, row)[1],) * 3,
                    bounds(row["latent_error"]),
                    style,
                    shapes[row["name"]],
                    engine["name"] if several(report) and row is best else "",
                )
            )
    drawn = scatter.scatter(
        points,
        x="one U-Net call",
        y="error of the finished latent",
        label="Error against time",
        x_fmt=milliseconds,
        y_fmt=percent,
    )
    tones = [(e["name"], tone(report, e), "square") for e in report["engines"]] if several(report) else []
    return scatter.key([*tones, *((spoken(name), "ink", shapes[name]) for name in names)]) + drawn


def corrections(report: Report) -> list[str]:
    """The names of all corrections that any engine was measured with, in order."""
    return list(dict.fromkeys(row["name"] for engine in report["engines"] for row in engine["corrections"]))


def float_point(reference: Mapping[str, Any]) -> scatter.Point:
    """A float model: its own time, no error."""
    seconds = reference["call"]["median_s"]
    label = FLOAT if reference["name"] == FLOAT else ""
    return scatter.Point(reference["name"], (seconds, seconds, seconds), (0, 0, 0), "quiet", label=label)


def call_times(report: Report, engine: Report, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Seconds of a call and its correction, low, value, high.

    Float's median over the paired speed-up: engines that were timed at different moments share one axis.
    """
    reference = next(r for r in report["references"] if r["name"] == engine["reference"])["call"]["median_s"]
    fast, middle, slow = (max(engine["call"]["speedup"][end], 1e-9) for end in ("high", "value", "low"))
    added = row["added_s"]
    return reference / fast + added, reference / middle + added, reference / slow + added


def bounds(interval: Mapping[str, float]) -> tuple[float, float, float]:
    """Low, value, high."""
    return interval["low"], interval["value"], interval["high"]


def call_rows(report: Report) -> list[chart.Row]:
    """Seconds of a call of every float model and engine, on the axis of the scatter."""
    floats = [chart.Row(r["name"], t := r["call"]["median_s"], t, t, "quiet") for r in report["references"]]
    alone = {"added_s": 0.0}
    found = [(engine, *call_times(report, engine, alone)) for engine in report["engines"]]
    engines = [chart.Row(called(report, e), value, low, high, tone(report, e)) for e, low, value, high in found]
    return [*floats, *engines]


def size_bars(report: Report) -> str:
    """Bytes of every engine's file and float model's."""
    sizes = [(r["name"], r["bytes"], "quiet") for r in report["references"]]
    sizes += [(called(report, e), e["bytes"], tone(report, e)) for e in report["engines"]]
    found = [chart.Row(name, size, size, size, style) for name, size, style in sizes]
    return chart.bars(found, label="File size", fmt=megabytes)


def rows(report: Report) -> Markup:
    """One line per engine and correction."""
    kinds = [kind for kind in MEASURES if any(r[kind[0]] for e in report["engines"] for r in e["corrections"])]
    first = "engine and correction" if several(report) else "correction"
    head = (first, "latent error", "against none", *(title for _, title, _ in kinds), "call", "against float")
    body = []
    for engine in report["engines"]:
        best = best_row(engine["corrections"])
        for row in engine["corrections"]:
            speedup = corrected_speedup(engine["call"], row)
            body.append(
                line(
                    subject(report, engine, row["name"]),
                    cell(row["latent_error"], percent),
                    cell(row["against_none"], lambda v: f"{v:.3f}×"),
                    *(cell(row[key], fmt) for key, _, fmt in kinds),
                    h("td", milliseconds(call_times(report, engine, row)[1])),
                    h("td", f"{speedup['value']:.2f}×", h("small", times(speedup))),
                    strong=row is best,
                )
            )
    return table("Engines and corrections" if several(report) else "Corrections", head, body)
