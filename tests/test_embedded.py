"""The embedded model through the chain, in small; and what the README does with its bundle."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from quaver.exporter.stages import run_recipe
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import read_card
from quaver.runtime.generate import generate
from quaver.runtime.measure import probe
from quaver.runtime.measure.agreement import accuracies, said
from quaver.runtime.progress import quiet

ROOT = Path(__file__).parents[1]
SMALL = ("capture.prompts=4", "capture.records=16", 'export.targets=["ort-cpu"]', "stats.trajectories=4")
PROMPT = "a soft low cello note"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "demo-w8a8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quaver.demo.vocoder.ITERATIONS", 2)  # each unrolled one takes seconds to trace
        run_recipe(ROOT / "engines" / "demo-w8a8.toml", until="stats", overrides=SMALL, out=folder, progress=quiet())
    return folder


@pytest.mark.slow
def test_the_readmes_pipeline_of_diffusers_makes_the_sound_of_generate(bundle):
    (lines,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(lines.splitlines()) <= 10 and "engines/demo-w8a8" in lines
    found = {}
    exec(lines.replace("engines/demo-w8a8", str(bundle)), found)
    (batch,) = generate(bundle, [PROMPT], [1], correct="auto")
    assert np.abs(found["audio"] - batch.waveforms[0]).max() <= 1e-4 * np.abs(batch.waveforms).max()
    (other,) = generate(bundle, [PROMPT], [1])
    assert np.abs(other.waveforms - batch.waveforms).max() > 1e-2 * np.abs(batch.waveforms).max()


@pytest.mark.slow
def test_the_int8_engine_of_the_embedded_model_makes_what_the_caption_says(bundle):
    (batch,) = generate(bundle, [PROMPT] * 4, [1, 2, 3, 4], correct="auto")
    words = read_card(Bundle(bundle))["words"]
    verdicts = probe.verdicts(probe.judge(Bundle(bundle).probe, batch.decoded))

    def share(caption):
        """Of what the caption says, how much is heard."""
        return accuracies(verdicts, said([caption] * 4, words), words, rng=np.random.default_rng(0))["all"].value

    assert share(PROMPT) >= 0.75
    assert share("a loud high flute melody") <= 0.25


@pytest.mark.slow
def test_the_tradeoff_of_a_bundle_is_printed_with_what_nothing_beats(bundle, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tradeoff.py", str(bundle), "--clips", "2", "--correct", "none", "auto"])
    runpy.run_path(str(ROOT / "examples" / "tradeoff.py"), run_name="__main__")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["engine", "s", "per", "clip", "latent", "error"]
    found = {row[2:42].strip(): (row[0], float(row[42:54]), float(row[54:].rstrip("%"))) for row in rows}
    assert set(found) == {f"demo-w8a8 {name}" for name in ("float", "ort-cpu, none", "ort-cpu, auto")}
    assert found["demo-w8a8 float"][0] == "*" and found["demo-w8a8 float"][2] == 0.0
    assert all(0.0 < error < 20.0 for name, (_, _, error) in found.items() if "ort-cpu" in name)
    seconds = [row[1] for row in found.values()]
    assert seconds == sorted(seconds) and rows[0].startswith("*")
