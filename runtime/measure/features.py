"""Feature networks: what hears the clips when two sets of them are compared.

    waveform [N, samples], mel [N, 1, T', M] or image [N, C, H, W] -> features [N, D] or [N, F, D], logits [N, K]

    probe                 the bundle's own; small, offline; its distances compare with their floor and nothing else
    onnx:FILE[@RATE]      any graph with an input `waveform` [B, samples] or `image`, and an output `features`
    vggish[:FILE]         128 features of each 0.96 s, 16 kHz: what FAD is taken over (Kilgour et al. 2019)
    panns[:FILE]          Cnn14 of PANNs, 2048 features and 527 classes (Kong et al. 2020): FD and KL of text-to-audio
    clap[:FOLDER or ID]   512 features in one space with text (Wu et al. 2023): the CLAP score

Weights are read where they lie and never fetched. A network that is not there is a `NetworkMissing`, which says what to
type; whoever measures catches it and goes on without. Clips of another rate than a network's are resampled by a
polyphase filter, and `Network.note` says so: published figures move with the resampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from types import ModuleType

import numpy as np

from quaver.runtime.errors import QuaverError, first_line
from quaver.runtime.lazy import need
from quaver.runtime.plug import plug

Array = np.ndarray

NETWORKS = {
    "probe": "quaver.runtime.measure.probe:embedded",
    "onnx": "quaver.runtime.measure.probe:graph",
    "vggish": "quaver.runtime.measure.vggish:vggish",
    "panns": "quaver.runtime.measure.panns:panns",
    "clap": "quaver.runtime.measure.clap:clap",
}
KEPT = {  # name -> where its weights lie, as its opener looks for them: kept(where) -> paths
    "onnx": "quaver.runtime.measure.probe:kept",
    "vggish": "quaver.runtime.measure.vggish:kept",
    "panns": "quaver.runtime.measure.panns:kept",
    "clap": "quaver.runtime.measure.clap:kept",
}


class NetworkMissing(QuaverError):
    """A feature network that is not installed, or whose weights are not here."""


@dataclass(frozen=True)
class Heard:
    """What a network hears in N clips: features [N, D] or [N, F, D], and logits [N, K] by the name of their classes."""

    features: Array
    logits: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A feature network that is open.

    name: of the network, with its weights. distance: what the Frechet distance over its features is called. hear: from
    "waveform" [N, samples] in [-1, 1], "mel" [N, 1, T', M] and "image" [N, C, H, W], or some of them. read: texts [N]
    into the same space [N, D], where there is one. note: what a reader must know.
    """

    name: str
    distance: str
    hear: Callable[[Mapping[str, Array]], Heard]
    read: Callable[[Sequence[str]], Array] | None = None
    note: str | None = None


def open_network(spec: str, *, rate: int, probe: Path) -> Network:
    """The network of a name in `NETWORKS`, with ":" and where its weights are, for clips of `rate` Hz.

    A dotted path names a user's own opener, called as those are: opener(where, *, rate, probe) -> Network. `probe` is
    the bundle's. Raises: RecipeError for an unknown name; NetworkMissing when the network is not here.
    """
    where = "" if _own(spec) else spec.partition(":")[2]
    return opener(spec)(where, rate=rate, probe=probe)


def opener(spec: str) -> Callable[..., Network]:
    """The function that opens the network of a spec. Raises: RecipeError for an unknown name."""
    found: Callable[..., Network] = plug(
        spec if _own(spec) else spec.partition(":")[0], NETWORKS, what="feature network"
    )
    return found


def weights(spec: str) -> list[Path]:
    """The files and folders that the network of a spec is read from: what it names, or what its package keeps.

    None of the bundle's own probe, of a user's opener, or where the package that would know is not installed.
    """
    name, _, where = spec.partition(":")
    if name not in KEPT:
        return []
    try:
        found: list[Path] = plug(name, KEPT, what="feature network")(where)
    except NetworkMissing:
        return []
    return [path for path in found if path.exists()]


def _own(spec: str) -> bool:
    """Whether a spec is the dotted path of a user's opener."""
    name = spec.partition(":")[0]
    return name not in NETWORKS and "." in name


def bring(module: str, install: str) -> ModuleType:
    """Import a network's package. Raises: NetworkMissing with the command that installs it."""
    try:
        return need(module, extra="metrics")
    except QuaverError as error:
        reason = first_line(error).partition(", and this step")[0]
        raise NetworkMissing(f"{reason}: pip install {install}") from error


def resampled(waveforms: Array, rate: int, to: int) -> Array:
    """Waveforms `[N, samples]` of `rate` Hz at `to` Hz, float32, by a polyphase filter (scipy.signal.resample_poly)."""
    if rate == to:
        return np.asarray(waveforms, np.float32)
    common = gcd(rate, to)
    signal = bring("scipy.signal", "'quaver[metrics]'")
    return np.asarray(signal.resample_poly(waveforms, to // common, rate // common, axis=1), np.float32)


def resampling(rate: int, to: int) -> str | None:
    """The note owed when clips are resampled."""
    return None if rate == to else f"clips resampled from {rate} to {to} Hz (polyphase): published figures move with it"


def in_batches(call: Callable[[Array], Sequence[Array]], waveforms: Array, batch: int = 16) -> list[Array]:
    """What a call answers, `[B, ...]` arrays, for waveforms `[N, samples]` taken `batch` at a time: `[N, ...]` each."""
    rows = [call(waveforms[i : i + batch]) for i in range(0, len(waveforms), batch)]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]
