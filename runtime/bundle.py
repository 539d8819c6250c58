"""The layout of a bundle: the only place with file names.

A bundle is the folder that a recipe turns into, `engines/<name>/`: everything from the prompts of the calibration to
the engine, and all that is needed to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quaver.runtime.error_law import Binding
    from quaver.runtime.sample import SamplingSettings


@dataclass(frozen=True)
class Bundle:
    """The files under `root`, by what they are."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The fully resolved recipe."""
        return self.root / "recipe.toml"

    @property
    def card(self) -> Path:
        """Family, latent shape, text embedding size, sampler defaults, digests of the components."""
        return self.root / "bundle.json"

    @property
    def lock(self) -> Path:
        """Held by the process that writes this bundle."""
        return self.root / ".lock"

    @property
    def prompts(self) -> Path:
        """Calibration and validation prompts."""
        return self.root / "prompts.jsonl"

    @property
    def prompts_picture(self) -> Path:
        """Which aspects each prompt covers."""
        return self.root / "prompts.svg"

    @property
    def transcript(self) -> Path:
        """Raw exchanges with a language model, replayable."""
        return self.root / "transcript.jsonl"

    @property
    def moments(self) -> Path:
        """Mean, variance and amax [L, S] per layer and timestep."""
        return self.root / "moments.safetensors"

    @property
    def samples(self) -> Path:
        """Calibration records: x_t [K, C, T, F], t [K], conditioning."""
        return self.root / "samples" / "records.safetensors"

    @property
    def rows(self) -> Path:
        """Conditioning rows of the model's samples, where they stand in for prompts."""
        return self.root / "samples" / "rows.safetensors"

    @property
    def given(self) -> Path:
        """Records that came with the model's samples; capture draws from them."""
        return self.root / "samples" / "given.safetensors"

    @property
    def ranges(self) -> Path:
        """amin and amax per activation edge."""
        return self.root / "ranges.safetensors"

    @property
    def sensitivity(self) -> Path:
        """What each layer alone costs at the output, and the rules proposed; only when asked for."""
        return self.root / "sensitivity.json"

    @property
    def weights(self) -> Path:
        """Learned weight codes and scales per layer; only when rounding is learned."""
        return self.root / "weights.safetensors"

    def weights_part(self, block: int) -> Path:
        """What one block learned, until all have."""
        return self.shards("reconstruct") / f"{block:04}.safetensors"

    def shards(self, stage: str) -> Path:
        """What a stage has done of its work, until it has done all: shards, blocks, takes."""
        return self.root / ".shards" / stage

    @property
    def float_unet(self) -> Path:
        """The traced denoiser in full precision: the reference."""
        return self.root / "unet.float.onnx"

    @property
    def probe(self) -> Path:
        """The feature network that judges what comes out; optional."""
        return self.component("probe")

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the text encoder."""
        return self.root / "tokenizer" / "tokenizer.json"

    @property
    def tokenizer_2(self) -> Path:
        """The tokenizer of the second text encoder, of models that have two."""
        return self.root / "tokenizer_2" / "tokenizer.json"

    @property
    def scheduler(self) -> Path:
        """The scheduler of the model, as diffusers writes it."""
        return self.root / "scheduler" / "scheduler_config.json"

    @property
    def report_json(self) -> Path:
        """The figures of the report."""
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        """The report as one page."""
        return self.root / "report.html"

    def component(self, name: str) -> Path:
        """A network beside the denoiser: text_encoder, vae_decoder, vocoder, probe."""
        return self.root / f"{name}.onnx"

    def qdq(self, target: str) -> Path:
        """The quantized denoiser for a target."""
        return self.root / f"unet.{target}.onnx"

    def sites(self, target: str) -> Path:
        """Every quantized edge of that graph, with its reason."""
        return self.root / f"unet.{target}.sites.json"

    def plan(self, target: str) -> Path:
        """The TensorRT plan for a target."""
        return self.root / f"unet.{target}.plan"

    def engine(self, target: str) -> Path:
        """What runs for a target: the plan of one of TensorRT's, the graph of any other."""
        return self.plan(target) if target.startswith("tensorrt") else self.qdq(target)

    def plan_sidecar(self, target: str) -> Path:
        """Versions, compute capabilities, kernel types and stamp of that plan."""
        return self.root / f"unet.{target}.plan.json"

    def error_stats(self, target: str, sampling: Binding | SamplingSettings | None = None) -> Path:
        """The joint Gaussian of output and error per timestep, of the engine for a target: sampled as the recipe says,
        or by another `sampling`, beside it.
        """
        other = f".{sampling_name(sampling)}" if sampling else ""
        return self.root / f"error_stats.{target}{other}.safetensors"

    def all_error_stats(self, target: str) -> list[Path]:
        """Those of a target that are there, the recipe's own first."""
        others = sorted(self.root.glob(f"error_stats.{target}.*.safetensors"))
        return [path for path in (self.error_stats(target), *others) if path.exists()]

    def media(self, name: str) -> Path:
        """Audio and pictures of the report."""
        return self.root / "media" / name


def sampling_name(sampling: Binding | SamplingSettings) -> str:
    """A way of sampling in a file's name and in messages: "ddim-50-eta1-g3", eta 0 unsaid."""
    eta = f"-eta{sampling.eta:g}" if sampling.eta else ""
    return f"{sampling.sampler}-{sampling.steps}{eta}-g{sampling.guidance:g}"
