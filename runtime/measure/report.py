"""The report: held-out prompts through the float engine and the quantized ones, measured, and one page about it.

`report.json` holds every figure (its layout is in docs/validation.md), `report.html` shows them, `media/` has the
sounds. All are written when everything is measured: there is never half a report. What takes long, the trajectories,
is kept until then under a name that says what they depend on, so that a run that was killed goes on where it was, and
engines of one float model share its trajectories.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quaver.runtime.artifact import Stamp, atomic, digest_file, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import CORRECTIONS
from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.measure.compare import (
    compare_calls,
    correction_rows,
    correction_seconds,
    explained_rows,
)
from quaver.runtime.measure.cost import environment, file_bytes
from quaver.runtime.measure.evidence import prompt_facts, range_facts, site_facts
from quaver.runtime.measure.features import opener
from quaver.runtime.measure.generation import generation_cost, on_cores, usable_cores
from quaver.runtime.measure.hearing import Scene, set_measures
from quaver.runtime.measure.media import Voice, levels, move_media, shown_clips, write_voice
from quaver.runtime.measure.page import render
from quaver.runtime.measure.plan import plan_facts
from quaver.runtime.measure.remarks import notes, unmeasured
from quaver.runtime.measure.takes import Drawing, draw_spread, draw_takes
from quaver.runtime.measure.trajectories import Pairs, Take, held_out
from quaver.runtime.measure.units import counted
from quaver.runtime.measure.verdict import best_row, joint_verdict, verdict
from quaver.runtime.plug import plug
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.session import FLOAT, open_bundle, rerun

SCHEMA = 2
Report = dict[str, Any]


@dataclass(frozen=True)
class ValidateSettings:
    """What is compared, how often, and the budget an engine must keep: the table [validate] of a recipe."""

    target: str = "ort-cpu"  # the engine that is judged
    corrections: tuple[str, ...] = ("none", "d2-deterministic", "auto")
    trajectories: int = 64  # prompts and seeds whose latents are compared
    clips: int = 8  # of them, how many become files; the page plays as many as fit
    max_latent_error: float = 0.1  # budget: the upper bound of the mean relative error of the finished latent
    min_speedup: float = 1.0  # budget: the lower bound of float seconds over this engine's, one U-Net call
    networks: tuple[str, ...] = ("probe",)  # feature networks of set measures: probe, vggish, panns, clap, onnx:FILE
    reference: str = ""  # real clips to compare sets with: a folder of WAV files, a file of features, or "demo"
    latency_runs: int = 30  # pairs of calls
    latency_warmup: int = 3  # calls before them
    threads: int = 0  # of engines, for every figure, on as many cores; 0: all cores
    generations: int = 3  # whole generations that are timed, in a process of their own
    batch: int = 8  # samples drawn at once
    seed: int = 100_000  # of the first trajectory; the fits count from 1,000,000 on

    def __post_init__(self) -> None:
        bad = {
            "corrections": not self.corrections and "at least one",
            "trajectories": self.trajectories < 4 and "4 or more: halves of them are compared",
            "clips": not 0 <= self.clips <= self.trajectories and "0 to trajectories",
            "max_latent_error": self.max_latent_error <= 0 and "above 0",
            "min_speedup": self.min_speedup < 0 and "0 or more",
            "latency_runs": self.latency_runs < 1 and "1 or more",
            "latency_warmup": self.latency_warmup < 1 and "1 or more",
            "threads": self.threads < 0 and "1 or more, or 0 for all cores",
            "generations": self.generations < 0 and "0 or more",
            "batch": self.batch < 1 and "1 or more",
            "seed": not 0 <= self.seed < 2**32 - 2 * self.trajectories
            and "0 to 4294967295, room for two seeds a prompt",
        }
        for name, expected in bad.items():
            if expected:
                raise RecipeError(f"validate.{name} is {getattr(self, name)!r}, expected {expected}")


@dataclass(frozen=True)
class Subject:
    """An engine to be judged: its bundle, what its recipe says of it, and its name in the report."""

    name: str
    bundle: Bundle
    settings: ValidateSettings
    sampling: SamplingSettings


@dataclass
class Findings:
    """What was measured so far: a float reference by the digest of its take, an engine, the files of every take."""

    references: dict[str, Report] = field(default_factory=dict)
    engines: list[Report] = field(default_factory=list)
    voices: list[list[Report]] = field(default_factory=list)
    kept: set[Path] = field(default_factory=set)


def validate(
    bundle: Bundle, settings: ValidateSettings, sampling: SamplingSettings, *, stamp: Stamp, progress: Progress
) -> Path:
    """Compare an engine with full precision on prompts no stage has seen; writes report.json, report.html and media/.

    Raises: ArtifactError when the bundle lacks something, or no prompt was held back.
    """
    subject = Subject(bundle.root.resolve().name, bundle, settings, sampling)
    again = rerun(bundle).strip("'").replace("quaver run", "quaver validate")
    path = write_report([subject], bundle, stamp=stamp, command=again, progress=progress)
    shutil.rmtree(bundle.shards("validate"), ignore_errors=True)
    return path


def write_report(subjects: Sequence[Subject], place: Bundle, *, stamp: Stamp, command: str, progress: Progress) -> Path:
    """Measure engines on the same prompts and seeds, those of the first, and write one report about all into `place`.

    Takes stay in `place`, those of this report alone. Raises: as `validate`.
    """
    for subject in subjects:
        check_names(subject.settings)
    first = subjects[0].settings
    pairs = held_out(subjects[0].bundle, count=first.trajectories, seed=first.seed)
    findings = Findings()
    for subject in subjects:
        measure(subject, pairs, place, findings, clips=first.clips, progress=progress)
    report: Report = {
        "schema": SCHEMA,
        "name": place.root.resolve().name,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "verdict": joint_verdict(findings.engines),
        "trajectories": len(pairs.prompts),
        "prompts": len(set(pairs.prompts)),
        "references": list(findings.references.values()),
        "engines": findings.engines,
        "clips": shown_clips(list(zip(pairs.prompts, pairs.seeds, strict=True)), findings.voices),
        "notes": notes(pairs, list(findings.references.values()), findings.engines),
        "environment": environment(),
        "reproduce": command,
    }
    move_media(staged(place), place)
    write_page(place, report)
    path = save_json(place.report_json, report, stamp)
    for old in set(place.shards("validate").glob("*.safetensors")) - findings.kept:
        old.unlink()
    for text in dict.fromkeys([*report["notes"], *unmeasured(findings.engines)]):
        progress.say(text)
    progress.say(f"{report['verdict']['word']}: {report['verdict']['sentence']}")
    return path


def check_names(settings: ValidateSettings) -> None:
    """Know every correction and feature network before anything is drawn. Raises: RecipeError for an unknown name."""
    for name in settings.corrections:
        plug(name, CORRECTIONS, what="correction")
    for spec in settings.networks:
        opener(spec)


def measure(
    subject: Subject, pairs: Pairs, place: Bundle, findings: Findings, *, clips: int, progress: Progress
) -> None:
    """Draw the takes of one engine and of its float model, and add what they say to the findings."""
    bundle, settings, sampling = subject.bundle, subject.settings, subject.sampling
    threads = settings.threads or None
    with ExitStack() as stack:
        stack.enter_context(on_cores(threads))
        reference = stack.enter_context(open_bundle(bundle, engine_file=FLOAT, threads=threads))
        judged = stack.enter_context(open_bundle(bundle, engine_file=settings.target, threads=threads))
        how = Drawing(sampling, settings.batch, place.shards("validate"), progress)
        takes, paths = draw_takes(how, reference, judged, pairs, settings.corrections)
        spread, beside = draw_spread(how, reference, pairs, takes[FLOAT])
        findings.kept.update(paths.values(), beside)
        runs = {"runs": settings.latency_runs, "warmup": settings.latency_warmup}
        visits = visited(sampling, reference.schedule)
        call = compare_calls(reference, judged, pairs, takes[FLOAT].states, visits, threads=threads, **runs)
        explained = explained_rows(reference, judged, pairs, takes[FLOAT].states, sampling, settings.corrections)
        added = correction_seconds(judged, sampling, settings.corrections, takes[FLOAT].latents[:1], visits)
        rate = reference.sample_rate if takes[FLOAT].waveforms.size else 0
        words = reference.card.get("words", {})
    float_take, key = takes.pop(FLOAT), paths[FLOAT].stem
    scene = Scene(pairs.prompts, rate, bundle.probe, words, settings.reference)
    rows = [
        {**row, "added_s": added[row["name"]], "explained": explained.get(row["name"])}
        for row in correction_rows(float_take, takes, rate=rate, spread=spread, prompts=pairs.prompts)
    ]
    if key not in findings.references:
        findings.references[key] = reference_facts(
            subject, float_take, spread.tolist(), call, rate, number=len(findings.references)
        )
        add_voice(Voice(None, findings.references[key]["name"], float_take, rate), place, findings, clips)
    sets = [set_measures(spec, scene, float_take, takes) for spec in settings.networks]
    findings.engines.append(engine_facts(subject, rows, call, sets, reference=findings.references[key]["name"]))
    for (name, found), row in zip(takes.items(), rows, strict=True):
        add_voice(Voice(subject.name, name, found, rate, row["errors"]), place, findings, clips)


def add_voice(voice: Voice, place: Bundle, findings: Findings, clips: int) -> None:
    """Write the first clips of a take, and keep what the page says of them."""
    findings.voices.append(list(write_voice(staged(place), voice, len(findings.voices), clips)))


def engine_facts(
    subject: Subject, rows: list[Report], call: Mapping[str, Any], sets: list[Report], *, reference: str
) -> Report:
    """What is said of an engine: its figures, and what the files of its bundle say; `reference` is its float model."""
    bundle, settings = subject.bundle, subject.settings
    return {
        "name": subject.name,
        "bundle": str(bundle.root),
        "target": settings.target,
        "reference": reference,
        "verdict": verdict(settings.target, rows, call, settings),
        "corrections": rows,
        "call": {**call, "threads": threads_of(settings)},
        "generation": generation(subject, settings.target, best_row(rows)["name"]),
        "bytes": file_bytes(bundle.engine(settings.target)),
        "sets": sets,
        "sites": site_facts(bundle, settings.target),
        "plan": plan_facts(bundle, settings.target),
        "coverage": prompt_facts(bundle),
        "ranges": range_facts(bundle),
        "settings": asdict(settings),
        "sampling": asdict(subject.sampling),
        "digests": digests(bundle, settings.target),
    }


def threads_of(settings: ValidateSettings) -> str:
    """How many threads an engine has, in words."""
    cores = len(usable_cores())
    return f"all {counted(cores, 'core')}" if settings.threads in (0, cores) else counted(settings.threads, "thread")


def staged(place: Bundle) -> Bundle:
    """Where clips lie until the report about them is written, so that those of the last one stay beside it."""
    return Bundle(place.shards("validate"))


def reference_facts(
    subject: Subject, drawn: Take, spread: Sequence[float], call: Mapping[str, Any], rate: int, *, number: int
) -> Report:
    """What is said of a float model: its cost beside the first engine made of it, its takes."""
    return {
        "name": FLOAT if not number else f"{FLOAT} of {subject.name}",
        "call": call["engines"][FLOAT],
        "generation": generation(subject, FLOAT),
        "bytes": file_bytes(subject.bundle.float_unet),
        "rate": rate,
        "digest": digest_file(subject.bundle.float_unet),
        "seed_spread": spread,
        **levels(drawn.waveforms),
    }


def generation(subject: Subject, engine: str, correct: str = "none") -> Report | None:
    """What one clip costs from prompt to end, in a process of its own; None when the recipe does not ask."""
    if not subject.settings.generations:
        return None
    try:
        runs, threads = subject.settings.generations, subject.settings.threads or None
        cost = generation_cost(subject.bundle, engine, subject.sampling, correct=correct, threads=threads, runs=runs)
        return asdict(cost)
    except QuaverError as error:
        return {"missing": f"{error}."}


def digests(bundle: Bundle, target: str) -> dict[str, str]:
    """Digests of the files that decide the figures of an engine."""
    files = [bundle.float_unet, bundle.engine(target), bundle.error_stats(target), bundle.prompts, bundle.card]
    return {path.name: digest_file(path) for path in files if path.exists()}


def write_page(place: Bundle, report: Mapping[str, Any]) -> None:
    """report.html, whole or not at all."""
    text = render(report, lambda name: place.media(name).read_bytes())
    with atomic(place.report_html) as temporary:
        temporary.write_text(text, encoding="utf-8")
