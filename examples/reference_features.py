"""What a feature network hears in your real clips, as a file that `validate.reference` takes in their place.

    python examples/reference_features.py engines/demo-w8a8 clips/ probe clips.safetensors
    quaver validate engines/demo-w8a8.toml --set validate.reference=clips.safetensors

The clips are WAV files at the model's rate; of each as much is heard as one of the model's own lasts. Another network
than the bundle's probe (vggish, panns, clap, onnx:FILE) is also named in `validate.networks`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quaver.runtime.bundle import Bundle
from quaver.runtime.family import read_card
from quaver.runtime.generate import generate
from quaver.runtime.measure.features import open_network
from quaver.runtime.measure.reference import load_clips, save_features


def main(bundle: str, clips: str, network: str, out: str) -> None:
    root = Bundle(Path(bundle))
    rate = read_card(root)["sample_rate"]
    (batch,) = generate(root, ["a sound"], [0], engine_file="float", steps=1)  # for its length
    ears = open_network(network, rate=rate, probe=root.probe)
    found = load_clips(Path(clips), rate=rate, samples=batch.waveforms.shape[1])
    features = ears.hear({"waveform": found.waveforms}).features
    print(save_features(Path(out), features, network=ears.name), features.shape, *found.notes, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
