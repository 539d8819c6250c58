"""From torch modules to float ONNX graphs: everything behind this stage sees only ONNX.

The denoiser eps = f(x_t, t, c) of a family becomes `unet.float.onnx`, the networks around it one file each, all traced
by torch's exporter with a free batch size and compared with torch on random inputs before they count:

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
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quaver.exporter.importing import import_file, row_card
from quaver.exporter.modelfile import save_model
from quaver.exporter.normal import note_macs
from quaver.exporter.opset import OPSET
from quaver.exporter.passes import clean
from quaver.exporter.passes.provenance import WRAPPER
from quaver.exporter.rowfiles import as_records, save_rows
from quaver.exporter.samples import Samples, read_samples, sort_samples
from quaver.exporter.source import load_parts, load_unet, model_folder, read_config
from quaver.runtime.artifact import Stamp, atomic, digest_file, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, RecipeError, unknown
from quaver.runtime.family import find_family
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress
from quaver.runtime.rows import UNCOND
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import load_schedule

if TYPE_CHECKING:
    import onnx
    import torch

PARITY, SLACK, ROUNDING = 1e-3, 4.0, 1e-6
SAMPLE_RATE = 16_000
TORCH_INPUTS = {
    "sample": "sample",
    "time": "timestep",
    "dtype": "int64",
    "column": False,
    "sigma": False,
    "scaling": "vp",
}
OUTPUTS = {"text_encoder": ("text_embeds",), "vae_decoder": ("mel",), "vocoder": ("waveform",)}
FREE = {"input_ids": ("batch", "length"), "attention_mask": ("batch", "length")}  # of all else, only the batch


@dataclass(frozen=True)
class ModelSettings:
    """The table [model] of a recipe; what follows `samples` is for ONNX files (docs/onnx.md)."""

    family: str = "audioldm"  # how the model's tensors are called and what they mean; "onnx": as the samples say
    source: str = "demo"  # "demo", a diffusers folder, a hub id, or an .onnx file
    frames: int = 0  # latent frames T; 0: the sample_size the model was trained with
    bins: int = 16  # latent frequency bins F
    length: Literal["fixed", "free"] = "fixed"  # whether the graph also takes other latent sizes
    samples: str = ""  # .npz or .safetensors with rows for the conditioning inputs, in the place of prompts
    sample: str = ""  # the input that takes the noisy sample; "": the only one it can be
    timestep: str = ""  # the input that takes t; "": likewise
    sigma: str = ""  # or the one that takes the noise level sigma_t
    output: str = ""  # "": likewise
    latent: tuple[int, ...] = ()  # [C, H, W], where the graph leaves them open
    scaling: Literal["", "vp", "ve"] = ""  # the sample is x_t, or x_t / sqrt(a_t); "": vp, of a sigma network ve
    prediction: Literal["", "epsilon", "v_prediction", "sample"] = ""  # "": what the scheduler says
    scheduler: Any = ""  # a scheduler_config.json, or a table of its keys


@dataclass(frozen=True)
class Traced:
    """A graph, the arrays on which torch was heard, and how far rounding of the inputs moves its answers, relative."""

    model: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]
    expected: tuple[np.ndarray, ...]
    unrest: float = 0.0


def trace(bundle: Bundle, settings: ModelSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write unet.float.onnx, its components, tokenizer, scheduler and, last, bundle.json; returns unet.float.onnx.

    Raises: RecipeError for a source that is no such model, EngineError when ONNX and torch disagree.
    """
    family = find_family(settings.family)
    if settings.source.endswith(".onnx"):
        return import_file(bundle, settings, stamp=stamp, progress=progress)
    free = settings.length == "free"
    if free and not family.free_length:
        raise RecipeError(f"models of the family {family.name} take one length: set model.length = 'fixed'")
    folder = model_folder(settings.source)
    unet, samples = load_unet(folder), samples_for_unet(settings)
    parts = {} if samples else load_parts(settings.source, folder)
    shape = latent_shape(unet.config, settings, samples)
    records = as_records(samples, TORCH_INPUTS, load_schedule(scheduler_of(folder))) if samples else None
    with progress.bar(1 + len(parts), "trace") as bar:
        traced = check(trace_unet(unet, shape, samples, free=free), "unet")
        if free:
            note_macs(traced.model, {"sample": shape})
        save_model(traced.model, bundle.float_unet, stamp)
        bar.step()
        for name, part in trace_parts(parts, shape):
            save_model(check(part, name).model, bundle.component(name), stamp)
            bar.step()
    files = [bundle.float_unet, *map(bundle.component, parts), *copy_configs(folder, bundle, tokenizer=not samples)]
    said = card(bundle, settings, unet, shape, list(parts))
    if samples:
        files += save_rows(bundle, samples, records, stamp)
        said |= row_card(samples, TORCH_INPUTS)
    save_json(bundle.card, said | {"digests": _digests(bundle, files)}, stamp)
    if not parts and not samples:
        progress.say(
            f"{settings.source} has no text encoder, decoder and vocoder that trace: the U-Net stands alone, and "
            "model.samples can feed it rows"
        )
    return bundle.float_unet


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
        "latents": torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),
    }
    for name, part in parts.items():
        wanted, outputs = list(inspect.signature(part.forward).parameters), _outputs(name)
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
    with _quiet():
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
    model = program.model_proto
    clean(model)
    _name_dimensions(model, free)
    unrest = max(map(_distance, moved, answers))
    return Traced(model, {k: v.numpy() for k, v in heard.items()}, answers, unrest)


def check(traced: Traced, name: str) -> Traced:
    """The same graph, once onnxruntime agrees with torch on it, also for a batch of another size.

    Raises: EngineError with the observed difference.
    """
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(traced.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in (2, 1):
        answers = session.run(None, {key: value[:batch] for key, value in traced.feeds.items()})
        worst = max(_distance(a, e[:batch]) for a, e in zip(answers, traced.expected, strict=True))
        if not worst <= (allowed := max(PARITY, SLACK * traced.unrest)):
            raise EngineError(
                f"{name}: ONNX differs from torch by {worst:.1e} relative, allowed {allowed:.0e}: "
                "report the model and 'quaver doctor' as a bug"
            )
    return traced


def latent_shape(config: Mapping[str, Any], settings: ModelSettings, samples: Samples | None = None) -> tuple[int, ...]:
    """[C, T, F] of the latents a U-Net works on. Raises: RecipeError when the length is said nowhere."""
    if settings.latent or (samples and samples.x is not None):
        shape = settings.latent or samples.x.shape[1:]  # type: ignore[union-attr]
        if len(shape) != 3 or shape[0] != config["in_channels"]:
            raise RecipeError(
                f"the latents are {list(shape)}, expected [{config['in_channels']}, H, W]: see model.latent"
            )
        return tuple(shape)
    size = config["sample_size"]
    frames = settings.frames or (size[0] if isinstance(size, (list, tuple)) else size)
    if not frames:
        raise RecipeError("the model does not say how long its latents are: set model.frames")
    return int(config["in_channels"]), int(frames), settings.bins


def samples_for_unet(settings: ModelSettings) -> Samples | None:
    """The samples of a recipe for a torch U-Net, whose conditioning arguments they name; None when it has none.

    Raises: RecipeError for samples that do not fit together.
    """
    if not settings.samples:
        if settings.family == "onnx":
            raise RecipeError("the family onnx is fed from samples: set model.samples, or name an .onnx file")
        return None
    arrays = read_samples(Path(settings.samples).expanduser())
    names = [n for n in arrays if n not in ("sample", "timestep", "x_t", "t") and not n.startswith(UNCOND)]
    kinds = {name: "int64" if arrays[name].dtype.kind in "iu" else "float32" for name in names}
    return sort_samples(arrays, kinds, sample="sample", time="timestep")


def scheduler_of(folder: Path) -> Path:
    """The scheduler configuration of a diffusers folder."""
    return folder / "scheduler" / "scheduler_config.json"


def copy_configs(folder: Path, bundle: Bundle, *, tokenizer: bool = True) -> list[Path]:
    """Copy scheduler and, if there is one, tokenizer into the bundle. Raises: RecipeError without a scheduler."""
    scheduler, words = scheduler_of(folder), folder / "tokenizer" / "tokenizer.json"
    read_config(scheduler)
    pairs = [(scheduler, bundle.scheduler), *([(words, bundle.tokenizer)] if tokenizer and words.exists() else [])]
    for source, target in pairs:
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
    return [target for _, target in pairs]


def card(
    bundle: Bundle, settings: ModelSettings, unet: torch.nn.Module, shape: Sequence[int], parts: Sequence[str]
) -> dict[str, Any]:
    """What the runtime must know about the model (runtime.family says what each field means)."""
    vocoder = model_folder(settings.source) / "vocoder" / "config.json"
    local = Path(settings.source).expanduser().is_dir()
    return {
        "family": settings.family,
        "source": Path(settings.source).resolve().name if local else settings.source,
        "latent_shape": list(shape),
        "length": settings.length,
        "embedding": int(getattr(unet.config, "projection_class_embeddings_input_dim", None) or 0),
        "sample_rate": int(read_config(vocoder).get("sampling_rate", SAMPLE_RATE)) if vocoder.exists() else SAMPLE_RATE,
        "prediction": read_config(bundle.scheduler).get("prediction_type", "epsilon"),
        "sampler": vars(SamplingSettings()),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "components": {name: digest_file(bundle.component(name)) for name in parts},
    }


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
    for name in names:
        if name not in taken:
            raise RecipeError(f"model.samples: {unknown('argument of the U-Net', name, [*taken][2:])}")
    absent = [n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in names]

    class Denoiser(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.add_module(WRAPPER, unet)

        # by name and not *values: torch's exporter must know how many there are
        def forward(self, sample: Any, timestep: Any, c1: Any = None, c2: Any = None, c3: Any = None) -> Any:
            fed = dict(zip(names, (sample, timestep, c1, c2, c3), strict=False)) | dict.fromkeys(absent)
            return getattr(self, WRAPPER)(**fed, return_dict=False)[0]

    return Denoiser().eval()


def _outputs(name: str) -> tuple[str, ...]:
    """What a component answers; the probe's answers are features and the logits of the embedded model's attributes."""
    return OUTPUTS.get(name) or ("features", *need("quaver.demo.world", extra="export").ATTRIBUTES)


def _digests(bundle: Bundle, files: Sequence[Path]) -> dict[str, str]:
    return {path.relative_to(bundle.root).as_posix(): digest_file(path) for path in files}


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


def _distance(answer: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(answer - expected) / max(float(np.linalg.norm(expected)), 1e-12))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints, logs and warns about its own internals; stdout belongs to the paths we write."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
