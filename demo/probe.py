"""The probe: a small convolutional network that hears instrument family, register, texture, loudness and reverb.

It stands where VGGish or PANNs stand in published audio metrics: its 64 features give Frechet distances, its heads
say whether a generated clip is what its caption asks for. It is trained on recorded clips, half of them after the
autoencoder, with the whole world's combinations (also those the U-Net never hears: the probe judges, it must know
them; the clips it is scored on are other clips). `python -m quaver.demo.probe --data build/demo`.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quaver.demo.autoencoder import load_autoencoder
from quaver.demo.dataset import load_split
from quaver.demo.spectrogram import CEILING_DB, FLOOR_DB, FRAMES, HOP, N_FFT, filterbank
from quaver.demo.vocoder import fourier_kernels
from quaver.demo.weights import load_weights, save_weights
from quaver.demo.world import ATTRIBUTES, vocabulary

FEATURES = 64
WIDTHS = (1, 24, 48, 96, 128)
BATCH = 64


class Probe(nn.Module):
    """Spectrogram to features and one set of logits per attribute."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for _, b in pairs)
        self.project = nn.Linear(2 * WIDTHS[-1] * 8, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(names)) for name, names in ATTRIBUTES.items()})

    def forward(self, mel: Tensor) -> tuple[Tensor, ...]:
        """Spectrogram [B, 1, 128, 128] -> features [B, 64], then logits [B, classes] in the order of ATTRIBUTES.

        Time is pooled (mean and maximum); frequency is not, for register lives there.
        """
        x = mel
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        pooled = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)
        features = self.project(F.dropout(pooled.flatten(1), 0.2, self.training))
        return features, *(head(F.silu(features)) for head in self.heads.values())


class Listener(nn.Module):
    """The probe behind its ear: waveform to log-spectrogram (as `spectrogram.log_spectrogram`) to the probe."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe
        analysis, _ = fourier_kernels()
        self.register_buffer("analysis", torch.tensor(analysis, dtype=torch.float32), persistent=False)
        self.register_buffer("bank", torch.tensor(filterbank().T, dtype=torch.float32), persistent=False)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Waveform [B, SAMPLES] in [-1, 1] -> spectrogram [B, 1, FRAMES, BANDS] in [-1, 1]."""
        padded = F.pad(waveform, (N_FFT // 2, N_FFT // 2 - HOP))
        hops = padded.reshape(-1, FRAMES + N_FFT // HOP - 1, HOP)
        spectrum = torch.cat([hops[:, part : part + FRAMES] for part in range(N_FFT // HOP)], dim=2) @ self.analysis
        real, imaginary = spectrum.chunk(2, dim=2)
        amplitude = (real * real + imaginary * imaginary).sqrt() @ self.bank / (N_FFT / 4)
        decibels = 20 * amplitude.clamp_min(10 ** (FLOOR_DB / 20)).log10()
        unit = ((decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB)).clamp(0, 1)
        return (unit * 2 - 1)[:, None]

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """Waveform [B, SAMPLES] at 16 kHz -> features [B, 64], then logits in the order of ATTRIBUTES."""
        outputs: tuple[Tensor, ...] = self.probe(self.spectrogram(waveform))
        return outputs


def _batches(n: int, epochs: int, rng: np.random.Generator) -> np.ndarray:
    order = np.concatenate([rng.permutation(n) for _ in range(epochs)])
    return order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)


def train(data: Path, model: Path, *, epochs: int, seed: int) -> Probe:
    """Train on the train split and the first half of the held-out ones; the second halves score it."""
    splits = {split: load_split(data, split) for split in ("train", "validation", "test")}
    pictures = np.concatenate([s[1][: _seen(name, len(s[0]))] for name, s in splits.items()])
    labels = np.concatenate([[r["labels"] for r in s[0][: _seen(name, len(s[0]))]] for name, s in splits.items()])
    autoencoder = load_autoencoder(model / "vae")
    torch.manual_seed(seed)
    rng, probe = np.random.default_rng(seed), Probe().train()
    batches = _batches(len(pictures), epochs, rng)
    optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(batches))
    started = time.monotonic()
    for step, pick in enumerate(batches):
        x = torch.tensor(pictures[pick].astype(np.float32))[:, None]
        with torch.no_grad():
            x[::2] = autoencoder(autoencoder.encode(x[::2]))
        _, *logits = probe(x + 0.02 * torch.randn_like(x))
        target = torch.tensor(labels[pick])
        loss = torch.stack([F.cross_entropy(logit, target[:, i]) for i, logit in enumerate(logits)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"probe step {step}/{len(batches)} loss {loss.item():.3f} {seconds:.0f} s", flush=True)
    return probe.eval()


def _seen(split: str, n: int) -> int:
    """How many clips of a split the probe trains on."""
    return n if split == "train" else n // 2


@torch.no_grad()
def accuracy(probe: Probe, pictures: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of clips whose attribute the probe hears as labelled; pictures [N, T, F], labels [N, attributes]."""
    _, *logits = probe(torch.tensor(np.asarray(pictures, np.float32))[:, None])
    hits = [(logit.argmax(1).numpy() == labels[:, i]).mean() for i, logit in enumerate(logits)]
    return dict(zip(ATTRIBUTES, map(float, hits), strict=True))


def load_probe(folder: Path) -> Probe:
    """Load the probe of a model folder."""
    return load_weights(Probe(), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    probe = train(args.data, args.model, epochs=args.epochs, seed=0)
    scores = {}
    for split in ("validation", "test"):
        rows, pictures, _ = load_split(args.data, split)
        half = len(rows) // 2
        scores[split] = accuracy(probe, pictures[half:], np.array([row["labels"] for row in rows[half:]]))
    print(scores)
    config = {"_class_name": "Probe", "attributes": {k: list(v) for k, v in ATTRIBUTES.items()}, "accuracy": scores}
    config["words"] = vocabulary()
    save_weights(probe, args.model / "probe", {**config, "epochs": args.epochs})


if __name__ == "__main__":
    main()
