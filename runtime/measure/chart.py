"""Charts as inline SVG: small functions from numbers to a string, coloured by the page's style sheet alone.

Drawn on a canvas 400 units wide, so that a phone shows them at their size and a desk a little larger. Colours are CSS
classes (`ink`, `quiet`, `accent`), so light and dark need one drawing. Each chart says in `aria-label` what it shows;
the numbers stand in a table beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP = 400, 44, 12, 10
STYLES = ("ink", "accent", "ink dash", "accent dash", "quiet", "quiet dash")
Format = Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """One bar or one mark: `value` with bounds `low`..`high` in the unit of the axis."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


def ticks(top: float, *, about: int = 4) -> list[float]:
    """Round values 0, s, 2s, ... with s of the form {1, 2, 5} * 10^k; the last one is the first at or above `top`."""
    rough = max(top, 1e-12) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)] if top > 0 else [0.0, step]


def lines(
    series: Sequence[tuple[str, Sequence[float]]], *, strong: str, x: str, y: str, label: str, fmt: Format = str
) -> str:
    """Curves over 1..S, one per (name, values); the one named `strong` is drawn in the accent colour."""
    height, bottom = 230, 34
    marks = ticks(max(max(values) for _, values in series))
    count = max(len(values) for _, values in series)

    def at(i: float, value: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * i / max(count - 1, 1)
        return f"{right:.1f},{height - bottom - (height - bottom - TOP) * value / marks[-1]:.1f}"

    body = [_rule(float(at(0, mark).split(",")[1]), short(fmt(mark))) for mark in marks]
    body += [_tick(float(at(i, 0).split(",")[0]), height - bottom, str(i + 1)) for i in _spread(count)]
    for name, values in sorted(series, key=lambda s: s[0] == strong):
        points = " ".join(at(i, value) for i, value in enumerate(values))
        style = line_style([n for n, _ in series], name, strong)
        body.append(f'<polyline class="line {style}" points="{points}"><title>{escape(name)}</title></polyline>')
    body.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x)}</text>')
    return _legend([n for n, _ in series], strong) + _svg(height, body, f"{label}: {y} over {x}")


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


def line_style(names: Sequence[str], name: str, strong: str) -> str:
    """The style classes of a named curve: accent for the strong one, ink and dashes for the others, in order."""
    if name == strong:
        return "accent"
    return ("ink", "ink dash", "quiet", "quiet dash")[[n for n in names if n != strong].index(name) % 4]


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
    return _svg(height, body, f"{label}: " + ", ".join(f"{row.label} {fmt(row.value)}" for row in rows))


def _mark(x: Callable[[float], float], y: float, row: Row) -> str:
    tone = "accent" if row.strong else "ink"
    return (
        f'<line class="whisker {tone}" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="dot {tone}" cx="{x(row.value):.1f}" cy="{y}" r="5"/>'
    )


def _bar(x: Callable[[float], float], y: float, row: Row) -> str:
    tone = "accent" if row.strong else "quiet"
    whisker = f'<line class="whisker ink thin" x1="{x(row.value):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
    bar = f'<rect class="bar {tone}" x="{x(0):.1f}" y="{y - 7}" width="{x(row.value) - x(0):.1f}" height="14" rx="3"/>'
    return bar + (whisker if row.high > row.value else "")


def _legend(names: Sequence[str], strong: str) -> str:
    keys = [
        f'<span class="key"><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true"><line class="line'
        f' {line_style(names, name, strong)}" x1="1" x2="27" y1="4" y2="4"/></svg>{escape(name)}</span>'
        for name in names
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


def _svg(height: int, body: Sequence[str], label: str) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(body)}</svg>"
