from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """The script that makes a denoiser to try."""
    path = Path(__file__).parents[3] / "examples" / "tiny_denoiser.py"
    spec = importlib.util.spec_from_file_location("tiny_denoiser", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(example: ModuleType) -> Any:
    """A fresh copy of its model, to be spoiled."""
    return example.denoiser(np.random.default_rng(0))


@pytest.fixture
def place(example: ModuleType, tmp_path: Path) -> Path:
    """A folder with samples for it."""
    example.main([str(tmp_path / "source")])
    return tmp_path / "source"
