"""Judge the embedded model: what the probe hears in generated clips, beside real clips of the same captions.

Real clips go through the same autoencoder and vocoder, so their loss cancels. Guidance and steps are chosen on the
validation captions; the test captions (combinations of instrument and register nobody trained on) are scored once:

    python -m quaver.demo.evaluate --split validation --guidance 1.5 2 3 4      to choose
    python -m quaver.demo.evaluate --split test --guidance 3                    writes demo/model/evaluation.json

The probe has heard the first half of each held-out split in training; clips are drawn from the second half.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import Tensor

from quaver.demo.components import MODEL, load_components
from quaver.demo.dataset import load_split
from quaver.demo.text_encoder import tokenize
from quaver.demo.world import ATTRIBUTES
from quaver.runtime.denoise import initial_noise
from quaver.runtime.measure.frechet import frechet_distance
from quaver.runtime.sample import sample_ddim
from quaver.runtime.schedule import load_schedule, to_eps

BATCH = 50
PROBE = "embedded probe"  # `runtime.measure.probe` calls it so


@dataclass(frozen=True)
class Heard:
    """What the probe hears: features [N, 64] and the class of each attribute [N, attributes]."""

    features: np.ndarray
    classes: np.ndarray

    def accuracy(self, labels: np.ndarray) -> dict[str, float]:
        """Share of clips heard as labelled, per attribute; labels [N, attributes]."""
        return dict(zip(ATTRIBUTES, (self.classes == labels).mean(axis=0).tolist(), strict=True))


@torch.no_grad()
def listen(parts: dict, latents: Tensor) -> tuple[Heard, np.ndarray]:
    """Decode latents [N, C, T, F] and let the probe hear them; also the waveforms [N, SAMPLES]."""
    waves, features, classes = [], [], []
    for chunk in latents.split(BATCH):
        wave = parts["vocoder"](parts["vae_decoder"](chunk)).clamp(-1, 1)
        found, *logits = parts["probe"](wave)
        waves.append(wave.numpy())
        features.append(found.numpy())
        classes.append(torch.stack([logit.argmax(1) for logit in logits], dim=1).numpy())
    return Heard(np.concatenate(features), np.concatenate(classes)), np.concatenate(waves)


@torch.no_grad()
def generate(model: Path, parts: dict, texts: list[str], *, guidance: float, steps: int) -> Tensor:
    """One latent per text [N, C, T, F], seed i for text i."""
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32).eval()
    schedule = load_schedule(model / "scheduler" / "scheduler_config.json")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer" / "tokenizer.json"))
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    empty, found = parts["text_encoder"](*tokenize(tokenizer, [""])), []
    for start in range(0, len(texts), BATCH):
        cond = parts["text_encoder"](*tokenize(tokenizer, texts[start : start + BATCH]))
        both = torch.cat([empty.expand_as(cond), cond])

        def denoise(x: Tensor, t: int, both: Tensor = both) -> Tensor:
            twice = torch.cat([x, x])
            uncond, cond = to_eps(unet(twice, t, None, class_labels=both).sample, twice, t, schedule).chunk(2)
            return uncond + guidance * (cond - uncond)

        x_T = torch.tensor(initial_noise(range(start, start + len(cond)), shape))
        found.append(sample_ddim(denoise, x_T, schedule, steps=steps))
    return torch.cat(found)


@torch.no_grad()
def encode(parts: dict, pictures: np.ndarray) -> Tensor:
    """Latents of real spectrograms [N, T, F]."""
    return parts["vae_decoder"].encode(torch.tensor(np.asarray(pictures, np.float32))[:, None])


def nearest(latents: Tensor, train: Tensor) -> np.ndarray:
    """Distance per element of each latent to its nearest training clip, root mean square [N]."""
    flat, size = latents.flatten(1), latents[0].numel()
    best = torch.stack([torch.cdist(flat, part.float().flatten(1)).amin(1) for part in train.split(2000)]).amin(0)
    return (best / size**0.5).numpy()


def write_reference(path: Path, rows: list[dict], labels: np.ndarray, real: Heard, latents: Tensor) -> None:
    """Write what a bundle is compared with where the dataset is not: real vocoded clips, as the probe hears them."""
    std = latents.std(dim=(0, 2, 3)).numpy()
    tensors = {"labels": labels.astype(np.int32), "features": real.features, "classes": real.classes.astype(np.int32)}
    meta = {"texts": json.dumps([row["text"] for row in rows]), "attributes": json.dumps(list(ATTRIBUTES))}
    note = f"the reference is {len(rows)} real clips of other captions, behind the model's own autoencoder and vocoder"
    meta |= {"network": PROBE, "note": note}
    save_file({**tensors, "latent_std": np.append(std, latents.std().numpy()).astype(np.float32)}, path, meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clips", type=int, default=500)
    args = parser.parse_args()
    parts = load_components(args.model)
    rows, pictures, _ = load_split(args.data, args.split)
    half = slice(len(rows) // 2, len(rows) // 2 + args.clips)
    rows, other = rows[half], np.array(pictures[: args.clips])
    labels = np.array([row["labels"] for row in rows])
    real_latents = encode(parts, pictures[half])
    real, _ = listen(parts, real_latents)
    floor = frechet_distance(real.features, listen(parts, encode(parts, other))[0].features)
    report = {
        "split": args.split,
        "clips": len(rows),
        "real": real.accuracy(labels),
        "frechet_floor": floor,
        "runs": [],
    }
    if args.split == "test":
        write_reference(args.model / "reference.safetensors", rows, labels, real, real_latents)
    train = torch.load(args.data / "train.latents.pt", weights_only=True)[0]
    report["nearest_real"] = float(np.median(nearest(real_latents, train)))
    print(json.dumps(report), flush=True)
    for guidance in args.guidance:
        started = time.monotonic()
        latents = generate(args.model, parts, [row["text"] for row in rows], guidance=guidance, steps=args.steps)
        heard, _ = listen(parts, latents)
        run = {
            "guidance": guidance,
            "steps": args.steps,
            "accuracy": heard.accuracy(labels),
            "latent_std": float(latents.std()),
            "latent_std_real": float(real_latents.std()),
            "frechet": frechet_distance(real.features, heard.features),
            "nearest": float(np.median(nearest(latents, train))),
            "seconds": time.monotonic() - started,
        }
        report["runs"].append(run)
        print(json.dumps(run), flush=True)
    (args.model / f"evaluation.{args.split}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
