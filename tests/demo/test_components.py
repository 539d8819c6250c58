"""The embedded model's networks load where only what exports it is installed; making its dataset says what it needs."""

from __future__ import annotations

import subprocess
import sys

# What makes the dataset: a library of the system's and one of the extras `demo` and `metrics` alone.
WITHOUT = """
import sys
sys.modules |= {"fluidsynth": None, "scipy": None}
from quaver.demo.components import load_components
print(*load_components())
"""


def test_the_networks_load_where_fluidsynth_and_scipy_are_not():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["text_encoder", "vae_decoder", "vocoder", "probe"]


def test_the_dataset_says_what_renders_it(tmp_path):
    script = """
import sys
sys.modules |= {"fluidsynth": None}
from quaver.demo.dataset import main
main()
"""
    asked = [sys.executable, "-c", script, "--out", str(tmp_path / "data")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "fluidsynth" in line and "apt-get install fluidsynth fluid-soundfont-gm" in line
    assert not (tmp_path / "data").exists()
