"""Run a recipe in processes that kill themselves, one after another, until one comes to its end.

    python killing.py RECIPE OUT SPARED,... [section.key=value ...]

A process gets SIGKILL when it is about to put a file in its place, or to remove a folder, where none before it was
killed: so each run goes one file further. Prints these places, one a line. Nothing is killed at a name in SPARED.
"""

import os
import signal
import sys
from pathlib import Path

import diffusers  # noqa: F401  with what follows imported once, and every process forked from here
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch  # noqa: F401

import quaver.demo.vocoder
import quaver.exporter.recipe
import quaver.exporter.rounding
from quaver.exporter.stages import run_recipe
from quaver.runtime.progress import Progress

WATCHED = {"os.rename": 1, "shutil.rmtree": 0}  # which argument says what will be there, or not


def run(recipe: Path, out: Path, spared: set[str], overrides: list[str]) -> str:
    """The place a process was killed at, "" when it came to its end."""
    reader, writer = os.pipe()
    if not (child := os.fork()):

        def watch(event: str, args: tuple[object, ...]) -> None:
            if event not in WATCHED or not (path := Path(str(args[WATCHED[event]]))).is_relative_to(out):
                return
            place = f"{event.partition('.')[2]} {path.relative_to(out)}"
            if ".tmp-" not in place and not {place, path.name} & spared:
                os.write(writer, place.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        run_recipe(recipe, overrides=overrides, out=out, progress=Progress())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        place = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != (-signal.SIGKILL if place else 0):
        raise SystemExit("a run failed")
    return place


if __name__ == "__main__":
    quaver.demo.vocoder.ITERATIONS = 1
    known = set(sys.argv[3].split(","))
    while place := run(Path(sys.argv[1]), Path(sys.argv[2]), known, sys.argv[4:]):
        print(place, flush=True)
        known.add(place)
