"""What prompts cover, as a table and as a picture: aspects down, prompts across.

A column is a prompt and a filled cell an aspect it covers; base captions first, then those that were added. Prompts
that cover the same stand side by side, so that redundancy shows as stripes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.runtime.measure.markup import Markup, h, join

LEFT, RIGHT, TOP, ROW, GAP = 170, 96, 44, 20, 4
WIDTH = 640  # of the cells
NAME, CAPTION = 26, 120  # characters shown of a name, and of a caption where the pointer rests
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; color: #1b1b1b }
text { fill: currentColor } .quiet { fill: #6b6b6b } .track { fill: #f1f1ef } .hit { fill: transparent }
.base { fill: #55606e } .added { fill: #c2410c } .none { fill: #c2410c; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181b; color: #e8e8e6 } .quiet { fill: #9a9a98 } .track { fill: #22262b }
  .base { fill: #8b98a8 } .added, .none { fill: #fb8a4c }
}
"""


def table(aspects: Sequence[Aspect], before: np.ndarray, after: np.ndarray) -> str:
    """How many prompts cover each aspect, from V [n, B] before and [m, B] after augmentation."""
    width = max(len("aspect"), *(len(_short(aspect.name)) for aspect in aspects))
    lines = [f"{'aspect':{width}}  {'before':>11}  {'after':>11}"]
    for aspect, old, new in zip(aspects, before.T, after.T, strict=True):
        lines.append(
            f"{_short(aspect.name):{width}}  {_count(old)}  {_count(new)}{'' if new.any() else '  not covered'}"
        )
    covered = [f"{int(vectors.any(axis=0).sum())} of {len(aspects)}" for vectors in (before, after)]
    return "\n".join([*lines, f"{'covered':{width}}  {covered[0]:>11}  {covered[1]:>11}"])


def picture(
    aspects: Sequence[Aspect], texts: Sequence[str], covers: np.ndarray, base: np.ndarray, before: np.ndarray
) -> str:
    """The SVG of captions [n] with coverage V [n, B], of which `base` [n] bool were there before, V [m, B]."""
    order = np.lexsort((*~covers.T[::-1], ~base))
    covers, base, height = covers[order], base[order], TOP + ROW * len(aspects) + 30
    rows = [_row(b, aspect, covers[:, b], base, before[:, b]) for b, aspect in enumerate(aspects)]
    columns = [_column(i, texts[int(j)], len(order), height) for i, j in enumerate(order)]
    said = f"{int(covers.any(axis=0).sum())} of {len(aspects)} aspects covered by {len(covers)} prompts"
    return h(
        "svg",
        h("title", f"Aspects x prompts: {said}"),
        h("style", Markup(STYLE)),
        *rows,
        *_heads(int(base.sum()), len(base), height),
        *columns,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {LEFT + WIDTH + RIGHT} {height}",
        width=LEFT + WIDTH + RIGHT,
        height=height,
        role="img",
        aria_label=said,
    )


def _heads(base: int, total: int, height: int) -> list[Markup]:
    """What stands around the cells, and the line between base and added prompts."""
    right, split = LEFT + WIDTH, LEFT + WIDTH * base / max(total, 1)
    added = f"{total - base} added or in place of one"
    return [
        h("text", "each column is a prompt", x=LEFT, y=TOP - 10, class_="quiet"),
        h("text", "prompts that cover it", x=right + RIGHT - 4, y=16, class_="quiet", text_anchor="end"),
        h("text", "before", x=right + 46, y=TOP - 10, class_="quiet", text_anchor="end"),
        h("text", "after", x=right + RIGHT - 4, y=TOP - 10, class_="quiet", text_anchor="end"),
        h("text", f"{base} base prompts", x=LEFT, y=height - 10, class_="base"),
        h("text", added, x=right, y=height - 10, class_="added", text_anchor="end"),
        h("rect", x=_f(split - 0.5), y=TOP - 6, width=1, height=height - TOP - 20, class_="added"),
    ]


def _row(b: int, aspect: Aspect, covers: np.ndarray, base: np.ndarray, before: np.ndarray) -> Markup:
    """Name, cells and counts of one aspect."""
    y, mid = TOP + ROW * b, TOP + ROW * b + 12
    right, state = LEFT + WIDTH, "none" if not covers.any() else None
    return join(
        h("rect", x=LEFT, y=y, width=WIDTH, height=ROW - GAP, class_="track"),
        h("path", d=_cells(covers & base, y), class_="base"),
        h("path", d=_cells(covers & ~base, y), class_="added"),
        h("text", _short(aspect.name), x=LEFT - 10, y=mid, text_anchor="end", class_=state),
        h("text", str(int(before.sum())), x=right + 46, y=mid, text_anchor="end", class_="quiet"),
        h("text", str(int(covers.sum())), x=right + RIGHT - 4, y=mid, text_anchor="end", class_=state),
    )


def _cells(filled: np.ndarray, y: int) -> str:
    """Neighbouring filled cells of a row [n] as one rectangle each, in one path."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(int), [0]])))
    step = WIDTH / max(len(filled), 1)
    thin = 0.6 if step > 3 else 0.0  # a gap between prompts where there is room for one
    if thin:
        edges = np.stack([np.flatnonzero(filled), np.flatnonzero(filled) + 1], axis=1).ravel()
    spans = zip(edges[::2], edges[1::2], strict=True)
    return "".join(
        f"M{_f(LEFT + a * step)} {y}h{_f((b - a) * step - thin)}v{ROW - GAP}H{_f(LEFT + a * step)}z" for a, b in spans
    )


def _column(i: int, text: str, total: int, height: int) -> Markup:
    """An unseen column that tells its caption."""
    x, width = LEFT + WIDTH * i / total, WIDTH / total
    told = h("title", _short(text, CAPTION))
    return h("rect", told, x=_f(x), y=TOP, width=_f(width), height=height - TOP - 30, class_="hit")


def _count(column: np.ndarray) -> str:
    """Prompts of a column [n], and their share."""
    return f"{int(column.sum()):>5} {column.mean() if len(column) else 0.0:>5.0%}"


def _short(text: str, length: int = NAME) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= length else line[: length - 1] + "…"


def _f(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
