"""A drawing as an SVG file of its own: a title, a line below it, and colours for light and dark that it brings along.

Style sheets of drawings colour by `var(--paper)`, `--ink`, `--quiet`, `--faint` and `--accent`.
"""

from __future__ import annotations

from quaver.runtime.measure.markup import Markup, h

STYLE = """
svg { --paper: #fbfaf7; --ink: #1d1b24; --quiet: #6a6673; --faint: #e7e3dc; --accent: #b0305c; background: var(--paper);
  font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #121117; --ink: #ebe8f2; --quiet: #9c97a8; --faint: #2c2a36; --accent: #ff8d78; } }
text { fill: var(--quiet); } .title { fill: var(--ink); font-size: 15px; font-weight: 600; }
"""


def drawing(
    title: str, said: str, *children: object, width: float, height: float, left: float = 16, style: str = ""
) -> str:
    """The file: `children` on a canvas of `width` x `height` units, below a title at `left` and what is said of it."""
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + h(
        "svg",
        h("style", Markup(STYLE + style)),
        h("text", title, x=left, y=24, class_="title"),
        h("text", said, x=left, y=42),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=f"{title}: {said}",
    )
