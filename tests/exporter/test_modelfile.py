import numpy as np
import pytest

from quaver.exporter.modelfile import load_model, save_model
from quaver.runtime.artifact import Stamp, digest_file, read_stamp
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError

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


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    first = digest_file(save_model(model, tmp_path / "a.onnx", Stamp("export")))
    assert digest_file(save_model(model, tmp_path / "b.onnx", Stamp("export"))) == first


def test_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="'quaver run RECIPE' writes it"):
        load_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match="remove it"):
        load_model(tmp_path / "bad.onnx")
