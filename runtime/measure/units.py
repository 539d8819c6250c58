"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def span(interval: Mapping[str, float], fmt: Callable[[float], str]) -> str:
    """The bounds of an interval, a unit set apart by a blank said once."""
    low, high = fmt(interval["low"]), fmt(interval["high"])
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}') if unit else low} to {high}"


def times(interval: Mapping[str, float]) -> str:
    """The bounds of a ratio."""
    return f"{interval['low']:.2f}× to {interval['high']:.2f}×"


def percent(value: float) -> str:
    """A share as a percentage with two digits that count."""
    return f"{100 * value:.1f}%" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2f}%"


def whole_percent(value: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * value:.0f}%"


def milliseconds(value: float) -> str:
    """Seconds in the unit that reads best."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms" if value < 0.1 else f"{1000 * value:.0f} ms"


def megabytes(value: float) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{value / 1e6:.1f} MB" if value < 1e8 else f"{value / 1e6:.0f} MB"


def giga(value: float) -> str:
    """A count of operations, as thousands of millions or as millions of millions."""
    return f"{value / 1e12:.2f} T" if value >= 1e12 else f"{value / 1e9:.1f} G"


def decibel(value: float) -> str:
    """A level."""
    return f"{value:.1f} dB"


def number(value: float) -> str:
    """Three digits that count; thousands in full."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def counted(number: int, thing: str) -> str:
    """So many of a thing, in the plural unless it is one: "1 pair of calls"."""
    first, _, rest = thing.partition(" ")
    return f"{number} {first}{'s' * (number != 1)}{f' {rest}' * bool(rest)}"


def spoken(correction: str) -> str:
    """The name of a correction in a heading."""
    return "no correction" if correction == "none" else correction
