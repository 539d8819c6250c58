"""The heat map of activation variance, layer by timestep, with what was drawn from it.

    shade of (l, s)     sigma^2[l, s] / mean_s sigma^2[l, s], from 0.5 to 1.5: at which timesteps a layer is busy
    dot at (l, s)       its area is the number of records drawn there
    strip on the right  log10 of that mean: how far layers lie apart

Bars above count the records of each timestep, whatever drew them. Cells of one shade are one path of runs, so that 300
layers at 200 timesteps stay below a megabyte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from quaver.calib.select import Field
from quaver.runtime.measure.drawing import drawing
from quaver.runtime.measure.markup import Markup, h

LEFT, TOP, MAP, STRIP, GAP, FOOT = 150, 104, 560, 12, 10, 34
BARS = 34  # height of the tallest bar
SHADES = 15
STYLE = """
.cell, .scale { fill: var(--accent); } .scale, .bar { fill: var(--quiet); } .back { fill: var(--faint); }
.dot { fill: var(--ink); stroke: var(--paper); stroke-width: .8; } .rule { stroke: var(--paper); }
"""


def draw_heatmap(field: Field, layers: Sequence[str], layer: np.ndarray, step: np.ndarray) -> str:
    """The heat map as an SVG file: variance [L, S] of `layers` [L], records drawn at layer [K] (-1: none) and step [K].

    Timesteps run from noise on the left to sound on the right, layers from input to output downwards.
    """
    count, steps = field.variance.shape
    size = (MAP / steps, min(16.0, max(3.0, 600 / count)))  # of a cell
    height = count * size[1]
    tagged = layer >= 0
    drawn = np.zeros(field.variance.shape, int)
    np.add.at(drawn, (layer[tagged], step[tagged]), 1)
    said = f"{len(step)} records drawn" + ("" if tagged.all() else ", by timestep alone")
    return drawing(
        "Activation variance of every layer's input",
        f"{count} layers, {steps} timesteps; {said}",
        *_key(),
        *_bars(np.bincount(step, minlength=steps), size[0]),
        h("rect", x=LEFT, y=TOP, width=MAP, height=f"{height:.1f}", class_="back"),
        *cells(shades(field.variance), size),
        *_strip(field.variance.mean(axis=1), size[1]),
        *groups(layers, size[1]),
        *_dots(drawn, size),
        *timestep_axis(field.timesteps, size[0], TOP + height + 16),
        width=LEFT + MAP + GAP + STRIP + 70,
        height=TOP + height + FOOT,
        left=LEFT,
        style=STYLE,
    )


def shades(variance: np.ndarray) -> np.ndarray:
    """Shade 0..SHADES [L, S] of variance [L, S]: half its layer's mean or less to one and a half times it or more."""
    mean = variance.mean(axis=1, keepdims=True)
    ratio = np.divide(variance, mean, out=np.zeros_like(variance), where=mean > 0)
    return np.rint(SHADES * np.clip(ratio - 0.5, 0, 1)).astype(int)


def _key() -> Iterator[Markup]:
    """What the shades mean."""
    right, wide = LEFT + MAP, 90
    for i in range(SHADES):
        box = {"x": f"{right - wide - 60 + i * wide / SHADES:.1f}", "y": 33, "width": wide / SHADES, "height": 10}
        yield h("rect", **box, class_="cell", opacity=f"{(i + 1) / SHADES:.2f}")
    yield h("text", "of the layer's mean  ×0.5", x=right - wide - 66, y=42, text_anchor="end")
    yield h("text", "×1.5", x=right - 54, y=42)


def cells(shade: np.ndarray, size: tuple[float, float]) -> Iterator[Markup]:
    """One path a shade, one piece a run of cells that have it."""
    pieces: dict[int, list[str]] = {}
    for row, values in enumerate(shade.tolist()):
        at = 0
        for value, run in groupby(values):
            width = len(list(run))
            x, y = LEFT + at * size[0], TOP + row * size[1]
            wide = f"{width * size[0]:.1f}"
            pieces.setdefault(value, []).append(f"M{x:.1f} {y:.1f}h{wide}v{size[1]:.1f}h-{wide}z")
            at += width
    for value in sorted(pieces.keys() - {0}):
        yield h("path", class_="cell", opacity=f"{value / SHADES:.2f}", d="".join(pieces[value]))


def _dots(drawn: np.ndarray, size: tuple[float, float]) -> Iterator[Markup]:
    """A dot where records were drawn; the largest just fits its cell."""
    most = 0.5 * max(min(size), 3.0)
    for row, column in np.argwhere(drawn).tolist():
        number = int(drawn[row, column])
        radius = max(most * (number / drawn.max()) ** 0.5, 1.1)
        x, y = LEFT + (column + 0.5) * size[0], TOP + (row + 0.5) * size[1]
        yield h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:.1f}", class_="dot")


def _bars(records: np.ndarray, width: float) -> Iterator[Markup]:
    yield h("text", "records", x=LEFT - 8, y=TOP - 8, text_anchor="end")
    yield h("text", f"at most {records.max()}", x=LEFT + MAP + GAP, y=TOP - 6 - BARS + 8)
    for s, number in enumerate(records.tolist()):
        tall = BARS * number / max(records.max(), 1)
        box: dict[str, Any] = {"x": f"{LEFT + s * width + width * 0.1:.1f}", "width": f"{width * 0.8:.1f}"}
        yield h("rect", **box, y=f"{TOP - 6 - tall:.1f}", height=f"{tall:.1f}", class_="bar")


def _strip(mean: np.ndarray, pitch: float) -> Iterator[Markup]:
    """The layers' mean variances on a logarithmic scale from the smallest to the largest."""
    seen = mean > 0
    if not seen.any():
        return
    scale = np.log10(mean, out=np.zeros_like(mean), where=seen)
    low, high = float(scale[seen].min()), float(scale[seen].max())
    x = LEFT + MAP + GAP
    for row in np.flatnonzero(seen).tolist():
        opacity = 0.1 + 0.9 * (scale[row] - low) / max(high - low, 1e-9)
        box = {"x": x, "y": f"{TOP + row * pitch:.1f}", "width": STRIP, "height": f"{pitch:.1f}"}
        yield h("rect", **box, opacity=f"{opacity:.2f}", class_="scale")
    for text, y in (("mean", 10), (f"10^{low:.0f} to", 24), (f"10^{high:.0f}", 38)):
        yield h("text", text, x=x + STRIP + 6, y=TOP + y)


def groups(layers: Sequence[str], pitch: float) -> Iterator[Markup]:
    """Names of blocks of layers, and a line where one ends; names that would overlap are left out."""
    row, free = 0, 0.0
    for block, members in groupby(layers, key=block_of):
        y, number = TOP + row * pitch, len(list(members))
        if row:
            yield h("line", x1=LEFT, x2=LEFT + MAP, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="rule")
        middle = y + number * pitch / 2 + 4
        if middle >= free:
            yield h("text", block, x=LEFT - 8, y=f"{middle:.1f}", text_anchor="end")
            free = middle + 13
        row += number


def block_of(layer: str) -> str:
    """The block of a layer: "down_blocks.1.resnets.0.conv1" is in "down_blocks.1"."""
    parts = layer.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def timestep_axis(timesteps: np.ndarray, width: float, y: float) -> Iterator[Markup]:
    """Timesteps under a map whose columns are `width` wide; about ten of them are written."""
    steps = len(timesteps)
    every = max(1, -(-steps // 10))
    for s in range(0, steps, every):
        yield h("text", int(timesteps[s]), x=f"{LEFT + (s + 0.5) * width:.1f}", y=f"{y:.1f}", text_anchor="middle")
    yield h("text", "timestep", x=LEFT - 24, y=f"{y:.1f}", text_anchor="end")
