"""Accuracy against time as inline SVG: one mark per engine and correction, with error bars, and the Pareto line.

A point is dominated when another one is at most as slow and at most as wrong, and better in one of the two; the line
joins those that are not, from the fastest to the most accurate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from quaver.runtime.measure.chart import LEFT, RIGHT, TOP, WIDTH, Format, short, svg, ticks

SHAPES = ("circle", "square", "diamond", "triangle", "cross", "bar")
HEIGHT, BOTTOM = 300, 36


@dataclass(frozen=True)
class Point:
    """A value (low, value, high) on each axis, its name, and how it is drawn: colour by `style`, form by `shape`."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    style: str = "ink"
    shape: str = SHAPES[0]
    label: str = ""  # written beside it


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points `(x, y)` that no other dominates, by x."""

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    best = [i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)]
    return sorted(best, key=lambda i: points[i])


def scatter(points: Sequence[Point], *, x: str, y: str, label: str, x_fmt: Format = str, y_fmt: Format = str) -> str:
    """Points with their error bars on both axes, and the line of those that are not dominated."""
    rows = ticks(max(p.y[2] for p in points), about=5)
    columns = between(min(p.x[0] for p in points), max(p.x[2] for p in points))

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - columns[0]) / (columns[-1] - columns[0])

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP - 14) * value / rows[-1]

    best = pareto([(p.x[1], p.y[1]) for p in points])
    line = " ".join(f"{across(points[i].x[1]):.1f},{up(points[i].y[1]):.1f}" for i in best)
    body = [
        *(_row(up(mark), short(y_fmt(mark))) for mark in rows),
        *(_column(across(mark), short(x_fmt(mark))) for mark in columns),
        f'<text class="axis" x="{LEFT}" y="{TOP}">{escape(y)}</text>',
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x)}</text>',
        f'<polyline class="line quiet pareto" points="{line}"><title>Pareto line</title></polyline>',
    ]
    for point in points:
        h, v = [across(value) for value in point.x], [up(value) for value in point.y]
        body.append(f'<g class="point {point.style}"><title>{escape(point.name)}</title>')
        body.append(f'<line class="whisker thin" x1="{h[0]:.1f}" x2="{h[2]:.1f}" y1="{v[1]:.1f}" y2="{v[1]:.1f}"/>')
        body.append(f'<line class="whisker thin" x1="{h[1]:.1f}" x2="{h[1]:.1f}" y1="{v[0]:.1f}" y2="{v[2]:.1f}"/>')
        body.append(mark(point.shape, h[1], v[1]))
        if point.label:
            end = h[1] > 0.75 * WIDTH
            side = f'x="{h[1] + (-9 if end else 9):.1f}"' + (' text-anchor="end"' if end else "")
            body.append(f'<text class="name" {side} y="{v[1] - 7:.1f}">{escape(point.label)}</text>')
        body.append("</g>")
    named = ", ".join(f"{p.name} {x_fmt(p.x[1])} {y_fmt(p.y[1])}" for p in points)
    return svg(HEIGHT, body, f"{label}: {named}")


def key(entries: Sequence[tuple[str, str, str]]) -> str:
    """What colours and forms mean, from (name, style, shape)."""
    keys = [
        '<span class="key"><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">'
        f'<g class="point {style}">{mark(shape, 7, 7)}</g></svg>{escape(name)}</span>'
        for name, style, shape in entries
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def mark(shape: str, x: float, y: float, r: float = 5) -> str:
    """A mark of a form of `SHAPES` around a place."""
    if shape == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if shape in ("cross", "bar"):
        arms = [(-r, -r, r, r), (-r, r, r, -r)] if shape == "cross" else [(-r, 0, r, 0)]
        path = "".join(f"M{x + a:.1f} {y + b:.1f}L{x + c:.1f} {y + d:.1f}" for a, b, c, d in arms)
        return f'<path class="line" d="{path}"/>'
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    }[shape]
    path = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners)
    return f'<polygon class="dot" points="{path}"/>'


def between(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round values that enclose `low` and `high` with a little room, not down to zero."""
    room = max((high - low) * 0.08, abs(high) * 0.02, 1e-12)
    low, high = max(low - room, 0.0), high + room
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _row(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _column(x: float, text: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
