"""The dataset, rebuilt by one command: `python -m quaver.demo.dataset --out build/demo`.

Clip i of a split is a function of (seed, split, i) alone, so the result does not depend on the number of processes.
A split is three files: `<split>.spectrograms.npy` float16 [N, FRAMES, BANDS], `<split>.waves.npy` int16 [N, SAMPLES],
`<split>.jsonl` with the caption and the attribute classes of each clip. Silent clips are drawn again. Making a split
needs fluidsynth and its sound font (`quaver.demo.render`); reading one, and the networks trained on it, do not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.demo.spectrogram import BANDS, FRAMES, SAMPLES, log_spectrogram
from quaver.demo.world import caption, draw_sound

if TYPE_CHECKING:
    from quaver.demo.render import Player

SPLITS = {"train": 34_000, "validation": 1_000, "test": 1_000}
CHUNK = 250
RENDERER = "apt-get install fluidsynth fluid-soundfont-gm && pip install -c constraints.txt '.[demo]'"


def clip(player: Player, seed: int, split: str, index: int) -> tuple[dict, np.ndarray]:
    """Clip `index` of a split: its row (caption, sound, labels) and its waveform [SAMPLES]."""
    from quaver.demo.render import render

    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    while True:
        sound = draw_sound(rng, split)
        wave = render(sound, player, rng)
        if wave is not None:
            return {"text": caption(sound, rng), **asdict(sound), "labels": sound.labels()}, wave


def _chunk(start: int, *, seed: int, split: str, n: int) -> tuple[int, list[dict], np.ndarray, np.ndarray]:
    from quaver.demo.render import Player

    player, stop = Player(), min(start + CHUNK, n)
    rows, waves = zip(*(clip(player, seed, split, i) for i in range(start, stop)), strict=True)
    player.close()
    pictures = np.stack([log_spectrogram(wave) for wave in waves]).astype(np.float16)
    return start, list(rows), pictures, np.round(np.stack(waves) * 32767).astype(np.int16)


def build_split(out: Path, split: str, n: int, *, seed: int, workers: int) -> None:
    """Render a split; the row file is written last, so a split with rows is complete."""
    rows: dict[int, list[dict]] = {}
    open_array = np.lib.format.open_memmap
    pictures = open_array(out / f"{split}.spectrograms.npy", "w+", np.float16, (n, FRAMES, BANDS))
    waves = open_array(out / f"{split}.waves.npy", "w+", np.int16, (n, SAMPLES))
    with ProcessPoolExecutor(workers) as pool:
        for start, found, picture, wave in pool.map(partial(_chunk, seed=seed, split=split, n=n), range(0, n, CHUNK)):
            rows[start] = found
            pictures[start : start + len(found)], waves[start : start + len(found)] = picture, wave
            print(f"\r{split}: {start + len(found)}/{n}", end="", file=sys.stderr, flush=True)
    pictures.flush()
    waves.flush()
    lines = "".join(json.dumps(row) + "\n" for start in sorted(rows) for row in rows[start])
    (out / f"{split}.jsonl.part").write_text(lines)
    os.replace(out / f"{split}.jsonl.part", out / f"{split}.jsonl")


def load_split(data: Path, split: str) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Rows, spectrograms (memory-mapped) and waveforms (memory-mapped) of a split."""
    rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
    arrays = (np.load(data / f"{split}.{name}.npy", mmap_mode="r") for name in ("spectrograms", "waves"))
    return rows, *arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=SPLITS["train"])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    missing = {k: n for k, n in {**SPLITS, "train": args.train}.items() if not (args.out / f"{k}.jsonl").exists()}
    if missing:  # told here and not by every worker
        try:
            import_module("quaver.demo.render")
        except ImportError as error:
            sys.exit(f"clips cannot be rendered: {str(error).rstrip('.')}; type: {RENDERER}")
    args.out.mkdir(parents=True, exist_ok=True)
    for split, n in missing.items():
        build_split(args.out, split, n, seed=args.seed, workers=args.workers)


if __name__ == "__main__":
    main()
