"""The embedded model through its bundle: what the probe hears in clips of captions nobody trained on.

    python -m benchmarks.model [BUNDLE] [--engine float ort-cpu] [--clips 500]

`demo/model/reference.safetensors` holds what is compared with, so that the dataset is not needed: for real clips of the
held-out combinations, sent through the same autoencoder and vocoder,

    labels, classes [N, A] int32    what the caption says, and what the probe hears, per attribute
    features [N, D] float32         the probe's features
    latent_std [C + 1] float32      standard deviation of their latents, per channel, then over all
    metadata texts, attributes      JSON lists of N captions and A attribute names

The Frechet distance is over random halves, generated against real, beside real against real at the same size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks.figures import publish
from quaver.runtime.bundle import Bundle
from quaver.runtime.generate import Batch, generate
from quaver.runtime.measure import probe
from quaver.runtime.measure.frechet import half_distances
from quaver.runtime.measure.quality import Interval, mean_interval
from quaver.runtime.progress import Progress

REFERENCE = Path("demo/model/reference.safetensors")
WANTED = {"family": 0.80, "register": 0.85, "texture": 0.80}
STD_TOLERANCE = 0.05
SEED = 5_000_000


@dataclass(frozen=True)
class Reference:
    """Real clips of held-out captions, as the probe hears them."""

    texts: tuple[str, ...]
    attributes: tuple[str, ...]
    labels: np.ndarray  # [N, A]
    classes: np.ndarray  # [N, A]
    features: np.ndarray  # [N, D]
    latent_std: np.ndarray  # [C + 1]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures of the embedded model."""
    parser = argparse.ArgumentParser(prog="benchmarks.model")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--engine", nargs="+", default=["float", "ort-cpu"])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    given = parser.parse_args(argv)
    if not REFERENCE.exists():
        parser.error(
            f"no {REFERENCE} here: run from the repository's root; 'quaver.demo.evaluate --split test' writes it"
        )
    reference = load_reference(REFERENCE)
    count = min(given.clips, len(reference.texts))
    sampling = {"guidance": given.guidance, "steps": given.steps}
    found = {name: judge(Bundle(given.bundle), name, reference, count, sampling) for name in given.engine}
    real = accuracies(reference.classes[:count], reference)
    rows = [{"clips": "real", **real, "Frechet": "", "latent std": float(reference.latent_std[-1])}]
    rows += [{"clips": name, **heard} for name, heard in found.items()]
    best = found[given.engine[0]]
    publish(
        "model",
        rows,
        figures={"captions": count, "real": real, **found},
        reached={
            **{f"{name} at least {share:.2f}": best[name].value >= share for name, share in WANTED.items()},
            "standard deviation of latents within 5% of the real ones": abs(best["std ratio"] - 1) <= STD_TOLERANCE,
            "at least 500 captions": count >= 500,
        },
    )


def load_reference(path: Path) -> Reference:
    """Read the committed reference."""
    with safe_open(path, framework="np") as file:
        meta = {name: tuple(json.loads(text)) for name, text in (file.metadata() or {}).items() if text.startswith("[")}
        tensors = {name: file.get_tensor(name) for name in ("labels", "classes", "features", "latent_std")}
    return Reference(texts=meta["texts"], attributes=meta["attributes"], **tensors)


def judge(bundle: Bundle, engine: str, reference: Reference, count: int, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What the probe hears in `count` clips of one engine, and how far their latents spread."""
    seeds = [SEED + i for i in range(count)]
    drawn = generate(bundle, reference.texts[:count], seeds, engine_file=engine, batch=10, **sampling)
    heard = hear(drawn, bundle.probe, reference.attributes, count=count, label=f"model {engine}")
    rng = np.random.default_rng(0)
    floor, distance = half_distances(reference.features[:count], heard["features"], rng=rng)
    spread = float(heard["latents"].std())
    return {
        **accuracies(heard["classes"], reference),
        "Frechet": float(distance.mean()),
        "Frechet floor": float(floor.mean()),
        "latent std": spread,
        "std ratio": spread / float(reference.latent_std[-1]),
    }


def hear(
    drawn: Iterable[Batch], network: Path, attributes: Sequence[str], *, count: int, label: str
) -> dict[str, np.ndarray]:
    """Of `count` clips as they are drawn: latents [N, C, T, F] and what the probe makes of them.

    features [N, D], classes [N, A] in the order of `attributes`, and logits [N, K] of each as "logits.<attribute>".
    """
    latents, outputs = [], []
    with Progress().bar(count, label) as bar:
        for batch in drawn:
            outputs.append(probe.judge(network, batch.decoded))
            latents.append(batch.latents)
            bar.step(len(batch.seeds))
    heard = {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
    return {
        "latents": np.concatenate(latents),
        "features": heard[probe.FEATURES],
        "classes": classes_of(probe.verdicts(heard), attributes),
        **{f"logits.{name}": logits for name, logits in heard.items() if name != probe.FEATURES},
    }


def classes_of(verdicts: Mapping[str, np.ndarray], attributes: Sequence[str]) -> np.ndarray:
    """Classes `[N, A]` in the order of `attributes`, found by name, else by position."""
    named = all(name in verdicts for name in attributes)
    columns = [verdicts[name] for name in attributes] if named else list(verdicts.values())
    return np.stack(columns, axis=1)


def accuracies(classes: np.ndarray, reference: Reference) -> dict[str, Interval]:
    """Share of clips heard as captioned, per attribute, with bootstrap intervals."""
    hits = classes == reference.labels[: len(classes)]
    rng = np.random.default_rng(0)
    return {name: mean_interval(hits[:, i], rng=rng) for i, name in enumerate(reference.attributes)}


if __name__ == "__main__":
    main()
