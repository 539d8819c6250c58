"""The stage `validate`: held-out prompts through the float and the quantized engine, measured, and one page about it.

`report.json` holds every figure (its layout is in docs/validation.md), `report.html` shows them, `media/` has the
sounds. All are written when everything is measured: there is never half a report. What takes long, the trajectories,
is kept until then, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quaver.runtime.artifact import Stamp, atomic, save_json
from quaver.runtime.audio import write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.measure.compare import compare_calls, correction_rows, set_measures
from quaver.runtime.measure.cost import environment
from quaver.runtime.measure.page import render
from quaver.runtime.measure.plan import plan_facts
from quaver.runtime.measure.spectrogram import picture
from quaver.runtime.measure.trajectories import Pairs, Take, held_out, load_take, save_take, take, take_stamp
from quaver.runtime.measure.units import percent, spoken
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.session import FLOAT, Session, open_bundle, rerun

SCHEMA = 1


@dataclass(frozen=True)
class ValidateSettings:
    """What is compared, how often, and the budget an engine must keep: the table [validate] of a recipe."""

    target: str = "ort-cpu"  # the engine that is judged
    corrections: tuple[str, ...] = ("none", "d2-deterministic", "auto")
    trajectories: int = 64  # prompts and seeds whose latents are compared
    clips: int = 8  # of them, how many can be heard on the page
    max_latent_error: float = 0.1  # budget: the upper bound of the mean relative error of the finished latent
    min_speedup: float = 1.0  # budget: the lower bound of float seconds over this engine's, one U-Net call
    latency_runs: int = 30  # pairs of calls
    latency_warmup: int = 3  # calls before them
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
            "batch": self.batch < 1 and "1 or more",
            "seed": not 0 <= self.seed < 2**32 - self.trajectories and "0 to 4294967295 less the trajectories",
        }
        for name, expected in bad.items():
            if expected:
                raise RecipeError(f"validate.{name} is {getattr(self, name)!r}, expected {expected}")


def validate(
    bundle: Bundle, settings: ValidateSettings, sampling: SamplingSettings, *, stamp: Stamp, progress: Progress
) -> Path:
    """Compare an engine with full precision on prompts no stage has seen; writes report.json, report.html and media/.

    Raises: ArtifactError when the bundle lacks something, or no prompt was held back.
    """
    pairs = held_out(bundle, count=settings.trajectories, seed=settings.seed)
    with (
        open_bundle(bundle, engine_file=FLOAT) as reference,
        open_bundle(bundle, engine_file=settings.target) as judged,
    ):
        takes = draw_takes(reference, judged, pairs, settings, sampling, progress)
        runs = {"runs": settings.latency_runs, "warmup": settings.latency_warmup}
        call = compare_calls(
            reference, judged, pairs, takes[FLOAT].states, visited(sampling, reference.schedule), **runs
        )
        rate = reference.sample_rate
    measured = {name: found for name, found in takes.items() if name != FLOAT}
    rows = correction_rows(takes[FLOAT], measured)
    judgement = verdict(rows, call, settings)
    report = {
        "schema": SCHEMA,
        "name": bundle.root.resolve().name,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "target": settings.target,
        "trajectories": len(pairs.prompts),
        "prompts": len(set(pairs.prompts)),
        "verdict": judgement,
        "corrections": rows,
        "call": {**call, "threads": f"all {environment()['cores']} cores"},
        "probe": set_measures(bundle.probe, takes[FLOAT], measured),
        "plan": plan_facts(bundle),
        "clips": write_clips(bundle, takes, pairs, rows, rate=rate, count=settings.clips),
        "settings": asdict(settings),
        "sampling": asdict(sampling),
        "environment": environment(),
        "digests": dict(stamp.inputs),
        "reproduce": [rerun(bundle).strip("'").replace("quaver run", "quaver validate")],
    }
    write_page(bundle, report)
    path = save_json(bundle.report_json, report, stamp)
    shutil.rmtree(bundle.shards("validate"), ignore_errors=True)
    progress.say(f"{judgement['word']}: {judgement['sentence']}")
    return path


def draw_takes(
    reference: Session,
    judged: Session,
    pairs: Pairs,
    settings: ValidateSettings,
    sampling: SamplingSettings,
    progress: Progress,
) -> dict[str, Take]:
    """The float take, then one per correction; those already drawn are read back."""
    plan = [(FLOAT, reference, "none"), *((name, judged, name) for name in settings.corrections)]
    found = {}
    for name, session, correct in plan:
        stamp = take_stamp(session, pairs, sampling, correct=correct, batch=settings.batch)
        path = take_path(session.bundle, name)
        if (before := load_take(path, stamp)) is not None:
            found[name] = before
            continue
        with progress.bar(sampling.steps * -(-len(pairs.seeds) // settings.batch), f"validate {name}") as bar:
            found[name] = take(session, pairs, sampling, correct=correct, batch=settings.batch, on_step=bar.step)
        save_take(path, found[name], stamp)
    return found


def take_path(bundle: Bundle, name: str) -> Path:
    """Where a take is kept until the report is written."""
    return bundle.shards("validate") / f"{name}.safetensors"


def verdict(rows: Sequence[Mapping[str, Any]], call: Mapping[str, Any], settings: ValidateSettings) -> dict[str, Any]:
    """Ship if the best correction's error and the speed-up keep the budget with their worse bounds."""
    best = min(rows, key=lambda row: row["latent_error"]["value"])
    error, speed = best["latent_error"], call["speedup"]
    checks = [
        {
            "passed": error["high"] <= settings.max_latent_error,
            "sentence": f"Latent error {percent(error['value'])}, at most {percent(error['high'])};"
            f" the budget is {percent(settings.max_latent_error)}.",
        },
        {
            "passed": speed["low"] >= settings.min_speedup,
            "sentence": f"One U-Net call is {speed['value']:.2f}× as fast as float, at least {speed['low']:.2f}×;"
            f" the budget is {settings.min_speedup:.2f}×.",
        },
    ]
    ship = all(check["passed"] for check in checks)
    where = "keeps" if ship else "does not keep"
    sentence = f"{settings.target} with {spoken(best['name'])} {where} the budget of its recipe."
    word = "Ship" if ship else "Do not ship"
    return {"ship": ship, "word": word, "correction": best["name"], "sentence": sentence, "checks": checks}


def write_clips(
    bundle: Bundle, takes: Mapping[str, Take], pairs: Pairs, rows: Sequence[Mapping[str, Any]], *, rate: int, count: int
) -> list[dict[str, Any]]:
    """WAV file and spectrogram of the first `count` samples of every take, and what the page says of them.

    None of takes that end at latents.
    """
    errors = {row["name"]: row["errors"] for row in rows}
    for old in bundle.media("clip").parent.glob("clip-*"):
        old.unlink()
    clips = []
    for i in range(count if takes[FLOAT].waveforms.size else 0):
        found = []
        for name, made in takes.items():
            stem = f"clip-{i:02d}.{name}"
            write_wav(bundle.media(f"{stem}.wav"), made.waveforms[i], rate)
            with atomic(bundle.media(f"{stem}.png")) as temporary:
                temporary.write_bytes(picture(made.waveforms[i], rate=rate))
            error = errors[name][i] if name in errors else None
            found.append({"name": name, "wave": f"{stem}.wav", "picture": f"{stem}.png", "latent_error": error})
        clips.append({"prompt": pairs.prompts[i], "seed": pairs.seeds[i], "rate": rate, "takes": found})
    return clips


def write_page(bundle: Bundle, report: Mapping[str, Any]) -> None:
    """report.html, whole or not at all."""
    text = render(report, lambda name: bundle.media(name).read_bytes())
    with atomic(bundle.report_html) as temporary:
        temporary.write_text(text, encoding="utf-8")
