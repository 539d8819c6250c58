"""x_t kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quaver.calib.states import open_states
from quaver.runtime.errors import ArtifactError

SHAPE = (5, 3, 2, 4)


def test_what_was_put_is_got_in_any_order(tmp_path: Path) -> None:
    x_t = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    with open_states(tmp_path / "new", SHAPE, limit=4 * x_t.size) as states:
        assert states is not None
        for first, last in ((3, 5), (0, 3)):
            for step in range(3):
                states.put(first, step, x_t[first:last, step])
        prompt, step = np.array([4, 0, 2, 0]), np.array([0, 2, 1, 2])
        np.testing.assert_array_equal(states.get(prompt, step), x_t[prompt, step])
        assert not list((tmp_path / "new").iterdir()), "the file has no name"


def test_more_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    with open_states(tmp_path, SHAPE, limit=4 * int(np.prod(SHAPE)) - 1) as states:
        assert states is None


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    from quaver.calib.states import States

    with full.open("r+b", buffering=0) as file, pytest.raises(ArtifactError, match="the disk is full"):
        States(file, full, SHAPE).put(0, 0, np.zeros((5, 2, 4), np.float32))
