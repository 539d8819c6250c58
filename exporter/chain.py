"""A chain of stages that talk through files only, and the one rule by which they run.

A stage reads files and settings and writes files. It is current when every file it writes carries the stamp it would
get now: the digest of its settings and of each file it reads. Nothing else decides what runs, so a run that was
interrupted, a file that was edited and a setting that was changed all mend in the same way: the stages behind them run
again. A stage whose new files equal the old ones ends it there.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quaver.calib.fanout import HERE, Fanout, clear
from quaver.exporter.lock import locked
from quaver.exporter.memory import Need, available, require
from quaver.runtime.artifact import Stamp, atomic, digest_file, digest_folder, digest_json, read_stamp, sweep
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import to_table, to_toml
from quaver.runtime.errors import ArtifactError, RecipeError, unknown
from quaver.runtime.plug import plug
from quaver.runtime.progress import Progress, duration

Recipe = Any  # a frozen dataclass with one settings dataclass a section
Files = Callable[[Bundle, Recipe], Sequence[Path]]
Digest = Callable[[Path], str]
Foretell = Callable[[Bundle, Recipe, Fanout], Need | None]  # None: it cannot be told


@dataclass(frozen=True)
class Stage:
    """One verb, one function, one artifact (and what lies beside it)."""

    name: str
    help: str
    run: str  # "module:function", called with (bundle, *settings, stamp=, progress=)
    settings: tuple[str, ...]  # the sections of the recipe it reads
    reads: Files  # files, or folders, that must be there
    writes: Files  # files that carry its stamp
    beside: Files = lambda bundle, recipe: ()  # files that come with them and carry none
    optional: bool = False  # may write nothing, having said why
    sharded: bool = False  # takes `fanout=`: its work comes in shards


@dataclass(frozen=True)
class Run:
    """A bundle held for writing, and what is wanted of it."""

    path: Path  # of the recipe
    bundle: Bundle
    recipe: Recipe
    digest: Digest
    progress: Progress
    chain: tuple[Stage, ...]
    fanout: Fanout = HERE
    options: tuple[str, ...] = ()  # of the command line, that a command to type must repeat
    needs: Mapping[str, Foretell] = field(default_factory=dict)  # of memory, by stage
    memory: int = 0  # bytes that a stage may take; 0: what is free when it starts

    def until(self, stage: str) -> str:
        """The command that brings the bundle up to date up to a stage."""
        return shlex.join(["quaver", "run", str(self.path), "--until", stage, *self.options])


def run_all(run: Run, *, until: str | None = None, force: str | None = None) -> list[Path]:
    """Bring a bundle up to date, stage by stage, and return the files of the last one.

    Raises: RecipeError for the name of no stage; whatever a stage raises.
    """
    names = [stage.name for stage in run.chain]
    last = names.index(find(run.chain, until).name) if until else len(names) - 1
    forced = find(run.chain, force).name if force else None
    keep_recipe(run)
    for stage in run.chain[: last + 1]:
        reason = "asked for" if stage.name == forced else stale(stage, run)
        if reason is None:
            run.progress.say(f"{stage.name}: current")
            clear(run.bundle.shards(stage.name))  # of a run that was killed between its last file and here
        else:
            run_stage(stage, run, reason)
    return files(run.chain[last], run)


def run_one(run: Run, name: str, *, beside: Recipe | None = None) -> list[Path]:
    """Run one stage, current or not, on what the stages before it left, and return its files.

    `beside`: settings of this stage alone, which leave the bundle's recipe, and what was made by it, as they are.
    Raises: ArtifactError with the command to type when what it reads is missing or out of date; whatever it raises.
    """
    stage = find(run.chain, name)
    for earlier in feeding(stage, run):
        if not earlier.optional and (reason := stale(earlier, run)):
            advice = run.until(earlier.name)
            raise ArtifactError(f"{name} needs {earlier.name}, which is out of date ({reason}): {advice}")
    if beside is None:
        keep_recipe(run)
    alone = replace(run, recipe=beside or run.recipe)
    run_stage(stage, alone, "asked for")
    return files(stage, alone)


@contextmanager
def open_run(
    path: Path,
    recipe: Recipe,
    bundle: Bundle,
    chain: tuple[Stage, ...],
    *,
    progress: Progress,
    fanout: Fanout = HERE,
    options: Sequence[str] = (),
) -> Iterator[Run]:
    """Hold the bundle of the recipe read from `path`, cleared of what killed writers left.

    Raises: ArtifactError when another process holds the bundle or it cannot be written.
    """
    with locked(bundle.lock):
        sweep(bundle.root)
        yield Run(Path(path), bundle, recipe, digests(), progress, chain, fanout, tuple(options))


def keep_recipe(run: Run) -> None:
    """Write the resolved recipe into the bundle: what generates from it samples with those settings."""
    text, path = to_toml(to_table(run.recipe)), run.bundle.recipe
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def run_stage(stage: Stage, run: Run, reason: str) -> None:
    """Call the function of a stage with the stamp its files get.

    Raises: ArtifactError when something it reads is missing, RecipeError when it needs more memory than there is;
    whatever it raises.
    """
    run.progress.say(f"{stage.name}: {reason}")
    started, stamp = time.monotonic(), stamp_now(stage, run)
    if stage.name in run.needs and (wanted := run.needs[stage.name](run.bundle, run.recipe, run.fanout)):
        require(stage.name, wanted, run.memory or available())
    settings = [getattr(run.recipe, section) for section in stage.settings]
    where = {"fanout": run.fanout} if stage.sharded else {}
    plug(stage.run, {}, what="stage")(run.bundle, *settings, stamp=stamp, progress=run.progress, **where)
    if not stage.optional and (left := stale(stage, run)):
        raise ArtifactError(f"{stage.name} ended and is still out of date ({left}): run it again, nobody else writing")
    clear(run.bundle.shards(stage.name))
    run.progress.say(f"{stage.name}: {duration(time.monotonic() - started)}")


def stale(stage: Stage, run: Run) -> str | None:
    """Why a stage must run, or None when all its files are there and carry the stamp they would get now."""
    written, beside = stage.writes(run.bundle, run.recipe), stage.beside(run.bundle, run.recipe)
    for path in [*written, *beside]:
        if not path.exists():
            return f"no {label(path, run.bundle)}"
    try:
        now = stamp_now(stage, run)
    except ArtifactError as error:
        return str(error)
    reasons = (changed(read_stamp(path), now, label(path, run.bundle)) for path in written)
    return next(filter(None, reasons), None)


def changed(found: Stamp | None, now: Stamp, name: str) -> str | None:
    """What differs between the stamp a file carries and the one it would get now, in words; None when nothing does."""
    if found is None:
        return f"{name} is damaged, or carries no stamp"
    if found.settings != now.settings:
        return "settings changed"
    differing = [name for name in {**found.inputs, **now.inputs} if found.inputs.get(name) != now.inputs.get(name)]
    return f"{', '.join(differing)} changed" if differing else None


def stamp_now(stage: Stage, run: Run) -> Stamp:
    """The stamp the files of a stage would get if it ran now.

    Raises: ArtifactError naming the stage to run when something it reads is missing.
    """
    reads = stage.reads(run.bundle, run.recipe)
    for path in reads:
        if not path.exists():
            raise ArtifactError(f"{stage.name} needs {path}: {run.until(writer(path, run))}")
    settings = {section: to_table(getattr(run.recipe, section)) for section in stage.settings}
    inputs = {name: run.digest(path) for name, path in labelled(reads, run.bundle).items()}
    return Stamp(stage.name, settings=digest_json(settings), inputs=inputs)


def feeding(stage: Stage, run: Run) -> list[Stage]:
    """The stages whose files a stage reads, and those whose files they read, in order."""
    needed, found = set(stage.reads(run.bundle, run.recipe)), []
    for earlier in reversed(run.chain[: run.chain.index(stage)]):
        if needed & set(files(earlier, run, present=False)):
            found.append(earlier)
            needed |= set(earlier.reads(run.bundle, run.recipe))
    return found[::-1]


def files(stage: Stage, run: Run, *, present: bool = True) -> list[Path]:
    """What a stage writes, or those that are there."""
    paths = [*stage.writes(run.bundle, run.recipe), *stage.beside(run.bundle, run.recipe)]
    return [path for path in paths if path.exists() or not present]


def find(chain: Sequence[Stage], name: str) -> Stage:
    """The stage of a name.

    Raises: RecipeError naming the nearest one.
    """
    for stage in chain:
        if stage.name == name:
            return stage
    raise RecipeError(unknown("stage", name, [stage.name for stage in chain]))


def writer(path: Path, run: Run) -> str:
    """The name of the stage that writes a file, or of the last one."""
    return next((s.name for s in run.chain if path in files(s, run, present=False)), run.chain[-1].name)


def label(path: Path, bundle: Bundle) -> str:
    """A file's name in its bundle, or its last name when it lies elsewhere."""
    inside = path.is_relative_to(bundle.root)
    return path.relative_to(bundle.root).as_posix() if inside else path.name


def labelled(paths: Sequence[Path], bundle: Bundle) -> dict[str, Path]:
    """Files by their labels; of those that share one, the later have names of folders before it."""
    found: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        name, above = label(path, bundle), path.absolute().parent
        while name in found and above.name:
            name, above = f"{above.name}/{name}", above.parent
        found[name] = path
    return found


def digests() -> Digest:
    """A function that digests a file or folder, once for as long as its size and time stay."""
    known: dict[tuple[object, ...], str] = {}

    def digest(path: Path) -> str:
        if path.is_dir():
            return digest_folder(path)
        parts = [part for part in (path, path.with_name(path.name + ".data")) if part.exists()]
        key = (path, *((part.stat().st_mtime_ns, part.stat().st_size, part.stat().st_ino) for part in parts))
        if key not in known:
            known[key] = digest_file(path)
        return known[key]

    return digest
