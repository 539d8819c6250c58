"""What a correction explains of the error of a single call, step by step.

On states x_t of float trajectories, with e what the float denoiser says, q the quantized one and c what a correction
makes of q (guided eps),

    explained[s] = 1 - sum over samples |c - e|^2 / sum over samples |q - e|^2

1 takes the error away, 0 leaves it, below 0 adds to it: a draw from the error's law (S-D2) adds its residual variance
on purpose. Nothing accumulates here, unlike in the drift of whole trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quaver.runtime.correct import make_correct
from quaver.runtime.denoise import CORRECTION, denoiser, initial_noise, step_noise
from quaver.runtime.generate import session_stats
from quaver.runtime.measure.quality import Interval, ratio_interval
from quaver.runtime.measure.trajectories import Pairs
from quaver.runtime.sample import Denoise, SamplingSettings
from quaver.runtime.samplers import plan
from quaver.runtime.session import Session

Array = np.ndarray


def explained_error(corrected: Array, plain: Array, *, rng: np.random.Generator) -> list[Interval]:
    """Share of the squared errors `plain` `[S, N]` that `corrected` `[S, N]` lacks, per step, with its 95% interval.

    Where there was no error nothing is explained: 0.
    """
    found = [ratio_interval(c, q, rng=rng) if np.all(q > 0) else None for c, q in zip(corrected, plain, strict=True)]
    return [Interval(1 - r.value, 1 - r.high, 1 - r.low) if r else Interval(0.0, 0.0, 0.0) for r in found]


def step_errors(
    reference: Session,
    judged: Session,
    pairs: Pairs,
    states: Array,
    settings: SamplingSettings,
    corrections: Sequence[str],
    *,
    batch: int = 8,
) -> dict[str, Array]:
    """Squared error of a single call per correction, `[S, N]`, on the float trajectories that led to `states`.

    `states` `[S, N, C, T, F]` are those after every step, as a `Take` of the float engine keeps them.
    Raises: ArtifactError when the judged engine has no error statistics for a correction.
    """
    walk, count = plan(settings.sampler, reference.schedule, steps=settings.steps, eta=settings.eta), len(pairs.seeds)
    stats = session_stats(judged, settings) if set(corrections) - {"none"} else None
    errors = {name: np.zeros((len(walk.moves), count)) for name in corrections}
    for part in (slice(i, i + batch) for i in range(0, count, batch)):
        seeds = pairs.seeds[part]
        exact, coded = (_denoise(session, pairs.prompts[part], settings) for session in (reference, judged))
        correct = {name: make_correct(name, stats, step_noise(seeds, CORRECTION)) for name in corrections}
        starts = [np.float32(walk.start) * initial_noise(seeds, reference.latent_shape), *states[:-1, part]]
        for s, (t, x) in enumerate(zip(walk.timesteps.tolist(), starts, strict=True)):
            e, q = exact(x, t), coded(x, t)
            for name in corrections:
                error = np.asarray(correct[name](q, t, x).eps, np.float64) - e
                errors[name][s, part] = (error**2).reshape(len(seeds), -1).sum(axis=1)
    return errors


def _denoise(session: Session, prompts: Sequence[str], settings: SamplingSettings) -> Denoise:
    rows = session.family.embed(session.parts, prompts)
    return denoiser(session.engine, session.family, rows, session.uncond, session.schedule, settings.guidance)
