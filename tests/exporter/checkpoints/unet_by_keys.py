"""The conditional U-Net of latent diffusion computed straight from a checkpoint's keys: no module, no table."""

import math

import torch
import torch.nn.functional as F


def unet(w, x, t, *, heads, context=None, film=None):
    """eps of x [B, C, H, W] at t [B]; `heads` maps channels to heads."""
    width = w["input_blocks.0.0.weight"].shape[0]
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None] * frequencies
    emb = linear(w, "time_embed.2", F.silu(linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    if film is not None:
        emb = torch.cat([emb, linear(w, "film_emb", film)], 1)
    run = lambda h, block: blocks(w, h, block, emb, context, heads)  # noqa: E731
    kept = []
    for n in range(count(w, "input_blocks")):
        x = run(x, f"input_blocks.{n}")
        kept.append(x)
    x = run(x, "middle_block")
    for n in range(count(w, "output_blocks")):
        x = run(torch.cat([x, kept.pop()], 1), f"output_blocks.{n}")
    return conv(w, "out.2", F.silu(norm(w, "out.0", x)))


def blocks(w, x, block, emb, context, heads):
    for m in range(count(w, block)):
        name = f"{block}.{m}"
        if f"{name}.weight" in w:
            x = conv(w, name, x)
        elif f"{name}.op.weight" in w:
            x = conv(w, f"{name}.op", x, stride=2)
        elif f"{name}.conv.weight" in w:
            x = conv(w, f"{name}.conv", F.interpolate(x, scale_factor=2.0))
        elif f"{name}.in_layers.0.weight" in w:
            x = resnet(w, name, x, emb)
        else:
            x = transformer(w, name, x, context, heads)
    return x


def resnet(w, name, x, emb):
    h = conv(w, f"{name}.in_layers.2", F.silu(norm(w, f"{name}.in_layers.0", x)))
    h = h + linear(w, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    h = conv(w, f"{name}.out_layers.3", F.silu(norm(w, f"{name}.out_layers.0", h)))
    return h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def transformer(w, name, x, context, heads):
    batch, channels, height, width = x.shape
    h = conv(w, f"{name}.proj_in", norm(w, f"{name}.norm", x, 1e-6)).flatten(2).mT
    inner = f"{name}.transformer_blocks.0"
    layer = lambda n, v: F.layer_norm(v, v.shape[-1:], w[f"{inner}.norm{n}.weight"], w[f"{inner}.norm{n}.bias"])  # noqa: E731
    own = layer(1, h)
    h = h + attention(w, f"{inner}.attn1", own, own, heads(channels))
    query = layer(2, h)
    h = h + attention(w, f"{inner}.attn2", query, query if context is None else context, heads(channels))
    value, gate = linear(w, f"{inner}.ff.net.0.proj", layer(3, h)).chunk(2, -1)
    h = h + linear(w, f"{inner}.ff.net.2", value * F.gelu(gate))
    return x + conv(w, f"{name}.proj_out", h.mT.reshape(batch, channels, height, width))


def attention(w, name, x, context, heads):
    split = lambda v: v.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = (split(linear(w, f"{name}.to_{n}", s)) for n, s in (("q", x), ("k", context), ("v", context)))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return linear(w, f"{name}.to_out.0", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def norm(w, name, x, eps=1e-5):
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w, name, x, stride=1):
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride, kernel.shape[-1] // 2)


def count(w, prefix):
    return len({key[len(prefix) + 1 :].partition(".")[0] for key in w if key.startswith(f"{prefix}.")})
