"""The picture of benchmarks.figure4: a panel for each measure and width, marks with intervals, faint dots for seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product

from benchmarks.orders import Measured
from quaver.runtime.measure.chart import ticks
from quaver.runtime.measure.drawing import drawing
from quaver.runtime.measure.markup import Markup, h

WIDTH, HEIGHT, LEFT, TOP, GAP, ROW = 300, 190, 60, 108, 64, 96
WIDTHS, PROMPTS, SELECT = ("W8A8", "W4A8"), ("plain", "enhanced"), ("uniform", "normal", "ours")
STYLE = """
.name { fill: var(--ink); font-size: 12px; } .grid { stroke: var(--faint); } .float { stroke: var(--quiet);
  stroke-dasharray: 4 3; } .mark { stroke: var(--ink); fill: var(--ink); stroke-width: 2; }
.normal { fill: var(--paper); } .ours { stroke: var(--accent); fill: var(--accent); }
.seed { opacity: .35; stroke: none; } .seed.normal { fill: var(--ink); }
"""


def draw_figure4(distance: Mapping[str, Measured], noise: Mapping[str, Measured]) -> str:
    """The figure as an SVG file, from Frechet distances (with that of "float") and minus SNR [dB] of every cell."""
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + 2 * (HEIGHT + ROW)
    rows = (
        ("Frechet distance to real clips (embedded probe): lower is better", distance, 1),
        ("SNR of the latents against the float denoiser's, dB: higher is better", noise, -1),
    )
    body = []
    for i, (text, cells, sign) in enumerate(rows):
        y = TOP + i * (HEIGHT + ROW)
        body.append(h("text", text, x=16, y=y - 34, class_="name"))
        for j, name in enumerate(WIDTHS):
            drawn = panel(cells, name, sign)
            body.append(h("g", *drawn, transform=f"translate({LEFT + j * (WIDTH + GAP)} {y})"))
    return drawing(
        "What is calibrated on",
        "marks: all clips, with 95% intervals over clips; faint dots: SNR of calibration seeds",
        *_legend(width),
        *body,
        width=width,
        height=height,
        style=STYLE,
    )


def panel(cells: Mapping[str, Measured], width: str, sign: int) -> Iterator[Markup]:
    """One measure at one width: three marks on plain prompts, three on enhanced ones; the axis need not begin at 0."""
    shown = {key: cells[f"{width} {' '.join(key)}"] for key in product(PROMPTS, SELECT)}
    ends = [sign * end for found in shown.values() for end in (found.interval.low, found.interval.high)]
    ends += [sign * cells["float"].value] if "float" in cells else [-x for f in shown.values() for x in f.seeds]
    marks = scale(min(ends), max(ends))

    def y(value: float) -> float:
        return HEIGHT * (marks[-1] - sign * value) / (marks[-1] - marks[0])

    yield h("text", width, x=0, y=-12, class_="name")
    for mark in marks:
        yield h("line", x1=0, x2=WIDTH, y1=f"{y(sign * mark):.1f}", y2=f"{y(sign * mark):.1f}", class_="grid")
        yield h("text", f"{mark:g}", x=-6, y=f"{y(sign * mark) + 4:.1f}", text_anchor="end")
    if "float" in cells:
        at = y(cells["float"].value)
        yield h("line", x1=0, x2=WIDTH, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="float")
        yield h("text", "float", x=WIDTH / 2, y=f"{at - 4:.1f}", text_anchor="middle")
    for i, key in enumerate(shown):
        x = WIDTH * (0.11 + 0.14 * (i % 3) + 0.5 * (i // 3))
        yield from _mark(shown[key], x, y, key[1], seeds="float" not in cells)
    for i, prompts in enumerate(PROMPTS):
        yield h("text", f"{prompts} prompts", x=WIDTH * (0.25 + 0.5 * i), y=HEIGHT + 20, text_anchor="middle")


def scale(low: float, high: float) -> list[float]:
    """Round values one step apart that enclose `low` to `high`."""
    step = ticks(max(high - low, 1e-9))[1]
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _mark(found: Measured, x: float, y: Callable[[float], float], select: str, *, seeds: bool) -> Iterator[Markup]:
    for i, seed in enumerate(found.seeds if seeds else ()):  # fewer clips, a larger Frechet distance: not comparable
        yield h("circle", cx=f"{x + 10 + 5 * i:.1f}", cy=f"{y(seed):.1f}", r=2.5, class_=f"mark seed {select}")
    ends = found.interval
    yield h(
        "line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{y(ends.low):.1f}", y2=f"{y(ends.high):.1f}", class_=f"mark {select}"
    )
    yield h("circle", cx=f"{x:.1f}", cy=f"{y(found.value):.1f}", r=5, class_=f"mark {select}")


def _legend(width: float) -> Iterator[Markup]:
    for i, select in enumerate(SELECT):
        x = width - 230 + 76 * i
        yield h("circle", cx=x, cy=22, r=5, class_=f"mark {select}")
        yield h("text", select, x=x + 10, y=26, class_="name")
