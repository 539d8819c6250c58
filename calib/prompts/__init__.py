"""Calibration prompts: aspects, coverage, and the grammar and models that write captions.

The stage `prompts`: base captions from a file or from the offline grammar, augmented until they cover the taxonomy and
the budget is used up (`augment`), and some held back that calibration never sees, for validation. A model that draws
classes has those in their place (`classes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.augment import Augmented, Caption, Goal, augment, vectors_of
from quaver.calib.prompts.chart import picture, table
from quaver.calib.prompts.classes import class_rows
from quaver.calib.prompts.endpoint import LLMSettings
from quaver.calib.prompts.grammar import Generate, grammar_captions
from quaver.calib.prompts.llm import estimate, open_llm
from quaver.calib.prompts.source import prompts_file, read_captions
from quaver.calib.prompts.thresholds import topics
from quaver.runtime.artifact import Stamp, atomic, load_lines, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.plug import plug
from quaver.runtime.progress import Progress

KIND = "prompts"
CLASSES = "classes"  # the source that is no captions
GENERATORS = {"grammar": "quaver.calib.prompts.grammar:grammar"}  # each: aspects -> Generate


@dataclass(frozen=True)
class PromptSettings:
    """The table [prompts] of a recipe. The paper samples 100 captions and adds 700: count = 100, budget = 700."""

    source: str = "grammar"  # "grammar", "demo" (captions of the embedded model), "classes", or a .txt or .jsonl file
    aspects: str = ""  # a TOML file of aspects, or "pictures"; empty: the paper's 7 modalities and 9 aspects
    embedding: str = ""  # a sentence-transformers model, hub id or folder, as topic model; empty: the offline lexicon
    generator: str = "grammar"  # what writes captions: "grammar", "llm", or your own as "package.module:function"
    count: int = 100  # captions taken from the source for calibration
    budget: int = 28  # captions added to them by augmentation (the paper: 700)
    held_out: int = 64  # captions held back for validation
    target: Literal["aspect", "pair"] = "aspect"  # what the budget evens out: aspects, or pairs of them
    tau: float = 0.2  # redundancy above which captions are replaced: the chance that two cover the same
    redundancy: Literal["ratio", "raw"] = "ratio"  # what tau bounds: R / (n (n - 1)), or R as the paper counts it
    i_max: int = 5000  # calls of the generator, over everything
    seed: int = 0
    classes: int = 0  # how many the model draws, with source = "classes"; 0: it draws from noise alone
    llm: LLMSettings = field(default_factory=LLMSettings)


def make_prompts(bundle: Bundle, settings: PromptSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write prompts.jsonl: one row {id, text, origin, coverage (names of aspects), split} a caption; and its picture.

    Raises: RecipeError for settings or files that cannot be meant; QuaverError and ArtifactError as `open_llm`.
    """
    rng = np.random.default_rng(settings.seed)
    if settings.source == CLASSES:
        check_counts(settings)
        return save_lines(bundle.prompts, class_rows(settings.classes, settings.count, settings.held_out, rng), stamp)
    aspects = load_aspects(settings.aspects)
    base, held = _source_captions(settings, aspects, rng)
    cover = topics(aspects, settings.embedding)
    goal = Goal(settings.budget, settings.tau, settings.i_max, settings.target, settings.redundancy)
    before = cover(base)
    wanted = max(settings.budget, int((~before.any(axis=0)).sum()))
    with (
        _generator(settings, bundle, aspects, base, wanted, progress) as generate,
        progress.bar(wanted, "prompts  added") as bar,
    ):
        result = augment(base, aspects, cover, _avoiding(held, generate), goal, rng=rng, on_added=bar.step)
    after = vectors_of(result.captions, len(aspects))
    progress.say(table(aspects, before, after))
    progress.say(_summary(result, len(base), len(aspects)))
    kept = np.array([caption.origin == "base" for caption in result.captions], bool)
    with atomic(bundle.prompts_picture) as temporary:
        drawn = picture(aspects, [caption.text for caption in result.captions], after, kept, before)
        temporary.write_text(drawn, encoding="utf-8")
    held_back = [Caption(text, "base", row) for text, row in zip(held, cover(held), strict=True)] if held else []
    rows = [*_rows(result.captions, "calib", aspects), *_rows(held_back, "validate", aspects)]
    return save_lines(bundle.prompts, rows, stamp)


@contextmanager
def _generator(
    settings: PromptSettings,
    bundle: Bundle,
    aspects: tuple[Aspect, ...],
    base: list[str],
    wanted: int,
    progress: Progress,
) -> Iterator[Generate]:
    """What writes captions; of a language model the cost is said before the first request."""
    if settings.generator != "llm":
        yield plug(settings.generator, GENERATORS, what="generator (or 'llm')")(aspects)
        return
    with open_llm(settings.llm, bundle.transcript, progress=progress) as generate:
        progress.say(estimate(settings.llm, aspects, base, wanted, settings.i_max))
        yield generate


def load_prompts(bundle: Bundle, split: str) -> list[dict[str, Any]]:
    """The rows of a split, "calib" or "validate".

    Raises: ArtifactError when there is none.
    """
    rows = [row for row in load_lines(bundle.prompts, KIND) if row["split"] == split]
    if not rows:
        raise ArtifactError(
            f"{bundle.prompts} holds no prompt of the split {split!r}: run 'quaver prompts RECIPE' again"
        )
    return rows


def check_counts(settings: PromptSettings) -> None:
    """Raises: RecipeError for counts that cannot be meant."""
    least = min(settings.held_out, settings.budget, settings.i_max, settings.classes)
    if settings.count < 1 or least < 0 or not settings.tau >= 0:
        raise RecipeError(
            "prompts.count must be at least 1; held_out, budget, i_max, classes and tau of prompts at least 0"
        )


def _source_captions(
    settings: PromptSettings, aspects: tuple[Aspect, ...], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Base captions and held-back ones; rows marked "validate" are held back first."""
    check_counts(settings)
    wanted = settings.count + settings.held_out
    path = prompts_file(settings.source)
    found = read_captions(path) if path else [(text, "") for text in grammar_captions(aspects, wanted, rng)]
    marked = [text for text, split in found if split == "validate"][: settings.held_out]
    pool = [text for text, split in found if split != "validate"]
    if len(pool) + len(marked) < wanted:
        raise RecipeError(
            f"prompts.count + prompts.held_out asks for {wanted} captions, {settings.source} has"
            f" {len(pool) + len(marked)}: lower one of them, or add captions"
        )
    pool = [pool[i] for i in rng.permutation(len(pool))]
    return pool[: settings.count], [*marked, *pool[settings.count :]][: settings.held_out]


def _avoiding(texts: list[str], generate: Generate) -> Generate:
    """The same generator, failing where it would say what is held back."""

    def fresh(targets: Sequence[Aspect], context: Sequence[str], rng: np.random.Generator) -> str:
        text = generate(targets, context, rng)
        return "" if text in texts else text

    return fresh


def _rows(
    captions: list[Caption] | tuple[Caption, ...], split: str, aspects: tuple[Aspect, ...]
) -> Iterator[dict[str, Any]]:
    for number, caption in enumerate(captions):
        covered = [aspect.name for aspect, hit in zip(aspects, caption.covers, strict=True) if hit]
        row = {"id": f"{split}-{number:04d}", "text": caption.text, "origin": caption.origin}
        yield {**row, "coverage": covered, "split": split}


def _summary(result: Augmented, base: int, total: int) -> str:
    covered, added = total - len(result.uncovered), len(result.captions) - base
    missing = f" (not {', '.join(result.uncovered)})" if result.uncovered else ""
    return (
        f"prompts  {base} captions and {added} added cover {covered} of {total} aspects{missing}"
        f" in {result.iterations} calls; redundancy {result.redundancy}, ratio {result.redundancy_ratio:.3f}"
    )
