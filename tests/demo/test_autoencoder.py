"""The linear VAE against an independent principal component analysis."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def test_the_reconstruction_is_the_projection_on_the_first_principal_directions():
    from quaver.demo.autoencoder import fit_autoencoder

    rng = np.random.default_rng(0)
    pictures = np.clip(rng.standard_normal((6, 32, 32)) * 0.1 + rng.uniform(-0.5, 0.5, (6, 1, 1)), -0.9, 0.9)
    model = fit_autoencoder(pictures, channels=5)
    with torch.no_grad():
        latents = model.encode(torch.tensor(pictures, dtype=torch.float32)[:, None])
        found = model(latents)[:, 0].numpy()
    patches = (pictures - pictures.mean()).reshape(6, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)
    _, _, directions = np.linalg.svd(patches, full_matrices=False)
    expected = patches @ directions[:5].T @ directions[:5] + pictures.mean()
    again = found.reshape(6, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)
    assert np.abs(again - expected).max() < 1e-4
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)
