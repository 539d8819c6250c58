"""Where engines compute in which format: kernel types, the layers that stayed float and why, TensorRT's own account."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure import chart
from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, again, card, facts, section, several, shown, table
from quaver.runtime.measure.units import megabytes, percent, whole_percent

LEDE = (
    "What each layer's kernel multiplies, as the exported graph has it, and how much of the multiply-accumulates that"
    " is. A layer stays float because a rule says so or the target has no kernel for it; each has its reason."
)


def layers(report: Report) -> Markup:
    """Kernel types and kept layers per engine, and what the plan's build log says."""
    blocks = [
        h("div", h("h3", engine["name"], class_="sub") if several(report) else None, *engine_layers(engine))
        for engine in report["engines"]
    ]
    commands = [
        f"quaver lint {shlex.quote(e['bundle'])}/unet.{e['target']}.onnx --target {e['target']}"
        for e in report["engines"]
    ]
    return section("layers", "Layers and kernels", LEDE, *blocks, again(*commands))


def engine_layers(engine: Report) -> list[Markup | None]:
    """The cards of one engine."""
    found = engine["sites"]
    if "missing" in found:
        return [h("p", found["missing"], class_="lede"), plan(engine["plan"])]
    bars = [
        chart.Row(f"{kind['type']} · {kind['layers']} layers", kind["macs"], kind["macs"], kind["macs"], style)
        for kind in found["kernels"]
        for style in ["accent" if "×" in kind["type"] else "quiet"]
    ]
    text = (
        f"{found['layers']} of {found['of_layers']} layers in integers, {percent(found['by_macs'])} of the"
        " multiply-accumulates; grey: float."
    )
    kernels = card(f"Kernel types, {found['bits']}", text, chart.bars(bars, label="Share of work", fmt=whole_percent))
    return [h("div", kernels, plan(engine["plan"]), class_="pair"), kept(found)]


def kept(found: Mapping[str, Any]) -> Markup | None:
    """Layers in float by their reasons: how many, how much of the work, and which."""
    if not found["kept"]:
        return None
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["kept"]:
        groups.setdefault(row["reason"], []).append(row)
    body = [
        h(
            "tr",
            h("th", reason, scope="row"),
            h("td", str(len(rows))),
            h("td", percent(sum(row["macs"] for row in rows))),
            h("td", h("details", h("summary", "which"), *(h("p", row["layer"]) for row in rows)), class_="prompt"),
        )
        for reason, rows in sorted(groups.items(), key=lambda g: -sum(row["macs"] for row in g[1]))
    ]
    return table("Layers that stayed float", ("why", "layers", "of the work", ""), body)


def plan(found: Mapping[str, Any]) -> Markup:
    """What the TensorRT-RTX build log says about the plan beside an engine."""
    title = h("h3", "TensorRT-RTX")
    if "missing" in found:
        return h("div", title, h("p", found["missing"]), class_="card")
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
    return h("div", title, h("p", lede), facts(rows.items()), class_="card")
