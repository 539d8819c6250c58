"""A bundle ready to run: its graphs open, its card, schedule and tokenizer read.

Whatever is missing or was edited is said before anything runs, with the command that mends it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from quaver.runtime.artifact import digest_file, load_json
from quaver.runtime.backends import onnxruntime
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml, to_config
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.errors import ArtifactError
from quaver.runtime.family import Card, Family, Parts, family_of, read_card
from quaver.runtime.guide import Rows
from quaver.runtime.rows import load_rows
from quaver.runtime.sample import SamplingSettings, varied
from quaver.runtime.schedule import Schedule, load_schedule
from quaver.runtime.text import load_tokenizer

DEFAULT_TARGET = "ort-cpu"
FLOAT = "float"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What it takes to generate; `target` is the name of the engine's target, None for the float graph or a path."""

    bundle: Bundle
    card: Card
    family: Family
    schedule: Schedule
    parts: Parts
    engine: Engine
    target: str | None
    uncond: Rows  # one row: the embedding of ""; {} when the samples have none

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[C, T, F]."""
        return tuple(self.card["latent_shape"])

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms."""
        return int(self.card["sample_rate"])


@contextmanager
def open_bundle(
    bundle: Bundle | Path | str,
    *,
    engine_file: str | Path | None = None,
    threads: int | None = None,
    provider: str | None = None,
) -> Iterator[Session]:
    """Open a bundle with one of its engines: a target's name (None: "ort-cpu"), "float", or the path of a file.

    A target of TensorRT is its plan, on a GPU; the path of its graph has onnxruntime run that. `provider` is the
    execution provider of onnxruntime that runs the engine (None: "cpu"); what stands beside it runs on the CPU.
    Raises: ArtifactError naming everything that is missing or was edited, and the command that mends it; EngineError
    when a graph or a plan cannot be opened.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(Path(bundle))
    if not bundle.root.is_dir():
        raise ArtifactError(f"no bundle at {bundle.root}: {nearest(bundle) or f'{rerun(bundle)} makes it'}")
    if not bundle.card.exists():
        raise ArtifactError(f"{bundle.root} has no {bundle.card.name}, so it is no bundle yet: {rerun(bundle)}")
    card = read_card(bundle)
    family = family_of(bundle)
    path, target = find_engine(bundle, engine_file)
    check_complete(bundle, card, family)
    with ExitStack() as stack:
        once = {n: onnxruntime.open_engine(bundle.component(n), threads=threads, spin=False) for n in family.components}
        engines = {n: stack.enter_context(e) for n, e in once.items()}
        if "rows" in card:
            rows, uncond = load_rows(bundle)
            parts = Parts(card, engines, rows=rows, uncond=uncond)
        else:
            parts = Parts(card, engines, *map(load_tokenizer, tokenizers(bundle, family)))
        engine = stack.enter_context(open_engine(path, threads=threads, provider=provider))
        check_engine(bundle, card, path, engine.digest)
        nothing = family.embed(parts, [""])
        yield Session(bundle, card, family, load_schedule(bundle.scheduler), parts, engine, target, nothing)


def sampling_of(
    session: Session,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
) -> SamplingSettings:
    """The bundle's own way of sampling (its recipe's, else its card's), with what is given put in its place.

    Another sampler than its own leaves its own eta behind. Raises: RecipeError when a setting cannot be meant;
    ArtifactError when the bundle has settings that are not known, as one of another version may.
    """
    table, bundle = dict(session.card.get("sampler", {})), session.bundle
    if bundle.recipe.exists():
        table |= read_toml(bundle.recipe).get("sampling", {})
    if alien := sorted(set(table) - {field.name for field in fields(SamplingSettings)}):
        raise ArtifactError(
            f"{bundle.root} samples with {', '.join(alien)}, which this version does not know: "
            f"{rerun(bundle, force='trace')} makes it anew"
        )
    own = to_config(SamplingSettings, table, where="sampling")
    return varied(own, sampler=sampler, steps=steps, guidance=guidance, eta=eta)


def find_engine(bundle: Bundle, engine_file: str | Path | None) -> tuple[Path, str | None]:
    """The file an engine's name stands for, and its target (None for the float graph and for paths).

    Raises: ArtifactError when it is not there, naming those that are.
    """
    name = str(engine_file or DEFAULT_TARGET)
    if name == FLOAT:
        path, target = bundle.float_unet, None
    elif name.endswith((".onnx", ".plan")):
        path, target = Path(name), None
    else:
        path, target = bundle.engine(name), name
    if target and path == bundle.plan(target) and not path.exists() and bundle.qdq(target).exists():
        raise ArtifactError(
            f"{bundle.root} has no plan for {name}: {command(bundle, 'build')} builds it; its graph"
            f" runs on the CPU, slowly, when named by its path: {bundle.qdq(target)}"
        )
    if not path.exists():
        there = [p.name[len("unet.") : -len(".onnx")] for p in sorted(bundle.root.glob("unet.*.onnx"))]
        raise ArtifactError(
            f"{bundle.root} has no engine {name!r} (it has: {', '.join(there) or 'none'}): {rerun(bundle)} exports it"
        )
    return path, target


def tokenizers(bundle: Bundle, family: Family) -> list[Path]:
    """What cuts up words for a family, a file for each of its text encoders."""
    files = {"text_encoder": bundle.tokenizer, "text_encoder_2": bundle.tokenizer_2}
    return [path for name, path in files.items() if name in family.components]


def check_complete(bundle: Bundle, card: Card, family: Family) -> None:
    """Raise ArtifactError unless all that generating reads is there, and as it was when the card was written."""
    written = card["components"]
    if alone := [name for name in family.components if name not in written]:
        raise ArtifactError(
            f"{bundle.root} was traced without {', '.join(alone)}, so it cannot go from prompt to {family.media}: "
            "trace a model.source that has them, or feed it rows with model.samples"
        )
    graphs = {name: bundle.component(name) for name in family.components}
    fed = [bundle.rows] if "rows" in card else tokenizers(bundle, family)
    needed = [*graphs.values(), *fed, bundle.scheduler]
    if missing := [path.relative_to(bundle.root).as_posix() for path in needed if not path.exists()]:
        raise ArtifactError(
            f"{bundle.root} is not complete, it lacks {', '.join(missing)}: {rerun(bundle)} writes them"
        )
    digests = {**card.get("digests", {}), **{graphs[name].name: written[name] for name in graphs}}
    for path in needed:
        said = digests.get(path.relative_to(bundle.root).as_posix())
        if said not in (None, digest_file(path)):
            raise ArtifactError(f"{path} is not what was traced, someone edited it: {rerun(bundle, 'trace')} mends it")


def check_engine(bundle: Bundle, card: Card, path: Path, digest: str) -> None:
    """Raise ArtifactError when a denoiser of the bundle is not the one that was written there.

    The card has the digest of the float graph, a target's sites that of its graph; other files are their owner's. Sites
    that an older version wrote have none, and a warning says so.
    """
    target = path.name.removeprefix("unet.").removesuffix(".onnx")
    written, stage = None, "export"
    if path == bundle.float_unet:
        written, stage = card.get("digests", {}).get(path.name), "trace"
    elif path == bundle.qdq(target) and bundle.sites(target).exists():
        written = load_json(bundle.sites(target), "export").get("digest")
        if written is None:  # written before sites had it: most such graphs are whole, and run
            log.warning(
                "%s does not say the digest of %s, so an edited one would go unnoticed: %s writes both",
                bundle.sites(target).name,
                path.name,
                rerun(bundle, stage),
            )
    if written not in (None, digest):
        raise ArtifactError(f"{path} is not what was written, someone edited it: {rerun(bundle, stage)} mends it")


def rerun(bundle: Bundle, force: str = "") -> str:
    """The command that brings a bundle up to date, quoted; with its recipe's name where that is beside it.

    `force` is a stage that must run although its files carry the right stamp, as those that someone edited do.
    """
    return command(bundle, "run", *([f"--force {force}"] if force else []))


def nearest(bundle: Bundle) -> str:
    """The bundles and recipes whose names are like that of a missing one, asked for; "" where its recipe is there."""
    beside = [] if recipe_of(bundle).exists() else list(bundle.root.parent.glob("*"))
    there = {path.stem for path in beside if path.suffix == ".toml"}
    there |= {path.name for path in beside if Bundle(path).card.exists()}
    near = get_close_matches(bundle.root.name, sorted(there))
    return f"did you mean {' or '.join(str(bundle.root.with_name(name)) for name in near)}?" if near else ""


def command(bundle: Bundle, verb: str, *options: str) -> str:
    """A verb with a bundle's recipe and options, quoted; 'RECIPE' stands for one that is not beside the bundle.

    The recipe stands in double quotes where a shell would take it apart: the single ones are the message's.
    """
    recipe = str(path) if (path := recipe_of(bundle)).exists() else "RECIPE"
    whole = recipe if shlex.quote(recipe) == recipe else f'"{recipe}"'
    return f"'{' '.join(['quaver', verb, whole, *options])}'"


def recipe_of(bundle: Bundle) -> Path:
    """Where the recipe of a bundle lies, unless the bundle was written elsewhere."""
    return bundle.root.parent / f"{bundle.root.name}.toml"
