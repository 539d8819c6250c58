"""Where a report comes from: machine, versions, settings, digests, and the command that makes it again."""

from __future__ import annotations

from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, facts, grouped, pair, section, several

LEDE = "Every figure above stands in report.json beside this page."


def origin(report: Report) -> Markup:
    """Environment, digests, settings and the command that makes this page again."""
    cards = [group("Machine and versions", report["environment"])]
    for title, key in (("Sampling", "sampling"), ("Settings of this page", "settings"), ("Digests", "digests")):
        for names, rows in grouped(report, key):
            cards.append(group(" · ".join([title, *(names if several(report) else [])]), rows))
    again = h("div", h("h3", "Make it again"), h("pre", report["reproduce"], tabindex=0), class_="card")
    return section("origin", "Where this comes from", LEDE, pair(*cards, again))


def group(title: str, rows: Report) -> Markup:
    """A card of names and values."""
    return h("div", h("h3", title), facts(rows.items()), class_="card")
