import os
import pickle

import pytest
from safetensors.torch import save_file

from quaver.exporter.checkpoints.tensors import averaged, read_tensors, under
from quaver.runtime.errors import RecipeError

torch = pytest.importorskip("torch")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a.weight": torch.arange(4096.0)}, "epoch": 3}, path)
    return path


def test_weights_are_found_inside_what_training_saved(checkpoint, tmp_path):
    assert list(read_tensors(checkpoint)) == ["a.weight"]
    torch.save({"generator": {"conv.weight": torch.ones(2)}}, tmp_path / "g.pt")
    assert read_tensors(tmp_path / "g.pt")["conv.weight"].tolist() == [1, 1]
    save_file({"b": torch.ones(1)}, tmp_path / "m.safetensors")
    assert list(read_tensors(tmp_path / "m.safetensors")) == ["b"]


def test_a_checkpoint_of_before_zip_files_is_read_too(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.pth")["a"].tolist() == [1, 1, 1]


class Evil:
    def __init__(self, code, said):
        self.call = code, (said,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("code", [print, os.system])  # torch refuses modules such as os in words of their own
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capfd, zipped, code):
    held = {"state_dict": {"a": torch.ones(1)}, "x": Evil(code, "echo code has run")}
    torch.save(held, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RecipeError, match=rf"holds code, which is never run \((\w+\.)?{code.__name__}\): name a check"):
        read_tensors(tmp_path / "m.ckpt")
    assert "code has run" not in capfd.readouterr().out


def test_classes_that_lightning_left_stand_for_nothing(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        left = {module.ModelCheckpoint: {"best": 0.1}, "instance": module.ModelCheckpoint()}
        torch.save({"callbacks": left, "state_dict": {"a": torch.ones(1)}}, tmp_path / "m.ckpt")
    assert list(read_tensors(tmp_path / "m.ckpt")) == ["a"]
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_half_a_download_is_told_from_damage(checkpoint, tmp_path, suffix):
    if suffix == ".safetensors":
        save_file({"a": torch.arange(4096.0)}, tmp_path / "model.safetensors")
    path = tmp_path / f"model{suffix}"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(RecipeError, match=r"ends early.*download it again"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("data", "said"),
    {
        "page": (b"<!doctype html><html>", "is no checkpoint .*html.*download it again"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        "pickle": (pickle.dumps({"epoch": 3}, protocol=4), "is damaged, or not written by torch"),
    }.values(),
)
def test_what_is_no_checkpoint_is_said(tmp_path, data, said):
    (tmp_path / "m.ckpt").write_bytes(data)
    with pytest.raises(RecipeError, match=said):
        read_tensors(tmp_path / "m.ckpt")


def test_a_checkpoint_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.ckpt")
    with pytest.raises(RecipeError, match="holds no tensors, only epoch"):
        read_tensors(tmp_path / "m.ckpt")
    torch.save(3, tmp_path / "m.ckpt")
    with pytest.raises(RecipeError, match="holds a int, expected tensors by key"):
        read_tensors(tmp_path / "m.ckpt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="does not exist: name a checkpoint"):
        read_tensors(tmp_path / "m.ckpt")


def test_the_moving_average_takes_the_place_of_the_last_weights():
    last = {"model.diffusion_model.a.0.weight": torch.zeros(1), "first_stage_model.b": torch.zeros(1)}
    average = {"model_ema.diffusion_modela0weight": torch.ones(1), "model_ema.decay": torch.tensor(0.9)}
    found = averaged(last | average)
    assert under(found, "model.diffusion_model.")["a.0.weight"].item() == 1
    assert found["first_stage_model.b"].item() == 0


def test_half_a_moving_average_is_none():
    last = {"model.diffusion_model.a.weight": torch.zeros(1), "model.diffusion_model.b.weight": torch.zeros(1)}
    found = averaged(last | {"model_ema.diffusion_modelaweight": torch.ones(1)})
    assert found["model.diffusion_model.a.weight"].item() == 0
