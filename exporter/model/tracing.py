"""Torch modules as float ONNX graphs, held against torch.

A graph has a free batch size and counts once onnxruntime agrees with torch on random inputs:

    || f_onnx(x) - f(x) || <= max(PARITY || f(x) ||, SLACK || f(x + dx) - f(x) ||)

dx is a rounding error of fp32, |dx| ~ 1e-6 |x|: a network that amplifies it (phase retrieval in a vocoder is chaotic)
can agree with itself no better than that. What the exporter knows about the origin of a node is reduced to its module
path (passes.provenance).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.exporter.model.agreement import farthest
from quaver.exporter.model.opset import OPSET
from quaver.exporter.model.program import share, values
from quaver.exporter.model.samples import Samples
from quaver.exporter.passes import clean
from quaver.exporter.passes.provenance import WRAPPER
from quaver.runtime.errors import EngineError, RecipeError, unknown
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx
    import torch

PARITY, SLACK, ROUNDING = 1e-3, 4.0, 1e-6
OUTPUTS = {
    "text_encoder": ("text_embeds",),
    "vae_decoder": ("mel",),
    "vocoder": ("waveform",),
    "image_decoder": ("image",),
}
FREE = dict.fromkeys(  # of all else, only the batch
    ("input_ids", "attention_mask", "states", "told", "told_mask"), ("batch", "length")
)
ADDED = ("text_embeds", "time_ids")  # conditions that a U-Net of diffusers takes in one argument, `added_cond_kwargs`


@dataclass(frozen=True)
class Traced:
    """A graph, the arrays on which torch was heard, and how far rounding of the inputs moves its answers, relative.

    memory: the large weights of the graph, which refers to them (`program`).
    """

    model: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]
    expected: tuple[np.ndarray, ...]
    unrest: float = 0.0
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)


def trace_unet(
    unet: torch.nn.Module, shape: Sequence[int], samples: Samples | None = None, *, free: bool = False
) -> Traced:
    """The graph of a U-Net: x_t [B, *shape], t [B] and what conditions it in, prediction out; T stays open when `free`.

    Conditioned by `samples`, whose names are those of the network's own arguments, or else as AudioLDM is, by one text
    vector [B, D]. Raises: RecipeError for a U-Net that is conditioned otherwise.
    """
    torch = need("torch", extra="export")
    draw = torch.Generator().manual_seed(0)
    feeds = {"sample": torch.randn(2, *shape, generator=draw), "timestep": torch.tensor([901, 11])}
    if samples:
        rows = {name: np.resize(values, (2, *values.shape[1:])) for name, values in samples.cond.items()}
        feeds |= {name: torch.from_numpy(values) for name, values in rows.items()}
    elif getattr(unet.config, "class_embed_type", None) != "simple_projection":
        raise RecipeError(
            f"the U-Net's class_embed_type is {getattr(unet.config, 'class_embed_type', None)!r}, the family audioldm "
            "needs 'simple_projection': feed another U-Net with model.samples, rows under the names of its arguments"
        )
    else:
        feeds["class_labels"] = torch.randn(2, unet.config.projection_class_embeddings_input_dim, generator=draw)
    return trace_module(_with_inputs(unet, list(feeds)), feeds, ("out",), free_length=free)


def trace_parts(parts: Mapping[str, torch.nn.Module], shape: Sequence[int]) -> Iterator[tuple[str, Traced]]:
    """The graphs of the networks around a denoiser of latents [B, *shape]; what one answers feeds the next.

    An input is called what the module's `forward` calls it. Raises: RecipeError for one that nothing makes.
    """
    torch = need("torch", extra="export")
    known = {
        "input_ids": torch.tensor([[2, 3, 4, 5], [2, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "class_label": torch.tensor([0, 1]),
        "told_mask": torch.tensor([[1] * 9, [1] * 6 + [0, 0, 1]]),
        "latents": torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),
    }
    for name, part in parts.items():
        wanted, outputs = list(inspect.signature(part.forward).parameters), _outputs(name, part)
        if missing := [key for key in wanted if key not in known]:
            raise RecipeError(f"the component {name} reads {missing[0]!r}; known are {', '.join(known)}")
        traced = trace_module(part, {key: known[key] for key in wanted}, outputs)
        known |= {key: torch.from_numpy(value) for key, value in zip(outputs, traced.expected, strict=True)}
        yield name, traced


def trace_module(
    module: torch.nn.Module, feeds: Mapping[str, torch.Tensor], outputs: Sequence[str], *, free_length: bool = False
) -> Traced:
    """One module as an ONNX graph with named inputs and outputs; batch (dimension 0) and token lengths are free.

    With `free_length` the length T of `sample` [B, C, T, F] is too, and what was heard is of twice that length.
    """
    torch = need("torch", extra="export")
    need("onnxscript", extra="export")
    free = {name: dict(enumerate(FREE.get(name, ("batch",)))) for name in feeds}
    heard = feeds
    if free_length:
        free["sample"] |= {2: "frames"}
        heard = {**feeds, "sample": feeds["sample"].repeat(1, 1, 2, 1)}
    answers, moved = _hear(module, heard.values()), _hear(module, map(_nudged, heard.values()))
    with quietly():
        program = torch.onnx.export(
            module,
            tuple(feeds.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(feeds),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict.fromkeys(f, torch.export.Dim.DYNAMIC) for f in free.values()),
            verbose=False,
        )
    model, memory = share(program)
    clean(model)
    _name_dimensions(model, free)
    unrest = farthest(moved, answers)
    return Traced(model, {k: v.numpy() for k, v in heard.items()}, answers, unrest, memory)


def check(traced: Traced, name: str) -> Traced:
    """The same graph, once onnxruntime agrees with torch on it, also for a batch of another size.

    Raises: EngineError with the observed difference.
    """
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    held = {name: ort.OrtValue.ortvalue_from_numpy(v) for name, v in values(traced.model, traced.memory).items()}
    options.add_external_initializers(list(held), list(held.values()))
    session = ort.InferenceSession(traced.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in (2, 1):
        answers = session.run(None, {key: value[:batch] for key, value in traced.feeds.items()})
        worst = farthest(answers, [e[:batch] for e in traced.expected])
        if not worst <= (allowed := max(PARITY, SLACK * traced.unrest)):
            raise EngineError(
                f"{name}: ONNX differs from torch by {worst:.1e} relative, allowed {allowed:.0e}: "
                "report the model and 'quaver doctor' as a bug"
            )
    return traced


def _with_inputs(unet: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """The U-Net with the inputs `names`, the first two its sample and timestep, and nothing else.

    Raises: RecipeError for one that it does not take.
    """
    torch = need("torch", extra="export")
    taken = inspect.signature(unet.forward).parameters
    if len(names) > 5:
        raise RecipeError(
            f"model.samples feeds {len(names) - 2} arguments ({', '.join(names[2:])}), expected 3 at most"
        )
    added = [name for name in names if name in ADDED and "added_cond_kwargs" in taken]
    for name in names:
        if name not in taken and name not in added:
            raise RecipeError(f"model.samples: {unknown('argument of the U-Net', name, [*taken][2:])}")
    absent = [n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in names]

    class Denoiser(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.add_module(WRAPPER, unet)

        # by name and not *values: torch's exporter must know how many there are
        def forward(self, sample: Any, timestep: Any, c1: Any = None, c2: Any = None, c3: Any = None) -> Any:
            fed = dict(zip(names, (sample, timestep, c1, c2, c3), strict=False)) | dict.fromkeys(absent)
            if c2 is not None:  # a mask is shaped by the batch of what it masks: say that all batches are one
                for given in (c for c in (c1, c2, c3) if c is not None):
                    torch._check(given.shape[0] == sample.shape[0])
            if added:
                fed["added_cond_kwargs"] = {name: fed.pop(name) for name in added}
            return getattr(self, WRAPPER)(**fed, return_dict=False)[0]

    return Denoiser().eval()


def _outputs(name: str, part: torch.nn.Module) -> tuple[str, ...]:
    """What a component answers, by its own words or its name; the probe's are features and logits of the attributes."""
    return (
        getattr(part, "outputs", None)
        or OUTPUTS.get(name)
        or ("features", *need("quaver.demo.world", extra="export").ATTRIBUTES)
    )


def _name_dimensions(model: onnx.ModelProto, free: Mapping[str, Mapping[int, str]]) -> None:
    """Give the free dimensions of the inputs their names, everywhere they occur, in formulas too."""
    new = {}
    for value in model.graph.input:
        for axis, name in free[value.name].items():
            new[value.type.tensor_type.shape.dim[axis].dim_param] = name
    symbols = re.compile(r"\b(" + "|".join(map(re.escape, new)) + r")\b")
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda found: new[found[0]], dim.dim_param)


def _hear(module: torch.nn.Module, inputs: Iterable[torch.Tensor]) -> tuple[np.ndarray, ...]:
    """What a module answers, one array an output."""
    with need("torch", extra="export").no_grad():
        answer = module(*inputs)
    return tuple(a.numpy() for a in (answer if isinstance(answer, tuple) else (answer,)))


def _nudged(x: torch.Tensor) -> torch.Tensor:
    """A tensor with an error of fp32 rounding; whole numbers as they are."""
    torch = need("torch", extra="export")
    draw = torch.Generator().manual_seed(1)
    return x * (1 + ROUNDING * torch.randn(x.shape, generator=draw)) if x.is_floating_point() else x


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """torch's exporter prints, logs and warns about its own internals; stdout belongs to the paths we write."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
