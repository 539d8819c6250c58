"""The digits model and its probe from nothing: `python -m benchmarks.digits.train [--out benchmarks/digits/model]`.

    L = E | eps - e(sqrt(a_t) x_0 + sqrt(1 - a_t) eps, t, y) |^2        y = no class (10) one time in ten

A U-Net of diffusers with skips, residual blocks and attention at its lowest level, on LDM-4's schedule; what is kept is
the moving average of the weights. The probe learns on four fifths of the images, and its accuracy is that on the rest.
What training depends on is in `checkpoint.safetensors` below --work, replaced as it goes: killed, it goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.digits.images import CLASSES, SHAPE, held_out, load_digits
from benchmarks.digits.probe import PROBE, load_probe, make_probe, read_images
from quaver.runtime.artifact import Stamp, load_tensors, read_stamp, save_tensors
from quaver.runtime.progress import Progress
from quaver.runtime.schedule import load_schedule

if TYPE_CHECKING:
    import torch

KIND = "digits"
ITERATIONS, BATCH, RATE, DECAY = 2500, 256, 2e-3, 0.998
PROBE_ITERATIONS, PROBE_BATCH, PROBE_RATE = 1000, 128, 2e-3
SETTLING = 500  # iterations: the rate falls as 1 / sqrt(1 + step / SETTLING), so that training may end at any of them
KEEP = 50  # iterations between checkpoints
ROWS = 1280  # of classes in turn: calibration and statistics take four fifths of them, validation the rest
UNET = {
    "sample_size": SHAPE[1],
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "num_class_embeds": CLASSES + 1,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there."""
    parser = argparse.ArgumentParser(prog="benchmarks.digits.train")
    parser.add_argument("--out", type=Path, default=PROBE.parent)
    parser.add_argument("--work", type=Path, default=Path("build/digits"))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    given = parser.parse_args(argv)
    write_rest(given.out)
    if not (given.out / PROBE.name).exists():
        train_probe(given.out / PROBE.name)
    images, labels = load_digits()
    rest = held_out(len(images))
    said = read_images(load_probe(given.out / PROBE.name), images[rest]).classes.argmax(axis=1)
    print(f"probe: {(said == labels[rest]).mean():.2%} of {rest.sum()} images it was not trained on")
    if not (given.out / "unet" / "config.json").exists():
        train_unet(given.out, given.work, given.iterations)


def write_rest(out: Path) -> None:
    """Write the scheduler's configuration and the rows of classes that feed the network."""
    scheduler = out / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True, exist_ok=True)
    scheduler.write_text(json.dumps(SCHEDULER, indent=2) + "\n", encoding="utf-8")
    rows = {"class_labels": np.arange(ROWS) % CLASSES, "uncond_class_labels": np.array([CLASSES])}
    save_tensors(out / "classes.safetensors", rows, Stamp(KIND))


def train_probe(path: Path) -> None:
    """Write the weights of a probe trained on what is not held out."""
    import torch

    torch.manual_seed(0)
    images, labels = (torch.from_numpy(values) for values in load_digits())
    mine = torch.from_numpy(np.flatnonzero(~held_out(len(images))))
    probe, draw = make_probe().train(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(probe.parameters(), PROBE_RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROBE_ITERATIONS)
    for _ in range(PROBE_ITERATIONS):
        rows = mine[torch.randint(len(mine), (PROBE_BATCH,), generator=draw)]
        x = images[rows] + 0.1 * torch.randn(PROBE_BATCH, *SHAPE, generator=draw)
        logits = probe["logits"](probe["features"](probe["map"](x)))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05).backward()
        optimizer.step()
        rate.step()
    save_tensors(path, {name: value.numpy() for name, value in probe.state_dict().items()}, Stamp(KIND))


def train_unet(out: Path, work: Path, iterations: int) -> None:
    """Write the folder `unet` of a network trained for so many iterations, going on where a checkpoint says."""
    import diffusers
    import torch

    torch.manual_seed(0)
    images, labels = (torch.from_numpy(values) for values in load_digits())
    unet, a = diffusers.UNet2DModel(**UNET).train(), load_schedule(out / "scheduler" / "scheduler_config.json")
    alpha_bar = torch.from_numpy(a.alpha_bar).float()[:, None, None, None]
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    optimizer = torch.optim.Adam(unet.parameters(), RATE)
    path = work / "checkpoint.safetensors"
    start = restore(path, unet, average, optimizer)
    with Progress(sys.stderr).bar(iterations, "digits") as bar:
        bar.step(start)
        for step in range(start, iterations):
            for group in optimizer.param_groups:
                group["lr"] = RATE / (1 + step / SETTLING) ** 0.5
            loss = objective(unet, images, labels, alpha_bar, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, value in unet.state_dict().items():
                average[name].lerp_(value, 1 - min(DECAY, (1 + step) / (10 + step)))
            if (step + 1) % KEEP == 0:
                keep(path, step + 1, unet, average, optimizer)
            bar.step()
    unet.load_state_dict(average)
    unet.save_pretrained(out / "unet")


def objective(
    unet: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, alpha_bar: torch.Tensor, draw: torch.Generator
) -> torch.Tensor:
    """The loss of a batch that `draw` draws of images [N, 1, 8, 8] and labels [N]; alpha_bar [T, 1, 1, 1]."""
    import torch

    rows = torch.randint(len(images), (BATCH,), generator=draw)
    t = torch.randint(len(alpha_bar), (BATCH,), generator=draw)
    eps = torch.randn(BATCH, *SHAPE, generator=draw)
    y = torch.where(torch.rand(BATCH, generator=draw) < 0.1, CLASSES, labels[rows])
    x = alpha_bar[t].sqrt() * images[rows] + (1 - alpha_bar[t]).sqrt() * eps
    return (unet(x, t, y).sample - eps).square().mean()


def keep(
    path: Path, step: int, unet: torch.nn.Module, average: dict[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, their average and Adam's moments behind so many iterations."""
    tensors = {f"unet.{name}": value.numpy() for name, value in unet.state_dict().items()}
    tensors |= {f"average.{name}": value.numpy() for name, value in average.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value.numpy() for name, value in values.items()}
    save_tensors(path, tensors, Stamp(KIND), meta={"step": step})


def restore(path: Path, unet: torch.nn.Module, average: dict[str, Any], optimizer: torch.optim.Optimizer) -> int:
    """Take up what a checkpoint holds, if there is one; returns the iterations behind it."""
    import torch

    if read_stamp(path) != Stamp(KIND):
        return 0
    tensors, meta = load_tensors(path, KIND)
    found = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    parts = {
        part: {n.removeprefix(part): v for n, v in found.items() if n.startswith(part)}
        for part in ("unet.", "average.", "adam.")
    }
    unet.load_state_dict(parts["unet."])
    for name, value in parts["average."].items():
        average[name].copy_(value)
    state: dict[int, dict[str, Any]] = {}
    for name, value in parts["adam."].items():
        index, _, moment = name.partition(".")
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(meta["step"])


if __name__ == "__main__":
    main()
