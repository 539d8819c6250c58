from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaver.runtime.config import override, read_toml, to_config, to_table, to_toml, tomllib
from quaver.runtime.errors import RecipeError


@dataclass(frozen=True)
class Rule:
    match: str
    bits: int = 8


@dataclass(frozen=True)
class Ranges:
    observer: Literal["minmax", "mse"] = "minmax"
    percentile: float = 99.9
    batches: int = 4
    shape: tuple[int, int] = (8, 16)
    targets: tuple[str, ...] = ("ort-cpu",)
    rules: tuple[Rule, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    folder: Path = Path("x")
    limit: float | None = None
    either: int | str = 0
    verbose: bool = False


@dataclass(frozen=True)
class Checked:
    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("steps is 0 or less, expected 1 or more")


@dataclass(frozen=True)
class Whole:
    ranges: Ranges = field(default_factory=Ranges)
    checked: Checked = field(default_factory=Checked)


def test_every_type_comes_through_toml_and_back():
    whole = Whole(
        Ranges("mse", 99.0, 2, (1, 2), (), (Rule("up*", 4), Rule('"')), {"a.b": 0.5}, Path("y"), 1.0, "z", True)
    )
    text = to_toml(to_table(whole))
    assert to_config(Whole, tomllib.loads(text)) == whole


def test_what_is_not_said_is_the_default_and_none_is_not_written():
    assert to_config(Whole, {}) == Whole()
    assert "limit" not in to_table(Whole())["ranges"]


def test_an_integer_will_do_for_a_number():
    assert to_config(Ranges, {"percentile": 99}).percentile == 99.0


@given(st.text(), st.floats(allow_nan=False, allow_subnormal=False), st.integers(-(2**63), 2**63 - 1))
def test_any_text_and_number_survive_the_writer(text, number, integer):
    table = {"s": {"text": text, "number": number, "deep": {"integer": integer, text: [text]}}}
    assert tomllib.loads(to_toml(table)) == table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rangs.observer=mse"], r"unknown section 'rangs'; did you mean 'ranges'\?"),
        (["ranges.percentle=1"], r"unknown key in \[ranges\] 'percentle'; did you mean 'percentile'\?"),
        (["ranges.rules=[{matc='x'}]"], r"unknown key in \[ranges.rules\[0\]\] 'matc'; did you mean 'match'\?"),
        (["ranges.rules=[{bits=4}]"], r"ranges.rules\[0\].match is missing"),
        (["ranges.observer=mes"], r"unknown ranges.observer 'mes'; did you mean 'mse'\?"),
        (["ranges.batches=many"], r'ranges.batches is a string \("many"\), expected an integer'),
        (["ranges.batches=true"], r"ranges.batches is true or false \(true\), expected an integer"),
        (["ranges.batches=1.5"], r"ranges.batches is a number \(1.5\), expected an integer"),
        (["ranges.shape=[1]"], r"ranges.shape has 1 values, expected 2"),
        (["ranges.targets=['a', 1]"], r"ranges.targets\[1\] is an integer \(1\), expected a string"),
        (["ranges.targets=a"], r'ranges.targets is a string \("a"\), expected a list'),
        (["ranges.either=[]"], r"ranges.either is a list \(\[\]\), expected int \| str"),
        (["ranges=1"], r"ranges is an integer \(1\), expected a table"),
        (["checked.steps=0"], r"\[checked\] steps is 0 or less, expected 1 or more"),
        (["ranges.batches"], r"cannot set 'ranges.batches': expected section.key=value"),
        (["ranges.batches.x=1"], r"cannot set 'ranges.batches.x=1': batches is a value, not a section"),
    ],
)
def test_what_cannot_be_meant_is_answered_in_one_line(settings, message):
    with pytest.raises(RecipeError, match=message) as caught:
        to_config(Whole, override({"ranges": {"batches": 2}}, settings))
    assert "\n" not in str(caught.value)


def test_an_override_wins_and_leaves_the_table_alone():
    table = {"ranges": {"batches": 2}}
    changed = override(table, ["ranges.batches=3", "ranges.observer=mse", "checked.steps = 5"])
    assert changed == {"ranges": {"batches": 3, "observer": "mse"}, "checked": {"steps": 5}}
    assert table == {"ranges": {"batches": 2}}
    deep = {"prompts": {"llm": {"model": "a"}}}
    assert override(deep, ["prompts.llm.model=b"]) == {"prompts": {"llm": {"model": "b"}}}
    assert deep == {"prompts": {"llm": {"model": "a"}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = ", "is not TOML"),
        (b"\xff", r"is not UTF-8 \(byte 0\): save it as"),
        (None, "No such file.*check the path"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(tmp_path, content, message):
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_toml(tmp_path / "r.toml")
