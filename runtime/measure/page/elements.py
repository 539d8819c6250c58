"""What every section of the page is made of: cards, tables, names and values, and how colours are given out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from quaver.runtime.measure.markup import Markup, h, join
from quaver.runtime.measure.units import span, spoken
from quaver.runtime.measure.verdict import best_row

Report = Mapping[str, Any]
Format = Callable[[float], str]
TONES = 6


def section(place: str, title: str, lede: object, *children: object) -> Markup:
    """A section of the page under an anchor."""
    return h("section", h("h2", title), h("p", lede, class_="lede"), *children, id=place)


def card(title: str, text: object, svg: str, *more: object) -> Markup:
    """A chart with its title and one sentence."""
    return h("div", h("h3", title), h("p", text), Markup(svg), *more, class_="card")


def pair(*cards: object) -> Markup:
    """Cards side by side, one above the other on a phone."""
    return h("div", *cards, class_="pair")


def table(caption: str, head: Sequence[object], body: Sequence[Markup]) -> Markup:
    """A table that scrolls sideways on a phone, by keyboard too."""
    columns = h("thead", h("tr", *(h("th", name, scope="col") for name in head)))
    inner = h("table", h("caption", h("span", caption)), columns, h("tbody", *body))
    return h("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def line(name: object, *cells: Markup, strong: bool = False) -> Markup:
    """A row of a table."""
    return h("tr", h("th", name, scope="row"), *cells, class_="best" if strong else None)


def cell(interval: Mapping[str, float] | None, fmt: Format) -> Markup:
    """A table cell: the estimate, its interval under it."""
    if interval is None:
        return h("td", "–")
    return h("td", fmt(interval["value"]), h("small", span(interval, fmt)))


def facts(rows: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values as a definition list."""
    return h("dl", *(join(h("dt", name), h("dd", shown(value))) for name, value in rows), class_="facts")


def shown(value: Any) -> Any:
    """A setting as a person writes it."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def note(text: object) -> Markup:
    """A remark that must not be overlooked."""
    return h("p", text, class_="note")


def again(*commands: str) -> Markup:
    """The commands that reproduce what stands above them, unfolded on request."""
    return h("details", h("summary", "Reproduce"), *(h("div", h("code", line)) for line in commands), class_="again")


def several(report: Report) -> bool:
    """Whether more than one engine is compared."""
    return len(report["engines"]) > 1


def called(report: Report, engine: Report) -> str:
    """An engine's name among several, alone its target's."""
    return engine["name"] if several(report) else engine["target"]


def titled(report: Report, engine: Report, *parts: str) -> str:
    """A name in a chart or table: the engine's where there are several, and what is said of it."""
    return " · ".join([*([engine["name"]] if several(report) else []), *parts]) or engine["target"]


def subject(report: Report, engine: Report, correction: str) -> Markup:
    """Heading of a row: a correction, and above it its engine where there are several."""
    if not several(report):
        return h("span", spoken(correction))
    swatch = h("i", class_=f"swatch {tone(report, engine)}")
    return h("span", swatch, h("b", engine["name"]), h("small", spoken(correction)))


def tone(report: Report, engine: Report) -> str:
    """The colour of an engine."""
    return f"tone{report['engines'].index(engine) % TONES}"


def featured(report: Report, engine: Report) -> list[tuple[Mapping[str, Any], str]]:
    """The corrections of an engine that charts and players show, with their styles, the best one last.

    All of one engine's; of several engines the best one of each, and none.
    """
    rows, best = engine["corrections"], best_row(engine["corrections"])
    if several(report):
        plain = [row for row in rows if row["name"] == "none" and row is not best]
        return [*((row, f"{tone(report, engine)} dash") for row in plain), (best, tone(report, engine))]
    styles = ("ink", "ink dash", "quiet", "quiet dash")
    others = [row for row in rows if row is not best]
    return [*((row, styles[i % len(styles)]) for i, row in enumerate(others)), (best, "accent")]


def featured_rows(report: Report) -> list[tuple[str, Mapping[str, Any], str]]:
    """Every correction that charts show, of every engine: its name, figures, and style."""
    return [
        (titled(report, engine, spoken(row["name"])), row, style)
        for engine in report["engines"]
        for row, style in featured(report, engine)
    ]


def grouped(report: Report, key: str) -> list[tuple[list[str], Any]]:
    """What engines say under a key, with the names of the engines that say the same."""
    found: list[tuple[list[str], Any]] = []
    for engine in report["engines"]:
        same = next((names for names, value in found if value == engine[key]), None)
        if same is None:
            found.append(([engine["name"]], engine[key]))
        else:
            same.append(engine["name"])
    return found
