import json

import pytest

from quaver.runtime.errors import RecipeError
from quaver.runtime.plug import plug

TABLE = {"dumps": "json:dumps", "broken": "quaver.no_such_module:x"}


def test_a_name_of_the_table_and_a_dotted_path_both_find_their_function():
    assert plug("dumps", TABLE, what="writer") is json.dumps
    assert plug("json:loads", TABLE, what="writer") is json.loads


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dump", r"unknown writer 'dump'; did you mean 'dumps'\?, or your own function as 'package.module:function'"),
        ("no_such_module:f", r"writer 'no_such_module:f': no module 'no_such_module' on the import path"),
        ("json:nothing", r"writer 'json:nothing': json has no 'nothing'"),
        ("broken", r"writer 'broken': no module 'quaver.no_such_module' on the import path"),
    ],
)
def test_what_cannot_be_found_is_named(name, message):
    with pytest.raises(RecipeError, match=message):
        plug(name, TABLE, what="writer")


def test_a_module_that_lacks_a_library_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        plug("users_module:f", TABLE, what="writer")
