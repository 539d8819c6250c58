"""The picture of benchmarks.explained: a panel for each channel, the share explained over the timesteps, two curves.

All panels have one axis, even in rho: shares far below a tenth are most of what there is to see.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.figure4_picture import STYLE
from quaver.runtime.measure.chart import ticks
from quaver.runtime.measure.drawing import drawing
from quaver.runtime.measure.markup import Markup, h

WIDTH, HEIGHT, LEFT, TOP, GAP, ROW, ACROSS = 160, 110, 56, 112, 22, 62, 4
LINES = """
.line { fill: none; stroke: var(--ink); stroke-width: 2; stroke-linejoin: round; }
.deployed { stroke: var(--accent); } .simulated { stroke-dasharray: 5 4; }
"""


def draw_explained(timesteps: np.ndarray, deployed: np.ndarray, simulated: np.ndarray) -> str:
    """The picture as an SVG file, from rho^2 [S, C] of both engines at timesteps [S], the noisiest first."""
    count = deployed.shape[1]
    marks = ticks(float(np.sqrt(max(deployed.max(), simulated.max()))), about=5)
    width = LEFT + min(count, ACROSS) * (WIDTH + GAP)
    height = TOP + -(-count // ACROSS) * (HEIGHT + ROW) - 16
    panels = []
    for c in range(count):
        x, y = LEFT + (c % ACROSS) * (WIDTH + GAP), TOP + (c // ACROSS) * (HEIGHT + ROW)
        curves = {"simulated": np.sqrt(simulated[:, c]), "deployed": np.sqrt(deployed[:, c])}
        drawn = panel(f"channel {c}", timesteps, curves, marks, labels=c % ACROSS == 0)
        panels.append(h("g", *drawn, transform=f"translate({x} {y})"))
    return drawing(
        "What the output explains of its own error",
        "rho², the share of the error's variance, per latent channel, over the timesteps of a sample",
        *_legend(),
        *panels,
        width=width,
        height=height,
        style=STYLE + LINES,
    )


def panel(
    name: str, timesteps: np.ndarray, curves: dict[str, np.ndarray], marks: list[float], *, labels: bool
) -> Iterator[Markup]:
    """One channel: a curve of |rho| per engine [S] on the axis of `marks`, which says rho^2."""
    yield h("text", name, x=0, y=-10, class_="name")
    for mark in marks:
        y = f"{HEIGHT * (1 - mark / marks[-1]):.1f}"
        yield h("line", x1=0, x2=WIDTH, y1=y, y2=y, class_="grid")
        if labels:
            yield h("text", f"{100 * mark**2:.2g}%", x=-5, y=float(y) + 4, text_anchor="end")
    at = np.linspace(0, WIDTH, len(timesteps))
    for engine, values in curves.items():
        points = " ".join(f"{x:.1f},{HEIGHT * (1 - v / marks[-1]):.1f}" for x, v in zip(at, values, strict=True))
        yield h("polyline", points=points, class_=f"line {engine}")
    for place, t, anchor in ((0, timesteps[0], "start"), (WIDTH, timesteps[-1], "end")):
        yield h("text", f"t = {t}", x=place, y=HEIGHT + 16, text_anchor=anchor)


def _legend() -> Iterator[Markup]:
    for x, name, text in ((16, "deployed", "deployed engine"), (160, "simulated", "its graph in floats")):
        yield h("line", x1=x, x2=x + 26, y1=64, y2=64, class_=f"line {name}")
        yield h("text", text, x=x + 33, y=68, class_="name")
