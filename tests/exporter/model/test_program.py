import numpy as np
import pytest

from quaver.exporter.model.program import share, values
from quaver.exporter.modelfile import save_model
from quaver.runtime.artifact import Stamp
from quaver.runtime.engine import open_engine

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8)).eval()
    x = torch.randn(3, 8)
    export = lambda: torch.onnx.export(module, (x,), input_names=["x"], dynamo=True, opset_version=21, verbose=False)  # noqa: E731
    return module, x.numpy(), export


@pytest.mark.parametrize("embedded", [1 << 30, 100])
def test_large_weights_go_from_torchs_memory_to_the_file(exported, tmp_path, embedded):
    module, x, export = exported
    model, memory = share(export(), large=1000)
    assert len(memory) == 2 and sum(len(t.raw_data) for t in model.graph.initializer) < 1000
    own = [p.data_ptr() for p in module.parameters()]
    assert any(value.__array_interface__["data"][0] in own for value in memory.values()), "no copy"
    path = save_model(model, tmp_path / "m.onnx", Stamp("trace"), embedded=embedded, memory=memory)
    with torch.no_grad(), open_engine(path) as engine:
        np.testing.assert_allclose(engine({"x": x}), module(torch.from_numpy(x)).numpy(), atol=1e-6)


def test_values_follow_their_constants_through_a_renaming(exported):
    model, memory = share(exported[2](), large=1000)
    renamed = next(t for t in model.graph.initializer if t.external_data)
    before = values(model, memory)[renamed.name]
    renamed.name = "another"
    assert values(model, memory)["another"] is before


def test_small_weights_stay_in_the_graph(exported):
    model, memory = share(exported[2]())
    assert not memory and not any(t.external_data for t in model.graph.initializer)


def test_the_file_is_the_same_whether_weights_were_referred_to_or_not(exported, tmp_path):
    files = []
    for name, large in (("shared", 1000), ("copied", 1 << 20)):
        model, memory = share(exported[2](), large=large)
        assert bool(memory) == (name == "shared")
        files.append(save_model(model, tmp_path / f"{name}.onnx", Stamp("trace"), memory=memory).read_bytes())
    assert files[0] == files[1]
