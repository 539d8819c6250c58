"""The stages of quaver, in their order, as data.

prompts -> trace -> capture -> ranges -> reconstruct -> export -> build -> stats -> validate
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.calib.amax import amax_file
from quaver.calib.capture import HEAT_MAP
from quaver.calib.fanout import HERE, Fanout
from quaver.calib.prompts import CLASSES
from quaver.exporter.chain import Run, Stage, open_run, run_all, run_one
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress
from quaver.runtime.sample import varied

if TYPE_CHECKING:
    from quaver.exporter.recipe import Recipe

PLANS = "tensorrt-rtx"
BESIDE = "stats-beside"


def run_recipe(
    path: Path,
    *,
    until: str | None = None,
    force: str | None = None,
    overrides: Iterable[str] = (),
    out: Path | None = None,
    progress: Progress | None = None,
    fanout: Fanout = HERE,
) -> list[Path]:
    """Bring the bundle of a recipe up to date and return what the last stage writes.

    The bundle is `out`, or the folder beside the recipe that has its name; `overrides` are "section.key=value";
    `fanout` says where the shards of those stages run that come in shards.
    Raises: RecipeError for a recipe or a stage that cannot be meant; ArtifactError when another process writes the
    bundle or it cannot be written; whatever a stage raises. What was written before stays, and the next run goes on.
    """
    with opened(path, overrides, out, progress, fanout) as run:
        return run_all(run, until=until, force=force)


def run_verb(
    path: Path,
    name: str,
    *,
    overrides: Iterable[str] = (),
    out: Path | None = None,
    progress: Progress | None = None,
    fanout: Fanout = HERE,
    sampling: Mapping[str, str | float | None] | None = None,
) -> list[Path]:
    """Run one stage of a recipe or one analysis of its bundle, current or not, and return what it writes.

    `sampling`: of statistics, what is other than in the recipe; they lie beside its own, and make nothing stale.
    Raises: as `run_recipe`; ArtifactError with the command to type when what it reads is missing or out of date.
    """
    with opened(path, overrides, out, progress, fanout) as run:
        if name == "prompts" and by_rows(run.recipe):
            raise RecipeError(f"the rows of model.samples are the prompts of {path}: 'quaver trace {path}' writes them")
        run = replace(run, chain=(*STAGES, *ANALYSES))
        other = varied(run.recipe.sampling, **(sampling or {}))
        if other == run.recipe.sampling:
            return run_one(run, name)
        return run_one(run, BESIDE, beside=replace(run.recipe, sampling=other))


@contextmanager
def opened(
    path: Path, overrides: Iterable[str], out: Path | None, progress: Progress | None, fanout: Fanout = HERE
) -> Iterator[Run]:
    """A recipe read, and its bundle held."""
    from quaver.exporter.memory import GIGA
    from quaver.exporter.needs import NEEDS
    from quaver.exporter.recipe import load_recipe  # pulls in the settings of every stage

    given = list(overrides)
    recipe, path = load_recipe(path, given), Path(path)
    bundle = Bundle(Path(out) if out else path.with_suffix(""))
    options = [word for setting in given for word in ("--set", setting)] + (["--out", str(out)] if out else [])
    progress = progress or Progress()
    with open_run(path, recipe, bundle, STAGES, progress=progress, fanout=fanout, options=options) as run:
        yield replace(run, needs=NEEDS, memory=int(recipe.machine.memory * GIGA))


def model_files(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """What the model is read from: a folder, a checkpoint, or an ONNX file and its weights; samples, a scheduler apart.

    None for a hub id, whose name is in the settings.
    """
    from quaver.exporter.checkpoints.layout import find_checkpoint
    from quaver.exporter.model.onnxfile import referenced_files
    from quaver.exporter.model.source import model_folder

    source, scheduler = recipe.model.source, recipe.model.scheduler
    named = [recipe.model.samples, scheduler if isinstance(scheduler, str) else ""]
    beside = [path for path in (Path(name).expanduser() for name in named if name) if path.is_file()]
    file = Path(source).expanduser()
    if source.endswith(".onnx"):
        return [file, *referenced_files(file), *beside] if file.is_file() else beside
    if file.is_file() and (checkpoint := find_checkpoint(file)):
        return [*checkpoint.files, *beside]
    local = source == "demo" or file.is_dir()
    return [*([model_folder(source)] if local else []), *beside]


def by_rows(recipe: Recipe) -> bool:
    """Whether rows of samples stand in for prompts."""
    return bool(recipe.model.samples) or recipe.model.family == "onnx"


def prompt_files(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """What prompts are made from: captions, the embedded model's or one's own, aspects, a topic model in a folder."""
    from quaver.calib.prompts.source import prompts_file

    settings = recipe.prompts
    named = prompts_file(settings.source), Path(settings.aspects)
    models = [Path(settings.embedding).expanduser()] if settings.embedding else []
    return [path for path in named if path is not None and path.is_file()] + [path for path in models if path.is_dir()]


def traced(bundle: Bundle) -> list[Path]:
    """What tracing wrote beside the denoiser, as the card lists it."""
    names: Iterable[str] = ()
    with suppress(OSError, ValueError, AttributeError):
        names = json.loads(bundle.card.read_text(encoding="utf-8")).get("digests", {})
    return [bundle.root / name for name in sorted(names) if bundle.root / name != bundle.float_unet]


def conditioning(bundle: Bundle) -> list[Path]:
    """What turns prompts into conditioning and timesteps into noise levels, where the model has it."""
    names = ("text_encoder", "text_encoder_2", "projection_model", "language_model", "class_encoder")
    encoders = map(bundle.component, names)
    parts = (bundle.tokenizer, bundle.tokenizer_2, *encoders, bundle.rows, bundle.given)
    files = [bundle.card, bundle.scheduler, *parts]
    return [path for path in files if path.exists() or path == bundle.card]


def stats_sources(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """What statistics are of: prompts, both engines, and what the prompts go through."""
    return [bundle.prompts, bundle.float_unet, bundle.engine(recipe.stats.target), *conditioning(bundle)]


def judges(recipe: Recipe) -> list[Path]:
    """What engines are judged by, of what lies outside a bundle: real clips, the weights of feature networks."""
    from quaver.runtime.measure.features import weights
    from quaver.runtime.measure.reference import located

    reference = recipe.validate.reference
    clips = present(located(reference)) if reference else []
    return clips + [path for spec in recipe.validate.networks for path in weights(spec)]


def plan_sources(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """The graphs that become plans, and their sites."""
    from quaver.exporter.build import plan_targets

    return [path for name in plan_targets(recipe.export.targets) for path in (bundle.qdq(name), bundle.sites(name))]


def plans(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """The plans that can be built here."""
    from quaver.exporter.build import expected_plans

    return [bundle.plan(name) for name in expected_plans(recipe.export.targets)]


def plan_sidecars(bundle: Bundle, recipe: Recipe) -> list[Path]:
    """What is said of every plan, built or left out."""
    from quaver.exporter.build import plan_targets

    return [bundle.plan_sidecar(name) for name in plan_targets(recipe.export.targets)]


def learns(recipe: Recipe) -> bool:
    """Whether the recipe wants rounding learned."""
    return recipe.reconstruct.method != "none"


def present(*paths: Path) -> list[Path]:
    """Those that are there."""
    return [path for path in paths if path.exists()]


STAGES = (
    Stage(
        "prompts",
        "write calibration and validation prompts",
        "quaver.calib.prompts:make_prompts",
        settings=("prompts",),
        reads=prompt_files,
        writes=lambda b, r: [] if by_rows(r) else [b.prompts],
        beside=lambda b, r: (
            []
            if by_rows(r) or r.prompts.source == CLASSES
            else [b.prompts_picture, *([b.transcript] if r.prompts.generator == "llm" else [])]
        ),
    ),
    Stage(
        "trace",
        "turn the model into float ONNX graphs",
        "quaver.exporter.trace:trace",
        settings=("model",),
        reads=model_files,
        writes=lambda b, r: [b.float_unet, b.card, *([b.prompts] if by_rows(r) else [])],
        beside=lambda b, r: traced(b),
    ),
    Stage(
        "capture",
        "draw calibration records by activation variance",
        "quaver.calib.capture:capture",
        settings=("capture", "sampling"),
        reads=lambda b, r: [b.prompts, b.float_unet, *conditioning(b)],
        writes=lambda b, r: [b.moments, b.samples],
        beside=lambda b, r: [b.media(HEAT_MAP)],
        sharded=True,
    ),
    Stage(
        "ranges",
        "estimate the range of every activation",
        "quaver.calib.ranges:collect_ranges",
        settings=("ranges",),
        reads=lambda b, r: [b.float_unet, b.card, b.samples, *amax_file(r.ranges.source)],
        writes=lambda b, r: [b.ranges],
        sharded=True,
    ),
    Stage(
        "reconstruct",
        "learn how weights are rounded, when the recipe asks for it",
        "quaver.exporter.rounding:learn_weights",
        settings=("reconstruct", "export"),
        reads=lambda b, r: [b.float_unet, b.card, b.samples, b.ranges] if learns(r) else [],
        writes=lambda b, r: [b.weights] if learns(r) else [],
    ),
    Stage(
        "export",
        "write one quantized ONNX graph per target",
        "quaver.exporter.export:export",
        settings=("export",),
        reads=lambda b, r: [b.float_unet, b.ranges, *([b.weights] if learns(r) else [])],
        writes=lambda b, r: [file(target) for file in (b.qdq, b.sites) for target in r.export.targets],
    ),
    Stage(
        "build",
        "build a TensorRT plan per target, with the extra trt-rtx or trt",
        "quaver.exporter.build:build",
        settings=("build",),
        reads=plan_sources,
        writes=plans,
        beside=plan_sidecars,
        optional=True,
    ),
    Stage(
        "stats",
        "fit the error of the engine per timestep",
        "quaver.calib.error_stats:collect_error_stats",
        settings=("stats", "sampling"),
        reads=stats_sources,
        writes=lambda b, r: [b.error_stats(r.stats.target)],
        sharded=True,
    ),
    Stage(
        "validate",
        "compare the engine with full precision, and write the report",
        "quaver.runtime.measure.report:validate",
        settings=("validate", "sampling"),
        reads=lambda b, r: [
            b.prompts,
            b.float_unet,
            b.engine(r.validate.target),
            b.error_stats(r.validate.target),
            b.card,
            *present(*traced(b), b.plan_sidecar(PLANS)),
            *judges(r),
        ],
        writes=lambda b, r: [b.report_json],
        beside=lambda b, r: [b.report_html],
    ),
)

# asked for by their verbs alone, on what the stages left; no stage reads what they write
ANALYSES = (
    Stage(
        "sensitivity",
        "measure what each layer alone costs, and propose which stay float",
        "quaver.exporter.proposal:propose",
        settings=("sensitivity", "export"),
        reads=lambda b, r: [b.float_unet, b.card, b.samples, b.ranges],
        writes=lambda b, r: [b.sensitivity],
        beside=lambda b, r: [b.media("sensitivity.svg")],
    ),
    Stage(
        BESIDE,
        "fit the error of the engine in another sampling than the recipe's",
        "quaver.calib.error_stats:collect_beside",
        settings=("stats", "sampling"),
        reads=stats_sources,
        writes=lambda b, r: [b.error_stats(r.stats.target, r.sampling)],
        sharded=True,
    ),
)
