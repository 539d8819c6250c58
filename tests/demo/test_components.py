"""The embedded model's networks load where only what exports it is installed."""

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
