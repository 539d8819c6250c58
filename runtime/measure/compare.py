"""A quantized engine against the float one: the same call, the same trajectories, the same sounds.

A figure is an interval, `{"value", "low", "high"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.correct import make_correct
from quaver.runtime.denoise import CORRECTION, step_noise
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.generate import session_stats
from quaver.runtime.measure import quality
from quaver.runtime.measure.cost import file_bytes
from quaver.runtime.measure.departure import leaves
from quaver.runtime.measure.explained import explained_error, step_errors
from quaver.runtime.measure.latency import peak_rss_bytes, seconds, time_calls, time_pair
from quaver.runtime.measure.likeness import RADIUS, psnr_db, ssim
from quaver.runtime.measure.media import levels
from quaver.runtime.measure.mel import mel_snr_db
from quaver.runtime.measure.trajectories import Pairs, Take
from quaver.runtime.sample import Correct, SamplingSettings
from quaver.runtime.session import Session

Array = np.ndarray
Rows = dict[str, Any]
Resampled = dict[str, Any]  # how intervals are drawn: the arguments `rng` and `groups` of `quality.bootstrap`
EXPLAINED = 16  # trajectories on which single calls are compared
# dB, about what float32 can tell apart; keeps equal latents finite, and a clip that is silent by float alone
SNR_LIMIT = 150.0


def compare_calls(
    reference: Session,
    judged: Session,
    pairs: Pairs,
    states: Array,
    at: Array,
    *,
    runs: int,
    warmup: int,
    batch: int = 2,
    threads: int | None = None,
) -> Rows:
    """One U-Net call through both engines: paired times, speed-up, output error, loading, bytes.

    The error is taken on states of the float trajectory `[S, N, C, T, F]` that visits timesteps `at` `[S]`, one per
    sample and at every step in turn. `threads` is what both were opened with.
    """
    rng = np.random.default_rng(0)
    pick = np.arange(len(pairs.prompts)) % max(len(states) - 1, 1)
    x_t = states[pick, np.arange(len(pick))]  # the state after step i is what step i + 1 starts from
    feeds = call_feeds(reference, pairs.prompts, x_t, at[np.minimum(pick + 1, len(at) - 1)])
    error = quality.relative_error(_split(judged.engine, feeds), _split(reference.engine, feeds))
    one = {name: np.resize(rows, (batch, *rows.shape[1:])) for name, rows in feeds.items()}
    float_time, time, speedup = time_pair(
        lambda: reference.engine(one), lambda: judged.engine(one), rng=rng, runs=runs, warmup=warmup
    )
    files = {"float": reference.bundle.float_unet, str(judged.target): judged.bundle.engine(str(judged.target))}
    return {
        "batch": batch,
        "runs": runs,
        "warmup": warmup,
        "error": quality.mean_interval(error, rng=rng, groups=pairs.prompts).as_json(),
        "speedup": speedup.as_json(),
        "peak_rss_bytes": peak_rss_bytes(),
        "engines": {
            name: {**asdict(timing), "load_s": load_seconds(path, threads), "bytes": file_bytes(path)}
            for (name, path), timing in zip(files.items(), (float_time, time), strict=True)
        },
    }


def call_feeds(session: Session, prompts: tuple[str, ...], x_t: Array, at: Array) -> dict[str, Array]:
    """Inputs of the U-Net for states `[N, C, T, F]` of `prompts` `[N]` at timesteps `[N]`."""
    feeds = session.family.feeds(x_t, np.asarray(at, np.int64), session.family.embed(session.parts, prompts))
    return {name: np.asarray(rows) for name, rows in feeds.items()}


def correction_seconds(
    session: Session, sampling: SamplingSettings, names: Iterable[str], x_t: Array, at: Array
) -> dict[str, float]:
    """Seconds that each correction takes for one state `[B, C, T, F]`, mean over timesteps `at` `[S]`."""
    noise = step_noise(range(len(x_t)), CORRECTION)
    found = {}
    for name in names:
        correct = make_correct(name, session_stats(session, sampling) if name != "none" else None, noise)
        whole = time_calls(partial(_over, correct, x_t, at), runs=5, warmup=1).median_s
        found[name] = whole / len(at) if name != "none" else 0.0
    return found


def _over(correct: Correct, x_t: Array, at: Array) -> None:
    for t in at.tolist():
        correct(x_t, t, x_t)


def load_seconds(path: Path, threads: int | None = None) -> float:
    """Seconds to open an engine and be ready for its first call."""
    return seconds(lambda: open_engine(path, threads=threads).close())


def correction_rows(
    reference: Take,
    takes: Mapping[str, Take],
    *,
    rate: int,
    spread: Array | None = None,
    prompts: Sequence[str] | None = None,
) -> list[Rows]:
    """For every correction how far its samples are from the float ones, what was clipped, and its ratio to none.

    `rate` is that of the sounds in Hz; `spread` [S] is how far the float model's own seeds lie apart at each step;
    samples that share one of `prompts` [N] are resampled together.
    """
    errors = {name: quality.relative_error(take.latents, reference.latents) for name, take in takes.items()}
    comparable = "none" in errors and bool(np.all(errors["none"] > 0))
    resampled: Resampled = {"rng": np.random.default_rng(0), "groups": prompts}
    rows = []
    for name, take in takes.items():
        against = quality.ratio_interval(errors[name], errors["none"], **resampled) if comparable else None
        every = quality.drift(take.states, reference.states)
        path = every.mean(axis=1)
        rows.append(
            {
                "name": name,
                "latent_error": quality.mean_interval(errors[name], **resampled).as_json(),
                "snr_db": _mean_db(quality.snr_db(take.latents, reference.latents), resampled),
                **sample_distances(reference, take, rate, resampled),
                "against_none": None if against is None or name == "none" else against.as_json(),
                "drift": path.tolist(),
                "drift_snr_db": _finite(quality.decibels(every)).mean(axis=1).tolist(),
                "leaves_seeds_at": None if spread is None else leaves(path, spread),
                "clipped_steps": int(take.clipped),
                **levels(take.waveforms),
                "errors": errors[name].tolist(),
            }
        )
    return rows


def sample_distances(reference: Take, take: Take, rate: int, resampled: Resampled) -> Rows:
    """Distances of what samples sound or look like; None where a take has no sounds or no pictures."""
    found: Rows = dict.fromkeys(("log_spectral_db", "mel_snr_db", "psnr_db", "ssim"))
    if take.waveforms.size:
        q, y = take.waveforms, reference.waveforms
        found["log_spectral_db"] = quality.mean_interval(quality.log_spectral_distance(q, y), **resampled).as_json()
        found["mel_snr_db"] = _mean_db(mel_snr_db(q, y, rate=rate), resampled)
    if take.pictures.size:
        q, y = (each.pictures / 2 + 0.5 for each in (take, reference))  # as they are shown, 0 to 1
        found["psnr_db"] = _mean_db(psnr_db(q, y, span=1.0), resampled)
        large = min(q.shape[2:]) > 2 * RADIUS
        found["ssim"] = quality.mean_interval(ssim(q, y, span=1.0), **resampled).as_json() if large else None
    return found


def _mean_db(values: Array, resampled: Resampled) -> dict[str, float]:
    return quality.mean_interval(_finite(values), **resampled).as_json()


def _finite(decibels: Array) -> Array:
    return np.clip(decibels, -SNR_LIMIT, SNR_LIMIT)


def explained_rows(
    reference: Session, judged: Session, pairs: Pairs, states: Array, sampling: SamplingSettings, names: Iterable[str]
) -> dict[str, list[float]]:
    """For each correction but none the share of a single call's squared error it takes off, per step.

    Measured on the first `EXPLAINED` trajectories, whose float `states` are `[S, N, C, T, F]`.
    """
    few = Pairs(pairs.prompts[:EXPLAINED], pairs.seeds[:EXPLAINED])
    wanted = [name for name in names if name != "none"]
    if not wanted:
        return {}
    errors = step_errors(reference, judged, few, states[:, :EXPLAINED], sampling, ["none", *wanted])
    rng = np.random.default_rng(0)
    return {
        name: [interval.value for interval in explained_error(errors[name], errors["none"], rng=rng)] for name in wanted
    }


def _split(engine: Engine, feeds: Mapping[str, Array], batch: int = 8) -> Array:
    count = len(next(iter(feeds.values())))
    parts = ({name: rows[i : i + batch] for name, rows in feeds.items()} for i in range(0, count, batch))
    return np.concatenate([np.asarray(engine(part)) for part in parts])
