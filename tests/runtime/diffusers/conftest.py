"""Statistics for the tiny bundle: laws at random, of what it runs."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp
from quaver.runtime.error_law import ErrorStats, Local, save_stats
from quaver.runtime.generate import binding
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.session import open_bundle


@pytest.fixture
def fitted(tiny_bundle):
    """fitted(settings): the tiny bundle with statistics of that way of sampling."""

    def fit(settings: SamplingSettings):
        draw = np.random.default_rng(5)
        with open_bundle(tiny_bundle, threads=1) as session:
            at, bound = visited(settings, session.schedule), binding(session, settings)
        S, C = len(at), bound.latent_shape[0]
        spread = draw.standard_normal((S, C, 2, 2)) * [1.0, 0.3]
        cov = np.swapaxes(spread, -1, -2) @ spread
        laws = (
            Local(0.02 * draw.standard_normal((S, C, 2 * C, 3, 3)), 0.02 * draw.standard_normal((S, C)), cov[..., 1, 1])
            for _ in range(2)
        )
        mean = 0.05 * draw.standard_normal((S, C, 2))
        stats = ErrorStats(at, mean, cov, np.full(S, 100.0), bound, *laws)
        save_stats(tiny_bundle.error_stats("ort-cpu"), stats, Stamp("stats"))
        return tiny_bundle

    return fit
