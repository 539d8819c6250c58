"""Rows of samples in the place of prompts."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.family import Parts, find_family
from quaver.runtime.guide import guide
from quaver.runtime.latents import write_latents
from quaver.runtime.rows import embed, fed_by_rows, row_name, row_number

ROWS = {"context": np.arange(12.0).reshape(4, 3), "mask": np.eye(4)}
PARTS = Parts({"rows": 4}, {}, rows=ROWS, uncond={"context": np.zeros((1, 3))})


def test_a_row_is_found_by_its_name():
    assert [row_number(row_name(i), 4) for i in range(4)] == [0, 1, 2, 3]
    found = embed(PARTS, ["row 2", "row 0", "row 2"])
    np.testing.assert_array_equal(found["context"], ROWS["context"][[2, 0, 2]])
    np.testing.assert_array_equal(found["mask"], np.eye(4)[[2, 0, 2]])
    np.testing.assert_array_equal(embed(PARTS, [""])["context"], np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["row 4", "row -1", "a soft cello", "row", "3"])
def test_what_is_no_row_is_refused_with_those_there_are(name):
    with pytest.raises(QuaverError, match=r"is none: --row 0 to --row 3"):
        embed(PARTS, [name])


def test_a_family_fed_by_rows_needs_no_parts_and_ends_at_latents():
    family = fed_by_rows(find_family("audioldm"))
    assert (family.components, family.media) == ((), "latents")
    assert family.decode(PARTS, np.zeros((1, 2, 4, 4))) == {}
    fed = family.feeds(np.zeros((1, 2, 4, 4)), np.zeros(1), {"class_labels": np.ones((1, 6))})
    assert list(fed) == ["sample", "timestep", "class_labels"]


def test_guidance_needs_the_unconditional_row_of_every_input():
    cond = {"context": np.ones((2, 3)), "mask": np.ones((2, 4))}
    with pytest.raises(RecipeError, match=r"guidance 2 needs an unconditional row of 'mask': add uncond_mask"):
        guide(lambda x, t, rows: x, cond, {"context": np.zeros((1, 3))}, 2.0)


def test_without_conditioning_there_is_nothing_to_guide():
    seen = []
    guide(lambda x, t, rows: seen.append(len(x)) or x, {}, {}, 3.0)(np.zeros((2, 1, 1, 1)), 5)
    assert seen == [2]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_latents_are_written_whole_and_as_float32(tmp_path, suffix):
    from safetensors.numpy import load_file

    values = np.random.default_rng(0).standard_normal((2, 3, 4))
    path = write_latents(tmp_path / f"x{suffix}", values)
    found = np.load(path, allow_pickle=False) if suffix == ".npy" else load_file(path)["latents"]
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
