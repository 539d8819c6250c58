"""From prompt to WAV with what `pip install quaver` brings, everything else blocked."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np

from quaver.runtime.audio import read_wav

SCRIPT = """
import sys

BLOCKED = {{"torch", "onnx", "onnxscript", "diffusers", "transformers", "scipy", "huggingface_hub", "tensorrt_rtx",
           "polygraphy", "matplotlib", "sklearn", "soundfile", "pandas", "sympy", "array_api_strict"}}


class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is not in the base install", name=name)


sys.meta_path.insert(0, Wall())
before = set(sys.modules)

from quaver.runtime.generate import generate_to_files
from quaver.runtime.progress import quiet

paths = generate_to_files({bundle!r}, ["a soft low cello note"], [1], {out!r}, eta=1.0, threads=1, progress=quiet())
print(*paths, sep="\\n")
print("modules", *sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} & BLOCKED))
try:
    from quaver.runtime.engine import open_engine
    open_engine(None, backend="eager")
except Exception as error:
    print(type(error).__name__, error)
"""


def run(bundle, out):
    script = textwrap.dedent(SCRIPT).format(bundle=str(bundle.root), out=str(out))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_a_bundle_goes_from_prompt_to_wav_without_any_extra(made_bundle, tmp_path):
    done = run(made_bundle, tmp_path / "cello.wav")
    assert done.returncode == 0, done.stderr
    written, modules, missing = done.stdout.splitlines()
    assert written == str(tmp_path / "cello.wav")
    assert modules.split() == ["modules"]
    assert missing.startswith("QuaverError torch is not installed")
    assert "pip install 'quaver[export]'" in missing
    samples, rate = read_wav(tmp_path / "cello.wav")
    assert rate == 16_000
    assert np.abs(samples).max() > 0.01
    assert done.stderr == ""
