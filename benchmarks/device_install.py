"""What a device needs: the base install in a fresh environment, and only the files of a bundle that generating reads.

    python -m benchmarks.device_install [BUNDLE] [--runs 5]

One virtual environment gets onnxruntime and numpy, another this project without any extra: what the second is larger
by, and what its processes take longer to import all that generating needs, is what quaver adds. Much of it is what
tokenizers requires and nothing here calls (it downloads), which `pip install --no-deps` leaves out. The bundle's text
encoder, U-Net, decoder, vocoder, tokenizer, schedule, card and error statistics are copied to an empty folder. `quaver
generate` then writes a WAV file from a prompt; the time is that of the whole process, loading included.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import publish
from quaver.runtime.audio import read_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import find_family, read_card

PROJECT = Path(__file__).parent.parent
LIMIT_S, LIMIT_MB, LIMIT_IMPORT_S = 10.0, 45.0, 0.5
BARE = ("numpy", "onnxruntime")
IMPORTED = ("array-api-compat", "quaver", "safetensors", "tokenizers")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures of one bundle."""
    parser = argparse.ArgumentParser(prog="benchmarks.device_install")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bare = install(place / "bare", *BARE)
        started = time.monotonic()
        python = install(place / "venv", str(PROJECT))
        installing = time.monotonic() - started
        sizes = {name: folder_bytes(place / name) / 1e6 for name in ("bare", "venv")}
        before, after = (packages(place / name) for name in ("bare", "venv"))
        added = {name: after[name] for name in sorted(after, key=after.__getitem__, reverse=True) if name not in before}
        imports = [import_seconds(python) for _ in range(given.runs)]
        bundle = ship(Bundle(given.bundle), given.target, place / "bundle")
        seconds = [generate(python, bundle, given.target, place / f"{run}.wav") for run in range(given.runs)]
        sound, rate = read_wav(place / "0.wav")
        bundle_mb = folder_bytes(bundle.root) / 1e6
        heavy = [name for name in ("torch", "onnx", "diffusers") if importable(python, name)]
        assert not importable(bare, "quaver.runtime")
    figures: dict[str, Any] = {
        "prompt to WAV, first run, s": seconds[0],
        f"prompt to WAV, median of {given.runs}, s": median(seconds),
        f"import beyond numpy and onnxruntime, median of {given.runs}, s": median(imports),
        "sound, s": len(sound) / rate,
        "installation, s": installing,
        "numpy and onnxruntime, MB": sizes["bare"],
        "with quaver, MB": sizes["venv"],
        "quaver adds, MB": sizes["venv"] - sizes["bare"],
        "quaver and what it imports, MB": sum(added[name] for name in IMPORTED),
        **{f"of these {name}, MB": added[name] for name in [*added][:5]},
        "bundle, MB": bundle_mb,
    }
    publish(
        "device_install",
        [*({"what": what, "value": value} for what, value in figures.items())],
        figures=figures | {"added packages": [*added], "heavy packages": heavy},
        reached={
            f"quaver adds at most {LIMIT_MB:.0f} MB": sizes["venv"] - sizes["bare"] <= LIMIT_MB,
            f"with --no-deps at most {LIMIT_MB:.0f} MB": figures["quaver and what it imports, MB"] <= LIMIT_MB,
            f"importing it takes at most {LIMIT_IMPORT_S} s more": median(imports) <= LIMIT_IMPORT_S,
            f"prompt to WAV in {LIMIT_S:.0f} s, first run": seconds[0] <= LIMIT_S,
            "no torch, onnx or diffusers installed": not heavy,
            "the WAV file holds sound": bool(abs(sound).max() > 0),
        },
    )


def install(folder: Path, *what: str) -> Path:
    """A fresh environment with what is named and what that needs; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    constraints = PROJECT / "constraints.txt"
    limits = ["-c", str(constraints)] if constraints.exists() else []
    subprocess.run([python, "-m", "pip", "install", "-qq", *limits, *what], check=True, stdout=sys.stderr)
    return python


def packages(folder: Path) -> dict[str, float]:
    """The size in MB of each distribution of an environment."""
    found = distributions(path=[str(path) for path in folder.glob("lib/python*/site-packages")])
    return {each.metadata["Name"].replace("_", "-"): distribution_bytes(each) / 1e6 for each in found}


def distribution_bytes(found: Distribution) -> int:
    """Bytes of all files of a distribution."""
    paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
    return sum(path.stat().st_size for path in paths if path.exists())


def import_seconds(python: Path) -> float:
    """How much longer a process takes to import all that generating needs than numpy and onnxruntime alone."""
    alone = f"import {', '.join(BARE)}"
    return process_seconds(python, f"{alone}, quaver.runtime.clips") - process_seconds(python, alone)


def process_seconds(python: Path, code: str) -> float:
    """Seconds that a process takes to run some code, start and end included."""
    started = time.monotonic()
    subprocess.run([python, "-c", code], check=True)
    return time.monotonic() - started


def ship(bundle: Bundle, target: str, folder: Path) -> Bundle:
    """A copy of the files that generating reads, and no others."""
    parts = [bundle.component(name) for name in find_family(read_card(bundle)["family"]).components]
    files = [bundle.card, bundle.recipe, bundle.qdq(target), bundle.tokenizer, bundle.scheduler, *parts]
    data = [path.with_name(path.name + ".data") for path in files]
    for path in [*files, *data, bundle.sites(target), bundle.error_stats(target)]:
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
