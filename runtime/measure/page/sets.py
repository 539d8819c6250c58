"""What engines make as a set of samples: distances over feature networks, beside their floors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, again, cell, line, note, section, subject, table
from quaver.runtime.measure.units import number, percent
from quaver.runtime.measure.verdict import best_row

LEDE = (
    "What a feature network makes of the clips as a set. A distance between two finite sets is never zero, so it stands"
    " beside its floor, what the same measure gives where nothing differs. Further than float: by how much an engine's"
    " distance is above that, pair by pair; if its interval holds 0, the engine cannot be told from float. Figures of"
    " one network compare with nothing but themselves."
)
SHARES = ("same ", "says ", "precision", "recall", "text agreement", "further ")  # measures that are shares of clips


def sets(report: Report) -> Markup:
    """A table per feature network, or what is missing and how to get it."""
    networks = dict.fromkeys(found["network"] for engine in report["engines"] for found in engine["sets"])
    return section(
        "set", "As a set of samples", LEDE, *(network(report, name) for name in networks), again(report["reproduce"])
    )


def network(report: Report, name: str) -> Markup:
    """What one network says of every engine and correction."""
    found = [(e, f) for e in report["engines"] for f in e["sets"] if f["network"] == name]
    there = [(engine, figures) for engine, figures in found if "missing" not in figures]
    missing = dict.fromkeys(figures["missing"] for _, figures in found if "missing" in figures)
    if not there:
        return h("div", *(note(f"{name}: {text}") for text in missing))
    rows = [row for _, figures in there for row in (*figures["floors"], *figures["corrections"])]
    columns = list(dict.fromkeys(key for row in rows for key in row["measures"]))
    body = [
        line(row["name"], *measured(row, columns))
        for row in {row["name"]: row for _, figures in there for row in figures["floors"]}.values()
    ]
    for engine, figures in there:
        best = best_row(engine["corrections"])["name"]
        for row in figures["corrections"]:
            heading = subject(report, engine, row["name"])
            body.append(line(heading, *measured(row, columns), strong=row["name"] == best))
    first = there[0][1]
    caption = f"{name}: {first['samples']} clips, {first['dimensions']} features"
    remarks = dict.fromkeys(figures["note"] for _, figures in there if figures["note"])
    return h("div", table(caption, ("", *columns), body), *map(note, [*remarks, *missing]), class_="network")


def measured(row: Mapping[str, Any], columns: list[str]) -> list[Markup]:
    """The cells of a row."""
    return [cell(row["measures"].get(name), percent if name.startswith(SHARES) else number) for name in columns]
