"""From any ONNX denoiser to the float graph that everything after `trace` works on, with the interface of the file.

    open (`onnxfile`) -> which input is which (`ends`) -> samples -> normal form (`normal`) -> save -> compare with the
    file (`agreement`) -> scheduler, rows, records (`rowfiles`) -> card

Names and types of inputs and output stay, so the quantized graph takes the place of the file. Weights are never in
memory together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.exporter.model.agreement import Denoiser, compare
from quaver.exporter.model.ends import Ends, find_ends, latent_of
from quaver.exporter.model.normal import normalised
from quaver.exporter.model.onnxfile import open_file
from quaver.exporter.model.rowfiles import as_records, save_rows
from quaver.exporter.model.samples import Samples, read_samples, sort_samples
from quaver.exporter.modelfile import open_weights
from quaver.runtime.artifact import Stamp, atomic, digest_file, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.families.onnx import fit
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import Schedule, read_schedule

if TYPE_CHECKING:
    import onnx

    from quaver.exporter.trace import ModelSettings


def import_file(bundle: Bundle, settings: ModelSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write unet.float.onnx, scheduler, rows of samples, prompts that name them and, last, bundle.json.

    Raises: RecipeError for a file, samples or settings that do not fit together; EngineError when the result differs
    from the file.
    """
    if settings.family != "onnx":
        raise RecipeError(
            f"model.source is an ONNX file and model.family {settings.family!r}: set model.family = 'onnx'"
        )
    path = Path(settings.source).expanduser()
    path = path.resolve() if path.is_file() else path  # of a link, weights lie beside the file itself
    model, config = open_file(path), scheduler_config(settings)
    denoiser, inputs = describe(model, path, settings, read_schedule(config))
    samples, ends = denoiser.samples, denoiser.ends
    records = as_records(samples, inputs, denoiser.schedule)
    sizes = {name: rows.shape[1:] for name, rows in samples.cond.items()} | {ends.sample: denoiser.latent}
    with progress.bar(2, "trace") as bar:
        with open_weights(bundle.float_unet, source=path.parent) as weights:
            model = normalised(model, ends, sizes, weights, path, free=settings.length == "free")
            counted = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == t.FLOAT)
            bar.step()
            weights.save(model, stamp, accept=lambda made: compare(denoiser, made))
        bar.step()
    with atomic(bundle.scheduler) as temporary:
        temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    files = [bundle.float_unet, bundle.scheduler, *save_rows(bundle, samples, records, stamp)]
    card = {
        "family": settings.family,
        "source": Path(settings.source).name,
        "latent_shape": list(denoiser.latent),
        "length": settings.length,
        "sample_rate": 0,
        "prediction": denoiser.schedule.prediction,
        "parameters": counted,
        "components": {},
        **row_card(samples, inputs),
        "digests": {file.relative_to(bundle.root).as_posix(): digest_file(file) for file in files},
    }
    save_json(bundle.card, card, stamp)
    return bundle.float_unet


def describe(
    model: onnx.ModelProto, path: Path, settings: ModelSettings, schedule: Schedule
) -> tuple[Denoiser, dict[str, Any]]:
    """What the ends of a file mean and what feeds them, and the same as the card says it.

    Raises: RecipeError when file, samples and recipe do not fit together.
    """
    arrays = read_samples(Path(settings.samples).expanduser()) if settings.samples else {}
    ends = find_ends(model, settings, arrays)
    cond = {name: end.wide for name, end in ends.cond.items()}
    samples = sort_samples(arrays, cond, sample=ends.sample, time=ends.time)
    check_rows(ends, samples)
    latent = latent_of(ends, settings.latent, None if samples.x is None else samples.x.shape[1:])
    inputs = ends.as_card(settings.scaling)
    half = any(tensor.data_type == tensor.FLOAT16 for tensor in model.graph.initializer)
    return Denoiser(path, ends, samples, latent, fit({"inputs": inputs}, schedule), schedule, half), inputs


def row_card(samples: Samples, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a model that is fed from samples says of them."""
    return {
        "rows": samples.count,
        "given": samples.x is not None,
        "inputs": dict(inputs),
        "sampler": vars(SamplingSettings()) | ({} if samples.uncond else {"guidance": 1.0}),
    }


def check_rows(ends: Ends, samples: Samples) -> None:
    """Hold rows of samples against the inputs they feed.

    Raises: RecipeError naming the first that does not fit.
    """
    fed = {**samples.cond, **({} if samples.x is None else {ends.sample: samples.x})}
    for name, rows in fed.items():
        dims = ends.inputs[name].dims
        fits = len(dims) == rows.ndim and all(d in (None, s) for d, s in zip(dims[1:], rows.shape[1:], strict=True))
        if not fits:
            raise RecipeError(f"the rows of {name!r} are {list(rows.shape)}, the graph takes {ends.inputs[name]}")


def scheduler_config(settings: ModelSettings) -> dict[str, Any]:
    """The scheduler configuration of a recipe: a file's, or its keys, with the recipe's prediction in its place.

    Raises: RecipeError when there is none.
    """
    said: Any = settings.scheduler
    if not said:
        raise RecipeError(
            "model.scheduler is not set: name a scheduler_config.json, or say its keys, for example "
            'scheduler = { beta_schedule = "scaled_linear", beta_start = 0.0015, beta_end = 0.0195 }'
        )
    if isinstance(said, str):
        from quaver.exporter.model.source import read_config

        wanted = "model.scheduler must name a scheduler_config.json"
        config = dict(read_config(Path(said).expanduser(), wanted))
    elif isinstance(said, Mapping):
        config = {"clip_sample": False, **said}
    else:
        raise RecipeError(f"model.scheduler is {said!r}, expected a file or a table of its keys")
    return config | ({"prediction_type": settings.prediction} if settings.prediction else {})
