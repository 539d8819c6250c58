"""A quantized engine against the float one: the same call, the same trajectories, the same sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.measure import frechet, probe, quality
from quaver.runtime.measure.cost import file_bytes
from quaver.runtime.measure.latency import peak_rss_bytes, seconds, time_pair
from quaver.runtime.measure.trajectories import Pairs, Take
from quaver.runtime.session import Session

Array = np.ndarray
Rows = dict[str, Any]
PROBE = "Frechet distance (embedded probe)"
SNR_LIMIT = 150.0  # dB, about what float32 can tell apart; keeps equal latents finite


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
) -> Rows:
    """One U-Net call through both engines: paired times, speed-up, output error, loading, bytes.

    The error is taken on states of the float trajectory `[S, N, C, T, F]` that visits timesteps `at` `[S]`, one per
    sample and at every step in turn.
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
    files = {"float": reference.bundle.float_unet, str(judged.target): judged.bundle.qdq(str(judged.target))}
    return {
        "batch": batch,
        "runs": runs,
        "warmup": warmup,
        "error": quality.mean_interval(error, rng=rng).as_json(),
        "speedup": speedup.as_json(),
        "peak_rss_bytes": peak_rss_bytes(),
        "engines": {
            name: {**asdict(timing), "load_s": load_seconds(path), "bytes": file_bytes(path)}
            for (name, path), timing in zip(files.items(), (float_time, time), strict=True)
        },
    }


def call_feeds(session: Session, prompts: tuple[str, ...], x_t: Array, at: Array) -> dict[str, Array]:
    """Inputs of the U-Net for states `[N, C, T, F]` of `prompts` `[N]` at timesteps `[N]`."""
    feeds = session.family.feeds(x_t, np.asarray(at, np.int64), session.family.embed(session.parts, prompts))
    return {name: np.asarray(rows) for name, rows in feeds.items()}


def load_seconds(path: Path) -> float:
    """Seconds to open an engine and be ready for its first call."""
    return seconds(lambda: open_engine(path).close())


def correction_rows(reference: Take, takes: Mapping[str, Take]) -> list[Rows]:
    """For every correction: latent error, SNR, drift per step, log-spectral distance (of sound), ratio to none."""
    errors = {name: quality.relative_error(take.latents, reference.latents) for name, take in takes.items()}
    comparable = "none" in errors and bool(np.all(errors["none"] > 0))
    rng = np.random.default_rng(0)
    rows = []
    for name, take in takes.items():
        against = quality.ratio_interval(errors[name], errors["none"], rng=rng) if comparable else None
        snr = quality.snr_db(take.latents, reference.latents)
        sound = quality.log_spectral_distance(take.waveforms, reference.waveforms) if take.waveforms.size else None
        rows.append(
            {
                "name": name,
                "latent_error": quality.mean_interval(errors[name], rng=rng).as_json(),
                "snr_db": quality.mean_interval(np.minimum(snr, SNR_LIMIT), rng=rng).as_json(),
                "log_spectral_db": None if sound is None else quality.mean_interval(sound, rng=rng).as_json(),
                "against_none": None if against is None or name == "none" else against.as_json(),
                "drift": quality.drift(take.states, reference.states).mean(axis=1).tolist(),
                "errors": errors[name].tolist(),
            }
        )
    return rows


def set_measures(path: Path, reference: Take, takes: Mapping[str, Take]) -> Rows:
    """Frechet distances over the features of the probe at `path`, with their floor, and shared verdicts."""
    if not path.exists():
        return {"missing": f"This bundle has no {path.name}, so there is no feature network to measure sets with."}
    seen, rng = probe.judge(path, reference.heard), np.random.default_rng(0)
    features, classes = seen[probe.FEATURES], probe.verdicts(seen)
    count, dimensions = features.shape
    rows, floor = [], np.zeros(1)
    for name, take in takes.items():
        outputs = probe.judge(path, take.heard)
        # The same halves for every correction, so that the floor is one number.
        floor, distance = frechet.half_distances(features, outputs[probe.FEATURES], rng=np.random.default_rng(0))
        same = {key: found == classes[key] for key, found in probe.verdicts(outputs).items()}
        rows.append(
            {
                "name": name,
                "distance": _spread(distance),
                "agreement": {key: quality.mean_interval(hits, rng=rng).as_json() for key, hits in same.items()},
            }
        )
    return {
        "name": PROBE,
        "samples": count,
        "dimensions": dimensions,
        "floor": _spread(floor),
        "note": frechet.few_samples(count // 2, dimensions),
        "attributes": list(classes),
        "corrections": rows,
    }


def _split(engine: Engine, feeds: Mapping[str, Array], batch: int = 8) -> Array:
    count = len(next(iter(feeds.values())))
    parts = ({name: rows[i : i + batch] for name, rows in feeds.items()} for i in range(0, count, batch))
    return np.concatenate([np.asarray(engine(part)) for part in parts])


def _spread(values: Array) -> dict[str, float]:
    """Mean over random halves, and the range in which 95% of them lie."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}
