"""The sections of the report that hold figures: each a function from the report to HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quaver.runtime.measure import chart
from quaver.runtime.measure.markup import Markup, h, join
from quaver.runtime.measure.units import (
    decibel,
    megabytes,
    milliseconds,
    number,
    percent,
    span,
    spoken,
    times,
    whole_percent,
)

Report = Mapping[str, Any]


def best_correction(report: Report) -> Mapping[str, Any]:
    """The row of the correction that the verdict is about."""
    return next(row for row in report["corrections"] if row["name"] == report["verdict"]["correction"])


def accuracy(report: Report) -> Markup:
    """Latent error and drift of every correction: two charts and the table they were drawn from."""
    rows, strong = report["corrections"], report["verdict"]["correction"]
    limit = report["settings"]["max_latent_error"]
    marks = [interval_row(row, strong=row["name"] == strong) for row in rows]
    error = chart.intervals(marks, label="Latent error", fmt=percent, limit=limit)
    curves = chart.lines(
        [(spoken(r["name"]), r["drift"]) for r in rows],
        strong=spoken(strong),
        x="sampling step",
        y="relative error",
        label="Drift",
        fmt=percent,
    )
    lede = (
        f"{report['trajectories']} seeds of {report['prompts']} prompts that no stage has seen,"
        f" {report['sampling']['steps']} steps,"
        f" eta {report['sampling']['eta']:g}, guidance {report['sampling']['guidance']:g}."
        " Error is the norm of the difference to the float latent over the norm of the float latent; intervals are"
        " bootstrapped over prompts, 95%."
    )
    return h(
        "section",
        h("h2", "How far from full precision"),
        h("p", lede, class_="lede"),
        h(
            "div",
            card(
                "Error of the finished latent",
                f"Mean and interval; dashed: the budget, {chart.short(percent(limit))}.",
                error,
            ),
            card("Drift along the trajectory", "The same error after every sampling step.", curves),
            class_="pair",
        ),
        accuracy_table(rows, strong),
        id="accuracy",
    )


def interval_row(row: Mapping[str, Any], *, strong: bool) -> chart.Row:
    """The latent error of a correction as a mark with its whisker."""
    error = row["latent_error"]
    return chart.Row(spoken(row["name"]), error["value"], error["low"], error["high"], strong=strong)


def accuracy_table(rows: Sequence[Mapping[str, Any]], strong: str) -> Markup:
    """One line per correction."""
    head = ("correction", "latent error", "SNR", "against none", "log-spectral distance")
    body = [
        h(
            "tr",
            h("th", spoken(r["name"]), scope="row"),
            cell(r["latent_error"], percent),
            cell(r["snr_db"], decibel),
            cell(r.get("against_none"), lambda v: f"{v:.3f}×"),
            cell(r.get("log_spectral_db"), decibel),
            class_="best" if r["name"] == strong else None,
        )
        for r in rows
    ]
    return table("Corrections", head, body)


def cost(report: Report) -> Markup:
    """Latency, loading and bytes of each engine."""
    call = report["call"]
    engines, target = call["engines"], report["target"]
    bars = [
        chart.Row(name, e["median_s"], e["median_s"], e["p95_s"], strong=name == target) for name, e in engines.items()
    ]
    head = ("engine", "median", "95th percentile", "first call", "loading", "file")
    body = [
        h(
            "tr",
            h("th", name, scope="row"),
            *(h("td", milliseconds(e[key])) for key in ("median_s", "p95_s", "first_s", "load_s")),
            h("td", megabytes(e["bytes"])),
            class_="best" if name == target else None,
        )
        for name, e in engines.items()
    ]
    lede = (
        f"One U-Net call on a batch of {call['batch']}, {call['runs']} pairs of calls taken in turns after"
        f" {call['warmup']} of warm-up, {call['threads']}. The output of that call differs by"
        f" {percent(call['error']['value'])} ({span(call['error'], percent)}) on the states of the float trajectory."
        f" Peak memory of the whole process: {megabytes(call['peak_rss_bytes'])}."
    )
    speedup = f"{call['speedup']['value']:.2f}× as fast as float ({times(call['speedup'])})"
    return h(
        "section",
        h("h2", "What it costs"),
        h("p", lede, class_="lede"),
        h(
            "div",
            card(
                "Time of one call",
                f"{target} is {speedup}. Whisker: 95th percentile.",
                chart.bars(bars, label="Median time of a call", fmt=milliseconds),
            ),
            card(
                "Size of the U-Net",
                "Bytes on disk, external data included.",
                chart.bars(
                    [chart.Row(n, e["bytes"], e["bytes"], e["bytes"], strong=n == target) for n, e in engines.items()],
                    label="File size",
                    fmt=megabytes,
                ),
            ),
            class_="pair",
        ),
        table("Engines", head, body),
        id="cost",
    )


def probe(report: Report) -> Markup:
    """Set measures over the embedded probe's features, with their floor."""
    found = report["probe"]
    title = h("h2", "As a set of sounds")
    if "missing" in found:
        return h("section", title, h("p", found["missing"], class_="lede"), id="set")
    lede = (
        f"{found['name']}: features of the probe network in this bundle, not VGGish, so the figure compares with"
        f" nothing published. Random halves of {found['samples']} clips that share no seed: float against float is"
        " the floor, and no engine can be told from float below it."
    )
    attributes = list(found["attributes"])
    head = ("", "Frechet distance", *(f"same {name}" for name in attributes))
    floor = h(
        "tr", h("th", "float (floor)", scope="row"), cell(found["floor"], number), *(h("td", "–") for _ in attributes)
    )
    body = [
        h(
            "tr",
            h("th", spoken(row["name"]), scope="row"),
            cell(row["distance"], number),
            *(cell(row["agreement"][name], whole_percent) for name in attributes),
            class_="best" if row["name"] == report["verdict"]["correction"] else None,
        )
        for row in found["corrections"]
    ]
    note = h("p", found["note"], class_="note") if found.get("note") else None
    return h("section", title, h("p", lede, class_="lede"), table("Probe", head, [floor, *body]), note, id="set")


def plan(report: Report) -> Markup:
    """What the TensorRT-RTX build log says about the plan beside this engine."""
    found = report["plan"]
    if "missing" in found:
        return h("section", h("h2", "TensorRT-RTX"), h("p", found["missing"], class_="lede"), id="plan")
    rows = {
        "Integer kernels": f"{found['integer']} of {found['meant']} layers meant for them"
        f" ({percent(found['by_count'])}; {percent(found['by_macs'])} of their multiply-accumulates)",
        "Runs on": shown(found["compute_capabilities"]),
        "Plan": megabytes(found["bytes"]),
        "Batch": ", ".join(f"{name} {size}" for name, size in found["batch"].items()),
        "Built by": f"TensorRT-RTX {found['version']} in {found['seconds']:g} s",
    }
    rows |= {f"Not integer: {m['layer']}": shown(m["kernels"]) or "no kernel names it" for m in found["missed"]}
    lede = "Counted from the build log of the plan. No GPU was needed to build it, and none has timed it here."
    body = h("div", facts(rows.items()), class_="card")
    return h("section", h("h2", "TensorRT-RTX"), h("p", lede, class_="lede"), body, id="plan")


def origin(report: Report) -> Markup:
    """Environment, digests, settings and the commands that make this page again."""
    groups = (
        ("Machine and versions", report["environment"]),
        ("Sampling", report["sampling"]),
        ("Settings of this page", report["settings"]),
        ("Digests", report["digests"]),
    )
    cards = [h("div", h("h3", name), facts(rows.items()), class_="card") for name, rows in groups]
    again = h("div", h("h3", "Make it again"), h("pre", "\n".join(report["reproduce"]), tabindex=0), class_="card")
    lede = "Every figure above stands in report.json beside this page."
    body = h("div", *cards, again, class_="pair")
    return h("section", h("h2", "Where this comes from"), h("p", lede, class_="lede"), body, id="origin")


def card(title: str, text: str, svg: str) -> Markup:
    """A chart with its title and one sentence."""
    return h("div", h("h3", title), h("p", text), Markup(svg), class_="card")


def table(caption: str, head: Sequence[str], body: Sequence[Markup]) -> Markup:
    """A table that scrolls sideways on a phone, by keyboard too."""
    columns = h("thead", h("tr", *(h("th", name, scope="col") for name in head)))
    inner = h("table", h("caption", caption), columns, h("tbody", *body))
    return h("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(rows: Any) -> Markup:
    """Names and values as a definition list."""
    return h("dl", *(join(h("dt", name), h("dd", shown(value))) for name, value in rows), class_="facts")


def shown(value: Any) -> str:
    """A setting as a person writes it."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(interval: Mapping[str, float] | None, fmt: Callable[[float], str]) -> Markup:
    """A table cell: the estimate, its interval under it."""
    if interval is None:
        return h("td", "–")
    return h("td", fmt(interval["value"]), h("small", span(interval, fmt)))
