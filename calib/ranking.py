"""The picture of sensitivities: layers by timesteps, and the layers in their order.

    shade of (l, s)    SNR of the output when layer l alone is coded: the darkest is the least, 60 dB more is blank
    mark at the right  the layer is proposed to stay float
    curve below        SNR of each layer over all timesteps, by rank; the ends of the network are named

Layers and timesteps lie as in the heat map of the variance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from quaver.calib.heatmap import GAP, LEFT, MAP, SHADES, STYLE, TOP, cells, groups, timestep_axis
from quaver.calib.sensitivity import ENDS, Sensitivity
from quaver.runtime.measure.chart import ticks
from quaver.runtime.measure.drawing import drawing
from quaver.runtime.measure.markup import Markup, h

CURVE, FOOT = 200, 44
SPAN = 60.0  # dB from the darkest shade to none
EXTRA = """
.mark { fill: var(--accent); } .point { fill: var(--quiet); } .grid { stroke: var(--faint); }
.end { fill: none; stroke: var(--ink); stroke-width: 1.4; } .name { fill: var(--ink); }
"""


def draw_ranking(found: Sensitivity, kept: Collection[int], *, title: str, said: str) -> str:
    """The picture as an SVG file; `kept` are the indices of the layers proposed as float, `said` stands below `title`.

    Timesteps run from noise on the left to sound on the right, layers from input to output downwards.
    """
    count, steps = found.noise.shape
    order = np.argsort(-found.timesteps)
    snr, size = found.snr_t[:, order], (MAP / steps, min(16.0, max(3.0, 600 / count)))
    low = float(snr.min())
    high = low + min(max(float(snr.max()) - low, 1e-9), SPAN)
    below = TOP - 40 + count * size[1]
    return drawing(
        title,
        said,
        h(
            "g",
            *_key(low, high),
            h("rect", x=LEFT, y=TOP, width=MAP, height=f"{count * size[1]:.1f}", class_="back"),
            *cells(np.rint(SHADES * np.clip((high - snr) / (high - low), 0, 1)).astype(int), size),
            *_marks(kept, size[1]),
            *groups(found.layers, size[1]),
            *timestep_axis(found.timesteps[order], size[0], TOP + count * size[1] + 16),
            transform="translate(0 -40)",
        ),
        *_curve(found, kept, below + 64),
        width=LEFT + MAP + GAP + 110,
        height=below + 64 + CURVE + FOOT,
        left=LEFT,
        style=STYLE + EXTRA,
    )


def _key(low: float, high: float) -> Iterator[Markup]:
    """What the shades mean, at the right of the map."""
    x, tall = LEFT + MAP + GAP + 22, 120
    for i in range(SHADES + 1):
        box = {"x": x, "y": f"{TOP + i * tall / (SHADES + 1):.1f}", "width": 10, "height": f"{tall / (SHADES + 1):.1f}"}
        yield h("rect", **box, class_="cell", opacity=f"{1 - i / SHADES:.2f}")
    yield h("text", f"{low:.0f} dB", x=x + 16, y=TOP + 9)
    yield h("text", f"{high:.0f} dB", x=x + 16, y=TOP + tall)


def _marks(kept: Collection[int], pitch: float) -> Iterator[Markup]:
    for layer in sorted(kept):
        y = f"{TOP + layer * pitch:.1f}"
        yield h("rect", x=LEFT + MAP + 3, y=y, width=8, height=f"{pitch:.1f}", class_="mark")


def _curve(found: Sensitivity, kept: Collection[int], top: float) -> Iterator[Markup]:
    """SNR by rank on a scale of whole tens, one dot a layer."""
    order, snr = found.ranking.tolist(), found.snr
    base = 10 * np.floor(snr.min() / 10)
    scale = ticks(max(float(snr.max() - base), 1.0))

    def at(rank: int, value: float) -> tuple[str, str]:
        x = LEFT + MAP * (rank + 0.5) / len(order)
        return f"{x:.1f}", f"{top + CURVE - CURVE * (value - base) / scale[-1]:.1f}"

    for mark in scale:
        y = at(0, base + mark)[1]
        yield h("line", x1=LEFT, x2=LEFT + MAP, y1=y, y2=y, class_="grid")
        yield h("text", f"{base + mark:.0f} dB", x=LEFT - 8, y=float(y) + 4, text_anchor="end")
    for rank, layer in enumerate(order):
        x, y = at(rank, snr[layer])
        yield h("circle", h("title", found.layers[layer]), cx=x, cy=y, r=3, class_="mark" if layer in kept else "point")
        if found.layers[layer] in ENDS:
            yield h("circle", cx=x, cy=y, r=5.5, class_="end")
            yield h("text", found.layers[layer], x=float(x) + 9, y=float(y) + 14, class_="name")
    foot = f"{top + CURVE + 20:.1f}"
    yield h("text", "layers, the most sensitive first; in colour: proposed to stay float", x=LEFT, y=foot)
