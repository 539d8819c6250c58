"""Cnn14 of PANNs as a feature network (Kong et al. 2020, arXiv:1912.10211), by the package panns-inference.

    features   the 2048 outputs before the classifier          logits   of AudioSet's 527 classes

At 16 kHz: windows of 512, hop 160, 50 to 8000 Hz; at 32 kHz: 1024, 320, 50 to 14000 Hz; 64 mel bands. As evaluations of
text-to-audio do, a clip's mean is taken off and a short one filled with silence to 32,000 samples. The package looks
for a list of the classes' names where it keeps weights, and tries to fetch it; nothing here needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np

from quaver.runtime.errors import first_line
from quaver.runtime.measure.features import Heard, Network, NetworkMissing, bring, in_batches, resampled, resampling

Array = np.ndarray
FOLDER = "~/panns_data"
FORMS = {
    16_000: ("Cnn14_16k_mAP=0.438.pth", {"window_size": 512, "hop_size": 160, "fmax": 8000}),
    32_000: ("Cnn14_mAP=0.431.pth", {"window_size": 1024, "hop_size": 320, "fmax": 14000}),
}
SHORTEST, CLASSES = 32_000, 527


def panns(where: str, *, rate: int, probe: Path) -> Network:
    """Cnn14 with the weights at `where`, or where the package keeps them; the form of 32 kHz for other rates.

    Raises: NetworkMissing when package or weights are not there.
    """
    hears = rate if rate in FORMS else 32_000
    file, shape = FORMS[hears]
    path = Path(where or f"{FOLDER}/{file}").expanduser()
    if not path.is_file():
        raise NetworkMissing(
            f"no weights of PANNs at {path}: download {file} from zenodo.org/records/3987831, or name the file as "
            "'panns:FILE'"
        )
    torch, models = bring("torch", "'quaver[export]'"), bring("panns_inference.models", "panns-inference")
    model = models.Cnn14(sample_rate=hears, mel_bins=64, fmin=50, classes_num=CLASSES, **shape).eval()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except (OSError, KeyError, RuntimeError, UnpicklingError) as error:
        raise NetworkMissing(
            f"{path} is not Cnn14 for {hears} Hz ({first_line(error)}): name {file} as 'panns:FILE'"
        ) from error

    def listen(clips: Array) -> tuple[Array, Array]:
        with torch.no_grad():
            embedding = model(torch.from_numpy(clips), None)["embedding"]
            return embedding.numpy(), model.fc_audioset(embedding).numpy()

    def hear(heard: Mapping[str, Array]) -> Heard:
        features, logits = in_batches(listen, prepared(resampled(heard["waveform"], rate, hears)))
        return Heard(features, {"AudioSet": logits})

    return Network(f"PANNs Cnn14, {hears // 1000} kHz", "FD (PANNs)", hear, note=resampling(rate, hears))


def kept(where: str) -> list[Path]:
    """The weights at `where`, or those of both forms where the package keeps them: which is read, the rate decides."""
    names = [where] if where else [f"{FOLDER}/{file}" for file, _ in FORMS.values()]
    return [Path(name).expanduser() for name in names]


def prepared(clips: Array) -> Array:
    """Clips `[N, samples]` without their means, 32,000 samples at least."""
    centred = clips - clips.mean(axis=1, keepdims=True)
    return np.pad(centred, [(0, 0), (0, max(0, SHORTEST - clips.shape[1]))])
