"""How far two runs of a graph are apart on an edge, and how far rounding alone can put them.

    SNR = 10 log10(sum |r|^2 / sum |x - r|^2)        [dB]  x: what was found, r: the reference
    d   = |x - r| / s                                [steps], on an edge whose values are codes of scale s

Two exact implementations of a coded operator see the same integers and differ in the last bits of a float before they
round. Where that float lies that close to the middle between two codes they give neighbouring ones, so

    d <= 1, and d > 1/2 for few elements                        codes, fed alike
    SNR of about 130 dB (float32), 65 dB (float16)              floats, fed alike

A sum that saturates, a scale or a zero point that a kernel reads wrongly leaves these bounds; a code moved by one step
upstream does not, because every edge is judged on what it was fed (`segments`), not on what had piled up by then.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from quaver.calib.sensitivity import decibels
from quaver.runtime.errors import RecipeError, unknown

HALF = 0.5 * (1 + 1e-3)  # of a step, and what float32 makes of it


@dataclass(frozen=True)
class Tolerance:
    """What still counts as rounding; `--tolerance NAME=VALUE` replaces one."""

    steps: float = 1.0  # most that a code may move, fed alike
    moved: float = 0.01  # largest share of codes that may
    snr: float = 60.0  # least of floats, fed alike, dB
    loose: float = 40.0  # the same for 16-bit floats, and for floats behind codes that fusion has hidden
    weight: float = 1.5  # steps that a weight may lie from its float: 1/2, and 1 that learned rounding may add
    cost: float = 10.0  # least SNR of a layer coded and fed with floats, against float, dB


@dataclass(frozen=True)
class Difference:
    """Sums over elements and calls; a mismatch of anything not finite makes `noise` infinite.

    largest: of d in steps, or of |x - r| on an edge without codes. moved: how many elements lie over half a step off.
    """

    count: int = 0
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    moved: int = 0

    @property
    def snr(self) -> float:
        """Decibels, at most 200, -inf when something is not finite."""
        if not (self.noise and np.isfinite(self.noise)):
            return -np.inf if self.noise else 200.0
        return float(decibels(self.signal, self.noise))

    @property
    def share(self) -> float:
        """Share of elements over half a step off."""
        return self.moved / max(self.count, 1)


def compare(found: np.ndarray, reference: np.ndarray, step: np.ndarray | None = None) -> Difference:
    """The difference of two arrays [...] of real values, in steps when `step` (broadcast) is given."""
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(np.subtract(found, reference, dtype=np.float64))
        power = np.square(reference, dtype=np.float64)
    if not np.isfinite(off).all():
        off[(found == reference) | (np.isnan(found) & np.isnan(reference))] = 0.0
        off[np.isnan(off)] = np.inf
        power = power[np.isfinite(power)]
    in_steps = off if step is None else off / step
    return Difference(
        count=found.size,
        signal=float(power.sum()),
        noise=float(np.square(off).sum()),
        largest=float(in_steps.max(initial=0.0)),
        moved=0 if step is None else int((in_steps > HALF).sum()),
    )


def add(a: Difference, b: Difference) -> Difference:
    """Two calls together."""
    sums = {name: getattr(a, name) + getattr(b, name) for name in ("count", "signal", "noise", "moved")}
    return Difference(**sums, largest=max(a.largest, b.largest))


def beyond_rounding(local: Difference, tolerance: Tolerance, *, coded: bool, loose: bool) -> str:
    """Why rounding does not explain the difference of two runs of the same operators on the same inputs, "" if it does.

    loose: 16-bit floats, or codes that fusion hides, lie between; twice the steps and ten times the share are allowed.
    """
    steps, moved = (2 * tolerance.steps, 10 * tolerance.moved) if loose else (tolerance.steps, tolerance.moved)
    if coded and local.largest > steps:
        return f"codes are up to {local.largest:.3g} steps off where rounding explains {steps:g}"
    if coded and local.share > moved:
        return f"{local.share:.1%} of the codes moved where rounding explains {moved:.1%}"
    least = tolerance.loose if loose else tolerance.snr
    if not coded and local.snr < least:
        return f"floats agree to {local.snr:.1f} dB where rounding explains {least:g} dB"
    return ""


def read_tolerance(given: list[str]) -> Tolerance:
    """Tolerances from NAME=VALUE. Raises: RecipeError naming the nearest one, or the value."""
    tolerance, names = Tolerance(), [field.name for field in fields(Tolerance)]
    for text in given:
        name, _, value = text.partition("=")
        if name not in names:
            raise RecipeError(unknown("tolerance", name, names))
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if np.isnan(number):  # which no comparison exceeds, so that nothing would be bad
            raise RecipeError(f"--tolerance {text}: {value!r} is not a number; write {name}=1.5")
        tolerance = replace(tolerance, **{name: number})
    return tolerance
