"""The chain on a checkpoint of random weights, and `generate` from its bundle without torch."""

import json
import struct
import subprocess
import sys

import pytest

from quaver.exporter.stages import run_recipe
from quaver.runtime.audio import read_wav
from quaver.runtime.engine import open_engine
from quaver.runtime.progress import quiet

RECIPE = """
[model]
family = "{family}"
source = "{source}"
{model}
[prompts]
{prompts}
count = 4
held_out = 4
budget = 0
[sampling]
{sampling}
steps = 3
[capture]
records = 6
[export]
targets = ["ort-cpu"]
[stats]
trajectories = 4
[validate]
trajectories = 4
clips = 1
latency_runs = 1
latency_warmup = 1
generations = 0
min_speedup = 0.0
"""
TWO = ("--prompt", "a low note", "--prompt", "a dog barks")
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "diffusers", "transformers", "scipy", "yaml", "huggingface_hub"))
from quaver.exporter.cli import main
sys.exit(main(["generate", *sys.argv[1:], "--quiet", "--threads", "1"]))
"""


def chain(place, source, family, *, model="", prompts="", sampling=""):
    """The bundle of a checkpoint, and its report."""
    recipe = place / "made.toml"
    said = RECIPE.format(family=family, source=source, model=model, prompts=prompts, sampling=sampling)
    recipe.write_text(said, encoding="utf-8")
    run_recipe(recipe, progress=quiet())
    bundle = place / "made"
    return bundle, json.loads((bundle / "report.json").read_text())


def answers(path, feeds):
    """What a graph answers to those of the arrays that it takes."""
    with open_engine(path, threads=1) as engine:
        return engine({name: feeds[name] for name in engine.inputs})


def ends(path):
    """The names of the inputs and of the outputs of a graph."""
    graph = pytest.importorskip("onnx").load(path).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def generate(bundle, *arguments):
    """Run `quaver generate` where only the base install can be imported."""
    command = [sys.executable, "-c", WITHOUT, str(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def drawn(bundle, place, *arguments):
    """The bytes of the files that `quaver generate` writes into a folder."""
    done = generate(bundle, *arguments, "--out", str(place))
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def heard(bundle, place, *arguments):
    """The sounds [N] that `quaver generate` writes into a folder, none of them silent."""
    drawn(bundle, place, *arguments)
    found = [read_wav(path) for path in sorted(place.iterdir())]
    assert {rate for _, rate in found} == {16_000} and all(sound.std() > 0 for sound, _ in found)
    return [sound for sound, _ in found]


def size(png):
    """Width, height, bits and kind of a PNG file; kind 2 is red, green and blue."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">IIBB", png[16:26])
