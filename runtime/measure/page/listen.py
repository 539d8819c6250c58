"""What can be heard or seen: every clip by the float model and the engines, side by side, as many as the page holds.

A clip in the page is its WAV file (or PNG) as a data: URI, so that the page can be mailed around; those that do not
fit are links to the files beside it. The first clips of the list are taken, never the best.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quaver.runtime.measure.markup import Markup, h
from quaver.runtime.measure.page.elements import Report, featured, section, table
from quaver.runtime.measure.spectrogram import hz_to_mel, picture
from quaver.runtime.measure.units import percent, spoken

Media = Callable[[str], bytes]
Take = Mapping[str, Any]
LONG_PROMPT = 240
BUDGET = 8_000_000  # bytes of sounds and pictures in the page
BARS = 100  # of a waveform
OPEN = 4  # clips that are unfolded
PLAY = Markup(
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M7 4l13 8-13 8z"/>'
    '<path class="stop" d="M6 4h4v16H6zm8 0h4v16h-4z"/></svg>'
)


def listen(report: Report, media: Media, *, budget: int = BUDGET) -> Markup:
    """Every clip through every engine that the page shows: picture and player; the rest as links."""
    clips = report["clips"]
    if not clips:
        lede = "This report has no samples: its recipe asks for none, or its model ends at latents."
        return section("listen", "Listen", lede)
    sounds = "rate" in clips[0]["takes"][0]
    shown = [chosen(report, clip["takes"]) for clip in clips]
    inside: list[Markup] = []
    for row, takes in zip(clips, shown, strict=True):
        drawn = clip(row, takes, media)
        budget -= len(drawn)
        if budget < 0:
            break
        inside.append(drawn)
    lede = "The same prompt, seed and noise through each engine; the percentage is the error of its latent."
    if sounds:
        lede += (
            " Level in dB under the clip's own peak, 80 dB from black to cream; frequency on a mel scale; the waveform"
            " below, as high as its peak. One plays at a time."
        )
    rest = links(clips[len(inside) :], len(inside)) if len(inside) < len(clips) else None
    more = inside[OPEN:]
    folded = h("details", h("summary", f"{len(more)} more clips"), *more, class_="more") if more else None
    return section("listen", "Listen" if sounds else "Look", lede, *inside[:OPEN], folded, rest)


def chosen(report: Report, takes: Sequence[Take]) -> list[Take]:
    """The takes a page shows: each float model's, and of its engines the corrections that their charts show."""
    wanted = {(e["name"], row["name"]): e["reference"] for e in report["engines"] for row, _ in featured(report, e)}
    wanted |= {(None, reference["name"]): reference["name"] for reference in report["references"]}
    places = [reference["name"] for reference in report["references"]]
    found = [take for take in takes if (take["engine"], take["correction"]) in wanted]
    return sorted(found, key=lambda take: places.index(wanted[take["engine"], take["correction"]]))


def clip(row: Mapping[str, Any], takes: Sequence[Take], media: Media) -> Markup:
    """One prompt: its takes side by side."""
    text = row["prompt"]
    title = text if len(text) <= LONG_PROMPT else text[:LONG_PROMPT] + " …"
    whole = h("details", h("summary", "whole prompt"), h("p", text)) if len(text) > LONG_PROMPT else None
    head = h("header", h("h3", title), h("small", "seed ", row["seed"]))
    floats = [take for take in takes if take["engine"] is None]
    engines = {take["engine"] for take in takes} - {None}
    shown = [figure(take, title, media, named=len(engines) > 1 or len(floats) > 1) for take in takes]
    return h("article", head, whole, h("div", *shown, class_="takes"), class_="clip")


def figure(row: Take, title: str, media: Media, *, named: bool) -> Markup:
    """One take: picture, frequency marks, waveform, player; of a picture, the picture."""
    name = spoken(row["correction"])
    engine = h("b", row["engine"] or row["correction"]) if named else None
    name = "full precision" if named and not row["engine"] else name
    error = None if row["latent_error"] is None else h("small", percent(row["latent_error"]))
    caption = h("figcaption", h("span", engine, h("span", name)), error)
    said = f"{row['engine'] or row['correction'] if named else ''} {name}: {title}".strip()
    data = media(row["file"])
    if "rate" not in row:
        image = h("img", src=data_uri("image/png", data), alt=f"Picture by {said}")
        return h("figure", caption, h("div", image, class_="picture"), class_="take")
    return h("figure", caption, *sound(row, data, said), class_="take")


def sound(row: Take, data: bytes, said: str) -> list[Markup | None]:
    """Spectrogram, waveform and player of a WAV file."""
    samples, rate = read_samples(data)
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
    image = h("img", src=data_uri("image/png", picture(samples, rate=rate)), alt=f"Spectrogram of {said}")
    play = h("button", PLAY, type="button", class_="play", aria_label=f"Play {said}", aria_pressed="false")
    warning = "silent" if row["silent"] else f"{percent(row['clipped'])} clipped" if row["clipped"] else None
    return [
        h("div", image, *marks, h("i", class_="head"), play, class_="sound"),
        waveform(samples),
        h("p", warning, class_="warning") if warning else None,
        h("audio", src=data_uri("audio/wav", data), controls=True, preload="metadata", aria_label=said),
    ]


def waveform(samples: np.ndarray) -> Markup:
    """A waveform `[samples]` as bars from its least to its largest value, as high as its peak."""
    samples = samples / max(np.abs(samples).max(initial=0), 1e-3)
    parts = np.array_split(samples, min(BARS, max(len(samples), 1)))
    path = "".join(
        f"M{i} {20 - 20 * float(part.max(initial=0)):.1f}V{20.4 - 20 * float(part.min(initial=0)):.1f}"
        for i, part in enumerate(parts)
    )
    drawing = h("path", d=path)
    return h(
        "svg", drawing, class_="wave", viewBox=f"0 0 {len(parts)} 40.4", preserveAspectRatio="none", aria_hidden="true"
    )


def links(clips: Sequence[Mapping[str, Any]], first: int) -> Markup:
    """Clips that lie in files beside the page, one a row."""
    rows = [
        h(
            "tr",
            h("th", f"{number + 1}", scope="row"),
            h("td", row["prompt"][:LONG_PROMPT], class_="prompt"),
            h("td", *(linked(take) for take in row["takes"]), class_="files"),
        )
        for number, row in enumerate(clips, start=first)
    ]
    inner = table(f"{len(clips)} more, in the folder media beside this page", ("clip", "prompt", "files"), rows)
    return h("details", h("summary", f"{len(clips)} more clips, as files"), inner)


def linked(take: Take) -> Markup:
    """The file of a take."""
    name = " ".join(filter(None, (take["engine"], spoken(take["correction"]))))
    return h("a", name, href=f"media/{take['file']}")


def read_samples(data: bytes) -> tuple[np.ndarray, int]:
    """Samples `[N]` in [-1, 1] and rate of a 16-bit WAV file's first channel."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return values[:, 0].astype(np.float64) / 32767, file.getframerate()


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
