"""Killed wherever it can hurt, and run again: the whole chain on a model of the embedded one's shape."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.killed import differences, leftovers
from quaver.exporter.stages import run_recipe
from quaver.runtime.bundle import Bundle
from quaver.runtime.progress import quiet

pytestmark = pytest.mark.slow

# Other prompts, records, roundings and statistics than those the bundle holds; a few layers learned.
OTHER = [
    "prompts.seed=1",
    "sampling.eta=1.0",
    "ranges.observer=minmax",
    'reconstruct.method="adaround"',
    "reconstruct.iterations=4",
    "reconstruct.records=4",
    "reconstruct.batch=4",
    'export.rules=[{match="mid_block.*.ff.*", weight="int4", activation="int8"}]',
    'validate.corrections=["d2-deterministic"]',
]
# Tracing begins anew each time, which takes seconds: it is killed at one of its files only.
SPARED = "unet.float.onnx,vae_decoder.onnx,vocoder.onnx,probe.onnx,tokenizer.json,scheduler_config.json,bundle.json"


def test_killed_at_every_file_it_writes_or_removes_a_run_ends_with_the_bytes_of_one_that_was_not(built, tmp_path):
    alone, killed = Bundle(tmp_path / "alone"), Bundle(tmp_path / "killed")
    for bundle in (alone, killed):
        shutil.copytree(built.with_suffix(""), bundle.root)
    run_recipe(built, overrides=OTHER, out=alone.root, progress=quiet())
    killed.card.unlink()  # so that the model is traced anew
    script = Path(__file__).with_name("killing.py")
    argv = [sys.executable, str(script), str(built), str(killed.root), SPARED, *OTHER]
    places = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert len(places) >= 30
    assert {
        "rename prompts.jsonl",
        "rename text_encoder.onnx",
        "rename .shards/capture/000001.safetensors",
        "rename moments.safetensors",
        "rmtree .shards/capture",
        "rename .shards/reconstruct/0001.safetensors",
        "rmtree .shards/reconstruct",
        "rename unet.ort-cpu.onnx",
        "rmtree .shards/stats",
        "rename report.html",
        "rmtree .shards/validate",
    } <= {*places}
    assert differences(alone.root, killed.root) == []
    assert leftovers(alone.root) == leftovers(killed.root) == []
