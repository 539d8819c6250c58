"""Which input of a denoiser is the noisy sample, which the time, and what it answers.

What the recipe does not say is found where there is only one candidate: the one input [B, C, H, W] is the sample, the
one input of a number a sample that no array is named after is the time (a noise level when it is called sigma), the
one output [B, C, H, W] the answer. Where there are several, the error names them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaver.runtime.errors import RecipeError, unknown
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

    from quaver.exporter.trace import ModelSettings

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class End:
    """An input or output: its dtype by numpy's name and its dimensions, None where they are free."""

    dtype: str
    dims: Dims

    @property
    def wide(self) -> str:
        """The dtype it has in the float32 graph."""
        return "float32" if self.dtype == "float16" else self.dtype

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('?' if d is None else str(d) for d in self.dims)}]"


@dataclass(frozen=True)
class Ends:
    """The names of a denoiser's ends, and how its time is told; `cond` are the other inputs."""

    sample: str
    time: str
    output: str
    sigma: bool
    cond: Mapping[str, End]
    inputs: Mapping[str, End]

    def as_card(self, scaling: str) -> dict[str, Any]:
        """What `runtime.families.onnx` feeds it by."""
        time = self.inputs[self.time]
        return {
            "sample": self.sample,
            "time": self.time,
            "dtype": time.wide,
            "column": len(time.dims) == 2,
            "sigma": self.sigma,
            "scaling": scaling or ("ve" if self.sigma else "vp"),
        }


def find_ends(model: onnx.ModelProto, settings: ModelSettings, given: Collection[str]) -> Ends:
    """The ends of a model, as the recipe names them or as there is only one way; `given` are names of samples.

    Raises: RecipeError naming the inputs when one is not there or several could be meant.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _end(value) for value in model.graph.input if value.name not in weights}
    outputs = {value.name: _end(value) for value in model.graph.output}
    for key, name, there in _named(settings, inputs, outputs):
        if name and name not in there:
            raise RecipeError(f"model.{key}: {unknown(key, name, there)}")
    pictures = [name for name, end in inputs.items() if len(end.dims) == 4 and end.dtype.startswith("float")]
    sample = settings.sample or _only(pictures, "sample", ("sample",), inputs)
    numbers = [name for name, end in inputs.items() if name != sample and _is_number(end)]
    numbers = [name for name in numbers if name not in given] or numbers
    named = settings.timestep or settings.sigma
    time = named or _only(numbers, "timestep or model.sigma", ("timestep", "t", "sigma"), inputs)
    answers = [name for name, end in outputs.items() if len(end.dims) in (0, 4)]
    output = settings.output or _only(answers, "output", (), outputs)
    if len(inputs[sample].dims) != 4:
        raise RecipeError(
            f"the sample {sample!r} is {inputs[sample]}, expected [B, C, H, W]: no other form is quantized"
        )
    if not _is_number(inputs[time]):
        raise RecipeError(f"the time {time!r} is {inputs[time]}, expected one number a sample")
    sigma = bool(settings.sigma) or (not settings.timestep and "sigma" in time.lower())
    cond = {name: end for name, end in inputs.items() if name not in (sample, time)}
    return Ends(sample, time, output, sigma, cond, inputs)


def latent_of(ends: Ends, wanted: tuple[int, ...], sample: tuple[int, ...] | None) -> tuple[int, ...]:
    """[C, H, W] from the graph, the recipe or the samples.

    Raises: RecipeError when they contradict each other, or all leave a size open.
    """
    said = [("the graph", ends.inputs[ends.sample].dims[1:]), ("model.latent", wanted), ("model.samples", sample or ())]
    found: list[int] = []
    for axis in range(3):
        sizes = {d: where for where, dims in reversed(said) if dims and (d := dims[axis])}
        if len(sizes) > 1:
            told = ", ".join(f"{size} in {where}" for size, where in sizes.items())
            raise RecipeError(f"the latent [C, H, W] differs in dimension {axis}: {told}; make them agree")
        if not sizes:
            raise RecipeError(f"the graph leaves the size of {ends.sample!r} open: set model.latent = [C, H, W]")
        found += sizes
    return tuple(found)


def _named(settings: ModelSettings, inputs: Collection[str], outputs: Collection[str]) -> list[tuple]:
    names = [(key, getattr(settings, key), inputs) for key in ("sample", "timestep", "sigma")]
    return [*names, ("output", settings.output, outputs)]


def _only(candidates: list[str], key: str, usual: tuple[str, ...], there: Mapping[str, End]) -> str:
    """The one candidate, or the one that is called as usual."""
    known = [name for name in usual if name in candidates]
    if len(candidates) == 1 or known:
        return (known or candidates)[0]
    told = "; ".join(f"{name} {end}" for name, end in there.items())
    raise RecipeError(f"{len(candidates) or 'none'} of {told} could be meant: set model.{key}")


def _is_number(end: End) -> bool:
    return len(end.dims) < 2 or (len(end.dims) == 2 and end.dims[1] == 1)


def _end(value: onnx.ValueInfoProto) -> End:
    kind = value.type.tensor_type
    dtype = need("onnx", extra="export").helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "?"
    return End(dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))
