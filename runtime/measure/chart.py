"""Charts as inline SVG: small functions from numbers to a string, coloured by the page's style sheet alone.

Drawn on a canvas 400 units wide, so that a phone shows them at their size and a desk a little larger. Colours are CSS
classes (`ink`, `quiet`, `accent`, `tone0` .. `tone5`), so light and dark need one drawing. Each chart says in
`aria-label` what it shows; the numbers stand in a table beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP = 400, 44, 12, 10
Format = Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """One bar or one mark: `value` with bounds `low`..`high` in the unit of the axis, drawn in a style."""

    label: str
    value: float
    low: float
    high: float
    style: str = "ink"


@dataclass(frozen=True)
class Curve:
    """Values over 1..S, drawn in a style."""

    name: str
    values: Sequence[float]
    style: str = "ink"


def ticks(top: float, *, low: float = 0.0, about: int = 4) -> list[float]:
    """Round values ... -s, 0, s, 2s, ... with s of the form {1, 2, 5} * 10^k that enclose 0, `low` and `top`."""
    rough = max(top, -low, 1e-12) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(min(low, 0.0) / step + 1e-9), math.ceil(max(top, 0.0) / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def decades(values: Sequence[float]) -> list[float]:
    """Round values {1, 2, 5} * 10^k that enclose all `values` above zero; over many decades, 10^k between the ends."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = max(min(positive), max(positive) * 1e-4), max(positive)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [m * 10.0**k for k in powers for m in (1, 2, 5)]
    first = max(mark for mark in every if mark <= low * (1 + 1e-9))
    last = min(mark for mark in every if mark >= high * (1 - 1e-9) and mark > first)
    between = every if len(powers) <= 3 else [10.0**k for k in powers]
    return [first, *(mark for mark in between if first * 1.01 < mark < last * 0.99), last]


def lines(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    label: str,
    fmt: Format = str,
    beyond: Curve | None = None,
    at: Sequence[object] = (),
) -> str:
    """Curves over steps 1..S (or those named `at`); the last ones lie on top.

    With `beyond`, the region above that curve is shaded and the axis is logarithmic.
    """
    height, bottom, count = 230, 34, max(len(curve.values) for curve in curves)
    every = [value for curve in (*curves, *([beyond] if beyond else [])) for value in curve.values]
    marks = decades(every) if beyond else ticks(max(every), low=min(every))
    scale = (lambda v: math.log(max(v, marks[0]))) if beyond else float
    low, high = scale(marks[0]), scale(marks[-1])

    def place(i: float, value: float) -> tuple[float, float]:
        share = (scale(value) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * i / max(count - 1, 1), height - bottom - (height - bottom - TOP) * share

    def path(values: Sequence[float]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*place(i, value)) for i, value in enumerate(values))

    body = [_rule(place(0, mark)[1], short(fmt(mark))) for mark in marks]
    names = [str(name) for name in at] or [str(i + 1) for i in range(count)]
    body += [_tick(place(i, marks[0])[0], height - bottom, names[i]) for i in _spread(count)]
    if beyond:
        corners = f"{LEFT},{TOP} {path(beyond.values)} {WIDTH - RIGHT},{TOP}"
        body.append(f'<polygon class="beyond" points="{corners}"><title>{escape(beyond.name)}</title></polygon>')
    for curve in curves:
        title = f"<title>{escape(curve.name)}</title>"
        body.append(f'<polyline class="line {curve.style}" points="{path(curve.values)}">{title}</polyline>')
    body.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x)}</text>')
    return legend([*curves, *([beyond] if beyond else [])]) + svg(height, body, f"{label}: {y} over {x}")


def intervals(rows: Sequence[Row], *, label: str, fmt: Format = str, limit: float | None = None) -> str:
    """One mark with a whisker per row on a common axis from zero; `limit` is drawn as a dashed line."""
    top = max([row.high for row in rows] + ([limit] if limit else []))
    return _rows(rows, _mark, label=label, fmt=fmt, top=top, limit=limit)


def bars(rows: Sequence[Row], *, label: str, fmt: Format = str) -> str:
    """One bar per row from zero to its value, with a whisker to `high`."""
    return _rows(rows, _bar, label=label, fmt=fmt, top=max(row.high for row in rows), limit=None)


def short(text: str) -> str:
    """A number of an axis without its zeros after the point: "20.0 ms" is "20 ms"."""
    return re.sub(r"\.0+(?!\d)", "", text)


def _rows(
    rows: Sequence[Row], draw: Callable[..., str], *, label: str, fmt: Format, top: float, limit: float | None
) -> str:
    pitch, bottom = 50, 24
    height = pitch * len(rows) + bottom + 4
    marks = ticks(top)
    left, right = 4, WIDTH - 72  # the numbers stand right of the axis

    def x(value: float) -> float:
        return left + (right - left) * value / marks[-1]

    body = [
        f'<line class="grid" x1="{x(m):.1f}" x2="{x(m):.1f}" y1="4" y2="{height - bottom}"/>'
        + _tick(x(m), height - bottom, short(fmt(m)), "start" if m == 0 else "middle")
        for m in marks
    ]
    if limit is not None:
        body.append(f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="4" y2="{height - bottom}"/>')
    for i, row in enumerate(rows):
        y = 4 + pitch * i
        body.append(f'<text class="name" x="{left}" y="{y + 16}">{escape(row.label)}</text>')
        body.append(f'<text class="number" x="{WIDTH}" y="{y + 36}" text-anchor="end">{escape(fmt(row.value))}</text>')
        body.append(draw(x, y + 32, row))
    return svg(height, body, f"{label}: " + ", ".join(f"{row.label} {fmt(row.value)}" for row in rows))


def _mark(x: Callable[[float], float], y: float, row: Row) -> str:
    tone = row.style
    return (
        f'<line class="whisker {tone}" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="dot {tone}" cx="{x(row.value):.1f}" cy="{y}" r="5"/>'
    )


def _bar(x: Callable[[float], float], y: float, row: Row) -> str:
    tone = row.style
    whisker = f'<line class="whisker ink thin" x1="{x(row.value):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
    bar = f'<rect class="bar {tone}" x="{x(0):.1f}" y="{y - 7}" width="{x(row.value) - x(0):.1f}" height="14" rx="3"/>'
    return bar + (whisker if row.high > row.value else "")


def legend(curves: Sequence[Curve]) -> str:
    """What the styles of curves mean."""
    keys = [
        f'<span class="key"><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true"><line class="line'
        f' {curve.style}" x1="1" x2="27" y1="4" y2="4"/></svg>{escape(curve.name)}</span>'
        for curve in curves
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def _rule(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _spread(count: int) -> list[int]:
    step = next(m for m in (1, 2, 5, 10, 20, 50, 100, 250, 1000) if m * 6 >= count)
    return sorted({0, *range(step - 1, count, step)})


def svg(height: float, body: Sequence[str], label: str) -> str:
    """A drawing with what it shows in words."""
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(body)}</svg>"
