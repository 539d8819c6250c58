import errno
import os

import numpy as np
import pytest

from quaver.exporter.modelfile import load_model, open_weights, save_model
from quaver.runtime.artifact import Stamp, digest_file, read_stamp
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError
from quaver.runtime.modelproto import head

onnx = pytest.importorskip("onnx")


@pytest.fixture
def model():
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", 1, ["b", 64])],
        [value("y", 1, ["b", 64])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("embedded", [1 << 30, 100])
def test_a_model_reads_back_the_same_with_weights_inside_or_beside(model, tmp_path, embedded):
    weight, x = onnx.numpy_helper.to_array(model.graph.initializer[0]), np.ones((2, 64), np.float32)
    path = save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=embedded)
    assert (tmp_path / "m.onnx.data").exists() == (embedded == 100)
    assert np.array_equal(onnx.numpy_helper.to_array(load_model(path).graph.initializer[0]), weight)
    with open_engine(path) as engine:
        assert np.allclose(engine({"x": x}), x @ weight, atol=1e-5)
    assert read_stamp(path) == Stamp("export")


def test_weights_of_an_earlier_larger_model_do_not_stay_beside(model, tmp_path):
    save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100)
    save_model(load_model(tmp_path / "m.onnx"), tmp_path / "m.onnx", Stamp("export"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("embedded", [1 << 30, 100])
def test_weights_left_on_disk_travel_from_file_to_file(model, tmp_path, embedded):
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    source = save_model(model, tmp_path / "a.onnx", Stamp("export"), embedded=embedded)
    light = load_model(source, weights=False)
    assert not light.graph.initializer[0].raw_data and light.ByteSize() < 1000
    with open_weights(tmp_path / "new" / "b.onnx", source=tmp_path) as weights:
        assert np.array_equal(weights.read(light.graph.initializer[0]), weight)
        copy = weights.save(light, Stamp("export"))
    assert np.array_equal(onnx.numpy_helper.to_array(load_model(copy).graph.initializer[0]), weight)
    assert [path.name for path in copy.parent.iterdir()] == ["b.onnx"]


def test_a_constant_that_was_kept_is_read_back_and_saved(model, tmp_path):
    coded = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [64, 64], bytes(range(256)) * 8, raw=True)
    for embedded in (1 << 30, 100):
        with open_weights(tmp_path / "m.onnx") as weights:
            kept = weights.keep(onnx.TensorProto.FromString(coded.SerializeToString()))
            assert np.array_equal(weights.read(kept), onnx.numpy_helper.to_array(coded)) and not kept.raw_data
            model.graph.initializer[0].CopyFrom(kept)
            weights.save(model, Stamp("export"), embedded=embedded)
        saved = load_model(tmp_path / "m.onnx").graph.initializer[0]
        assert saved.raw_data == coded.raw_data and saved.data_type == coded.data_type


def test_a_file_of_more_than_four_gigabytes_is_read_without_its_weights(model, tmp_path):
    size, path = 5 << 30, tmp_path / "sparse.onnx"
    last = onnx.TensorProto(name="last", dims=[2000], data_type=1, raw_data=np.arange(2000, dtype=np.float32).tobytes())
    huge = onnx.TensorProto(name="huge", dims=[size // 4], data_type=1).SerializeToString() + head(9, size)
    last_field = head(5, last.ByteSize()) + last.SerializeToString()
    with path.open("wb") as file:
        file.write(head(7, len(head(5, len(huge) + size)) + len(huge) + size + len(last_field)))
        file.write(head(5, len(huge) + size) + huge)
        file.seek(size, 1)
        file.write(last_field)
    light = load_model(path, weights=False)
    assert [list(t.dims) for t in light.graph.initializer] == [[size // 4], [2000]]
    with open_weights(path) as weights:
        assert np.array_equal(weights.read(light.graph.initializer[1]), np.arange(2000))


@pytest.mark.parametrize("embedded", [1 << 30, 100])
def test_a_file_that_is_not_accepted_leaves_the_earlier_pair(model, tmp_path, embedded):
    before = digest_file(save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100))
    model = load_model(tmp_path / "m.onnx")
    model.graph.node[0].name = "another"

    def refuse(path):
        assert load_model(path).graph.node[0].name == "another"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=embedded, accept=refuse)
    assert digest_file(tmp_path / "m.onnx") == before and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_line_and_leaves_the_earlier_pair(model, tmp_path, monkeypatch):
    before = digest_file(save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100))

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("quaver.exporter.modelfile.sync", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*m\.onnx: the disk is full; free some space"):
        save_model(load_model(tmp_path / "m.onnx"), tmp_path / "m.onnx", Stamp("export"), embedded=100)
    assert digest_file(tmp_path / "m.onnx") == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("calls", [0, 1])
def test_a_crash_between_the_renames_never_shows_a_graph_beside_other_weights(model, tmp_path, monkeypatch, calls):
    save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100)
    left, real = [calls], os.replace

    def crash(source, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(source, target)

    new = load_model(tmp_path / "m.onnx")
    new.graph.initializer[0].raw_data = bytes(64 * 64 * 4)
    monkeypatch.setattr("quaver.exporter.modelfile.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_model(new, tmp_path / "m.onnx", Stamp("export"), embedded=100)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx.data"]


def test_weights_that_are_not_where_the_graph_says_are_named(model, tmp_path):
    save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100)
    with (tmp_path / "m.onnx.data").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ArtifactError, match=r"the weights of w should be in .*m\.onnx\.data, which ends 16284 bytes"):
        save_model(load_model(tmp_path / "m.onnx", weights=False), tmp_path / "m.onnx", Stamp("export"))


def test_weights_that_do_not_fill_their_shape_are_named(model, tmp_path):
    save_model(model, tmp_path / "m.onnx", Stamp("export"), embedded=100)
    light = load_model(tmp_path / "m.onnx", weights=False)
    light.graph.initializer[0].dims[0] = 63
    with open_weights(tmp_path / "m.onnx") as weights, pytest.raises(ArtifactError, match=r"of w have 16384 bytes"):
        weights.read(light.graph.initializer[0])


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    first = digest_file(save_model(model, tmp_path / "a.onnx", Stamp("export")))
    assert digest_file(save_model(model, tmp_path / "b.onnx", Stamp("export"))) == first


def test_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="'quaver run RECIPE' writes it"):
        load_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match="remove it"):
        load_model(tmp_path / "bad.onnx")
