"""Prompts and token ids."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from quaver.runtime.errors import ArtifactError, QuaverError
from quaver.runtime.text import MAX_CHARACTERS, check_prompts, load_tokenizer, read_prompts, shown, tokenize


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
    check_prompts(["x" * MAX_CHARACTERS, "a low note, " * 1000])  # ten kilobytes of text are a prompt
    with pytest.raises(QuaverError, match="at most 20000"):
        check_prompts(["x" * (MAX_CHARACTERS + 1)])


def test_a_file_has_a_prompt_a_line_and_empty_lines_are_none(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa low note\r\n\n  caf\u00e9 piano \n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["a low note", "caf\u00e9 piano"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"\xff\xfe\x00", "it is not UTF-8"), (b" \n", "has no prompts: write one")],
)
def test_a_file_without_prompts_is_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(QuaverError, match=says):
        read_prompts(tmp_path / "p.txt")


def test_a_cut_prompt_is_told_once_in_all_batches_with_the_token_and_what_is_lost(made_bundle, caplog):
    with caplog.at_level(logging.WARNING, logger="quaver"):
        for _ in range(3):  # passes, each with a tokenizer of its own
            tokenize(load_tokenizer(made_bundle.tokenizer), ["a low " * 4 + "cello drum", "a"] * 3)
    assert [record.getMessage() for record in caplog.records] == [
        "prompt 'a low a low a low a low cello drum' is cut after token 8; what follows is not heard: 'low cello drum'"
    ]


def test_prompts_are_shown_short_and_on_one_line():
    assert shown("a\nnote") == "'a note'"
    assert shown("x" * 100) == "'" + "x" * 39 + "…'"
