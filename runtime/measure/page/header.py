"""The top of the page: the verdict, the checks behind it, and the figures people ask for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, note, several, tone
from quaver.runtime.measure.units import decibel, megabytes, percent, span, spoken, times
from quaver.runtime.measure.verdict import best_row, corrected_speedup

TICK = Markup('<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 13l5 5L20 6"/></svg>')
CROSS = Markup('<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 6l12 12M18 6L6 18"/></svg>')
QUAVER = Markup(
    '<svg viewBox="0 0 15 20" aria-hidden="true"><path d="M5 0h1.6c.3 3 2 4.1 4.2 5.8 3.7 1.7 5.2 3.8 3.7 7.7.2-3-3.2'
    '-4.7-7.5-5.5v8.2c0 2-1.7 3.6-3.9 3.6C1.3 19.8 0 18.8 0 17.2s1.8-3.4 3.8-3.4q.6 0 1.2.2z"/></svg>'
)


def header(report: Report, places: tuple[tuple[str, str], ...]) -> Markup:
    """Name, verdict, the checks behind it, what to know first, and the main figures."""
    verdict, engines = report["verdict"], report["engines"]
    name = [report["name"]] if several(report) else [report["name"], " · ", engines[0]["target"]]
    body = [ledger(report)] if several(report) else [checks(engines[0]["verdict"]), tiles(report)]
    return h(
        "header",
        h("div", h("span", QUAVER, "quaver", class_="mark"), h("span", *name), class_="top"),
        h("nav", *(h("a", text, href=f"#{place}") for place, text in places), aria_label="On this page"),
        h(
            "div",
            h("h1", verdict["word"]),
            h("p", verdict["sentence"], class_="why"),
            class_=f"verdict {'ship' if verdict['ship'] else 'hold'}",
        ),
        *body,
        *(note(text) for text in report["notes"]),
    )


def checks(verdict: Mapping[str, Any]) -> Markup:
    """What was held against the budget."""
    rows = [
        h("li", TICK if c["passed"] else CROSS, h("span", c["sentence"]), class_="yes" if c["passed"] else "no")
        for c in verdict["checks"]
    ]
    return h("ul", *rows, class_="checks")


def ledger(report: Report) -> Markup:
    """Every engine with its own verdict and checks."""
    cards = [
        h(
            "article",
            h("h2", h("i", class_=f"swatch {tone(report, engine)}"), engine["name"]),
            h(
                "p",
                h("b", engine["verdict"]["word"]),
                f" · {engine['target']}, {spoken(engine['verdict']['correction'])}",
            ),
            checks(engine["verdict"]),
            class_="engine",
        )
        for engine in report["engines"]
    ]
    return h("div", *cards, class_="ledger")


def tiles(report: Report) -> Markup:
    """Speed, error, sound and size of one engine, one tile each."""
    engine = report["engines"][0]
    call, best, whole = engine["call"], best_row(engine["corrections"]), report["references"][0]["bytes"]
    speedup = corrected_speedup(call, best)
    rows = [
        ("Speed of one U-Net call", f"{speedup['value']:.2f}×", f"{times(speedup)}, against float"),
        (
            "Latent error",
            percent(best["latent_error"]["value"]),
            f"{span(best['latent_error'], percent)}, {spoken(best['name'])}",
        ),
        ("U-Net file", megabytes(engine["bytes"]), f"{whole / engine['bytes']:.1f}× smaller than {megabytes(whole)}"),
    ]
    if best["log_spectral_db"]:
        sound = best["log_spectral_db"]
        rows.insert(2, ("Sound", decibel(sound["value"]), f"{span(sound, decibel)} log-spectral distance to float"))
    return h(
        "dl",
        *(h("div", h("dt", name), h("dd", value), h("dd", text), class_="tile") for name, value, text in rows),
        class_="tiles",
    )
