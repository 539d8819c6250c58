"""From any ONNX denoiser to the float graph that everything after `trace` works on, with the interface of the file.

    open (whole? standard? in its own folder?) -> which input is which -> opset -> constants, Einsum, names -> batch and
    latent -> shapes -> group norms -> save -> compare with the file, row by row -> card, rows, records

Names and types of inputs and output stay, so the quantized graph takes the place of the file. Weights are never in
memory together. The comparison is of the new graph on a batch of several rows with the old one on each row alone:

    || f_new(x)_i - f_old(x_i) || <= PARITY || f_old(x_i) ||
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.graph import MACS_KEY, edge_shapes, layers
from quaver.exporter.ends import Ends, find_ends, latent_of
from quaver.exporter.modelfile import Weights, open_weights
from quaver.exporter.onnxfile import open_file
from quaver.exporter.opset import stand_ins, to_opset
from quaver.exporter.passes import clean, constants, einsum, provenance, reshapes, scopes, unused
from quaver.exporter.passes.batch import BATCH, free_batch, free_time
from quaver.exporter.rowfiles import save_rows
from quaver.exporter.samples import Samples, read_samples, sort_samples
from quaver.runtime.artifact import Stamp, atomic, digest_file, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.families.onnx import fit
from quaver.runtime.family import Family
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import Schedule, load_schedule, read_schedule

if TYPE_CHECKING:
    import onnx

    from quaver.exporter.trace import ModelSettings

PARITY = 1e-4
ROWS = 3  # compared
READ = 1 << 16  # bytes of a constant that passes may want to look at


@dataclass(frozen=True)
class Denoiser:
    """A file, what its ends mean, the samples that feed it, and its latents [C, H, W]."""

    path: Path
    ends: Ends
    samples: Samples
    latent: tuple[int, ...]
    family: Family
    schedule: Schedule


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
    with progress.bar(4, "trace") as bar:
        model = open_file(path)
        arrays = read_samples(Path(settings.samples).expanduser()) if settings.samples else {}
        ends = find_ends(model, settings, arrays)
        config = scheduler_config(settings)
        cond = {name: end.dtype for name, end in ends.cond.items()}
        samples = sort_samples(arrays, cond, sample=ends.sample, time=ends.time)
        check_rows(ends, samples)
        latent = latent_of(ends, settings.latent, None if samples.x is None else samples.x.shape[1:])
        inputs, schedule = ends.as_card(settings.scaling), read_schedule(config)
        denoiser = Denoiser(path, ends, samples, latent, fit({"inputs": inputs}, schedule), schedule)
        bar.step()
        with open_weights(bundle.float_unet, source=path.parent) as weights:
            model = normalised(model, denoiser, weights, free=settings.length == "free")
            if settings.length == "free":
                note_macs(model, row_sizes(denoiser))
            bar.step()
            counted = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == t.FLOAT)
            weights.save(model, stamp, accept=lambda made: compare(denoiser, made))
        bar.step()
        with atomic(bundle.scheduler) as temporary:
            temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        written = save_rows(bundle, samples, inputs, load_schedule(bundle.scheduler), stamp)
        files = [bundle.float_unet, bundle.scheduler, *written]
        card = {
            "family": settings.family,
            "source": path.name,
            "latent_shape": list(latent),
            "sample_rate": 0,
            "prediction": schedule.prediction,
            "parameters": counted,
            "components": {},
            **row_card(samples, inputs),
            "digests": {file.relative_to(bundle.root).as_posix(): digest_file(file) for file in files},
        }
        save_json(bundle.card, card, stamp)
        bar.step()
    return bundle.float_unet


def row_card(samples: Samples, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a model that is fed from samples says of them."""
    return {
        "rows": samples.count,
        "given": samples.x is not None,
        "inputs": dict(inputs),
        "sampler": vars(SamplingSettings()) | ({} if samples.uncond else {"guidance": 1.0}),
    }


def note_macs(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
    """Write on each layer of a graph of open sizes its multiply-accumulates at given ones, [...] behind the batch."""
    pinned = need("onnx", extra="export").ModelProto()
    pinned.CopyFrom(stand_ins(model)[0])
    for value in pinned.graph.input:
        for dim, size in zip(list(value.type.tensor_type.shape.dim)[1:], sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del pinned.graph.value_info[:]
    shaped = need("onnx", extra="export").shape_inference.infer_shapes(pinned, data_prop=True)
    held = (t for t in model.graph.initializer if t.name not in {x.name for x in shaped.graph.initializer})
    shaped.graph.initializer.extend(type(t)(name=t.name, dims=t.dims, data_type=t.data_type) for t in held)
    macs = {layer.node: layer.macs for layer in layers(shaped)}
    for node in model.graph.node:
        if macs.get(node.name) is not None:
            node.metadata_props.add(key=MACS_KEY, value=str(macs[node.name]))


def normalised(model: onnx.ModelProto, denoiser: Denoiser, weights: Weights, *, free: bool) -> onnx.ModelProto:
    """The graph in the form that the rest of the exporter expects, with a free batch; sizes stay open when `free`.

    Raises: RecipeError for weights that are not finite, or a graph that cannot be brought into that form.
    """
    ends = denoiser.ends
    provenance.run(model)
    collect(model, weights, denoiser.path)
    scopes.name_nodes(model)
    model = to_opset(model)
    constants.run(model, read=weights.read, keep=weights.keep)
    scopes.run(model)
    if einsum.run(model):
        constants.run(model, read=weights.read, keep=weights.keep)
    kept = [value for value in model.graph.output if value.name == ends.output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    unused.run(model)
    batch = ends.inputs[ends.sample].dims[0]
    if batch is not None:
        free_batch(model, batch, edge_shapes(with_shapes(model)))
    if not ends.inputs[ends.time].dims:
        free_time(model, ends.time)
    set_sizes(model, denoiser, free=free)
    model = with_shapes(model)
    reshapes.run(model)
    clean(model)
    return with_shapes(model)


def collect(model: onnx.ModelProto, weights: Weights, path: Path) -> None:
    """Look at every float weight once; small ones come into the graph, inputs that are weights go.

    Raises: RecipeError naming one that is not finite.
    """
    onnx = need("onnx", extra="export")
    for tensor in model.graph.initializer:
        values = weights.read(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RecipeError(
                f"{path}: the weight {tensor.name!r} has {int((~np.isfinite(values)).sum())} of {values.size} values "
                "that are not finite: the checkpoint is damaged, export it from a whole one"
            )
        if values.dtype == np.float16:
            raise RecipeError(f"{path} has float16 weights ({tensor.name!r}): export it in float32")
        if values.nbytes <= READ if tensor.external_data else not tensor.raw_data:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def row_sizes(denoiser: Denoiser) -> dict[str, tuple[int, ...]]:
    """What stands behind the batch of each input: the latent's [C, H, W], and [...] of the rows."""
    rows = {name: values.shape[1:] for name, values in denoiser.samples.cond.items()}
    return {**rows, denoiser.ends.sample: denoiser.latent}


def set_sizes(model: onnx.ModelProto, denoiser: Denoiser, *, free: bool) -> None:
    """Free the batch of every input; the other sizes become those of the latent and the rows, unless `free`."""
    ends, sizes = denoiser.ends, row_sizes(denoiser)
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if value.name == ends.time and not shape.dim:
            shape.dim.add()
        if len(shape.dim):
            shape.dim[0].dim_param = BATCH
        for dim, size in zip(list(shape.dim)[1:], () if free else sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    if not free:
        (answer,) = model.graph.output
        shape = answer.type.tensor_type.shape
        del shape.dim[:]
        shape.dim.add(dim_param=BATCH)
        for size in denoiser.latent:
            shape.dim.add(dim_value=size)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shape of every edge recorded, as far as onnx infers it.

    Raises: RecipeError with onnx's words when shapes contradict each other.
    """
    infer = need("onnx", extra="export").shape_inference.infer_shapes
    del model.graph.value_info[:]
    light, held = stand_ins(model)
    try:
        found = infer(light, strict_mode=True, data_prop=True).graph.value_info
    except Exception as error:  # onnx's InferenceError, of its C++ module
        line = " ".join(str(error).split())[:300]
        raise RecipeError(f"the shapes of the graph do not fit together ({line}): is model.latent right?") from error
    names = {tensor.name for tensor in held}
    model.graph.value_info.extend(value for value in found if value.name not in names)
    return model


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
        from quaver.exporter.source import read_config

        config = dict(read_config(Path(said).expanduser()))
    elif isinstance(said, Mapping):
        config = {"clip_sample": False, **said}
    else:
        raise RecipeError(f"model.scheduler is {said!r}, expected a file or a table of its keys")
    return config | ({"prediction_type": settings.prediction} if settings.prediction else {})


def compare(denoiser: Denoiser, made: Path) -> None:
    """Hold the new graph against the file, on ROWS rows of samples (or noise) at timesteps far apart.

    Raises: EngineError with the observed difference, or onnxruntime's words.
    """
    feeds = probes(denoiser)
    expected = _alone(denoiser, feeds)
    for count in (ROWS, 1):
        answer = _run(made, denoiser.ends.output, {name: rows[:count] for name, rows in feeds.items()})
        if answer.shape != (count, *denoiser.latent):
            raise RecipeError(
                f"{denoiser.path} answers {list(answer.shape)} to {list(feeds[denoiser.ends.sample].shape)}, expected "
                "as much as it was asked: a network that also predicts variances is not read"
            )
        worst = max(map(_distance, answer, expected))
        if not worst <= PARITY:
            raise EngineError(
                f"{denoiser.path}: rows of a batch of {count} differ from the file's own answers by {worst:.1e} "
                f"relative, allowed {PARITY:.0e}: export it with a free batch (dynamic_axes or dynamic_shapes)"
            )


def probes(denoiser: Denoiser) -> dict[str, np.ndarray]:
    """ROWS rows of inputs as the network is fed them."""
    samples, draw = denoiser.samples, np.random.default_rng(0)
    t = np.linspace(len(denoiser.schedule.alpha_bar) - 1, 1, ROWS).astype(np.int64)
    x = draw.standard_normal((ROWS, *denoiser.latent), np.float32)
    rows = {name: np.resize(values, (ROWS, *values.shape[1:])) for name, values in samples.cond.items()}
    return {name: np.asarray(value) for name, value in denoiser.family.feeds(x, t, rows).items()}


def _alone(denoiser: Denoiser, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What the file answers to each row, repeated to its batch where that is fixed."""
    ends, answers = denoiser.ends, []
    session = _session(denoiser.path)
    for row in range(ROWS):
        fed = {name: _as_asked(values[row], ends.inputs[name].dims) for name, values in feeds.items()}
        answers.append(_answer(session, ends.output, fed, denoiser.path)[0])
    return answers


def _as_asked(row: np.ndarray, dims: tuple[int | None, ...]) -> np.ndarray:
    if not dims:
        return row.reshape(())
    return np.repeat(row[None], dims[0] or 1, axis=0)


def _run(path: Path, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    return _answer(_session(path), output, feeds, path)


def _session(path: Path) -> Any:
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        line = " ".join(str(error).split())[:300]
        raise EngineError(f"onnxruntime does not open {path.name} ({line}): export it again") from error


def _answer(session: Any, output: str, feeds: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    try:
        return np.asarray(session.run([output], dict(feeds))[0])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        line = " ".join(str(error).split())[:300]
        raise EngineError(f"{path.name} does not run on the samples ({line}): do they fit its inputs?") from error


def _distance(answer: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(answer - expected) / max(float(np.linalg.norm(expected)), 1e-12))
