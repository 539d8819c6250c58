"""Train the U-Net on v-prediction: min E || v_theta(x_t, t, c) - v ||^2 (Salimans and Ho 2022, eq. 9 and appendix D).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,    v = sqrt(a_t) e - sqrt(1 - a_t) x_0,    a_t = prod (1 - beta)

with AudioLDM's betas. v keeps the first steps (t near T, where x_t is nearly all noise) at the scale of the data;
an eps-predicting network of this size is worse there than a linear predictor. One caption in ten is replaced by "",
for classifier-free guidance. `python -m quaver.demo.train_unet --data build/demo` trains, or continues where it was
stopped: everything that training depends on is in `checkpoint.pt`, replaced every few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from torch import Tensor

from quaver.demo.autoencoder import CHANNELS, load_autoencoder
from quaver.demo.dataset import load_split
from quaver.demo.text_encoder import load_text_encoder, tokenize
from quaver.demo.weights import seeded
from quaver.demo.world import Sound, caption, partial_caption

BATCH = 32
EMA = 0.999
DROP = 0.1
CAPTIONS = 4  # per clip, drawn once; the last leaves things open


def build_scheduler() -> DDIMScheduler:
    """AudioLDM's betas with v-prediction."""
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet(text_width: int) -> UNet2DConditionModel:
    """AudioLDM's U-Net, three levels wide: FiLM by the text vector, attention at the two coarse levels."""
    widths = (64, 128, 192)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=widths,
        attention_head_dim=8,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=text_width,
        class_embeddings_concat=True,
        norm_num_groups=32,
    )
    with torch.no_grad():  # a unit vector has small entries; bring its projection to the scale of the time embedding
        unet.class_embedding.weight.mul_(math.sqrt(text_width))
    return unet


@torch.no_grad()
def encode_split(data: Path, model: Path, split: str, captions: int) -> tuple[Tensor, Tensor]:
    """Latents [N, C, 16, 16] and text vectors [N, captions, D] of a split, float16, cached beside the data."""
    cache = data / f"{split}.latents.pt"
    if cache.exists():
        return torch.load(cache, weights_only=True)
    rows, spectrograms, _ = load_split(data, split)
    autoencoder, encoder = load_autoencoder(model / "vae"), load_text_encoder(model / "text_encoder")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer" / "tokenizer.json"))
    rng, latents, texts = np.random.default_rng(len(rows)), [], []
    for i in range(0, len(rows), 500):
        picture = torch.tensor(spectrograms[i : i + 500].astype(np.float32))[:, None]
        latents.append(autoencoder.encode(picture).half())
        sounds = [Sound(**{k: row[k] for k in Sound.__dataclass_fields__}) for row in rows[i : i + 500]]
        words = [row["text"] for row in rows[i : i + 500]]
        drawn = [words] + [[caption(sound, rng) for sound in sounds] for _ in range(captions - 2)]
        if captions > 1:
            drawn.append([partial_caption(sound, rng)[0] for sound in sounds])
        texts.append(torch.stack([encoder(*tokenize(tokenizer, d)) for d in drawn], dim=1).half())
    result = torch.cat(latents), torch.cat(texts)
    torch.save(result, cache)
    return result


def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and v for clean latents [B, C, H, W] and alpha_bar [B]."""
    a, b = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    return a * x0 + b * noise, a * noise - b * x0


def linear_mse(alpha_bar: Tensor, variance: Tensor) -> Tensor:
    """MSE of the best linear predictor of v from x_t, for latents of per-channel variance [C]: mean over channels."""
    a, b = alpha_bar, 1 - alpha_bar
    covariance = (a * b).sqrt() * (1 - variance)
    return (a + b * variance - covariance**2 / (a * variance + b)).mean()


@torch.no_grad()
def validate(unet: UNet2DConditionModel, latents: Tensor, texts: Tensor, empty: Tensor, alpha_bar: Tensor) -> dict:
    """v-MSE with the caption and without, per timestep, beside the linear predictor's."""
    generator, rows = seeded(0), []
    variance = latents.float().var(dim=(0, 2, 3))
    for t in (1, 101, 251, 401, 551, 701, 851, 951, 998):
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.full((len(latents),), t)
        x_t, v = diffuse(latents.float(), noise, alpha_bar[steps])
        guess = [unet(x_t, steps, None, class_labels=c).sample for c in (texts.float(), empty.expand(len(x_t), -1))]
        mse = [float((g - v).square().mean()) for g in guess]
        linear = float(linear_mse(alpha_bar[t], variance))
        rows.append({"t": t, "mse": mse[0], "unconditional": mse[1], "linear": linear})
    return {"per_timestep": rows, "mse": sum(r["mse"] for r in rows) / len(rows)}


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then a cosine to zero."""
    return peak * min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


class Training:
    """Everything training depends on, saved and restored together."""

    def __init__(self, folder: Path, text_width: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.path = folder / "checkpoint.pt"
        self.unet, self.average = build_unet(text_width), build_unet(text_width).eval()
        self.average.load_state_dict(self.unet.state_dict())
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        self.step, self.seconds, self.generator = 0, 0.0, seeded(seed)
        self.curve: list[dict] = []
        if self.path.exists():
            self._restore(torch.load(self.path, weights_only=True))

    def _restore(self, state: dict) -> None:
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        networks = {name: getattr(self, name).state_dict() for name in ("unet", "average", "optimizer")}
        counters = {"step": self.step, "seconds": self.seconds, "curve": self.curve}
        torch.save({**networks, **counters, "generator": self.generator.get_state()}, part)
        os.replace(part, self.path)

    def update(self, x_t: Tensor, t: Tensor, v: Tensor, text: Tensor, rate: float) -> float:
        """One step of AdamW and of the average of the weights; returns the loss."""
        self.optimizer.param_groups[0]["lr"] = rate
        loss = (self.unet(x_t, t, None, class_labels=text).sample - v).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        decay = min(EMA, (self.step + 1) / (self.step + 10))
        averaged, current = list(self.average.parameters()), [p.data for p in self.unet.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        self.step += 1
        return float(loss.detach())


def start_from(state: Training, unet: Path) -> None:
    """Begin with finished weights instead of random ones, unless a checkpoint was restored."""
    if state.step == 0:
        weights = UNet2DConditionModel.from_pretrained(unet, torch_dtype=torch.float32).state_dict()
        state.unet.load_state_dict(weights)
        state.average.load_state_dict(weights)


def train(
    data: Path, model: Path, *, total: int, peak: float, seed: int, minutes_between_saves: float, start: Path | None
) -> Training:
    """Train up to `total` steps, resuming from the checkpoint in `data`, else from the weights in `start`."""
    latents, texts = encode_split(data, model, "train", CAPTIONS)
    held, held_texts = (part[:64] for part in encode_split(data, model, "validation", 1))
    encoder = load_text_encoder(model / "text_encoder")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer" / "tokenizer.json"))
    with torch.no_grad():
        empty = encoder(*tokenize(tokenizer, [""]))
    alpha_bar = build_scheduler().alphas_cumprod
    state = Training(data, texts.shape[-1], seed)
    if start is not None:
        start_from(state, start)
    g, saved, last = state.generator, time.monotonic(), time.monotonic()
    losses: list[float] = []
    while state.step < total:
        pick = torch.randint(len(latents), (BATCH,), generator=g)
        text = texts[pick, torch.randint(texts.shape[1], (BATCH,), generator=g)].float()
        text = torch.where(torch.rand(BATCH, 1, generator=g) < DROP, empty, text)
        t = torch.randint(len(alpha_bar), (BATCH,), generator=g)
        x_t, v = diffuse(latents[pick].float(), torch.randn(latents[pick].shape, generator=g), alpha_bar[t])
        losses.append(state.update(x_t, t, v, text, learning_rate(state.step, total, peak)))
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        if state.step % 50 == 0:
            print(f"step {state.step}/{total} loss {np.mean(losses[-50:]):.4f} {state.seconds:.0f} s", flush=True)
        if now - saved > 60 * minutes_between_saves or state.step == total:
            report = validate(state.average, held, held_texts[:, 0], empty, alpha_bar)
            state.curve.append({"step": state.step, "seconds": state.seconds, "loss": float(np.mean(losses)), **report})
            print(json.dumps(state.curve[-1]), flush=True)
            state.save()
            losses, saved = [], time.monotonic()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--peak", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="U-Net folder to begin with, such as demo/model/unet")
    parser.add_argument("--save-minutes", type=float, default=5)
    args = parser.parse_args()
    state = train(
        args.data,
        args.model,
        total=args.steps,
        peak=args.peak,
        seed=args.seed,
        minutes_between_saves=args.save_minutes,
        start=args.start,
    )
    state.average.half().save_pretrained(args.model / "unet")
    build_scheduler().save_pretrained(args.model / "scheduler")
    curve = {"samples": state.step * BATCH, "seconds": state.seconds, "curve": state.curve}
    (args.model / "training.json").write_text(json.dumps(curve, indent=1) + "\n")


if __name__ == "__main__":
    main()
