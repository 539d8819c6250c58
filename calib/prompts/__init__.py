"""Calibration prompts: aspects, coverage, and the grammar and models that write captions.

The stage `prompts`: base captions from a file or from the offline grammar, augmented until they cover the taxonomy and
the budget is used up (`augment`), and some held back that calibration never sees, for validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.augment import Augmented, Caption, augment
from quaver.calib.prompts.coverage import coverage
from quaver.calib.prompts.grammar import Generate, grammar, grammar_captions
from quaver.calib.prompts.source import prompts_file, read_captions
from quaver.runtime.artifact import Stamp, load_lines, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.progress import Progress

KIND = "prompts"
SPLITS = ("calib", "validate")


@dataclass(frozen=True)
class PromptSettings:
    """The table [prompts] of a recipe."""

    source: str = "grammar"  # "grammar", "demo" (the captions of the embedded model), or a .txt or .jsonl file
    aspects: str = ""  # a TOML file of aspects; empty: the paper's 7 modalities and 9 aspects
    count: int = 100  # captions taken from the source for calibration
    budget: int = 28  # captions added to them by augmentation (the paper: 700)
    held_out: int = 64  # captions held back for validation
    tau: float = 0.2  # redundancy above which captions are replaced: the chance that two cover the same
    i_max: int = 5000  # calls of the generator, over everything
    seed: int = 0


def make_prompts(bundle: Bundle, settings: PromptSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write prompts.jsonl: one row {id, text, origin, coverage (names of aspects), split} a caption.

    Raises: RecipeError for settings or files that cannot be meant.
    """
    aspects, rng = load_aspects(settings.aspects), np.random.default_rng(settings.seed)
    base, held = _source_captions(settings, aspects, rng)
    result = augment(
        base,
        aspects,
        _avoiding(held, grammar(aspects)),
        budget=settings.budget,
        tau=settings.tau,
        i_max=settings.i_max,
        rng=rng,
    )
    progress.say(_summary(result, len(base), len(aspects)))
    held_back = [Caption(text, "base", coverage(text, aspects)) for text in held]
    rows = [*_rows(result.captions, "calib", aspects), *_rows(held_back, "validate", aspects)]
    return save_lines(bundle.prompts, rows, stamp)


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


def _source_captions(
    settings: PromptSettings, aspects: tuple[Aspect, ...], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Base captions and held-back ones; rows marked "validate" are held back first."""
    if settings.count < 1 or settings.held_out < 0 or settings.budget < 0:
        raise RecipeError("prompts.count must be at least 1, prompts.held_out and prompts.budget at least 0")
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

    def fresh(target: Aspect, context: Sequence[str], rng: np.random.Generator) -> str:
        text = generate(target, context, rng)
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
