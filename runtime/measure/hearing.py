"""What feature networks hear in the takes of a report: each correction as a set, beside the floors.

    against float    paired: the same prompts and seeds; its floor is float against float, halves without a common seed
    against real     a reference set of one's own; its floor is real against real at the same N
    to the text      cosine with the prompt where the network reads, else what the probe hears of what the prompt says

A network, or a reference set, that is not there is told with what brings it, and the rest is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.errors import QuaverError
from quaver.runtime.measure.agreement import Words, accuracies, cosine, said
from quaver.runtime.measure.divergence import inception_score, paired_kl, softmax
from quaver.runtime.measure.features import Heard, Network, open_network
from quaver.runtime.measure.frechet import few_samples, frechet_of_sets
from quaver.runtime.measure.manifold import NEIGHBOURS, precision, recall
from quaver.runtime.measure.quality import Interval, mean_interval
from quaver.runtime.measure.reference import load_clips, load_features, located
from quaver.runtime.measure.sets import FEWEST, Measure, half, of_set, over_halves
from quaver.runtime.measure.trajectories import Take
from quaver.runtime.session import FLOAT

Array = np.ndarray
Rows = dict[str, Any]
ENOUGH = 2 * NEIGHBOURS + 2  # items of a half that has neighbours still when two groups are left out
FURTHER = "further than float"
FLOAT_FLOOR, REAL_FLOOR = "float against float", "real against real"


@dataclass(frozen=True)
class Scene:
    """What is heard beside the takes: their prompts, rate in Hz, the bundle's probe and its words, real clips."""

    prompts: tuple[str, ...]
    rate: int
    probe: Path
    words: Words = field(default_factory=dict)  # attribute -> for each class its phrases
    reference: str = ""  # "demo", a folder of WAV files, or a .safetensors file of features


def set_measures(spec: str, scene: Scene, reference: Take, takes: Mapping[str, Take]) -> Rows:
    """What the feature network `spec` makes of every correction's samples as a set, with floors."""
    if not reference.heard:
        return {"network": spec, "missing": "These takes end at latents: there is nothing to hear or to see."}
    try:
        network = open_network(spec, rate=scene.rate, probe=scene.probe)
        own, judged = network.hear(reference.heard), {name: network.hear(take.heard) for name, take in takes.items()}
    except QuaverError as error:
        return {"network": spec, "missing": f"{error}."}
    except KeyError as error:
        kinds = ", ".join(reference.heard)
        return {"network": spec, "missing": f"{spec} takes {error}, and here is {kinds}: 'onnx:FILE' may take that."}
    count, dimensions = len(own.features), own.features.shape[-1]
    real, notes = real_features(scene, network, reference.waveforms.shape, dimensions)
    return {
        "network": network.name,
        "samples": count,
        "dimensions": dimensions,
        "note": "; ".join(filter(None, [*notes, network.note, few_samples(count // 2, dimensions)])) or None,
        "floors": [row for row in floors(network, scene, own, real) if row["measures"]],
        "corrections": [
            {"name": name, "measures": engine_measures(network, scene, own, heard, real)}
            for name, heard in judged.items()
        ],
    }


def floors(network: Network, scene: Scene, own: Heard, real: Array | None) -> list[Rows]:
    """What stands beside the figures of engines: the references against themselves, and what the float model has."""
    name, by = network.distance, scene.prompts
    against_real, itself = Rows(), Rows()
    if real is not None:
        against_real = floor(f"{name} to real", real, half(real, own.features, paired=False))
        itself = distances(f"{name} to real", real, own.features, prompts=by)
    return [
        {"name": FLOAT_FLOOR, "measures": floor(name, own.features, len(own.features) // 2, by)},
        {"name": REAL_FLOOR, "measures": against_real},
        {"name": FLOAT, "measures": itself | variety(own, by) | to_text(network, scene, own)},
    ]


def engine_measures(network: Network, scene: Scene, own: Heard, heard: Heard, real: Array | None) -> Rows:
    """All that a network says of an engine's clips: against float, against real clips where there are any, to the text.

    `own` is what it hears in the float clips, `real` `[M, D]` or `[M, F, D]` in the reference set.
    """
    name, by = network.distance, scene.prompts
    found = distances(name, own.features, heard.features, paired=True, prompts=by)
    found |= beyond(FURTHER, own.features, own.features, heard.features, paired=True, prompts=by)
    if real is not None:
        found |= distances(f"{name} to real", real, heard.features, prompts=by)
        found |= beyond(f"{FURTHER} to real", real, own.features, heard.features, prompts=by)
    return found | alike(own, heard, by) | variety(heard, by) | to_text(network, scene, heard)


def real_features(
    scene: Scene, network: Network, shape: tuple[int, ...], dimensions: int
) -> tuple[Array | None, tuple[str, ...]]:
    """Features of the reference set for takes of `shape` [N, samples], and what must be known of it; None of none."""
    if not scene.reference:
        return None, ()
    path, notes = located(scene.reference), tuple[str, ...]()
    try:
        if path.suffix == ".safetensors":
            features, note = load_features(path, network=network.name)
            notes = (note,)
        else:
            found = load_clips(path, rate=scene.rate, samples=shape[1], count=shape[0])
            features, notes = network.hear({"waveform": found.waveforms}).features, found.notes
    except (QuaverError, KeyError) as error:  # KeyError: a network that hears spectrograms, and these are files
        return None, (f"not compared with real clips: {error}",)
    if len(features) < 4:  # halves of two
        return None, (f"not compared with real clips: {path} holds {len(features)}, expected 4 or more", *notes)
    if features.shape[-1] != dimensions:  # another network by the same name
        said = f"{path} holds {features.shape[-1]} features of a clip, expected {dimensions}"
        return None, (f"not compared with real clips: {said}: name a folder of WAV files", *notes)
    return features, notes


def distances(
    name: str,
    reference: Array,
    judged: Array,
    *,
    paired: bool = False,
    prompts: Sequence[str] | None = None,
    size: int = 0,
) -> Rows:
    """Frechet distance, precision and recall of features `[N, D]` or `[N, F, D]`, `size` items of either set.

    `prompts` as of `sets.over_halves`.
    """
    suffix = " to real" if name.endswith(" to real") else ""
    flat = [features if features.ndim == 2 else features.mean(axis=1) for features in (reference, judged)]
    size = size or half(reference, judged, paired=paired)
    found: dict[str, tuple[Measure, Array, Array]] = {name: (frechet_of_sets, reference, judged)}
    if size >= ENOUGH:
        found[f"precision{suffix}"] = (precision, flat[0], flat[1])
        found[f"recall{suffix}"] = (recall, flat[0], flat[1])
    drawn: dict[str, Any] = {"paired": paired, "prompts": prompts, "size": size}
    return {
        # The same halves for all, so that floors and values of one network differ by the engine alone.
        title: within(over_halves(measure, a, b, rng=np.random.default_rng(0), **drawn), most)
        for title, (measure, a, b) in found.items()
        for most in [np.inf if measure is frechet_of_sets else 1.0]
    }


def beyond(
    name: str,
    reference: Array,
    own: Array,
    judged: Array,
    *,
    paired: bool = False,
    prompts: Sequence[str] | None = None,
) -> Rows:
    """How much further an engine's clips lie than the float model's own, pair by pair, as a share of the latter.

    The one interval that tells an engine from float: what both have in common is not in it. Nothing of float clips
    that are all alike. `prompts` as of `sets.over_halves`.
    """
    if not np.ptp(own.reshape(-1, own.shape[-1]), axis=0).any():
        return {}

    def both(a: Array, b: Array) -> Array:
        return np.array([frechet_of_sets(a, b[:, 0]), frechet_of_sets(a, b[:, 1])])

    def share(mean: Array) -> float:
        return float(mean[1] / mean[0] - 1)

    pairs, rng = np.stack([own, judged], axis=1), np.random.default_rng(0)
    found = over_halves(both, reference, pairs, rng=rng, paired=paired, prompts=prompts, of=share)
    return {name: found.as_json()}


def floor(name: str, reference: Array, size: int, prompts: Sequence[str] | None = None) -> Rows:
    """The distances of a set to itself, halves of `size` items without a common one."""
    return distances(name, reference, reference, paired=True, prompts=prompts, size=size)


def alike(own: Heard, judged: Heard, prompts: Sequence[str] | None = None) -> Rows:
    """Clip by clip: divergence of what is heard from what is heard in the float clip, and how often it is the same.

    "KL" is the mean over all that a network tells apart; each has its own where there are several. Clips of one of
    `prompts` [N] are resampled together.
    """
    found, every = {}, []
    drawn: dict[str, Any] = {"rng": np.random.default_rng(0), "groups": prompts}
    for name, logits in own.logits.items():
        p, q = softmax(logits), softmax(judged.logits[name])
        every.append(paired_kl(p, q))
        if len(own.logits) > 1:
            found[f"KL, {name}"] = mean_interval(every[-1], **drawn).as_json()
        found[f"same {name}"] = mean_interval(p.argmax(axis=1) == q.argmax(axis=1), **drawn).as_json()
    return ({"KL": mean_interval(np.mean(every, axis=0), **drawn).as_json()} if every else {}) | found


def variety(heard: Heard, prompts: Sequence[str] | None = None) -> Rows:
    """The inception-style score, mean over all that a network tells apart; none of few clips."""
    seen = [softmax(logits) for logits in heard.logits.values()]
    if not seen or len(seen[0]) < FEWEST:
        return {}

    def score(rows: Array) -> float:
        return float(np.mean([inception_score(each[rows]) for each in seen]))

    found = of_set(score, np.arange(len(seen[0])), rng=np.random.default_rng(0), prompts=prompts)
    return {"inception-style score": {name: max(value, 1.0) for name, value in found.as_json().items()}}


def to_text(network: Network, scene: Scene, heard: Heard) -> Rows:
    """How well clips are what their prompts ask for: a cosine, or the share of what is said that is heard."""
    rng = np.random.default_rng(0)
    if network.read is not None:
        features = heard.features if heard.features.ndim == 2 else heard.features.mean(axis=1)
        agreed = cosine(features, network.read(scene.prompts))
        return {"text agreement": mean_interval(agreed, rng=rng, groups=scene.prompts).as_json()}
    if not scene.words or not set(scene.words) <= set(heard.logits):
        return {}
    verdicts = {name: logits.argmax(axis=1) for name, logits in heard.logits.items()}
    labels = said(scene.prompts, scene.words)
    found = accuracies(verdicts, labels, scene.words, rng=rng, captions=scene.prompts)
    return {("text agreement" if name == "all" else f"says {name}"): each.as_json() for name, each in found.items()}


def within(interval: Interval, most: float) -> dict[str, float]:
    """An interval whose bounds were moved, cut to what the measure can be."""
    return {name: min(max(value, 0.0), most) for name, value in interval.as_json().items()}
