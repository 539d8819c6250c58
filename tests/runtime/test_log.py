import io
import logging
import warnings

import pytest

from quaver.runtime.log import show

pytestmark = pytest.mark.usefixtures("logging_as_before")


def lines(debug):
    stream = io.StringIO()
    show(debug=debug, stream=stream)
    logging.getLogger("quaver.calib.capture").info("ours")
    logging.getLogger("somelibrary.part").warning("theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("a library is unsure", stacklevel=1)
    return stream.getvalue()


def test_a_user_sees_our_lines_and_no_library_warnings():
    assert lines(debug=False) == "ours\n"


def test_debugging_shows_who_says_what():
    text = lines(debug=True)
    assert "quaver.calib.capture: ours" in text and "somelibrary.part: theirs" in text and "unsure" in text
