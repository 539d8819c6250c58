"""Many values as inline SVG: strips of shaded cells, one a row, and tallies of two kinds beside names."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from quaver.runtime.measure.chart import WIDTH, svg

COLUMNS = 50  # cells of a strip at most
CELL, PITCH = 13, 34


def strips(rows: Sequence[tuple[str, str, Sequence[float]]], *, at: Sequence[object], x: str, label: str) -> str:
    """A strip of cells for each (name, note, shares in [0, 1]): faint near 0, full at 1; `at` names the columns."""
    count = min(len(at), COLUMNS)
    picks = [round(i * (len(at) - 1) / max(count - 1, 1)) for i in range(count)]
    width = WIDTH / count
    body = []
    for i, (name, note, shares) in enumerate(rows):
        y = PITCH * i
        body.append(f'<text class="name" x="0" y="{y + 12}">{escape(cut(name))}</text>')
        body.append(f'<text class="number" x="{WIDTH}" y="{y + 12}" text-anchor="end">{escape(note)}</text>')
        body += [
            f'<rect class="cell" x="{width * column:.1f}" y="{y + 17}" width="{width * 0.94:.1f}" height="{CELL}"'
            f' opacity="{0.06 + 0.94 * shares[pick]:.2f}"/>'
            for column, pick in enumerate(picks)
        ]
    bottom = PITCH * len(rows) + 10
    first, last = (escape(str(at[i])) for i in (0, -1))
    body.append(f'<text class="axis" x="0" y="{bottom}">{first}</text>')
    body.append(f'<text class="axis" x="{WIDTH / 2}" y="{bottom}" text-anchor="middle">{escape(x)}</text>')
    body.append(f'<text class="axis" x="{WIDTH}" y="{bottom}" text-anchor="end">{last}</text>')
    return svg(bottom + 6, body, label)


def tallies(rows: Sequence[tuple[str, float, float]], *, label: str, fmt: str = "{:.0%}") -> str:
    """For each (name, share, other share): a bar to the first, a mark at the other, and the first as a number."""
    left, right, pitch = 146, WIDTH - 44, 23
    top = max((max(a, b) for _, a, b in rows), default=1.0) or 1.0
    body = []
    for i, (name, share, other) in enumerate(rows):
        y, wide, at = pitch * i, (right - left) * share / top, left + (right - left) * other / top
        body.append(f'<text class="name" x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(cut(name, 24))}</text>')
        body.append(f'<rect class="bar accent" x="{left}" y="{y + 5}" width="{wide:.1f}" height="13" rx="3"/>')
        body.append(f'<line class="line ink" x1="{at:.1f}" x2="{at:.1f}" y1="{y + 3}" y2="{y + 20}"/>')
        body.append(f'<text class="number" x="{WIDTH}" y="{y + 15}" text-anchor="end">{fmt.format(share)}</text>')
    return svg(pitch * len(rows) + 4, body, f"{label}: " + ", ".join(f"{n} {fmt.format(a)}" for n, a, _ in rows))


def cut(text: str, most: int = 44) -> str:
    """A name that fits: its end, which tells a layer from its neighbours."""
    return text if len(text) <= most else "…" + text[1 - most :]
