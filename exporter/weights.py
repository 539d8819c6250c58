"""Integer codes of a layer's weights, scaled per output channel or per block of its inputs.

    s_c = max |w_c| / qmax        q = round(w / s_c)        bias code = round(b / (s_x s_c)), int32

s_c grows where it must: until every pair of neighbouring codes of one sign sums to at most `pair_limit` (targets),
and until the bias fits 31 bits. Reducing single codes of the offending pairs instead, at any scale in between, is never
more than 0.1 dB better (benchmarks/saturation.py). A channel without weights takes the largest scale of the others,
which keeps its bias exact. With a `power`, s_c is the scale of least error sum |w - q s|^power instead, which may clip;
4-bit codes are too few for anything else: they get the least squares of eight scales, an eighth less output error.

A block is B weights of one output channel that follow each other along the inputs, at one position of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quaver.calib.quant import INT32, Format, half_scale, quantize, search_scale

LARGEST_BIAS = 2.0**30
FEW_BITS = 4


@dataclass(frozen=True)
class Coded:
    """Codes [shape of the weight], fp32 scale [C] and, when asked for, int32 bias codes [C] with scale [C].

    In blocks, the scale has the weight's own axes, with K / B for K along the inputs.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None = None
    bias_scale: np.ndarray | None = None


def code_weight(
    weight: np.ndarray,
    fmt: Format,
    *,
    axis: int,
    bias: np.ndarray | None = None,
    input_scale: float | None = None,
    pair_limit: int | None = None,
    power: float | None = None,
    half: bool = False,
) -> Coded:
    """Codes of a weight along its output-channel `axis`; the bias [C] is coded when `input_scale` is given.

    With `half`, scales are float16 numbers.
    """
    rows = np.moveaxis(np.asarray(weight, np.float32), axis, 0)
    scale = _scales(rows, fmt)
    scale = _least(rows, scale, fmt) if power is None else search_scale(rows, scale, fmt, power=power)
    if bias is not None and input_scale is not None:
        scale = np.maximum(scale, (np.abs(bias) / (input_scale * LARGEST_BIAS)).astype(np.float32))
    scale = half_scale(scale) if half else scale
    if pair_limit is not None and fmt.kind == "int":
        scale = _widen(rows, scale, fmt, pair_limit)
    return with_bias(np.moveaxis(quantize(rows, scale, np.int32(0), fmt, axis=0), 0, axis), scale, bias, input_scale)


def code_blocks(weight: np.ndarray, fmt: Format, *, axis: int, block: int, half: bool = False) -> Coded:
    """Codes of a weight whose inputs [K], a multiple of `block`, come in blocks with a scale each."""
    rows = np.moveaxis(np.asarray(weight, np.float32), axis, 0)
    split = rows.reshape(len(rows), -1, block, *rows.shape[2:])
    largest = np.abs(split).max(axis=2, keepdims=True) / np.float32(fmt.qmax)
    scale = np.where(largest > np.finfo(np.float32).tiny, largest, np.float32(1))
    blocks = np.moveaxis(split, 2, -1).reshape(-1, block)
    scale = np.reshape(_least(blocks, scale.reshape(-1), fmt), scale.shape)
    scale = half_scale(scale) if half else scale
    codes = quantize((split / scale).reshape(rows.shape), np.float32(1), np.int32(0), fmt)
    return Coded(np.moveaxis(codes, 0, axis), np.moveaxis(scale.squeeze(2), 0, axis))


def with_bias(
    codes: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None, input_scale: float | None = None
) -> Coded:
    """Codes of a weight with those of its bias [C], when there is one to code."""
    if bias is None or input_scale is None:
        return Coded(codes, scale)
    bias_scale = np.float32(input_scale) * scale
    return Coded(codes, scale, quantize(bias, bias_scale, np.int32(0), INT32, axis=0), bias_scale)


def pair_sums(codes: np.ndarray) -> np.ndarray:
    """Largest sum |q_1 + q_2| of two neighbouring codes, per channel [C], of codes [C, ...].

    Kernels walk a convolution's window either channel by channel or position by position; both orders count. Codes of
    opposite sign cannot saturate, and their sum is smaller than either.
    """
    orders = [codes.reshape(len(codes), -1)]
    if codes.ndim > 2:
        orders.append(np.moveaxis(codes, 1, -1).reshape(len(codes), -1))
    return np.max([_pairs(order) for order in orders], axis=0)


def _scales(rows: np.ndarray, fmt: Format) -> np.ndarray:
    largest = np.abs(rows.reshape(len(rows), -1)).max(axis=1) / np.float32(fmt.qmax)
    idle = largest.max() if largest.max() > 0 else np.float32(1)
    return np.where(largest > np.finfo(np.float32).tiny, largest, idle).astype(np.float32)


def _least(rows: np.ndarray, scale: np.ndarray, fmt: Format) -> np.ndarray:
    """The scales [C] of few bits that leave the least squares of rows [C, ...]; others as they are."""
    few = fmt.kind == "int" and fmt.bits <= FEW_BITS
    return search_scale(rows, scale, fmt, power=2.0, steps=8, apart=5) if few else scale


def _widen(rows: np.ndarray, scale: np.ndarray, fmt: Format, limit: int) -> np.ndarray:
    """Scales grown by the excess of the worst pair until none is left; rounding may ask for a second round."""
    scale, left = scale.copy(), np.arange(len(rows))
    while True:
        sums = pair_sums(quantize(rows[left], scale[left], np.int32(0), fmt, axis=0))
        left, sums = left[sums > limit], sums[sums > limit]
        if not len(left):
            return scale
        scale[left] = scale[left] * np.maximum(sums / limit, 1.002)


def _pairs(rows: np.ndarray) -> np.ndarray:
    padded = np.pad(rows, ((0, 0), (0, 1))) if rows.shape[1] % 2 else rows
    sums = np.add(padded[:, 0::2], padded[:, 1::2], dtype=np.int16)
    return np.maximum(sums.max(axis=1), -sums.min(axis=1))
