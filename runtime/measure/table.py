"""A report as a table for papers: one row per method, in CSV with every bound of every interval, or in Markdown.

    Method, Bits (W/A), Size, Reduction | set measures and text agreement | latent error, SNR | latency, speed-up

as in the tables of PTQ4ADM and D2-DPM: full precision first, then each engine with each correction.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quaver.runtime.artifact import atomic
from quaver.runtime.measure.units import number, spoken
from quaver.runtime.measure.verdict import corrected_speedup

Cell = str | float | Mapping[str, float] | None
Row = dict[str, Cell]
FURTHER = ("further than float", "further than float to real")
SAMPLES = {
    "LSD (dB)": "log_spectral_db",
    "mel SNR (dB)": "mel_snr_db",
    "PSNR (dB)": "psnr_db",
    "SSIM": "ssim",
}
FIRST, LAST = ("Method", "Bits (W/A)", "Size (MB)", "Reduction"), ("Latency (ms)", "Speed-up")
SHARES = ("Latent error", "Reduction", "precision", "recall", *FURTHER)  # written as percentages for people


def method_rows(report: Mapping[str, Any]) -> list[Row]:
    """A row per float model, and per engine and correction; an interval is value, low and high."""
    floats = [float_row(report, reference) for reference in report["references"]]
    found = [*floats, *(row for engine in report["engines"] for row in engine_rows(report, engine))]
    columns = list(dict.fromkeys(name for row in reversed(found) for name in row))
    ordered = sorted(columns, key=_rank)
    return [{name: row.get(name) for name in ordered} for row in found]


def float_row(report: Mapping[str, Any], reference: Mapping[str, Any]) -> Row:
    """The float model; its set measures are what it has itself, else their floors."""
    own = [engine for engine in report["engines"] if engine["reference"] == reference["name"]]
    floors = [row for found in own[0]["sets"] if "missing" not in found for row in found["floors"]]
    return {
        "Method": "full precision" if len(report["references"]) == 1 else reference["name"],
        "Bits (W/A)": "32/32",
        "Size (MB)": reference["bytes"] / 1e6,
        **{name: interval for row in floors for name, interval in of_all(row["measures"])},
        "Latency (ms)": 1000 * reference["call"]["median_s"],
    }


def engine_rows(report: Mapping[str, Any], engine: Mapping[str, Any]) -> Iterator[Row]:
    """An engine with each of its corrections."""
    reference = next(r for r in report["references"] if r["name"] == engine["reference"])
    weight, _, activation = engine["sites"].get("bits", "W?A?")[1:].partition("A")
    for row in engine["corrections"]:
        measures = [r for found in engine["sets"] for r in found.get("corrections", ()) if r["name"] == row["name"]]
        yield {
            "Method": f"{engine['name']}, {spoken(row['name'])}",
            "Bits (W/A)": f"{weight}/{activation}",
            "Size (MB)": engine["bytes"] / 1e6,
            "Reduction": 1 - engine["bytes"] / reference["bytes"],
            **{name: interval for found in measures for name, interval in of_all(found["measures"])},
            "Latent error": row["latent_error"],
            "SNR (dB)": row["snr_db"],
            **{title: row[key] for title, key in SAMPLES.items() if row[key]},
            "Latency (ms)": 1000 * (engine["call"]["engines"][engine["target"]]["median_s"] + row["added_s"]),
            "Speed-up": corrected_speedup(engine["call"], row),
        }


def of_all(measures: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """Measures that are of a whole clip; those of single attributes stand in the report."""
    return [(name, interval) for name, interval in measures.items() if not name.startswith(("KL, ", "same ", "says "))]


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as CSV: an interval takes three columns, `name`, `name low`, `name high`."""
    wide = {name for row in rows for name, value in row.items() if isinstance(value, Mapping)}
    columns = [column for name in rows[0] for column in ([name, *_bounds(name)] if name in wide else [name])]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: value for name, cell in row.items() for key, value in _spread(name, cell)})
    return _write(path, text.getvalue())


def write_markdown(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as a Markdown table."""
    return _write(path, markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, an interval as its value with its bounds; the keys of the first are the columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_text(name, value) for name, value in row.items()] for row in rows]
    safe = [[cell.replace("|", "&#124;") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def _rank(name: str) -> int:
    """Set measures stand between the sizes and the paired measures, times last."""
    if name in FIRST:
        return FIRST.index(name)
    paired = ("Latent error", "SNR (dB)", *SAMPLES, *LAST)
    return 20 + paired.index(name) if name in paired else 10


def _bounds(name: str) -> tuple[str, str]:
    return f"{name} low", f"{name} high"


def _spread(name: str, cell: Cell) -> Iterator[tuple[str, Any]]:
    if isinstance(cell, Mapping):
        yield from zip((name, *_bounds(name)), (cell["value"], cell["low"], cell["high"]), strict=True)
    elif cell is not None:
        yield name, cell


def _text(name: str, cell: Cell) -> str:
    def figure(value: float) -> str:
        return f"{100 * value:.1f}%" if name in SHARES else number(value)

    if cell is None or isinstance(cell, str):
        return cell or "–"
    if isinstance(cell, Mapping):
        return f"{figure(cell['value'])} ({figure(cell['low'])} to {figure(cell['high'])})"
    return figure(cell)


def _write(path: Path, text: str) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
