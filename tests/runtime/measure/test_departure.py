from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import departure


def test_the_spread_is_the_quantile_of_relative_distances_between_seeds():
    states = np.array([[[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]])  # one step, norms 5, 0, 10 on one line
    states[0, 1] = [0.0, 5.0]
    pairs = [
        np.linalg.norm(states[0, i] - states[0, j]) / np.linalg.norm(states[0, j])
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    assert departure.seed_spread(states, list("aaa"), quantile=0.5) == pytest.approx([np.median(pairs)])
    assert departure.seed_spread(states, list("aaa"), quantile=0.0) == pytest.approx([min(pairs)])


def test_only_seeds_of_one_prompt_are_compared_when_prompts_are_given():
    states = np.array([[[1.0], [2.0], [100.0]]])
    found = departure.seed_spread(states, ("a", "a", "b"), quantile=1.0)
    assert found == pytest.approx([1.0])  # |2 - 1| / 1
    with pytest.raises(ValueError, match="draw a prompt with two seeds or more"):
        departure.seed_spread(states, ("a", "b", "c"))


def test_white_trajectories_are_root_two_apart():
    states = np.random.default_rng(0).normal(size=(2, 6, 20_000))
    assert departure.seed_spread(states, ["a"] * 6, quantile=0.5) == pytest.approx([np.sqrt(2)] * 2, rel=0.02)


def test_the_first_step_beyond_the_spread_is_where_a_trajectory_leaves():
    spread = np.array([1.0, 0.5, 0.5, 0.5])
    assert departure.leaves(np.array([0.9, 0.5, 0.6, 0.4]), spread) == 2
    assert departure.leaves(np.array([0.9, 0.5, 0.5, 0.5]), spread) is None
    assert departure.leaves(np.array([[0.9, 0.9], [0.2, 1.0], [0, 0], [0, 0]]), spread) == 1  # the mean decides
