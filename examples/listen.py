"""The same prompt, seed and noise through the float and the INT8 engine of a bundle, as two WAV files.

python examples/listen.py engines/demo-w8a8 "a loud marimba arpeggio with reverb"
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from quaver.runtime.audio import write_wav
from quaver.runtime.generate import generate


def main(bundle: str, prompt: str) -> None:
    takes = {}
    for engine in ("float", "ort-cpu"):
        (takes[engine],) = generate(bundle, [prompt], [0], engine_file=engine)
        write_wav(Path(f"{engine}.wav"), takes[engine].waveforms[0], 16_000)
    a, b = (takes[engine].latents for engine in ("float", "ort-cpu"))
    print(f"float.wav, ort-cpu.wav; relative error of the latents {np.linalg.norm(b - a) / np.linalg.norm(a):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
