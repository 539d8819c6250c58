"""What each target can run in integers: all that quaver knows about backends, as data.

`ort-cpu`. Activations are uint8 with a zero point: on x86 onnxruntime's kernels multiply unsigned by signed bytes,
and signed activations take a path six times slower. A convolution becomes integer only when its output is quantized
too (QLinearConv); Gemm and MatMul give floats back (QGemm, MatMulIntegerToFloat). Softmax and attention products stay
float: their integer kernels are slower than the float ones. Without VNNI the kernels add two products in 16 bits,
saturating:

    255 (max(w_1, 0) + max(w_2, 0)) <= 32767   and   255 (min(w_1, 0) + min(w_2, 0)) >= -32768

hold for every pair of neighbouring codes w_1, w_2 when the sums of equal sign stay within PAIR_LIMIT = 128.

`tensorrt-rtx` (and TensorRT 10, 11). Symmetric int8 activations per tensor, zero points 0, biases float, only inputs
quantized; convolutions and products with fewer than 16 channels gain nothing. Kernel types were read from build logs.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from quaver.calib.quant import FLOAT8, INT4, INT8, INT32, UINT8, Format
from quaver.runtime.errors import RecipeError, unknown

PAIR_LIMIT = 128
Int4 = Literal["cast", "dequantize", "dequantize-cast"]


@dataclass(frozen=True)
class Target:
    """One backend.

    activations, weights: what a rule's format means here. bias: its format, None for float. quantized_outputs:
    operators that run in integers only when their output is quantized. int4: how 4-bit weights of an operator must be
    written (see qdq). pair_limit: largest sum of neighbouring codes of one sign, None when the kernels cannot
    saturate. min_channels: smaller layers stay float. refused: format -> why, and what to use instead. capabilities:
    what a plan can be built for.
    """

    name: str
    activations: Mapping[str, Format]
    weights: Mapping[str, Format]
    int4: Mapping[str, Int4]
    refused: Mapping[str, str]
    bias: Format | None = None
    quantized_outputs: tuple[str, ...] = ()
    pair_limit: int | None = None
    min_channels: int = 1
    capabilities: tuple[str, ...] = field(default=())


ORT_CPU = Target(
    name="ort-cpu",
    activations={"int8": UINT8},
    weights={"int8": INT8, "int4": INT4},
    int4={"Conv": "cast", "Gemm": "cast", "MatMul": "cast"},
    refused={
        "float8": "onnxruntime has no float8 kernels on CPUs; use 'int8'",
        "int16": "16-bit activations run five times slower than float in onnxruntime; use 'float'",
    },
    bias=INT32,
    quantized_outputs=("Conv",),
    pair_limit=PAIR_LIMIT,
)

TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    activations={"int8": INT8, "float8": FLOAT8},
    weights={"int8": INT8, "int4": INT4, "float8": FLOAT8},
    int4={"Conv": "dequantize-cast", "Gemm": "dequantize", "MatMul": "dequantize"},
    refused={"int16": "TensorRT has no 16-bit integers; use 'float' activations with 'int8' weights"},
    min_channels=16,
    # SM75 is left out: INT8 convolutions compile to float kernels there, without a word
    capabilities=("SM80", "SM86", "SM89", "SM120", "SM121"),
)

TARGETS: Mapping[str, Target] = {t.name: t for t in (ORT_CPU, TENSORRT_RTX)}


def find_target(name: str, *, isa: str = "portable") -> Target:
    """The target of a name; with isa="native" only this machine's own limits hold, with "portable" those of any CPU.

    Raises: RecipeError naming the nearest target or the two spellings of `isa`.
    """
    if name not in TARGETS:
        raise RecipeError(unknown("target", name, TARGETS))
    if isa not in ("portable", "native"):
        raise RecipeError(unknown("export.isa", isa, ("portable", "native")))
    target = TARGETS[name]
    return replace(target, pair_limit=None) if isa == "native" and not saturates() else target


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU's 8-bit products can saturate: x86 without VNNI, or an x86 that does not say."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return not {"avx512_vnni", "avx_vnni"} & set(flags)
