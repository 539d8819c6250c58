import fcntl
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from quaver.runtime.text import tell_cut

# The same examples every time, and no deadline: a busy machine is no reason to fail.
settings.register_profile("quaver", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("quaver")


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder that one worker makes for all: whoever asks for it meanwhile waits. Shared: read only."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # a worker's temporary folder lies in that of the whole run
        base = base.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place, made = base / "once" / name, base / "once" / f"{name}.made"
        place.parent.mkdir(exist_ok=True)
        with place.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(place, ignore_errors=True)  # half of it, from one that failed
                place.mkdir()
                make(place)
                made.touch()
        return place

    return folder


@pytest.fixture(autouse=True)
def nothing_told_yet():
    """What a process says once it says to every test."""
    tell_cut.cache_clear()


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: what is begun last should be short, or one worker waits for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
