"""The taxonomy file: the packaged default and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from quaver.calib.prompts.aspects import load_aspects
from quaver.runtime.errors import RecipeError

ONE = '[[aspect]]\nname = "hum"\nkind = "modality"\nwords = ["hum*"]\n'


def test_the_default_has_the_papers_modalities_and_aspects() -> None:
    kinds = [aspect.kind for aspect in load_aspects()]
    assert (kinds.count("modality"), kinds.count("aspect")) == (7, 9)


def test_a_users_set_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ONE)
    assert [aspect.name for aspect in load_aspects(path)] == ["hum"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ONE + ONE, r"names the aspect 'hum' twice: remove one"),
        (ONE.replace('["hum*"]', '["hum", "HUM"]'), r"'hum' lists the word 'hum' twice"),
        ("", r"names no aspect: add \[\[aspect\]\]"),
        (ONE.replace("words", "wrods"), r"unknown key in \[aspect\[0\]\] 'wrods'; did you mean 'words'\?"),
        (ONE.replace("aspect", "aspects"), r"unknown section 'aspects'; did you mean 'aspect'\?"),
        (ONE.replace("[[aspect]]", "[aspect]"), r"aspect is a table .*, expected a list"),
        ("aspect = 3", r"prompts\.aspects .*mine\.toml: aspect is an integer \(3\), expected a list"),
        ('aspect = ["hum"]', r"aspect\[0\] is a string \(\"hum\"\), expected a table"),
        (ONE.replace('["hum*"]', '"hum*"'), r"aspect\[0\]\.words is a string \(\"hum\*\"\), expected a list"),
        (ONE.replace('["hum*"]', "[1]"), r"aspect\[0\]\.words\[0\] is an integer \(1\), expected a string"),
        (ONE.replace('"hum"', '["hum"]'), r"aspect\[0\]\.name is a list .*, expected a string"),
        (ONE + "phrases = 3", r"aspect\[0\]\.phrases is an integer \(3\), expected a list"),
        ('[[aspect]]\nwords = ["hum"]', r"aspect\[0\]\.name is missing: add it"),
        (ONE + ONE.replace('"hum"', '"Hum "'), r"names the aspect 'hum' twice"),
        (ONE.replace('["hum*"]', "[]"), r"needs a name and a list of words"),
        (ONE.replace("modality", "mode"), r"unknown aspect\[0\]\.kind 'mode'; did you mean 'modality'\?"),
        (ONE + "threshold = -1", r"threshold -1: use a number from 0, or leave it out"),
        (ONE + 'threshold = "high"', r"threshold is a string \(\"high\"\), expected a number"),
        (ONE + "threshold = nan", r"threshold nan: use a number from 0, or leave it out"),
        ("[[aspect", r"mine\.toml is not TOML"),
    ],
)
def test_a_broken_taxonomy_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_aspects(path)


def test_a_missing_or_undecodable_taxonomy_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml cannot be read \(No such file .*\): check the path"):
        load_aspects(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes('name = "Geräusch"'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.toml is not UTF-8 \(byte 11\): save it as UTF-8"):
        load_aspects(tmp_path / "latin.toml")
