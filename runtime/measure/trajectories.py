"""The same prompts, seeds and noise through an engine and a correction, every step kept.

A take is written to the bundle as soon as it is drawn and read back if nothing behind it changed, so that a validation
that was killed goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from quaver.runtime.artifact import Stamp, digest_file, digest_json, load_lines, load_tensors, read_stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError
from quaver.runtime.generate import Batch, find_stats, generate_from
from quaver.runtime.sample import SamplingSettings, Step
from quaver.runtime.session import Session

Array = np.ndarray
KIND = "trajectories"


@dataclass(frozen=True)
class Take:
    """What one engine with one correction made of N prompts."""

    states: Array  # [S, N, C, T, F]: after every step; the last are the latents
    waveforms: Array  # [N, samples]
    mels: Array  # [N, 1, T', M]
    pictures: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [N, C, H, W] in -1..1
    clipped: Array = field(default_factory=lambda: np.zeros((), np.int64))  # steps whose residual found no room

    @property
    def latents(self) -> Array:
        """The finished latents [N, C, T, F]."""
        return self.states[-1]

    @property
    def heard(self) -> dict[str, Array]:
        """What a feature network may hear or see; nothing of a take that ends at latents."""
        found = {"waveform": self.waveforms, "mel": self.mels, "image": self.pictures}
        return {name: values for name, values in found.items() if values.size}


@dataclass(frozen=True)
class Pairs:
    """Prompts [N] and seeds [N] that belong together."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def held_out(bundle: Bundle, *, count: int, seed: int) -> Pairs:
    """`count` pairs: the prompts set aside for validation, in turn, with seeds `seed`, `seed` + 1, ...

    Raises: ArtifactError when no prompt was set aside.
    """
    texts = [row["text"] for row in load_lines(bundle.prompts, "prompts") if row.get("split") == "validate"]
    if not texts:
        raise ArtifactError(
            f"{bundle.prompts} has no prompt of the split 'validate': 'quaver prompts RECIPE' writes it"
        )
    return Pairs(tuple(texts[i % len(texts)] for i in range(count)), tuple(seed + i for i in range(count)))


def second_seeds(pairs: Pairs, *, prompts: int = 8) -> Pairs:
    """Another seed for the first prompts that have one alone, so that `prompts` prompts have two, or all there are."""
    counts = Counter(pairs.prompts)
    alone = [prompt for prompt, count in counts.items() if count == 1]
    more = alone[: max(prompts - (len(counts) - len(alone)), 0)]
    return Pairs(tuple(more), tuple(max(pairs.seeds) + 1 + i for i in range(len(more))))


def take(
    session: Session,
    pairs: Pairs,
    sampling: SamplingSettings,
    *,
    correct: str = "none",
    batch: int = 8,
    decode: bool = True,
    on_step: Callable[[], None] | None = None,
) -> Take:
    """Draw every pair with an open session and one correction, and keep the state after every step.

    What a family does not decode to, or without `decode`, is an empty array.
    """
    states: list[list[Array]] = []

    def watch(step: Step) -> None:
        if step.index == 0:
            states.append([])
        states[-1].append(np.asarray(step.x_prev, np.float32))
        if on_step is not None:
            on_step()

    batches = list(
        generate_from(
            session, pairs.prompts, pairs.seeds, sampling, correct=correct, batch=batch, decode=decode, on_step=watch
        )
    )
    stacked = np.concatenate([np.stack(steps) for steps in states], axis=1)
    sounds, mels, pictures = (_decoded(batches, name) for name in ("waveform", "mel", "image"))
    # every batch takes the same steps, so what one of them counts is not added up
    return Take(stacked, sounds, mels, pictures, np.array(max(drawn.clipped for drawn in batches)))


def _decoded(batches: Sequence[Batch], name: str) -> Array:
    nothing = np.zeros((0, 0), np.float32)
    return np.concatenate([drawn.decoded.get(name, nothing) for drawn in batches])


def take_path(folder: Path, stamp: Stamp) -> Path:
    """Where the take of a stamp is kept in a folder: what it depends on is its name, so equal takes are one file."""
    return folder / f"{digest_json(asdict(stamp)).removeprefix('sha256:')[:20]}.safetensors"


def load_take(path: Path, stamp: Stamp) -> Take | None:
    """The take at `path` if it is whole and carries `stamp`."""
    if read_stamp(path) != stamp:
        return None
    with suppress(ArtifactError):
        return Take(**load_tensors(path, KIND)[0])
    return None


def save_take(path: Path, found: Take, stamp: Stamp) -> Path:
    """Keep a take."""
    return save_tensors(path, vars(found), stamp)


def take_stamp(
    session: Session, pairs: Pairs, sampling: SamplingSettings, *, correct: str, batch: int, decode: bool = True
) -> Stamp:
    """What a take depends on: engine, correction and its statistics, prompts, seeds, sampling, and the components."""
    bundle = session.bundle
    settings = {"sampling": asdict(sampling), "pairs": asdict(pairs), "correct": correct, "batch": batch}
    if not decode:
        settings["decode"] = False
    # Neither by which recipe a model came nor what it samples by unless somebody says: `sampling` says.
    card = {name: value for name, value in session.card.items() if name not in ("stamp", "sampler")}
    inputs = {"engine": session.engine.digest, bundle.card.name: digest_json(card)}
    if correct != "none" and session.target is not None:
        inputs["error_stats"] = digest_file(find_stats(session, sampling)[0])
    return Stamp(KIND, settings=digest_json(settings), inputs=inputs)
