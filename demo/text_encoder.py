"""The text encoder: a two-layer transformer whose mean-pooled, L2-normalised output conditions the U-Net.

It is trained to read attributes: a linear head per attribute predicts what a caption says, with the uniform
distribution as the target for what it leaves open, so "" (the unconditional prompt of classifier-free guidance)
lies in the middle of everything. It knows the words of the demo's world and their synonyms, and no others.
Trained by `python -m quaver.demo.text_encoder --data build/demo`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from quaver.demo.weights import load_weights, save_weights
from quaver.demo.world import ATTRIBUTES, INSTRUMENTS, caption, draw_sound, partial_caption

WIDTH = 128
HEADS = 4
MAX_TOKENS = 48
HEAD_NAMES = {**ATTRIBUTES, "instrument": tuple(i.name for i in INSTRUMENTS)}


class Layer(nn.Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + bias, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextEncoder(nn.Module):
    """Token ids to one unit vector."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.projection = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids [B, L], attention_mask [B, L] (1 = token) -> text_embeds [B, 128] of unit length."""
        mask = attention_mask.to(self.positions.dtype)
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x, ((1 - mask) * -1e4)[:, None, None, :])
        pooled = (self.norm(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        y = self.projection(pooled)
        return y / (y * y).sum(-1, keepdim=True).clamp_min(1e-12).sqrt()


def build_tokenizer(texts: list[str]) -> Tokenizer:
    """A lower-casing WordPiece tokenizer learned from captions; every letter is in it, so no word is lost."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789-',.")
    specials = ["[PAD]", "[UNK]", "[CLS]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=letters)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, int64 [B, L]."""
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def _example(rng: np.random.Generator) -> tuple[str, list[list[float]]]:
    """A caption and, per head, the distribution it implies; one in ten is empty, one in four leaves things out."""
    sound, kind = draw_sound(rng, ("train", "validation", "test")[rng.integers(3)]), rng.random()
    keep = set(HEAD_NAMES)
    if kind < 0.1:
        text, keep = "", set()
    elif kind < 0.35:
        text, keep = partial_caption(sound, rng)
    else:
        text = caption(sound, rng)
    labels = dict(zip(ATTRIBUTES, sound.labels(), strict=True))
    labels["instrument"] = HEAD_NAMES["instrument"].index(sound.instrument)
    return text, [_target(len(names), labels[h] if h in keep else None) for h, names in HEAD_NAMES.items()]


def _target(n: int, label: int | None) -> list[float]:
    return [1 / n] * n if label is None else [float(i == label) for i in range(n)]


def train(steps: int, batch: int, seed: int) -> tuple[TextEncoder, Tokenizer, float]:
    """Train tokenizer and encoder; returns them with the share of attributes read right on unseen captions."""
    rng = np.random.default_rng(seed)
    splits = ("train", "validation", "test")
    tokenizer = build_tokenizer([caption(draw_sound(rng, splits[i % 3]), rng) for i in range(20_000)])
    torch.manual_seed(seed)
    encoder = TextEncoder(tokenizer.get_vocab_size())
    heads = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in HEAD_NAMES.values())
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        texts, targets = zip(*(_example(rng) for _ in range(batch)), strict=True)
        embeds = 8 * encoder(*tokenize(tokenizer, list(texts)))
        losses = [F.cross_entropy(head(embeds), torch.tensor([t[i] for t in targets])) for i, head in enumerate(heads)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"text encoder step {step}/{steps} loss {loss.item():.3f}", flush=True)
    return encoder.eval(), tokenizer, _accuracy(encoder, heads, tokenizer, np.random.default_rng(seed + 1))


@torch.no_grad()
def _accuracy(encoder: TextEncoder, heads: nn.ModuleList, tokenizer: Tokenizer, rng: np.random.Generator) -> float:
    sounds = [draw_sound(rng, "test") for _ in range(1000)]
    embeds = 8 * encoder(*tokenize(tokenizer, [caption(sound, rng) for sound in sounds]))
    labels = torch.tensor([sound.labels() for sound in sounds])
    hits = [(head(embeds).argmax(-1) == labels[:, i]) for i, head in enumerate(list(heads)[: len(ATTRIBUTES)])]
    return float(torch.stack(hits).float().mean())


def load_text_encoder(folder: Path) -> TextEncoder:
    """Load the text encoder of a model folder."""
    config = json.loads((folder / "config.json").read_text())
    return load_weights(TextEncoder(config["vocab_size"]), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo/model"))
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    encoder, tokenizer, accuracy = train(args.steps, 128, seed=0)
    config = {"_class_name": "TextEncoder", "vocab_size": tokenizer.get_vocab_size(), "accuracy": accuracy}
    save_weights(encoder, args.out / "text_encoder", {**config, "projection_dim": WIDTH})
    (args.out / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer" / "tokenizer.json"))
    print(f"text encoder: {accuracy:.4f} of the attributes of unseen captions read right")


if __name__ == "__main__":
    main()
