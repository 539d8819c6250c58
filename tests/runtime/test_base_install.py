"""From prompt to WAV in an environment that holds what `pip install quaver` brings and nothing else."""

from __future__ import annotations

import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.audio import read_wav

ROOT = Path(__file__).parents[2]
BASE = ("array-api-compat", "numpy", "onnxruntime", "safetensors", "tokenizers")
# A process of that environment: `quaver generate`, watched for what it imports and what it opens to write.
SCRIPT = """
import importlib.util, os, sys

bundle, out = sys.argv[1:]
written = []


def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.rename", "os.remove", "os.mkdir"):
        written.extend(os.path.abspath(os.fsdecode(arg)) for arg in args[:2] if isinstance(arg, (str, bytes)))


sys.addaudithook(watch)
from quaver.exporter.cli import main

code = main(["generate", bundle, "--prompt", "a soft low cello note", "--seed", "1", "--eta", "1", "--out", out])
installed = [name for name, found in sys.modules.items() if "site-packages" in (getattr(found, "__file__", 0) or "")]
print(*{name.partition(".")[0] for name in installed})
print(any(path.startswith(bundle) for path in written), any(path == out for path in written))
extras = ("torch", "onnx", "diffusers", "transformers", "scipy", "tensorrt_rtx", "polygraphy", "huggingface_hub")
print([name for name in extras if importlib.util.find_spec(name)])
try:
    from quaver.runtime.engine import open_engine
    open_engine(None, backend="eager")
except Exception as error:
    print(type(error).__name__, error)
sys.exit(code)
"""


@pytest.fixture
def python(tmp_path):
    """The Python of a fresh environment, to which the packages of the base install are linked, one by one."""
    venv.create(tmp_path / "device", symlinks=True)
    (packages,) = tmp_path.glob("device/lib/python*/site-packages")
    for name in BASE:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(found.locate_file(top))
    (packages / "quaver").mkdir()
    for layer in ("runtime", "calib", "exporter"):
        (packages / "quaver" / layer).symlink_to(ROOT / layer)
    meta = f"quaver-{distribution('quaver').version}.dist-info"
    (packages / meta).symlink_to(distribution("quaver").locate_file(meta))
    return tmp_path / "device" / "bin" / "python"


def test_a_bundle_goes_from_prompt_to_wav_without_any_extra(python, made_bundle, tmp_path):
    argv = [python, "-I", "-c", SCRIPT, made_bundle.root, tmp_path / "cello.wav"]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    printed, packages, places, extras, missing = done.stdout.splitlines()
    assert printed == str(tmp_path / "cello.wav")
    assert set(packages.split()) == {name.replace("-", "_") for name in BASE} | {"quaver"}
    assert places == "False True"  # written: nothing in the bundle, which may lie on a read-only medium
    assert extras == "[]"
    assert missing.startswith("QuaverError torch is not installed")
    assert "pip install 'quaver[export]'" in missing
    samples, rate = read_wav(tmp_path / "cello.wav")
    assert rate == 16_000
    assert np.abs(samples).max() > 0.01
    assert done.stderr.startswith("1 clip  5/5")
