import logging

import pytest
from hypothesis import settings

# The same examples every time, and no deadline: a busy machine is no reason to fail.
settings.register_profile("quaver", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("quaver")


@pytest.fixture
def logging_as_before():
    """Undo what a test does to the process's logging."""
    root, ours = logging.getLogger(), logging.getLogger("quaver")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
