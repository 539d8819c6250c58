"""The embedded model from nothing, by one command: `python -m quaver.demo.train --data build/demo --model demo/model`.

Renders the dataset, fits the autoencoder, trains text encoder, vocoder, probe and U-Net, writes the folder's index and
prompts, chooses nothing and scores the test captions. Each part is skipped where its result exists, the U-Net
continues from its checkpoint, every seed is fixed; delete a part's folder to make it anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from quaver.demo.components import MODEL
from quaver.demo.world import captions

INDEX = {
    "_class_name": "AudioLDMPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["quaver.demo.text_encoder", "TextEncoder"],
    "tokenizer": ["tokenizers", "Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["quaver.demo.autoencoder", "PatchAutoencoder"],
    "vocoder": ["quaver.demo.vocoder", "Vocoder"],
}
PROMPTS = 400


def write_index(model: Path) -> None:
    """Write `model_index.json` and `prompts.txt`: captions of trained combinations, for calibration."""
    (model / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    (model / "prompts.txt").write_text("\n".join(captions(PROMPTS, np.random.default_rng(2024), "train")) + "\n")


def commands(data: Path, model: Path) -> list[tuple[Path, list[str]]]:
    """What makes each part, and the file that says it is there."""
    where = ["--data", str(data), "--model", str(model)]
    return [
        (data / "test.jsonl", ["dataset", "--out", str(data)]),
        (model / "text_encoder", ["text_encoder", "--out", str(model)]),
        (model / "vae", ["autoencoder", *where]),
        (model / "vocoder", ["vocoder", *where]),
        (model / "probe", ["probe", *where]),
        (model / "unet", ["train_unet", *where]),
        (model / "evaluation.test.json", ["evaluate", *where, "--split", "test"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args()
    args.model.mkdir(parents=True, exist_ok=True)
    write_index(args.model)
    for result, (name, *rest) in commands(args.data, args.model):
        if not result.exists():
            print(f"{name} -> {result}", file=sys.stderr, flush=True)
            code = subprocess.run([sys.executable, "-m", f"quaver.demo.{name}", *rest], check=False).returncode
            if code:  # the part has said why
                sys.exit(code)


if __name__ == "__main__":
    main()
