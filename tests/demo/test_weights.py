"""Weights of the demo's own networks that are damaged."""

from __future__ import annotations

import pytest

from quaver.runtime.errors import ArtifactError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("harm", ["truncated", "missing", "of another network"])
def test_weights_that_do_not_load_are_one_line(tmp_path, harm):
    from quaver.demo.weights import load_weights, save_weights

    save_weights(torch.nn.Linear(3, 4), tmp_path, {})
    path = tmp_path / "model.safetensors"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    if harm == "missing":
        path.unlink()
    with pytest.raises(
        ArtifactError, match=r"model\.safetensors does not load \(.*\): copy the model folder again$"
    ) as e:
        load_weights(torch.nn.Linear(3, 5 if harm == "of another network" else 4), tmp_path)
    assert "\n" not in str(e.value)
