"""A made-up report of the documented layout, with sounds made of sines."""

from __future__ import annotations

import functools
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.error_law import ErrorStats, save_stats
from quaver.runtime.generate import binding
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import timesteps
from quaver.runtime.session import open_bundle

RATE = 16000
HOSTILE = '</p><script>document.title="owned"</script><img src=x onerror=alert(1)> "quoted" & a soft low cello note'
PROMPTS = (
    "a soft low cello note",
    HOSTILE,
    "a loud fast arpeggio on a high bright piano, played twice, " * 160,
    "repeated drum hits",
)
NAMES = ("none", "d2-deterministic", "d2-stochastic")


SAMPLING = SamplingSettings(steps=4, guidance=2.0)


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Bundle:
    rows = [
        {"id": "a", "text": "a soft low cello note", "split": "validate"},
        {"id": "b", "text": "<script>bright drum</script>", "split": "validate"},
        {"id": "c", "text": "a note", "split": "calib"},
    ]
    save_lines(tiny_bundle.prompts, rows, Stamp("prompts"))
    with open_bundle(tiny_bundle) as session:
        S = SAMPLING.steps
        stats = ErrorStats(
            timesteps(session.schedule, S),
            np.tile([0.0, 0.01], (S, 1, 1)),
            np.tile([[1.0, 0.002], [0.002, 0.0004]], (S, 1, 1, 1)),
            np.full(S, 100.0),
            binding(session, SAMPLING),
        )
    save_stats(tiny_bundle.error_stats("ort-cpu"), stats, Stamp("stats"))
    probe(tiny_bundle.probe)
    return tiny_bundle


def probe(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(256, 5)), "k": rng.normal(size=(256, 3))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["waveform", "w"], ["features"]),
            helper.make_node("MatMul", ["waveform", "k"], ["family"]),
        ],
        "probe",
        [helper.make_tensor_value_info("waveform", 1, ["B", 256])],
        [helper.make_tensor_value_info(name, 1, ["B", size]) for name, size in (("features", 5), ("family", 3))],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.fixture
def report() -> dict[str, Any]:
    return made_up_report()


@pytest.fixture
def joint() -> dict[str, Any]:
    """A report about three engines, the second of which does not ship."""
    return made_up_report(("demo-w8a8", "<i>w4a8</i>", "demo-8w16a"))


@pytest.fixture
def media() -> dict[str, bytes]:
    return made_up_media()


def made_up_report(engines: tuple[str, ...] = ("demo-w8a8",)) -> dict[str, Any]:
    several = len(engines) > 1
    takes = [made_up_take(None, "float")]
    takes += [made_up_take(engine, name) for engine in engines for name in NAMES]
    verdict = {
        "ship": True,
        "word": "Ship",
        "sentence": "ort-cpu with d2-deterministic keeps the budget of its recipe.",
    }
    if several:
        verdict = {"ship": True, "word": "2 of 3 ship", "sentence": "demo-w8a8 is the fastest of them."}
    return {
        "schema": 2,
        "name": "compare" if several else engines[0],
        "made": "2026-01-02 03:04 UTC",
        "verdict": verdict,
        "trajectories": 64,
        "prompts": 32,
        "references": [
            {
                "name": "float",
                "call": made_up_times(0.0213, 46_100_000),
                "generation": made_up_generation("float", "none"),
                "bytes": 46_100_000,
                "rate": RATE,
                "digest": "sha256:" + "0" * 64,
                "seed_spread": [1.2 - 0.02 * i for i in range(20)],
                "silent": 0,
                "clipped": 0,
            }
        ],
        "engines": [made_up_engine(name, i) for i, name in enumerate(engines)],
        "clips": [
            {"prompt": text, "seed": 7 + i, "takes": [dict(take) for take in takes]} for i, text in enumerate(PROMPTS)
        ],
        "notes": ["64 trajectories from 32 held-out prompts: each is drawn several times."],
        "environment": {"quaver": "0.1.0", "onnxruntime": "1.32.0", "machine": "x86_64", "processor": "<b>cpu</b>"},
        "reproduce": "quaver validate engines/demo-w8a8.toml",
    }


def made_up_engine(name: str, i: int) -> dict[str, Any]:
    ship = i != 1
    return {
        "name": name,
        "bundle": f"engines/{name}",
        "target": "ort-cpu",
        "reference": "float",
        "verdict": {
            "ship": ship,
            "word": "Ship" if ship else "Do not ship",
            "correction": "d2-deterministic",
            "sentence": "ort-cpu with d2-deterministic keeps the budget of its recipe.",
            "checks": [
                {"passed": ship, "sentence": "Latent error 4.5%, at most 4.9%; the budget is 10%."},
                {"passed": True, "sentence": "One U-Net call is 1.34× as fast as float, at least 1.31×."},
            ],
        },
        "corrections": [made_up_correction(c, (0.046, 0.15, 0.03)[i % 3] * (1 - 0.05 * (2 - k))) for k, c in PLACES],
        "call": {
            "batch": 2,
            "runs": 30,
            "warmup": 3,
            "threads": "2 threads",
            "peak_rss_bytes": 9.1e8,
            "error": interval(0.021),
            "speedup": interval((1.34, 1.48, 1.05)[i % 3]),
            "engines": {
                "float": made_up_times(0.0213, 46_100_000),
                "ort-cpu": made_up_times(0.0159, 12_300_000),
            },
        },
        "generation": made_up_generation("ort-cpu", "d2-deterministic")
        if ship
        else {"missing": "It ran out of memory."},
        "bytes": (12_300_000, 8_900_000, 23_400_000)[i % 3],
        "sets": [
            {
                "network": "embedded probe",
                "samples": 64,
                "dimensions": 96,
                "note": "32 samples for 96 feature dimensions: read it only beside its floor",
                "floors": [{"name": "float against float", "measures": {"Frechet distance": interval(12.1)}}],
                "corrections": [
                    {"name": n, "measures": {"Frechet distance": interval(12.4), "same family": interval(0.97, 0.02)}}
                    for n in NAMES
                ],
            },
            {"network": "VGGish", "missing": "No weights here: pip install 'quaver[audio-metrics]' brings them."},
        ],
        "sites": {
            "layers": 61,
            "of_layers": 134,
            "by_macs": 0.888,
            "bits": "W8A8",
            "kernels": [
                {"type": "Conv uint8 × int8", "layers": 61, "macs": 0.888},
                {"type": "MatMul float32", "layers": 73, "macs": 0.112},
            ],
            "kept": [
                {"layer": f"attn.{k}", "op": "MatMul", "macs": 0.0015, "reason": "attention stays float (preset)"}
                for k in range(73)
            ],
            "products": {"float": 28},
            "bops": {"stored": 1.2e11, "kernels": 1.2e11, "float": 9.8e11},
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
        "coverage": {
            "splits": {"calib": 128, "validate": 64},
            "aspects": [{"name": name, "calib": 100 // k, "validate": 40 // k} for k, name in enumerate(ASPECTS, 1)],
            "uncovered": 3,
            "distinct": 17,
            "redundancy": 0.21,
        },
        "ranges": {
            "edges": 405,
            "timesteps": list(range(951, 0, -50)),
            "low": [0.4 + 0.01 * t for t in range(20)],
            "mid": [0.8 + 0.005 * t for t in range(20)],
            "high": [1.0] * 20,
            "varying": [
                {
                    "edge": f"up_blocks.{k}.resnets.1.conv2",
                    "amin": [-1.0 - k - 0.2 * t for t in range(20)],
                    "amax": [2.0 + 0.5 * t for t in range(20)],
                    "ratio": 4.8,
                }
                for k in range(12)
            ],
        },
        "settings": {"max_latent_error": 0.1, "min_speedup": 1.0, "clips": 4, "corrections": list(NAMES)},
        "sampling": {"sampler": "ddim", "steps": 20, "eta": 0.0, "guidance": 3.0, "seed": 0},
        "digests": {"unet.float.onnx": "sha256:" + "0" * 64, "unet.ort-cpu.onnx": "sha256:" + "1" * 64},
    }


ASPECTS = ("music", "loudness", "pitch", "harmonicity", "reverberation", "speech")
PLACES = ((2, "none"), (0, "d2-deterministic"), (1, "d2-stochastic"))  # the smaller, the closer to float


def made_up_times(seconds: float, size: int) -> dict[str, float]:
    found = {"median_s": seconds, "p95_s": 1.1 * seconds, "first_s": 2 * seconds, "runs": 30, "warmup": 3}
    return {**found, "load_s": 0.32, "bytes": size}


def made_up_generation(engine: str, correct: str) -> dict[str, Any]:
    found = {"engine": engine, "correct": correct, "batch": 1, "steps": 20, "threads": 2, "runs": 3, "warmup": 1}
    found |= {"load_s": 0.9, "first_s": 0.8, "median_s": 0.7, "p95_s": 0.75, "peak_rss_bytes": 3e8}
    return {**found, "idle_rss_bytes": 9e7, "engine_bytes": 12_300_000}


def made_up_correction(name: str, error: float) -> dict[str, Any]:
    return {
        "name": name,
        "latent_error": interval(error),
        "snr_db": interval(-20 * np.log10(error), 0.2),
        "log_spectral_db": interval(1.9),
        "mel_snr_db": interval(21.5),
        "psnr_db": None,
        "ssim": None,
        "against_none": None if name == "none" else interval(error / 0.046, 0.01),
        "drift": [error * (i / 19) ** 1.6 for i in range(20)],
        "drift_snr_db": [min(-20 * np.log10(error * (i / 19) ** 1.6), 150.0) if i else 150.0 for i in range(20)],
        "leaves_seeds_at": None,
        "explained": None if name == "none" else [0.3 - 0.03 * i for i in range(20)],
        "clipped_steps": 4 if name == "d2-stochastic" else 0,
        "silent": 0,
        "clipped": 1,
        "errors": [error] * 64,
        "added_s": 0.0 if name == "none" else 2e-4,
    }


def made_up_take(engine: str | None, name: str) -> dict[str, Any]:
    found = {"engine": engine, "correction": name, "file": f"{name}.wav", "rate": RATE}
    found |= {"peak": 0.7, "silent": False, "clipped": 0.012 if name == "d2-stochastic" else 0.0}
    return {**found, "latent_error": None if engine is None else 0.04}


def interval(value: float, width: float = 0.08) -> dict[str, float]:
    return {"value": value, "low": value * (1 - width), "high": value * (1 + width)}


@functools.cache
def made_up_media() -> dict[str, bytes]:
    found = {}
    for i, name in enumerate(("float", *NAMES)):
        t = np.arange(int(2.05 * RATE)) / RATE
        tone = sum(np.sin(2 * np.pi * 220 * k * t) * np.exp(-t * (1 + 0.4 * k)) / k for k in range(1, 20))
        noisy = 0.2 * tone + 0.001 * (1 + i) * np.random.default_rng(i).normal(size=t.size)
        found[f"{name}.wav"] = wav(noisy)
    return found


def wav(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium (apt-get install chromium)")
