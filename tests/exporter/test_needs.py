from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from quaver.calib.fanout import Fanout
from quaver.calib.records import Records, save_records
from quaver.exporter import needs
from quaver.exporter.recipe import Recipe
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from tests.exporter.test_memory import graph

DATA = Path(__file__).parents[1] / "data" / "checkpoints"
FREE, HERE = needs.LIBRARIES, Fanout()
W, A = 4 * 4 * 8, 4 * (4 + 8 + 12)  # of the graph


@pytest.fixture
def bundle(tmp_path):
    bundle = Bundle(tmp_path)
    bundle.float_unet.write_bytes(graph().SerializeToString())
    return bundle


def setting(recipe, section, **values):
    return replace(recipe, **{section: replace(getattr(recipe, section), **values)})


def test_capture_holds_the_weights_and_a_batch_of_both_branches(bundle):
    recipe = setting(Recipe(), "capture", batch=3)
    found = needs.of_capture(bundle, recipe, HERE)
    assert (found.bytes, found.fewer) == (FREE + 1.75 * W + 6 * A, "set capture.batch below 3")
    assert needs.of_capture(bundle, setting(recipe, "sampling", guidance=1.0), HERE).bytes == FREE + 1.75 * W + 3 * A


def test_every_worker_has_an_engine_of_its_own_and_a_cluster_is_not_known(bundle):
    recipe = setting(Recipe(), "capture", batch=1)
    found = needs.of_capture(bundle, recipe, Fanout(workers=4))
    assert (found.bytes, found.fewer) == (4 * (FREE + 1.75 * W + 2 * A), "take fewer --workers than 4")
    assert needs.of_capture(bundle, recipe, Fanout(ray="auto")) is None


def test_ranges_hold_the_values_of_every_edge_up_to_a_limit(bundle):
    recipe = setting(Recipe(), "ranges", batch=1, values=1000)
    edges = 4  # x, y, z, out
    assert needs.of_ranges(bundle, recipe, HERE).bytes == FREE + 1.75 * W + 2 * A + 4 * 1000 * edges
    few = setting(recipe, "ranges", memory=2**-10)
    assert needs.of_ranges(bundle, few, HERE).bytes == FREE + 1.75 * W + 2 * A + 1024


def test_reconstruction_keeps_what_is_alive_between_layers_of_all_records(bundle):
    none = np.zeros(5, np.int64)
    records = Records(np.zeros((5, 1, 2, 2), np.float32), none, {}, {}, none, none, none, 1.0, ("",), ("",))
    save_records(bundle.samples, records, Stamp("samples"))
    recipe = setting(Recipe(), "reconstruct", method="brecq", batch=7, records=3)
    between, start = 4 * (4 + 8), FREE + needs.TORCH + 4 * W
    assert needs.of_reconstruct(bundle, recipe, HERE).bytes == start + 2 * 6 * between + 21 * A
    every = setting(recipe, "reconstruct", records=0)
    assert needs.of_reconstruct(bundle, every, HERE).bytes == start + 2 * 10 * between + 21 * A
    assert needs.of_reconstruct(bundle, setting(recipe, "reconstruct", method="none"), HERE) is None


def test_export_and_build_go_by_the_bytes_of_their_graphs(bundle):
    recipe = setting(Recipe(), "export", targets=("ort-cpu", "tensorrt-rtx"))
    assert needs.of_export(bundle, recipe, HERE).bytes == FREE + int(0.75 * W)
    assert needs.of_build(bundle, recipe, HERE) is None
    bundle.qdq("tensorrt-rtx").write_bytes(b"0" * 10)
    bundle.qdq("tensorrt-rtx").with_name("unet.tensorrt-rtx.onnx.data").write_bytes(b"0" * 90)
    assert needs.of_build(bundle, recipe, HERE).bytes == FREE + needs.BUILDER + 5 * 100


def test_a_source_is_weighed_by_its_unet_alone_in_fp32(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "unet").mkdir()
    halves = {"a": np.zeros((3, 5), np.float16), "b": np.zeros(2, np.float16)}
    save_file(halves, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(halves, tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert needs.source_weights(str(tmp_path)) == 4 * 17
    assert needs.source_weights("somebody/something") == needs.source_weights("unet.onnx") == 0


def test_a_checkpoint_is_weighed_by_what_becomes_its_unet():
    pytest.importorskip("torch")
    from quaver.exporter.checkpoints.layout import find_checkpoint
    from quaver.exporter.checkpoints.original import load_original

    folder = DATA / "make-an-audio"
    unet = load_original(find_checkpoint(folder), "make-an-audio").unet
    assert needs.source_weights(str(folder)) == 4 * sum(p.numel() for p in unet.parameters())


def test_a_model_is_traced_in_four_times_its_weights(monkeypatch, bundle):
    monkeypatch.setattr(needs, "source_weights", {"here": 10**9, "hub/id": 0}.get)
    recipe = lambda source: SimpleNamespace(model=SimpleNamespace(source=source))  # noqa: E731
    assert needs.of_trace(bundle, recipe("here"), HERE).bytes == FREE + needs.TORCH + 4 * 10**9
    assert needs.of_trace(bundle, recipe("hub/id"), HERE) is None
