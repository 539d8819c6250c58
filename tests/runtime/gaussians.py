"""Error statistics of a joint Gaussian that is known."""

from __future__ import annotations

import numpy as np

from quaver.runtime.error_law import Binding, ErrorStats

TIMESTEPS = np.array([951, 501, 1])
BINDING = Binding(
    engine="sha256:" + "a" * 64,
    reference="sha256:" + "b" * 64,
    backend="onnxruntime",
    sampler="ddim",
    steps=3,
    eta=0.0,
    guidance=3.0,
    prediction="v_prediction",
    latent_shape=(8, 16, 16),
)


def gaussian_stats(mean, cov, *, channels=1):
    """The same mean [2] or [C, 2] and covariance [2, 2] or [C, 2, 2] at every timestep."""
    shape = (len(TIMESTEPS), channels)
    return ErrorStats(
        TIMESTEPS, np.broadcast_to(mean, (*shape, 2)), np.broadcast_to(cov, (*shape, 2, 2)), np.full(3, 100.0), BINDING
    )


def joint(rho, *, mu=(0.3, -0.05), s_q=0.9, s_D=0.2):
    cov = np.array([[s_q**2, rho * s_q * s_D], [rho * s_q * s_D, s_D**2]])
    return np.array(mu), cov
