import pytest

from quaver.runtime.errors import ArtifactError, EngineError, QuaverError, RecipeError, first_line, unknown


@pytest.mark.parametrize("kind", [RecipeError, ArtifactError, EngineError])
def test_every_user_error_is_caught_by_one_name(kind):
    with pytest.raises(QuaverError, match="what to type"):
        raise kind("what to type")


def test_an_unknown_name_is_answered_with_the_nearest_one():
    assert (
        unknown("stage", "calibrat", ["calibrate", "export"]) == "unknown stage 'calibrat'; did you mean 'calibrate'?"
    )


def test_a_name_near_to_nothing_is_answered_with_all():
    assert unknown("stage", "zzz", ["export", "build"]) == "unknown stage 'zzz'; valid: build, export"


@pytest.mark.parametrize(
    ("text", "line"), [("\n a\nb", "a"), ("", "ValueError"), (" \n", "ValueError"), ("x" * 999, "x" * 300)]
)
def test_a_librarys_error_is_its_first_line_or_its_class(text, line):
    assert first_line(ValueError(text)) == line
