"""A cache of the hub in a folder of its own, and no way to the hub."""

import pytest


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    """HF_HOME, with HF_HUB_OFFLINE set."""
    constants = pytest.importorskip("huggingface_hub").constants
    home = tmp_path / "hub_home"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home
