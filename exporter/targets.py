"""What each target can run: all that quaver knows about backends, as data.

A way is how a layer with a given pair of formats is written for one operator, and the kernel that this gets; `WAYS` of
a target holds every pair it runs, `refused` why it does not run the others and what to ask for instead.

`ort-cpu`. Activations are uint8 with a zero point: on x86 onnxruntime's kernels multiply unsigned by signed bytes,
and signed activations take a path six times slower. A convolution becomes integer only when its output is quantized
too (QLinearConv); Gemm and MatMul give floats back (QGemm, MatMulIntegerToFloat). Softmax and attention products stay
float: their integer kernels are slower than the float ones. Weights coded beside float activations are multiplied out
when the file is loaded: a DequantizeLinear would run at every call. Without VNNI the kernels add two products in 16
bits, saturating:

    255 (max(w_1, 0) + max(w_2, 0)) <= 32767   and   255 (min(w_1, 0) + min(w_2, 0)) >= -32768

hold for every pair of neighbouring codes w_1, w_2 when the sums of equal sign stay within PAIR_LIMIT = 128.

`tensorrt-rtx`, `tensorrt-10`, `tensorrt-11`. Symmetric activations per tensor, zero points 0, biases float, only inputs
quantized, scales in the type of their edge; convolutions and products with fewer than 16 channels, or a single row per
sample, gain nothing from coded inputs. Kernels of TensorRT-RTX were read from build logs; the other two follow
NVIDIA's guide, "Working with Quantized Types".
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from quaver.calib.quant import FLOAT8, INT4, INT8, INT32, UINT8, UINT16, Format
from quaver.calib.rules import FLOATS
from quaver.runtime.errors import RecipeError, unknown

PAIR_LIMIT = 128
PRODUCT = "product"  # of two activations: Q K^T and softmax V
OPS = ("Conv", "Gemm", "MatMul")
LINEAR = ("Gemm", "MatMul")

Pattern = Literal["dequantize", "cast-dequantize", "dequantize-cast-dequantize", "cast-multiply", "cast", ""]
Key = tuple[str, str, str]  # weight, activation, operator; "float" stands for all of FLOATS


@dataclass(frozen=True)
class Way:
    """How a pair of formats is written for one operator.

    kernel: what runs it, in words. weight, activation: its codes, None when that side stays float. pattern: from stored
    codes to the weight (see qdq). blocks: what becomes of a rule's `block`: scales per "blocks", scales per "channels"
    all the same, or "refused". bias: the format of the bias, None for float. coded_output: whether the kernel needs the
    output coded too.
    """

    kernel: str
    weight: Format | None = None
    activation: Format | None = None
    pattern: Pattern = ""
    blocks: Literal["blocks", "channels", "refused"] = "refused"
    bias: Format | None = None
    coded_output: bool = False


@dataclass(frozen=True)
class Target:
    """One backend.

    ways: what it runs. refused: shell patterns of what it does not -> why, and what to use instead; the first match
    speaks. half: whether it has float16 kernels. single: operators that compute in float32 all the same -> why.
    residuals: whether the operand that a coded layer's output is added to is coded as well. pair_limit: largest sum of
    neighbouring 8-bit codes of one sign, None when kernels cannot saturate. min_channels: smaller layers stay float.
    min_rows: layers with fewer rows per sample have their weights coded alone. longest: attention products over more
    positions stay float. attention: whether it has an operator for a whole attention (passes.fused_attention).
    capabilities: what a plan can be built for.
    """

    name: str
    ways: Mapping[Key, Way]
    refused: Mapping[Key, str]
    half: bool = False
    single: Mapping[str, str] = field(default_factory=dict)
    residuals: bool = False
    pair_limit: int | None = None
    min_channels: int = 1
    min_rows: int = 0
    longest: int = 0
    attention: bool = False
    capabilities: tuple[str, ...] = ()


def each(ops: Iterable[str], weight: str, activation: str, way: Way) -> dict[Key, Way]:
    """One way for several operators."""
    return {(weight, activation, op): way for op in ops}


def _onnxruntime() -> dict[Key, Way]:
    conv = Way("QLinearConv", INT8, UINT8, "dequantize", bias=INT32, coded_output=True)
    linear = Way("QGemm or MatMulIntegerToFloat", INT8, UINT8, "dequantize", bias=INT32)
    alone = Way("float kernel, weights multiplied out at load", INT8, None, "cast-multiply", "blocks")
    wide = Way("float kernel behind 16-bit codes", INT8, UINT16, "cast-multiply", "blocks")
    ways = {("int8", "int8", "Conv"): conv, **each(LINEAR, "int8", "int8", linear)}
    ways |= {("int4", *key[1:]): replace(way, weight=INT4, pattern="cast-dequantize") for key, way in ways.items()}
    for name, fmt in (("int8", INT8), ("int4", INT4)):
        ways |= each(OPS, name, "float", replace(alone, weight=fmt))
        ways |= each(OPS, name, "int16", replace(wide, weight=fmt))
    stored = Way("float kernel, weights made float32 at load", pattern="cast")
    return ways | each(OPS, "float16", "float", stored)


def _tensorrt(*, four_eight: bool) -> dict[Key, Way]:
    """TensorRT's ways; four_eight: whether INT4 weights meet INT8 inputs."""
    unpacked = "float kernel, weights unpacked by a kernel of their own"
    ways = {
        ("int8", "int8", "Conv"): Way("INT8 convolution", INT8, INT8, "dequantize"),
        **each(LINEAR, "int8", "int8", Way("INT8 gemm", INT8, INT8, "dequantize")),
        ("float8", "float8", "Conv"): Way("FP8 convolution", FLOAT8, FLOAT8, "dequantize"),
        **each(LINEAR, "float8", "float8", Way("FP8 gemm", FLOAT8, FLOAT8, "dequantize")),
        ("int8", "float", "Conv"): Way(unpacked, INT8, None, "dequantize", "channels"),
        **each(LINEAR, "int8", "float", Way("one fused kernel", INT8, None, "dequantize", "blocks")),
        ("int4", "float", "Conv"): Way(unpacked, INT4, None, "dequantize", "channels"),
        **each(LINEAR, "int4", "float", Way("one fused kernel", INT4, None, "dequantize", "blocks")),
        ("float8", "float", "Conv"): Way(unpacked, FLOAT8, None, "dequantize"),
        **each(LINEAR, "float8", "float", Way("one fused kernel", FLOAT8, None, "dequantize")),
        **each(OPS, "float16", "float", Way("float kernel, weights made float32 when building", pattern="cast")),
        ("int8", "int8", PRODUCT): Way("INT8 gemm", None, INT8),
        ("float8", "float8", PRODUCT): Way("FP8 gemm", None, FLOAT8),
    }
    if four_eight:
        narrow = Way("INT8 convolution", INT4, INT8, "dequantize-cast-dequantize")
        ways["int4", "int8", "Conv"] = narrow
        ways |= each(LINEAR, "int4", "int8", Way("INT8 gemm", INT4, INT8, "dequantize"))
    return ways


ORT_CPU = Target(
    name="ort-cpu",
    ways=_onnxruntime(),
    refused={
        ("float8", "*", "*"): "onnxruntime has no float8 kernels on CPUs; use 'int8'",
        ("*", "float8", "*"): "onnxruntime has no float8 kernels on CPUs; use 'int8'",
        ("*", "float16", "*"): "onnxruntime has no float16 kernels on CPUs; use 'float', and weight = 'float16' for a "
        "smaller file",
        ("*", "*", PRODUCT): "integer attention products are slower than float ones there; set export.attention to "
        "'float'",
    },
    pair_limit=PAIR_LIMIT,
    attention=True,
)

_SINGLE = dict.fromkeys(("Pow", "ReduceMean", "ReduceSum", "ReduceL2"), "squares and sums leave the range of float16")
_SINGLE |= dict.fromkeys(("Sin", "Cos"), "phases of hundreds of radians need more than 11 bits")
_NO_INT16 = "TensorRT has no 16-bit integers; use weight = 'int8' with activation = 'float16'"
_NO_MIX = "float8 and integers do not mix; set both to 'float8' or to 'int8'"
_REFUSED = {
    ("*", "int16", "*"): _NO_INT16,
    ("float8", "int*", "*"): _NO_MIX,
    ("int*", "float8", "*"): _NO_MIX,
}

TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    ways=_tensorrt(four_eight=True),
    refused=_REFUSED,
    half=True,
    single=_SINGLE,
    min_channels=16,
    min_rows=2,
    longest=512,
    capabilities=("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
)

TENSORRT_10 = replace(
    TENSORRT_RTX,
    name="tensorrt-10",
    ways=_tensorrt(four_eight=False),
    refused={
        ("int4", "int8", "*"): "TensorRT's INT4 is for weights alone; use activation = 'float16', weight = 'int8', or "
        "the target tensorrt-rtx",
        **_REFUSED,
    },
    residuals=True,
    capabilities=("SM75", "SM80", "SM86", "SM87", "SM89", "SM90", "SM100", "SM120"),
)

TENSORRT_11 = replace(TENSORRT_10, name="tensorrt-11")

TARGETS: Mapping[str, Target] = {t.name: t for t in (ORT_CPU, TENSORRT_RTX, TENSORRT_10, TENSORRT_11)}

# instruction sets of CPUs, and whether their 8-bit products can saturate
ISAS = {"portable": True, "avx2": True, "avx-vnni": False, "avx512-vnni": False, "arm": False}


def find_target(name: str, *, isa: str = "portable") -> Target:
    """The target of a name, for CPUs of an instruction set; "native" is this machine's, "portable" holds on any.

    Raises: RecipeError naming the nearest target or instruction set.
    """
    if name not in TARGETS:
        raise RecipeError(unknown("target", name, TARGETS))
    if isa != "native" and isa not in ISAS:
        raise RecipeError(unknown("export.isa", isa, (*ISAS, "native")))
    target, isa = TARGETS[name], detect_isa() if isa == "native" else isa
    return target if ISAS[isa] else replace(target, pair_limit=None)


def find_way(target: Target, weight: str, activation: str, op: str) -> Way | str:
    """How a target runs an operator with such weights and activations, or why it does not."""
    coarse = "float" if activation in FLOATS else activation
    way = target.ways.get((weight, coarse, op))
    if way is not None and (activation != "float16" or target.half):
        return way
    for patterns, why in target.refused.items():
        if all(fnmatchcase(value, pattern) for value, pattern in zip((weight, activation, op), patterns, strict=True)):
            return why
    pairs = sorted({f"{w}/{a}" for w, a, known in target.ways if known == op})
    return f"no kernel of it does; use one of (weight/activation) {', '.join(pairs)}"


def detect_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The instruction set of this machine: "arm", "avx512-vnni", "avx-vnni", or "avx2" when nothing better is known."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "arm"
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return next((isa for isa in ("avx512-vnni", "avx-vnni") if isa.replace("-", "_") in flags), "avx2")
