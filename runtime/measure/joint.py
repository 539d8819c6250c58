"""Several engines in one report: bundles as they are, on the same prompts and seeds, in a folder of their own.

The prompts, seeds, clips and runs are those of the first bundle; each engine keeps its own target, corrections, batch,
sampling and budget. Takes stay in the folder, so that an engine that is added costs no more than its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from quaver.runtime.artifact import Stamp, digest_file, digest_folder, digest_json, sweep
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import override, read_toml, to_config
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.measure.reference import located
from quaver.runtime.measure.report import Subject, ValidateSettings, digests, write_report
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import rerun

FOLDER = "compare"
TIMED = ("latency_runs", "latency_warmup", "generations", "threads")  # settings that times are compared at


def folder_of(sources: Sequence[Path]) -> Path:
    """Where a joint report goes unless somebody says: the folder `compare` beside the first engine."""
    return Path(sources[0]).parent / FOLDER


def compare(
    sources: Sequence[Path], out: Path, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> list[Path]:
    """Judge the engines of recipes or bundles together; returns report.json and report.html, written into `out`.

    `overrides` are "validate.key=value". Raises: RecipeError for an engine that is named twice, or settings that cannot
    be meant; as `validate`.
    """
    subjects, place = find_subjects(sources, overrides), Bundle(Path(out))
    if any(place.root.resolve() == subject.bundle.root.resolve() for subject in subjects):
        raise RecipeError(f"--out {place.root} is one of the bundles: name another folder")
    sweep(place.root)
    words = [*map(str, sources), *(word for setting in overrides for word in ("--set", setting)), "--out", str(out)]
    command = f"quaver validate {shlex.join(words)}"
    path = write_report(subjects, place, stamp=stamp_of(subjects), command=command, progress=progress or Progress())
    return [path, place.report_html]


def find_subjects(sources: Sequence[Path], overrides: Sequence[str] = ()) -> list[Subject]:
    """The engines of recipes or bundles, named after their folders; those that share a name have their parents' too.

    All are timed as the first one says.

    Raises: RecipeError as `compare`.
    """
    bundles = [Bundle(path.with_suffix("") if path.suffix == ".toml" else path) for path in map(Path, sources)]
    roots = [bundle.root.resolve() for bundle in bundles]
    if twice := next((str(path) for path, root in zip(sources, roots, strict=True) if roots.count(root) > 1), None):
        raise RecipeError(f"{twice} is named twice: name each engine once")
    names = [root.name for root in roots]
    while len(set(names)) < len(names):
        names = [
            "/".join(root.parts[-1 - name.count("/") - (names.count(name) > 1) :])
            for name, root in zip(names, roots, strict=True)
        ]
    found = [
        Subject(name, bundle, *settings_of(Path(path), bundle, overrides))
        for name, path, bundle in zip(names, sources, bundles, strict=True)
    ]
    timed = {name: getattr(found[0].settings, name) for name in TIMED}
    return [replace(subject, settings=replace(subject.settings, **timed)) for subject in found]


def settings_of(path: Path, bundle: Bundle, overrides: Sequence[str]) -> tuple[ValidateSettings, SamplingSettings]:
    """What a recipe, or a bundle's own copy of it, says of judging and sampling.

    Raises: RecipeError when it cannot be meant; ArtifactError by whoever opens a bundle that is not there.
    """
    recipe = path if path.suffix == ".toml" else bundle.recipe
    if not recipe.exists():
        raise RecipeError(f"no {recipe}: name a recipe that was run or a bundle; {rerun(bundle)} makes one")
    try:
        table = override(read_toml(recipe), overrides)
        validate = to_config(ValidateSettings, table.get("validate", {}), where="validate")
        return validate, to_config(SamplingSettings, table.get("sampling", {}), where="sampling")
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {first_line(error)}") from error


def stamp_of(subjects: Sequence[Subject]) -> Stamp:
    """What a joint report was made from."""
    settings = {subject.name: [asdict(subject.settings), asdict(subject.sampling)] for subject in subjects}
    inputs: dict[str, str] = {}
    for subject in subjects:
        own = digests(subject.bundle, subject.settings.target)
        if (named := subject.settings.reference) and (clips := located(named)).exists():
            own["reference"] = (digest_folder if clips.is_dir() else digest_file)(clips)
        inputs |= {f"{subject.name}/{name}": digest for name, digest in own.items()}
    return Stamp("validate", settings=digest_json(settings), inputs=inputs)
