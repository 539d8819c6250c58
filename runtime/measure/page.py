"""The report as one page: from the figures of `report.json` and the bytes of its media to HTML that loads nothing.

The verdict comes first, then what can be heard, then the figures, then where they come from. Text is escaped by
`markup.h`; a Content-Security-Policy forbids every request, so the page stays whole when it is mailed around.
"""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quaver.runtime.measure.markup import Markup, h, join
from quaver.runtime.measure.sections import accuracy, best_correction, cost, origin, plan, probe
from quaver.runtime.measure.spectrogram import hz_to_mel
from quaver.runtime.measure.units import decibel, megabytes, percent, span, spoken, times

Report = Mapping[str, Any]
Media = Callable[[str], bytes]
LONG_PROMPT = 240

PLACES = (
    ("listen", "Listen"),
    ("accuracy", "Accuracy"),
    ("cost", "Cost"),
    ("set", "Set measures"),
    ("plan", "TensorRT-RTX"),
    ("origin", "Origin"),
)

TICK = Markup('<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 13l5 5L20 6"/></svg>')
CROSS = Markup('<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 6l12 12M18 6L6 18"/></svg>')
QUAVER = Markup(
    '<svg viewBox="0 0 15 20" aria-hidden="true"><path d="M5 0h1.6c.3 3 2 4.1 4.2 5.8 3.7 1.7 5.2 3.8 3.7 7.7.2-3-3.2'
    '-4.7-7.5-5.5v8.2c0 2-1.7 3.6-3.9 3.6C1.3 19.8 0 18.8 0 17.2s1.8-3.4 3.8-3.4q.6 0 1.2.2z"/></svg>'
)


def render(report: Report, media: Media) -> str:
    """The page of a report; `media(name)` returns the bytes of a file named in `report["clips"]`."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = (accuracy, cost, probe, plan, origin)
    return string.Template(template).substitute(
        title=join(verdict_word(report), ": ", report["name"]),
        script_digest=f"sha256-{digest}",
        header=header(report),
        main=join(listen(report, media), *(section(report) for section in figures)),
        footer=h("footer", "Written by quaver ", report["environment"].get("quaver", ""), ", ", report["made"], "."),
    )


def header(report: Report) -> Markup:
    """Name, verdict, the checks behind it, and the four figures people ask for."""
    verdict = report["verdict"]
    checks = [
        h("li", TICK if c["passed"] else CROSS, h("span", c["sentence"]), class_="yes" if c["passed"] else "no")
        for c in verdict["checks"]
    ]
    return h(
        "header",
        h(
            "div",
            h("span", QUAVER, "quaver", class_="mark"),
            h("span", report["name"], " · ", report["target"]),
            class_="top",
        ),
        h("nav", *(h("a", text, href=f"#{name}") for name, text in PLACES), aria_label="On this page"),
        h(
            "div",
            h("h1", verdict_word(report)),
            h("p", verdict["sentence"], class_="why"),
            h("ul", *checks, class_="checks"),
            class_=f"verdict {'ship' if verdict['ship'] else 'hold'}",
        ),
        tiles(report),
    )


def verdict_word(report: Report) -> str:
    """The verdict in words."""
    return "Ship" if report["verdict"]["ship"] else "Do not ship"


def tiles(report: Report) -> Markup:
    """Speed, error, sound and size, one tile each."""
    call, best = report["call"], best_correction(report)
    reference, judged = (call["engines"][name]["bytes"] for name in ("float", report["target"]))
    rows = [
        ("Speed of one U-Net call", f"{call['speedup']['value']:.2f}×", f"{times(call['speedup'])}, against float"),
        (
            "Latent error",
            percent(best["latent_error"]["value"]),
            f"{span(best['latent_error'], percent)}, {spoken(best['name'])}",
        ),
        ("U-Net file", megabytes(judged), f"{reference / judged:.1f}× smaller than {megabytes(reference)}"),
    ]
    if best.get("log_spectral_db"):
        sound = best["log_spectral_db"]
        rows.insert(2, ("Sound", decibel(sound["value"]), f"{span(sound, decibel)} log-spectral distance to float"))
    return h(
        "dl",
        *(h("div", h("dt", name), h("dd", value), h("dd", note), class_="tile") for name, value, note in rows),
        class_="tiles",
    )


def listen(report: Report, media: Media) -> Markup:
    """Every clip through every engine and correction: spectrogram and player."""
    lede = (
        "The same prompt, seed and noise through each engine. Level in dB under the clip's own peak, 80 dB from black"
        " to cream; frequency on a mel scale. Click a picture to play it."
    )
    if not report["clips"]:
        lede = "This report has no sounds: its recipe asks for none, or its model ends at latents."
    return h(
        "section",
        h("h2", "Listen"),
        h("p", lede, class_="lede"),
        *(clip(c, media) for c in report["clips"]),
        id="listen",
    )


def clip(row: Mapping[str, Any], media: Media) -> Markup:
    """One prompt: its takes side by side."""
    text = row["prompt"]
    title = text if len(text) <= LONG_PROMPT else text[:LONG_PROMPT] + " …"
    whole = h("details", h("summary", "whole prompt"), h("p", text)) if len(text) > LONG_PROMPT else None
    head = h("header", h("h3", title), h("small", "seed ", row["seed"]))
    takes = [take(t, title, row["rate"], media) for t in row["takes"]]
    return h("article", head, whole, h("div", *takes, class_="takes"), class_="clip")


def take(row: Mapping[str, Any], title: str, rate: int, media: Media) -> Markup:
    """One waveform: picture, frequency marks, player."""
    name = spoken(row["name"])
    error = None if row.get("latent_error") is None else h("small", percent(row["latent_error"]), " error")
    low, high = hz_to_mel(40.0), hz_to_mel(rate / 2)
    marks = [
        h(
            "span",
            f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz",
            style=f"bottom:{100 * (hz_to_mel(hz) - low) / (high - low):.1f}%",
        )
        for hz in (250, 1000, 4000)
        if hz < rate / 2
    ]
    picture = h("img", src=data_uri("image/png", media(row["picture"])), alt=f"Spectrogram of {name}: {title}")
    return h(
        "figure",
        h("figcaption", h("span", name), error),
        h("div", picture, *marks, h("i", class_="head"), class_="sound"),
        h(
            "audio",
            src=data_uri("audio/wav", media(row["wave"])),
            controls=True,
            preload="metadata",
            aria_label=f"{name}: {title}",
        ),
        class_="take",
    )


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
