"""The stage that makes float ONNX graphs of a model: everything behind it sees only ONNX.

The denoiser eps = f(x_t, t, c) becomes `unet.float.onnx`, the networks around it one file each. A saved pipeline is
traced (`pipelines`, `tracing`), and so is its authors' own checkpoint (`checkpoints`); somebody else's ONNX file is
imported (`importing`). A U-Net that comes without a text encoder can be fed from samples (`samples`), and then its rows
are the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from quaver.exporter.checkpoints.layout import find_checkpoint
from quaver.exporter.checkpoints.original import load_original
from quaver.exporter.model.hub import is_hub_id
from quaver.exporter.model.importing import import_file, row_card
from quaver.exporter.model.normal import note_macs
from quaver.exporter.model.rowfiles import as_records, save_rows
from quaver.exporter.model.samples import Samples, read_samples, sort_samples
from quaver.exporter.model.source import Model, is_embedded, load_folder, model_folder
from quaver.exporter.model.tokenizer import save_tokenizers
from quaver.exporter.model.tracing import check, trace_parts, trace_unet
from quaver.exporter.modelfile import save_model
from quaver.exporter.pipelines.index import load_pipeline, saved_family
from quaver.runtime.artifact import Stamp, atomic, digest_file, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import find_family
from quaver.runtime.progress import Progress
from quaver.runtime.rows import UNCOND
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import read_schedule

SAMPLE_RATE = 16_000
TORCH_INPUTS = {
    "sample": "sample",
    "time": "timestep",
    "dtype": "int64",
    "column": False,
    "sigma": False,
    "scaling": "vp",
}


@dataclass(frozen=True)
class ModelSettings:
    """The table [model] of a recipe; what follows `samples` is for ONNX files (docs/onnx.md)."""

    family: str = ""  # what the model's tensors are called and mean; "": its model_index.json's, else audioldm
    source: str = "demo"  # "demo", a diffusers folder, an original checkpoint, a hub id, or an .onnx file
    revision: str = ""  # commit, tag or branch of a hub id; "": main as it is when it is first fetched
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

    def __post_init__(self) -> None:
        if self.latent and (len(self.latent) != 3 or min(self.latent) < 1):
            raise RecipeError(f"model.latent is {list(self.latent)}, expected [C, H, W], each 1 or more")
        if self.timestep and self.sigma:
            raise RecipeError(
                f"model.timestep is {self.timestep!r} and model.sigma {self.sigma!r}: one input tells the time, set one"
            )


def trace(bundle: Bundle, settings: ModelSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write unet.float.onnx, its components, tokenizer, scheduler and, last, bundle.json; returns unet.float.onnx.

    Raises: RecipeError for a source that is no such model, EngineError when ONNX and torch disagree.
    """
    if settings.family:
        find_family(settings.family)  # one that is misspelt costs no download
    if settings.source.endswith(".onnx"):
        return import_file(bundle, settings, stamp=stamp, progress=progress)
    samples = samples_for_unet(settings)
    folder = model_folder(settings.source, settings.revision)
    settings = replace(settings, family=settings.family or ("" if samples else saved_family(folder)) or "audioldm")
    family, free = find_family(settings.family), settings.length == "free"
    if free and not family.free_length:
        raise RecipeError(f"models of the family {family.name} take one length: set model.length = 'fixed'")
    model = load_model(folder, settings)
    parts = {} if samples else model.parts
    schedule = read_schedule(model.scheduler)  # one that is not supported costs no trace
    words = save_tokenizers(model, bundle) if parts else []
    shape = latent_shape(model.unet.config, settings, samples, own=model.latent)
    records = as_records(samples, TORCH_INPUTS, schedule) if samples else None
    fed = samples or (None if model.rows is None else Samples(model.rows, {}, 2))
    whole, sizes = millions(model.unet), {name: millions(part) for name, part in parts.items()}
    with progress.bar(whole + sum(sizes.values()), "trace, M parameters") as bar:
        traced = trace_unet(model.unet, shape, fed, free=free)
        bar.step(whole // 2)  # the rest is to hear it in onnxruntime, and to write it
        check(traced, "unet")
        if free:
            note_macs(traced.model, {"sample": shape})
        save_model(traced.model, bundle.float_unet, stamp, memory=traced.memory)
        bar.step(whole - whole // 2)
        for name, part in trace_parts(parts, shape):
            save_model(check(part, name).model, bundle.component(name), stamp, memory=part.memory)
            bar.step(sizes[name])
    files = [bundle.float_unet, *map(bundle.component, parts), save_scheduler(model.scheduler, bundle)]
    files += words
    said = card(bundle, settings, model, shape, list(parts))
    if is_hub_id(settings.source):
        said["revision"] = folder.name
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


def millions(network: Any) -> int:
    """Parameters of a torch network in millions, 1 at least: what the time goes with."""
    return max(1, round(sum(p.numel() for p in network.parameters()) / 1e6))


def latent_shape(
    config: Mapping[str, Any], settings: ModelSettings, samples: Samples | None = None, *, own: Sequence[int] = ()
) -> tuple[int, ...]:
    """[C, T, F] of the latents a U-Net works on, `own` unless the recipe says otherwise.

    Raises: RecipeError when the length is said nowhere, or the levels of the U-Net cannot halve it.
    """
    if settings.latent or (samples and samples.x is not None):
        shape = settings.latent or samples.x.shape[1:]  # type: ignore[union-attr]
        if len(shape) != 3 or shape[0] != config["in_channels"]:
            raise RecipeError(
                f"the latents are {list(shape)}, expected [{config['in_channels']}, H, W]: see model.latent"
            )
        return halving(shape, config) if own else tuple(shape)
    if own:
        return halving((own[0], settings.frames or own[1], own[2]), config)
    size = config["sample_size"]
    frames = settings.frames or (size[0] if isinstance(size, (list, tuple)) else size)
    if not frames:
        raise RecipeError("the model does not say how long its latents are: set model.frames")
    return int(config["in_channels"]), int(frames), settings.bins


def halving(shape: Sequence[int], config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape [C, T, F]. Raises: RecipeError unless every level of the U-Net halves T and F without a rest."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    for size in shape[1:]:
        if size % factor:
            low = size // factor * factor
            near = f"{low} or {low + factor}" if low else str(factor)
            raise RecipeError(
                f"the latents are {list(shape)}, the U-Net takes multiples of {factor}: {near} for {size}"
            )
    return tuple(shape)


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


def load_model(folder: Path, settings: ModelSettings) -> Model:
    """The model of a folder or file: an original checkpoint, a U-Net to be fed from samples, or a whole pipeline.

    Raises: RecipeError when it is another family's, damaged, or half there.
    """
    if not is_embedded(folder) and (checkpoint := find_checkpoint(folder)):
        return load_original(checkpoint, settings.family)
    if settings.samples or is_embedded(folder) or not saved_family(folder):
        return load_folder(folder)
    return load_pipeline(folder, settings.family)


def save_scheduler(scheduler: Mapping[str, Any], bundle: Bundle) -> Path:
    """Write the scheduler's configuration into the bundle."""
    with atomic(bundle.scheduler) as temporary:
        temporary.write_text(json.dumps(dict(scheduler), indent=2) + "\n", encoding="utf-8")
    return bundle.scheduler


def card(
    bundle: Bundle, settings: ModelSettings, model: Model, shape: Sequence[int], parts: Sequence[str]
) -> dict[str, Any]:
    """What the runtime must know about the model (runtime.family says what each field means)."""
    local = Path(settings.source).expanduser().exists()
    own = dict(model.card)
    return {
        "family": settings.family,
        "source": Path(settings.source).resolve().name if local else settings.source,
        "latent_shape": list(shape),
        "length": settings.length,
        "embedding": int(getattr(model.unet.config, "projection_class_embeddings_input_dim", None) or 0),
        "sample_rate": own.pop("sample_rate", SAMPLE_RATE),
        "prediction": model.scheduler.get("prediction_type", "epsilon"),
        "sampler": vars(SamplingSettings()) | own.pop("sampler", {}),
        "parameters": sum(p.numel() for p in model.unet.parameters()),
        "components": {name: digest_file(bundle.component(name)) for name in parts},
        **own,
    }


def _digests(bundle: Bundle, files: Sequence[Path]) -> dict[str, str]:
    return {path.relative_to(bundle.root).as_posix(): digest_file(path) for path in files}
