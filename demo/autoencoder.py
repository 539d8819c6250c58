"""The autoencoder: a linear VAE over log-spectrogram patches, at the optimum of its evidence lower bound.

A VAE with linear encoder and decoder, x ~ N(W z + mu, s^2 I), z ~ N(0, I), has probabilistic PCA as its optimum
(Tipping and Bishop 1999; Lucas et al. 2019), so it is fitted in closed form: the columns of W span the first C
principal directions of 8 x 8 patches. Channel c is scaled by lambda_c^(-1/4), half way to white: loud channels keep
more variance than faint ones, as in the latents of a trained VAE, and the denoiser learns coarse before fine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quaver.demo.dataset import load_split
from quaver.demo.weights import load_weights, save_weights

PATCH = 8
CHANNELS = 8


class PatchAutoencoder(nn.Module):
    """Encoder and decoder of the linear VAE; `scaling_factor` brings latents to unit standard deviation."""

    def __init__(self, channels: int = CHANNELS, patch: int = PATCH) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, channels, patch, stride=patch)
        self.decoder = nn.ConvTranspose2d(channels, 1, patch, stride=patch)
        self.register_buffer("scaling_factor", torch.ones(()))

    def encode(self, spectrogram: Tensor) -> Tensor:
        """Spectrogram [B, 1, T, F] in [-1, 1] -> scaled latents [B, C, T/8, F/8]."""
        return self.encoder(spectrogram) * self.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, T/8, F/8] -> spectrogram [B, 1, T, F] in [-1, 1]."""
        return self.decoder(latents / self.scaling_factor).clamp(-1, 1)


def principal_directions(patches: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances [C] and directions [C, P] of centred patches [N, P], largest variance first."""
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    return values[::-1][:channels].copy(), vectors[:, ::-1][:, :channels].T.copy()


def fit_autoencoder(spectrograms: np.ndarray, channels: int = CHANNELS) -> PatchAutoencoder:
    """Fit the linear VAE to spectrograms [N, T, F] in closed form; mu is one number, the mean of all pixels."""
    n, frames, bands = spectrograms.shape
    mean = float(spectrograms.mean(dtype=np.float64))
    grid = spectrograms.astype(np.float64).reshape(n, frames // PATCH, PATCH, bands // PATCH, PATCH) - mean
    values, directions = principal_directions(grid.transpose(0, 1, 3, 2, 4).reshape(-1, PATCH * PATCH), channels)
    kernel = torch.tensor(directions.reshape(channels, 1, PATCH, PATCH), dtype=torch.float32)
    gain = torch.tensor(values**-0.25, dtype=torch.float32)[:, None, None, None]
    model = PatchAutoencoder(channels)
    with torch.no_grad():
        model.encoder.weight.copy_(kernel * gain)
        model.encoder.bias.copy_(-mean * model.encoder.weight.sum(dim=(1, 2, 3)))
        model.decoder.weight.copy_(kernel / gain)
        model.decoder.bias.fill_(mean)
        latents = model.encoder(torch.tensor(spectrograms, dtype=torch.float32)[:, None])
        model.scaling_factor.fill_(1 / float(latents.std()))
    return model


def load_autoencoder(folder: Path) -> PatchAutoencoder:
    """Load the autoencoder of a model folder."""
    return load_weights(PatchAutoencoder(), folder)


def save_autoencoder(model: PatchAutoencoder, folder: Path) -> None:
    """Write the autoencoder and its configuration."""
    save_weights(model, folder, {"_class_name": "PatchAutoencoder", "latent_channels": CHANNELS, "patch": PATCH})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    args = parser.parse_args()
    _, spectrograms, _ = load_split(args.data, "train")
    save_autoencoder(fit_autoencoder(np.array(spectrograms[:2000])), args.model / "vae")


if __name__ == "__main__":
    main()
