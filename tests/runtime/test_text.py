"""Prompts and token ids."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quaver.runtime.errors import ArtifactError, QuaverError
from quaver.runtime.text import MAX_CHARACTERS, check_prompts, load_tokenizer, shown, tokenize


def test_ids_do_not_depend_on_the_neighbours(made_bundle):
    tokenizer = load_tokenizer(made_bundle.tokenizer)
    ids, mask = tokenize(tokenizer, ["a soft cello", "a"])
    alone, _ = tokenize(tokenizer, ["a"])
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [[2, 3, 4, 6, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(ids[1:], alone)


def test_the_unconditional_prompt_has_its_special_tokens(made_bundle):
    ids, mask = tokenize(load_tokenizer(made_bundle.tokenizer), [""])
    assert ids[0, 0] == 2
    assert mask.sum() == 1


def test_a_tokenizer_without_a_limit_pads_to_the_longest(made_bundle, tmp_path):
    config = json.loads(made_bundle.tokenizer.read_text()) | {"truncation": None, "padding": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    ids, _ = tokenize(load_tokenizer(tmp_path / "tokenizer.json"), ["a " * 20, "a"])
    assert ids.shape == (2, 21)


def test_what_is_no_tokenizer_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"is not a tokenizer.*quaver trace"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_prompt_may_be_as_long_as_the_limit_and_no_longer():
    check_prompts(["x" * MAX_CHARACTERS])
    with pytest.raises(QuaverError, match="at most 2000"):
        check_prompts(["x" * (MAX_CHARACTERS + 1)])


def test_prompts_are_shown_short_and_on_one_line():
    assert shown("a\nnote") == "'a note'"
    assert shown("x" * 100) == "'" + "x" * 39 + "…'"
