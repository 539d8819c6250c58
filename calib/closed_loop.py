"""Statistics of a corrected engine's own trajectories, fitted again until its finished latents come no closer.

    law_0        fitted on the float model's trajectories
    error_i      of finished latents against the float model's, same noise, with law_i in the loop
    law_(i+1)    fitted on the trajectories that law_i led

A law of the float model's x_t has never seen what the engine's errors do to x_t; this one has. Only a law that was in
the loop has an error, so the one fitted last is never the one kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

Law = TypeVar("Law")


def close(first: Law, again: Callable[[Law, int], tuple[Law, float]], rounds: int) -> tuple[Law, list[float]]:
    """The law of least error, and the error of each that was tried; ends with the first that is no better.

    `again` puts a law in the loop, with the number of the round from 1, and gives the law fitted there and the error.
    """
    laws, errors = [first], list[float]()
    while len(errors) < rounds:
        following, error = again(laws[-1], len(errors) + 1)
        errors.append(error if math.isfinite(error) else math.inf)
        laws.append(following)
        if errors[-1] > min(errors):
            break
    return laws[errors.index(min(errors))], errors
