import json
import sys

import pytest

from quaver.runtime.errors import QuaverError
from quaver.runtime.lazy import need


def test_a_library_that_is_there_is_returned():
    assert need("json", extra="export") is json


def test_a_missing_library_says_which_extra_brings_it():
    with pytest.raises(QuaverError, match=r"^no_such_library is not installed.*pip install 'quaver\[trt-rtx\]'$"):
        need("no_such_library.part", extra="trt-rtx")


def test_a_library_that_breaks_on_import_keeps_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"^broken_library does not import \(No module named 'no_such_dependency'\).*quaver\[export\]"
    with pytest.raises(QuaverError, match=message):
        need("broken_library", extra="export")
    assert "broken_library" not in sys.modules
