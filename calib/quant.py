"""The arithmetic of uniform quantization: number formats, scales, codes.

A real number x and its integer code q are tied by a scale s > 0 (fp32) and a zero point z:

    q = clip(round(x / s) + z, qmin, qmax)        x_hat = (q - z) * s

round is to nearest, ties to even, as ONNX QuantizeLinear does. Inside the range the error is at most s / 2. A symmetric
format has z fixed (0 when signed, the middle code when unsigned) and s = max|x| / qmax; an asymmetric one spends all
codes on [amin, amax] widened to contain 0, so that 0 (padding, silence) is always exact.

kind="float8" is E4M3FN (1 sign, 4 exponent, 3 mantissa bits, at most 448): codes are values of that grid, z = 0.

Sources: Jacob et al. 2018 (arXiv:1712.05877), eq. 1; ONNX QuantizeLinear-21; OCP 8-bit floating point, revision 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from quaver.runtime.errors import QuaverError

FLOAT8_MAX = 448.0
FLOAT16_MAX = 65504.0
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Format:
    """A number format for weights or activations.

    bits: width of one code. signed: codes run over [-2^(bits-1), 2^(bits-1)-1], else [0, 2^bits-1].
    symmetric: the zero point is fixed. kind: "int", or "float8" for E4M3FN.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    kind: Literal["int", "float8"] = "int"

    @property
    def qmin(self) -> int:
        """Smallest code."""
        if self.kind == "float8":
            return -int(FLOAT8_MAX)
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        if self.kind == "float8":
            return int(FLOAT8_MAX)
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of the symmetric case."""
        return 0 if self.signed or self.kind == "float8" else 1 << (self.bits - 1)

    @property
    def dtype(self) -> np.dtype:
        """The numpy type that holds one unpacked code: int8, uint8, int16, uint16, int32 or float32 (for float8)."""
        if self.kind == "float8":
            return np.dtype(np.float32)
        width = next(w for w in (8, 16, 32) if self.bits <= w)
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    @property
    def name(self) -> str:
        """The name used in rules and site files: "int8", "uint8", "int4", "float8", ..."""
        return "float8" if self.kind == "float8" else f"{'int' if self.signed else 'uint'}{self.bits}"


INT8 = Format(8)
INT4 = Format(4)
INT32 = Format(32)
UINT8 = Format(8, signed=False, symmetric=False)
UINT16 = Format(16, signed=False, symmetric=False)
FLOAT8 = Format(8, kind="float8")


def scale_zero_point(amin: ArrayLike, amax: ArrayLike, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Scale (fp32, > 0) and zero point (int32) that cover the ranges [amin, amax], both of any shape [...].

    An all-zero range gets scale 1, which codes 0 exactly. Raises QuaverError on a range that is not finite or reversed.
    """
    low, high = np.asarray(amin, np.float64), np.asarray(amax, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise QuaverError(
            "a range is not finite; look for the layer whose activations overflow before calibrating again"
        )
    if (low > high).any():
        raise QuaverError(
            f"a range is reversed: amin {low.max():g} above amax {high.min():g}; run the ranges stage again"
        )
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    width = np.maximum(-low, high) / (fmt.qmax - fmt.middle) if fmt.symmetric else (high - low) / (fmt.qmax - fmt.qmin)
    scale = np.where(width > 0, np.maximum(width, SMALLEST_SCALE), 1.0).astype(np.float32)
    if fmt.symmetric:
        return scale, np.full(scale.shape, fmt.middle, np.int32)
    zero = np.clip(np.round(fmt.qmin - low / scale), fmt.qmin, fmt.qmax)
    return scale, zero.astype(np.int32)


def common_zero_point(ranges: Sequence[tuple[float, float]], fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Scales [P] of P ranges and the one zero point (int32) for which they grow least in the mean square.

    With a zero point z, [low, high] needs s = max(high / (qmax - z), -low / (z - qmin)): codes of all parts can then be
    joined into one tensor and told apart by scale alone. Raises: as `scale_zero_point`.
    """
    lows, highs = np.transpose(ranges)
    alone, zero = scale_zero_point(lows, highs, fmt)
    if fmt.symmetric:
        return alone, zero[0]
    low, high = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    zeros = np.arange(fmt.qmin, fmt.qmax + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = high / (fmt.qmax - zeros), -low / (zeros - fmt.qmin)
    needed = np.fmax(above, below)  # 0 / 0, where one end needs nothing, is left out
    best = int(((needed / alone) ** 2).sum(axis=1).argmin())
    scales = np.where(needed[best] > 0, np.maximum(needed[best], SMALLEST_SCALE), 1.0)
    return scales.astype(np.float32), zeros[best, 0].astype(np.int32)


def half_scale(scale: ArrayLike) -> np.ndarray:
    """The smallest float16 scales, as fp32, that are not below `scale` [...]: what was in range stays in range.

    Runtimes want the scales of float16 edges in float16. Codes are made with the rounded scale: nothing else is lost.
    """
    wanted = np.asarray(scale, np.float32)
    near = np.minimum(wanted, FLOAT16_MAX).astype(np.float16)
    up = np.where(near.astype(np.float32) < wanted, np.nextafter(near, np.float16(np.inf)), near)
    return np.minimum(up.astype(np.float32), np.float32(FLOAT16_MAX))


def search_scale(
    rows: np.ndarray, scale: np.ndarray, fmt: Format, *, power: float = 2.4, steps: int = 40, apart: int = 2
) -> np.ndarray:
    """Of `scale` [C] and `steps` - 1 smaller ones, those with the least sum |x - x_hat|^power per row of rows [C, ...].

    They lie `apart` percent of `scale` apart. Clipping a few large weights buys a finer grid for all others. Symmetric
    formats only; 2.4 is the choice of BRECQ.
    """
    flat = np.asarray(rows, np.float32).reshape(len(rows), -1)
    best, least = np.array(scale, np.float32), np.full(len(flat), np.inf)
    part = max(1, (1 << 15) // flat.shape[1])  # rows that caches hold
    for first in range(0, len(flat), part):
        here, part_of = flat[first : first + part], slice(first, first + part)
        for percent in range(0, apart * steps, apart):
            tried = scale[part_of] * np.float32(1 - percent / 100)
            ratio = here / tried[:, None]
            off = np.abs(ratio - np.clip(np.round(ratio), fmt.qmin, fmt.qmax))
            error = (off**power).sum(axis=1) * tried.astype(np.float64) ** power
            better = error < least[part_of]
            best[part_of][better], least[part_of][better] = tried[better], error[better]
    return best


def quantize(
    x: np.ndarray, scale: ArrayLike, zero_point: ArrayLike, fmt: Format, *, axis: int | None = None
) -> np.ndarray:
    """Codes of x [...] in fmt.dtype; scale and zero_point are [] or, with `axis`, [x.shape[axis]]."""
    scale, zero_point = _along(scale, x.ndim, axis), _along(zero_point, x.ndim, axis)
    # fp32 division, as the runtimes do it: a double would round some ties the other way
    ratio = np.asarray(x, np.float32) / np.asarray(scale, np.float32)
    if fmt.kind == "float8":
        return round_float8(ratio)
    codes = np.round(ratio, out=ratio) if isinstance(ratio, np.ndarray) else np.round(ratio)
    wide = fmt.bits > 16  # float32 counts to 2^24, and what lies beyond is clipped
    codes = codes + zero_point.astype(np.float64 if wide else np.float32) if wide or zero_point.any() else codes
    return np.clip(codes, fmt.qmin, fmt.qmax).astype(fmt.dtype)


def dequantize(q: np.ndarray, scale: ArrayLike, zero_point: ArrayLike, *, axis: int | None = None) -> np.ndarray:
    """Real values (fp32) of codes q [...]; scale and zero_point as in `quantize`."""
    scale, zero_point = _along(scale, q.ndim, axis), _along(zero_point, q.ndim, axis)
    exact = q.astype(np.float32) if q.dtype.kind == "f" else (q.astype(np.int64) - zero_point).astype(np.float32)
    return exact * np.asarray(scale, np.float32)


def fake_quant(
    x: np.ndarray, scale: ArrayLike, zero_point: ArrayLike, fmt: Format, *, axis: int | None = None
) -> np.ndarray:
    """x [...] as the quantized graph sees it: quantize, then dequantize (fp32)."""
    return dequantize(quantize(x, scale, zero_point, fmt, axis=axis), scale, zero_point, axis=axis)


def round_float8(x: np.ndarray) -> np.ndarray:
    """Nearest E4M3FN value (fp32), ties to even, saturating at +-448.

    A binade [2^e, 2^(e+1)) holds 8 values 2^(e-3) apart; below e = -6 the spacing stays 2^-9 (subnormals).
    """
    x = np.clip(np.asarray(x, np.float64), -FLOAT8_MAX, FLOAT8_MAX)
    _, exponent = np.frexp(x)
    step = np.exp2(np.maximum(exponent - 1, -6) - 3.0)
    return (np.round(x / step) * step).astype(np.float32)


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Codes in [-8, 7] of any shape, two to a byte (uint8 [ceil(n / 2)]), low nibble first as ONNX stores them."""
    flat = np.asarray(codes).reshape(-1)
    if flat.size and (flat.min() < INT4.qmin or flat.max() > INT4.qmax):
        raise QuaverError(
            f"int4 codes must lie in [-8, 7], found [{flat.min()}, {flat.max()}]; quantize with INT4 first"
        )
    nibbles = np.zeros(flat.size + flat.size % 2, np.uint8)
    nibbles[: flat.size] = flat.astype(np.int8).view(np.uint8) & 0xF
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _along(value: ArrayLike, ndim: int, axis: int | None) -> np.ndarray:
    """Shape [n] to [1, .., n, .., 1] so that it broadcasts along `axis` only."""
    array = np.asarray(value)
    if axis is None:
        return array
    return array.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)])
