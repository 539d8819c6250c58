"""The vocoder: a small network from 128 bands to the 513 bins they summarise, then Griffin-Lim for the phase.

Griffin and Lim (1984) alternate between the magnitudes that are wanted and the nearest spectrogram that is one:
c_n = P_M(P_S(c_{n-1})), here with the momentum of Perraudin et al. (2013), t_n = c_n + 0.99 (c_n - c_{n-1}). The
phase starts where a steady tone at each bin's centre would have it, so the same bands always give the same sound.
Transforms are matrix products, so the whole vocoder exports to ONNX. The network is trained on spectrograms that went
through the autoencoder and so mends part of its loss too: `python -m quaver.demo.vocoder --data build/demo`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quaver.demo.autoencoder import load_autoencoder
from quaver.demo.dataset import load_split
from quaver.demo.spectrogram import BANDS, CEILING_DB, FLOOR_DB, FRAMES, HOP, N_FFT, centres, magnitude, to_unit, window
from quaver.demo.weights import load_weights, save_weights

BINS = N_FFT // 2 + 1
OVERLAP = N_FFT // HOP
WIDTH = 256
ITERATIONS = 16
MOMENTUM = 0.99


def interpolation() -> np.ndarray:
    """Weights [BINS, BANDS] of linear interpolation between band centres, the network's starting point."""
    middle, eye = centres()[1:-1], np.eye(BANDS)
    return np.stack([np.interp(np.arange(BINS), middle, eye[b]) for b in range(BANDS)], axis=1)


class Inverter(nn.Module):
    """Bands to bins on the log scale: interpolation plus a residual that sees five frames to each side."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.tensor(interpolation(), dtype=torch.float32)[:, :, None])
        self.enter = nn.Conv1d(BANDS, WIDTH, 3, padding=1)
        self.middle = nn.Conv1d(WIDTH, WIDTH, 5, padding=4, dilation=2)
        self.leave = nn.Conv1d(WIDTH, BINS, 1)
        nn.init.zeros_(self.leave.weight), nn.init.zeros_(self.leave.bias)

    def forward(self, bands: Tensor) -> Tensor:
        """Bands [B, T, BANDS] in [-1, 1] -> bins [B, BINS, T] on the same scale."""
        x = bands.transpose(1, 2)
        hidden = F.gelu(self.enter(x))
        hidden = hidden + F.gelu(self.middle(hidden))
        return F.conv1d(x, self.spread) + self.leave(hidden)


def fourier_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Windowed analysis [N_FFT, 2 BINS] (real, then imaginary) and synthesis [2 BINS, N_FFT] matrices of the STFT."""
    angle = 2 * np.pi * np.outer(np.arange(BINS), np.arange(N_FFT)) / N_FFT
    analysis = np.concatenate([np.cos(angle), -np.sin(angle)]) * window()
    weight = np.full(BINS, 2.0 / N_FFT)
    weight[[0, -1]] = 1.0 / N_FFT
    return analysis.T.copy(), analysis * np.concatenate([weight, weight])[:, None]


def _overlap_gain() -> np.ndarray:
    """Reciprocal of the summed squared windows, [FRAMES + OVERLAP - 1, HOP]."""
    squares = np.zeros((FRAMES + OVERLAP - 1, HOP))
    for part, piece in enumerate((window() ** 2).reshape(OVERLAP, HOP)):
        squares[part : part + FRAMES] += piece
    return 1 / np.maximum(squares, 1e-3)


def _frame_index() -> np.ndarray:
    """Sample of the signal at each place of each frame [FRAMES, N_FFT]."""
    return HOP * np.arange(FRAMES)[:, None] + np.arange(N_FFT)


def _piece_index() -> np.ndarray:
    """Which frame's piece falls on each hop [FRAMES + OVERLAP - 1, OVERLAP], of pieces with OVERLAP - 1 rows of zeros
    on both sides, flattened."""
    hop, part = np.arange(FRAMES + OVERLAP - 1)[:, None], np.arange(OVERLAP)
    return (hop - part + OVERLAP - 1) * OVERLAP + part


class Vocoder(nn.Module):
    """Spectrogram to waveform; a signal is [B, LENGTH], its spectrum [B, FRAMES, 2, BINS] (real, imaginary)."""

    def __init__(self) -> None:
        super().__init__()
        self.inverter = Inverter()
        phase = 2 * np.pi * np.outer(np.arange(FRAMES), np.arange(BINS)) * HOP / N_FFT
        analysis, synthesis = fourier_kernels()
        start = np.stack([np.cos(phase), np.sin(phase)], axis=1)
        constants = {"analysis": analysis, "synthesis": synthesis, "gain": _overlap_gain().ravel(), "start": start}
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        for name, value in {"frames": _frame_index(), "pieces": _piece_index()}.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def analyse(self, signal: Tensor) -> Tensor:
        """STFT of a signal."""
        return (signal[:, self.frames] @ self.analysis).unflatten(2, (2, BINS))

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Inverse STFT by weighted overlap-add."""
        frames = F.pad(spectrum.flatten(2) @ self.synthesis, (0, 0, OVERLAP - 1, OVERLAP - 1))
        pieces = frames.reshape(frames.shape[0], -1, HOP)[:, self.pieces]
        return pieces.sum(dim=2).flatten(1) * self.gain

    def forward(self, mel: Tensor) -> Tensor:
        """Spectrogram [B, 1, FRAMES, BANDS] in [-1, 1] -> waveform [B, HOP * FRAMES] at 16 kHz."""
        unit = self.inverter(mel[:, 0]).clamp(-1, 1).transpose(1, 2)
        decibels = (unit + 1) / 2 * (CEILING_DB - FLOOR_DB) + FLOOR_DB
        target = ((10.0 ** (decibels / 20) - 10.0 ** (FLOOR_DB / 20)).clamp_min(0) * (N_FFT / 4))[:, :, None]
        previous = self.analyse(self.synthesise(target * self.start))
        moved = previous
        for _ in range(ITERATIONS - 1):
            consistent = self.analyse(self.synthesise(target * _direction(moved)))
            moved = consistent + MOMENTUM * (consistent - previous)
            previous = consistent
        signal = self.synthesise(target * _direction(moved))
        return signal[:, N_FFT // 2 : N_FFT // 2 + HOP * FRAMES]


def _direction(spectrum: Tensor) -> Tensor:
    """Unit phasors of a spectrum [B, FRAMES, 2, BINS]; 0 where it is 0.

    A floor, not an added epsilon: graph optimizers take a sum with 1e-12 for one with 0, and silence becomes NaN.
    """
    return spectrum / spectrum.square().sum(dim=2, keepdim=True).sqrt().clamp_min(1e-6)


def train(data: Path, model: Path, *, steps: int, seed: int, batch: int = 16) -> tuple[Inverter, dict]:
    """Regress log magnitudes of clips on their decoded spectrograms, L1; returns the network and its errors."""
    rows, pictures, waves = load_split(data, "train")
    autoencoder = load_autoencoder(model / "vae")
    torch.manual_seed(seed)
    rng, inverter = np.random.default_rng(seed), Inverter()
    optimizer = torch.optim.AdamW(inverter.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    started, recent, errors = time.monotonic(), [], []
    for step in range(steps):
        pick = rng.integers(len(rows), size=batch)
        bins = np.stack([to_unit(magnitude(waves[i] / 32767.0)).T for i in pick])
        with torch.no_grad():
            clean = torch.tensor(pictures[np.sort(pick)][np.argsort(np.argsort(pick))].astype(np.float32))[:, None]
            decoded = autoencoder(autoencoder.encode(clean))
        loss = (inverter(decoded[:, 0]) - torch.tensor(bins, dtype=torch.float32)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            errors.append(float(np.mean(recent[-100:])))
            print(f"vocoder step {step + 1}/{steps} L1 {errors[-1]:.4f} {time.monotonic() - started:.0f} s", flush=True)
    return inverter, {"steps": steps, "l1": errors[-1], "l1_interpolation": recent[0]}


def load_vocoder(folder: Path) -> Vocoder:
    """Load the vocoder of a model folder."""
    vocoder = Vocoder()
    load_weights(vocoder.inverter, folder)
    return vocoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    inverter, figures = train(args.data, args.model, steps=args.steps, seed=0)
    config = {"_class_name": "Vocoder", "sampling_rate": 16_000, "model_in_dim": BANDS, "iterations": ITERATIONS}
    save_weights(inverter, args.model / "vocoder", {**config, **figures})


if __name__ == "__main__":
    main()
