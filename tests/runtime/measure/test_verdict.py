from __future__ import annotations

from typing import Any

import pytest

from quaver.runtime.measure.report import ValidateSettings
from quaver.runtime.measure.verdict import corrected_speedup, joint_verdict, listed, verdict


@pytest.mark.parametrize(
    ("budget", "passed"),
    [
        ({"max_latent_error": 0.06, "min_speedup": 1.1}, [True, True]),
        ({"max_latent_error": 0.059, "min_speedup": 1.1}, [False, True]),
        ({"max_latent_error": 0.06, "min_speedup": 1.11}, [True, False]),
    ],
    ids=["kept by both", "error", "speed"],
)
def test_an_engine_ships_when_the_worse_bounds_keep_the_budget(budget: dict[str, float], passed: list[bool]):
    rows = [{"name": "none", "latent_error": {"value": 0.05, "low": 0.04, "high": 0.06}, "added_s": 0.0}]
    call = {"speedup": {"value": 1.3, "low": 1.1, "high": 1.5}, "engines": {"float": {"median_s": 0.02}}}
    found = verdict("ort-cpu", rows, call, ValidateSettings(**budget))
    assert [check["passed"] for check in found["checks"]] == passed
    assert found["ship"] == all(passed) and found["word"] == ("Ship" if all(passed) else "Do not ship")


def test_what_a_correction_adds_to_a_call_counts_against_the_budget():
    """Float takes 20 ms, the engine 10 ms and its correction 2 ms: 5/3, and 20/(20 + 2) with the worse bound."""
    rows = [{"name": "auto", "latent_error": {"value": 0.05, "low": 0.04, "high": 0.06}, "added_s": 0.002}]
    call = {"speedup": {"value": 2.0, "low": 1.0, "high": 4.0}, "engines": {"float": {"median_s": 0.02}}}
    found = verdict("ort-cpu", rows, call, ValidateSettings(min_speedup=1.0))
    assert corrected_speedup(call, rows[0])["value"] == pytest.approx(5 / 3) and not found["ship"]
    assert found["checks"][1]["sentence"].startswith(
        "One U-Net call with auto is 1.67× as fast as float, at least 0.91×"
    )


def judged(name: str, *, ship: bool, error: float, speed: float, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": {"ship": ship, "word": "Ship", "sentence": "It keeps its budget.", "correction": "none"},
        "corrections": [{"name": "none", "latent_error": {"value": error}}],
        "call": {"speedup": {"value": speed}},
        "bytes": size,
    }


GOOD = judged("w8a8", ship=True, error=0.05, speed=1.5, size=17)
SMALL = judged("w4a8", ship=True, error=0.08, speed=1.4, size=12)
BAD = judged("w2a8", ship=False, error=0.01, speed=9.0, size=1)


def test_one_engine_has_its_own_verdict():
    assert joint_verdict([GOOD]) == {"ship": True, "word": "Ship", "sentence": "It keeps its budget."}


def test_of_several_engines_only_those_that_ship_are_the_best_of_anything():
    found = joint_verdict([GOOD, SMALL, BAD])
    assert (found["ship"], found["word"]) == (True, "2 of 3 ship")
    assert found["sentence"] == "w8a8 is the most accurate and fastest of them; w4a8 is the smallest of them."
    assert joint_verdict([GOOD, BAD])["sentence"] == "It is w8a8."
    assert not joint_verdict([BAD, BAD])["ship"]


def test_words_are_listed_as_people_do():
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
