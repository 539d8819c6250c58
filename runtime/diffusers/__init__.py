"""Drop-ins for diffusers: a bundle's engine and corrections inside an unchanged pipeline (docs/diffusers.md).

    pipe.unet = EngineUNet.from_bundle("engines/demo-w8a8")
    pipe.scheduler = corrected(pipe.scheduler, pipe.unet, correct="auto", guidance=3.0)

`pipeline(bundle)` is an `AudioLDMPipeline` all of whose networks are the bundle's.
"""

from quaver.runtime.diffusers.pipeline import pipeline
from quaver.runtime.diffusers.scheduler import corrected, corrected_class
from quaver.runtime.diffusers.unet import EngineUNet

__all__ = ["EngineUNet", "corrected", "corrected_class", "pipeline"]
