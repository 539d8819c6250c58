"""The INT8 engine and a correction of a bundle inside an unchanged `diffusers.AudioLDMPipeline`.

    python examples/diffusers_pipeline.py engines/demo-w8a8 "a soft low cello note" cello.wav

What it writes is what `quaver generate engines/demo-w8a8 --prompt ... --seed 1 --correct auto` does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from quaver.runtime.audio import write_wav
from quaver.runtime.denoise import initial_noise
from quaver.runtime.diffusers import corrected, pipeline


def main(bundle: str, prompt: str, out: str, correct: str = "auto") -> None:
    pipe = pipeline(bundle)
    pipe.scheduler = corrected(pipe.scheduler, pipe.unet, correct=correct, guidance=2.0, steps=20)
    x_T = torch.from_numpy(initial_noise([1], pipe.unet.latent_shape))
    audio = pipe(prompt, num_inference_steps=20, guidance_scale=2.0, latents=x_T).audios[0]
    write_wav(Path(out), audio, pipe.vocoder.config.sampling_rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
