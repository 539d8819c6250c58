"""What a device needs: the base install in a fresh environment, and only the files of a bundle that generating reads.

    python -m benchmarks.device_install [BUNDLE] [--runs 3]

A virtual environment gets this project without any extra. The bundle's text encoder, U-Net, decoder, vocoder,
tokenizer, schedule, card and error statistics are copied to an empty folder. `quaver generate` then writes a WAV file
from a prompt; the time is that of the whole process, loading included.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import publish
from quaver.runtime.audio import read_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import find_family, read_card

PROJECT = Path(__file__).parent.parent
LIMIT_S = 10.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures of one bundle."""
    parser = argparse.ArgumentParser(prog="benchmarks.device_install")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.monotonic()
        python = install(place / "venv")
        installing = time.monotonic() - started
        bundle = ship(Bundle(given.bundle), given.target, place / "bundle")
        seconds = [generate(python, bundle, given.target, place / f"{run}.wav") for run in range(given.runs)]
        sound, rate = read_wav(place / "0.wav")
        sizes = {"environment": folder_bytes(place / "venv"), "bundle": folder_bytes(bundle.root)}
        heavy = [name for name in ("torch", "onnx", "diffusers") if importable(python, name)]
    rows: list[dict[str, Any]] = [
        {"what": "prompt to WAV, first run, s", "value": seconds[0]},
        {"what": f"prompt to WAV, median of {given.runs}, s", "value": median(seconds)},
        {"what": "sound, s", "value": len(sound) / rate},
        {"what": "installation, s", "value": installing},
        *({"what": f"{name}, MB", "value": size / 1e6} for name, size in sizes.items()),
    ]
    publish(
        "device_install",
        rows,
        figures={row["what"]: row["value"] for row in rows} | {"heavy packages": heavy},
        reached={
            f"prompt to WAV in {LIMIT_S:.0f} s, first run": seconds[0] <= LIMIT_S,
            "no torch, onnx or diffusers installed": not heavy,
            "the WAV file holds sound": bool(abs(sound).max() > 0),
        },
    )


def install(folder: Path) -> Path:
    """A fresh environment with this project and no extra; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    constraints = PROJECT / "constraints.txt"
    limits = ["-c", str(constraints)] if constraints.exists() else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", *limits, str(PROJECT)], check=True, stdout=sys.stderr)
    return python


def ship(bundle: Bundle, target: str, folder: Path) -> Bundle:
    """A copy of the files that generating reads, and no others."""
    parts = [bundle.component(name) for name in find_family(read_card(bundle)["family"]).components]
    files = [bundle.card, bundle.recipe, bundle.qdq(target), bundle.tokenizer, bundle.scheduler, *parts]
    data = [path.with_name(path.name + ".data") for path in files]
    for path in [*files, *data, bundle.error_stats(target)]:
        if path.exists():
            copy = folder / path.relative_to(bundle.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    return Bundle(folder)


def generate(python: Path, bundle: Bundle, target: str, out: Path) -> float:
    """Seconds of `quaver generate` in the environment of `python`, from an empty folder."""
    quaver = str(python.with_name("quaver"))
    what = ["--engine", target, "--seed", "1", "--prompt", "a soft low cello note", "--out", str(out)]
    started = time.monotonic()
    subprocess.run([quaver, "generate", str(bundle.root), *what], check=True, cwd=out.parent, stdout=sys.stderr)
    return time.monotonic() - started


def importable(python: Path, name: str) -> bool:
    """Whether the environment has a module."""
    return subprocess.run([python, "-c", f"import {name}"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
