"""Ranges out of checkpoints: a U-Net that nvidia-modelopt quantized, and files made by hand."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quaver.calib.amax import import_amax, match_layers, read_amax
from quaver.calib.capture import CaptureSettings, capture
from quaver.calib.graph import Layer
from quaver.calib.hooks import layer_names, open_hooked
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.calib.taps import read_summaries
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.progress import Progress, quiet
from quaver.runtime.sample import SamplingSettings

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "modelopt_unet" / "diffusion_pytorch_model.safetensors"


def maker() -> ModuleType:
    """The script that made the checkpoint."""
    spec = importlib.util.spec_from_file_location("modelopt_unet", DATA / "modelopt_unet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layer(name: str, edge: str) -> Layer:
    return Layer(name, name, "Conv", edge, f"{name}.out", f"{name}.weight", (4, 4, 3, 3), None)


def inputs_of(unet: Any, made: ModuleType, names: list[str]) -> np.ndarray:
    """max |x| of the input of each layer over the calls it was calibrated on."""

    def call(named: Any) -> Any:
        return unet(named["sample"], named["timestep"], None, class_labels=named["class_labels"]).sample

    with open_hooked(unet, call, names) as run:
        seen = [read_summaries(run(feeds)) for feeds in made.calls()]
    return np.max([np.maximum(-s.amin, s.amax) for s in seen], axis=0)


def test_the_ranges_of_a_unet_quantized_by_modelopt_are_its_inputs_extremes() -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    made, weights = maker(), load_file(CHECKPOINT)
    config = diffusers.UNet2DConditionModel.load_config(CHECKPOINT.with_name("config.json"))
    unet = diffusers.UNet2DConditionModel.from_config(config).eval()
    unet.load_state_dict({name: torch.from_numpy(weights[name]) for name in unet.state_dict()})
    found = [layer(name, f"{name}.in") for name in layer_names(unet)]  # so are the layers of its graph called
    said = io.StringIO()
    ranges = import_amax(str(CHECKPOINT), found, prefix="", progress=Progress(said))
    quantized = [x.name for x in found if not x.name.endswith("proj_out")]  # modelopt leaves these float by default
    assert set(ranges) == {f"{name}.in" for name in quantized}
    expected = inputs_of(unet, made, quantized)
    np.testing.assert_allclose([ranges[f"{name}.in"] for name in quantized], expected, rtol=1e-5)
    assert f"{len(ranges)} of {len(found)} layer inputs from" in said.getvalue()


@pytest.mark.slow
def test_modelopt_still_writes_what_the_stored_checkpoint_holds(tmp_path: Path) -> None:
    pytest.importorskip("modelopt", reason="needs nvidia-modelopt, which no extra brings")
    torch = pytest.importorskip("torch")
    unet = maker().quantized()
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    fresh, stored = read_amax(tmp_path / "unet.pt"), read_amax(CHECKPOINT)
    assert fresh.keys() == stored.keys()
    for key, value in fresh.items():
        np.testing.assert_allclose(value, stored[key], rtol=1e-4)


def test_the_names_of_pytorch_quantization_and_several_channels_count() -> None:
    amax = {
        "a._input_quantizer._amax": np.float32([[1.0], [3.0]]),
        "a._weight_quantizer._amax": np.float32([9.0]),
        "b._input_quantizer._amax": np.float32(2.0),
        "norm._input_quantizer._amax": np.float32(7.0),
    }
    found = [layer("a", "x"), layer("b", "y"), layer("b#2", "z"), layer("c", "w")]
    assert match_layers(amax, found, prefix="", source="s") == {"x": 3.0, "y": 2.0, "z": 2.0}


def test_layers_that_share_an_edge_share_the_larger_range() -> None:
    amax = {f"{name}.input_quantizer._amax": np.float32(value) for name, value in (("q", 1), ("k", 2))}
    assert match_layers(amax, [layer("q", "x"), layer("k", "x")], prefix="", source="s") == {"x": 2.0}


def test_a_prefix_is_taken_off_and_others_are_left_alone() -> None:
    amax = {"unet.a.input_quantizer._amax": np.float32(1), "text.a.input_quantizer._amax": np.float32(5)}
    assert match_layers(amax, [layer("a", "x")], prefix="unet.", source="s") == {"x": 1.0}


def test_layers_without_a_counterpart_are_listed() -> None:
    amax = {
        f"unet.{name}.{what}_quantizer._amax": np.float32(1)
        for name in ("a", "gone.1", "gone.2")
        for what in ("input", "weight")
    }
    found = [layer("a", "x")]
    with pytest.raises(RecipeError, match=r"3 of 3 quantized layers .*: unet\.a, unet\.gone\.1, .*ranges\.prefix"):
        match_layers(amax, found, prefix="", source="s")
    with pytest.raises(RecipeError, match=r"2 of 3 quantized layers are none of the graph's 1: gone\.1, gone\.2"):
        match_layers(amax, found, prefix="unet.", source="s")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_value_that_is_no_amax_is_named(value: float) -> None:
    amax = {"a.input_quantizer._amax": np.float32(value)}
    with pytest.raises(RecipeError, match=r"a\.input_quantizer\._amax is .*calibrate anew"):
        match_layers(amax, [layer("a", "x")], prefix="", source="s")


def test_a_checkpoint_without_ranges_a_missing_and_a_truncated_one_are_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"a.weight": np.zeros(3, np.float32)}, plain)
    with pytest.raises(RecipeError, match=r"no input range of a layer .*'a\.input_quantizer\._amax'"):
        import_amax(str(plain), [layer("a", "x")], prefix="", progress=quiet())
    with pytest.raises(RecipeError, match=r"gone\.pt does not exist: name a checkpoint, or 'records'"):
        read_amax(tmp_path / "gone.pt")
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes(CHECKPOINT.read_bytes()[:5000])
        with pytest.raises(ArtifactError, match=rf"{name} is damaged"):
            read_amax(tmp_path / name)


def test_files_of_torch_are_read_without_running_what_is_in_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    held = {"modelopt_state": {"version": "0.47"}, "model_state_dict": {"a.input_quantizer._amax": torch.tensor(2.5)}}
    torch.save(held, tmp_path / "nested.pt")
    assert {k: float(v) for k, v in read_amax(tmp_path / "nested.pt").items()} == {"a.input_quantizer._amax": 2.5}
    torch.save({"model": maker}, tmp_path / "code.pt")
    with pytest.raises(ArtifactError, match=r"code\.pt .*holds more than tensors"):
        read_amax(tmp_path / "code.pt")


def test_bfloat16_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"a.input_quantizer._amax": torch.tensor(1.5, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    assert float(read_amax(tmp_path / "b.safetensors")["a.input_quantizer._amax"]) == 1.5


def test_imported_ranges_replace_those_of_the_records_and_only_those(bundle: Bundle, tmp_path: Path) -> None:
    checkpoint = tmp_path / "amax.safetensors"
    save_file({"conv_out.input_quantizer._amax": np.array(0.25, np.float32)}, checkpoint)
    sampling = SamplingSettings(steps=3, guidance=2.0)
    capture(bundle, CaptureSettings(records=10), sampling, stamp=Stamp("capture"), progress=quiet())
    got = []
    for source in ("records", str(checkpoint)):
        collect_ranges(bundle, RangeSettings(source=source), stamp=Stamp("ranges"), progress=quiet())
        got.append(load_tensors(bundle.ranges, "ranges"))
    (plain, _), (imported, meta) = got
    assert meta["imported"] == ["h_act"]
    e = meta["edges"].index("h_act")
    assert (imported["amin"][e], imported["amax"][e]) == (-0.25, 0.25)
    assert np.array_equal(np.delete(imported["amax"], e), np.delete(plain["amax"], e))
    np.testing.assert_array_equal(imported["amax_t"], plain["amax_t"])
