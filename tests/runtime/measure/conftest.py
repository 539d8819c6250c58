"""A made-up report of the documented layout, with sounds made of sines."""

from __future__ import annotations

import functools
import io
import wave
from typing import Any

import numpy as np
import pytest

from quaver.runtime.measure.spectrogram import picture

RATE = 16000
HOSTILE = '</p><script>document.title="owned"</script><img src=x onerror=alert(1)> "quoted" & a soft low cello note'
PROMPTS = (
    "a soft low cello note",
    HOSTILE,
    "a loud fast arpeggio on a high bright piano, played twice, " * 160,
    "repeated drum hits",
)


@pytest.fixture
def report() -> dict[str, Any]:
    return made_up_report()


@pytest.fixture
def media() -> dict[str, bytes]:
    return made_up_media()


def made_up_report() -> dict[str, Any]:
    names = ("none", "d2-deterministic", "d2-stochastic")
    takes = [{"name": "float", "wave": "float.wav", "picture": "float.png"}]
    takes += [{"name": name, "wave": f"{name}.wav", "picture": f"{name}.png", "latent_error": 0.04} for name in names]
    return {
        "schema": 1,
        "name": "demo-w8a8",
        "made": "2026-01-02 03:04 UTC",
        "target": "ort-cpu",
        "trajectories": 64,
        "prompts": 32,
        "verdict": {
            "ship": True,
            "correction": "d2-deterministic",
            "sentence": "The ort-cpu engine with d2-deterministic stays inside the budget of its recipe.",
            "checks": [
                {"passed": True, "sentence": "Latent error 4.5% at most 4.9%, budget 10%."},
                {"passed": True, "sentence": "1.34× as fast as float, at least 1.31×, budget 1.00×."},
            ],
        },
        "settings": {"max_latent_error": 0.1, "min_speedup": 1.0, "clips": 4, "corrections": list(names)},
        "sampling": {"sampler": "ddim", "steps": 20, "eta": 0.0, "guidance": 3.0, "seed": 0},
        "corrections": [made_up_correction(name, 0.046 - 0.002 * i) for i, name in enumerate(names)],
        "call": {
            "batch": 2,
            "runs": 30,
            "warmup": 3,
            "threads": "2 threads",
            "peak_rss_bytes": 9.1e8,
            "error": interval(0.021),
            "speedup": interval(1.34),
            "engines": {
                "float": {"median_s": 0.0213, "p95_s": 0.0242, "first_s": 0.051, "load_s": 0.32, "bytes": 46_100_000},
                "ort-cpu": {"median_s": 0.0159, "p95_s": 0.0171, "first_s": 0.033, "load_s": 0.41, "bytes": 12_300_000},
            },
        },
        "probe": {
            "name": "Frechet distance (embedded probe)",
            "samples": 64,
            "dimensions": 96,
            "floor": interval(12.1),
            "note": "32 samples for 96 feature dimensions: read it only beside its floor",
            "attributes": ["family", "register"],
            "corrections": [
                {
                    "name": n,
                    "distance": interval(12.4),
                    "agreement": {"family": interval(0.97), "register": interval(0.98)},
                }
                for n in names
            ],
        },
        "plan": {
            "version": "1.7.1",
            "compute_capabilities": ["SM86", "SM89", "SM120"],
            "batch": {"min": 1, "opt": 2, "max": 16},
            "bytes": 13_200_000,
            "seconds": 9.4,
            "meant": 61,
            "integer": 60,
            "by_count": 60 / 61,
            "by_macs": 0.997,
            "missed": [{"layer": "mid_block.attentions.0", "kernels": ["gemm Half x Half"]}],
        },
        "clips": [{"prompt": text, "seed": 7 + i, "rate": RATE, "takes": takes} for i, text in enumerate(PROMPTS)],
        "environment": {"quaver": "0.1.0", "onnxruntime": "1.32.0", "machine": "x86_64", "processor": "<b>cpu</b>"},
        "digests": {"unet.float.onnx": "sha256:" + "0" * 64, "unet.ort-cpu.onnx": "sha256:" + "1" * 64},
        "reproduce": ["quaver validate engines/demo-w8a8.toml"],
    }


def made_up_correction(name: str, error: float) -> dict[str, Any]:
    return {
        "name": name,
        "latent_error": interval(error),
        "snr_db": interval(-20 * np.log10(error), 0.2),
        "log_spectral_db": interval(1.9),
        "against_none": None if name == "none" else interval(error / 0.046, 0.01),
        "drift": [error * (i / 19) ** 1.6 for i in range(20)],
    }


def interval(value: float, width: float = 0.08) -> dict[str, float]:
    return {"value": value, "low": value * (1 - width), "high": value * (1 + width)}


@functools.cache
def made_up_media() -> dict[str, bytes]:
    found = {}
    for i, name in enumerate(("float", "none", "d2-deterministic", "d2-stochastic")):
        t = np.arange(int(2.05 * RATE)) / RATE
        tone = sum(np.sin(2 * np.pi * 220 * k * t) * np.exp(-t * (1 + 0.4 * k)) / k for k in range(1, 20))
        noisy = 0.2 * tone + 0.001 * (1 + i) * np.random.default_rng(i).normal(size=t.size)
        found[f"{name}.wav"], found[f"{name}.png"] = wav(noisy), picture(noisy, rate=RATE)
    return found


def wav(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium (apt-get install chromium)")
