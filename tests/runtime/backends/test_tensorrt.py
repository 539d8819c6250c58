"""The TensorRT backend on a driver and a library that keep to the documented rules, without a GPU."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, digest_file, save_json
from quaver.runtime.backends import tensorrt as backend
from quaver.runtime.cuda import Gpu, gpu_capability
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from tests.runtime.backends import fake_gpu

VERSIONS = {"tensorrt": "10.13.2.6", "tensorrt_rtx": "1.7.1.116"}


@pytest.fixture
def gpu(monkeypatch):
    """The driver of an SM89, with both libraries and torch installed over it."""
    driver = fake_gpu.Driver()
    monkeypatch.setattr("quaver.runtime.cuda.load_driver", lambda: driver)
    for name, version in VERSIONS.items():
        monkeypatch.setitem(sys.modules, name, fake_gpu.tensorrt(driver, version, rtx=name == "tensorrt_rtx"))
    monkeypatch.setitem(sys.modules, "torch", fake_gpu.torch(driver))
    return driver


def write_plan(folder, *, library="tensorrt", data=None, graph=None, **said):
    """A plan and its sidecar; returns the plan."""
    path = folder / "unet.target.plan"
    path.write_bytes(fake_gpu.plan_bytes() if data is None else data)
    record = {
        "built": True,
        library: VERSIONS[library],
        "compute_capabilities": ["SM86", "SM89"],
        "options": [],
        "onnx": {"file": "unet.target.onnx", "digest": digest_file(graph) if graph else "sha256:0"},
        "plan": {"file": path.name, "digest": digest_file(path)},
        **said,
    }
    save_json(folder / f"{path.name}.json", record, Stamp("build"))
    return path


def feeds(rows=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, 2, 4, 4)).astype(np.float32),
        "timestep": rng.integers(0, 1000, rows),
        "class_labels": rng.standard_normal((rows, 6)).astype(np.float32),
    }


def on_gpu(arrays, index=0):
    return {name: fake_gpu.Tensor(array, index) for name, array in arrays.items()}


def answers(engine, given):
    np.testing.assert_array_equal(engine(given), fake_gpu.expected(given))


@pytest.mark.parametrize("library", VERSIONS)
def test_a_plan_of_either_library_answers_arrays_with_an_array_that_stays(gpu, tmp_path, library):
    path = write_plan(tmp_path, library=library)
    with open_engine(path) as engine:
        assert engine.inputs == ("sample", "timestep", "class_labels")
        assert engine.digest == digest_file(path) and engine.backend == "tensorrt on SM89"
        first = engine(feeds())
        for seed in range(1, 5):
            answers(engine, feeds(seed=seed))
        np.testing.assert_array_equal(first, fake_gpu.expected(feeds()))
    assert not gpu.memory and not gpu.locked and not gpu.graphs and not gpu.events and not gpu.current
    assert gpu.retained == 0


def test_tensorrt_is_enqueued_once_captured_once_and_replayed_per_shape(gpu, tmp_path):
    with open_engine(write_plan(tmp_path)) as engine:
        for rows in (2, 3):
            for seed in range(4):
                answers(engine, feeds(rows, seed))
        assert gpu.count("cuStreamBeginCapture_v2") == 2
        assert gpu.count("cuGraphLaunch") == 2 * 3
        assert gpu.count("cuMemAlloc_v2") == 2 * 4
        answers(engine, feeds(2, 9))
        assert gpu.count("cuMemAlloc_v2") == 2 * 4


def test_tensorrt_rtx_captures_by_itself_and_compiles_before_it_answers(gpu, tmp_path):
    with open_engine(write_plan(tmp_path, library="tensorrt_rtx")) as engine:
        for seed in range(4):
            answers(engine, feeds(seed=seed))
    assert gpu.count("cuStreamBeginCapture_v2") == 0
    (context,) = sys.modules["tensorrt_rtx"].contexts
    assert context.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert context.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


def test_what_cannot_be_captured_is_enqueued_every_time_and_said_once(gpu, tmp_path, caplog):
    with open_engine(write_plan(tmp_path, data=fake_gpu.plan_bytes(capturable=False))) as engine:
        for rows in (2, 3, 2, 3, 2, 3):
            answers(engine, feeds(rows, rows))
    assert [r.message for r in caplog.records] == [
        "unet.target.plan: no CUDA graph, its kernels are launched one by one (unet.target.plan failed: cannot capture:"
        " deferred updates of shapes)"
    ]
    assert not gpu.capturing and not gpu.graphs


def test_arrays_go_to_the_device_only_when_their_values_changed(gpu, tmp_path):
    with open_engine(write_plan(tmp_path)) as engine:
        given = feeds()
        answers(engine, given)
        answers(engine, {name: value.copy() for name, value in given.items()})
        assert gpu.count("cuMemcpyHtoDAsync_v2") == 3
        given["class_labels"][0, 0] = np.nan  # in place: the same object, other values
        np.testing.assert_array_equal(engine(given), fake_gpu.expected(given))
        engine(given)  # and nan is equal to itself
        assert gpu.count("cuMemcpyHtoDAsync_v2") == 4


def test_tensors_are_read_where_they_lie_and_answered_with_a_tensor(gpu, tmp_path):
    arrays = feeds()
    given = on_gpu({name: np.zeros_like(array) for name, array in arrays.items()})

    def fill():
        for name, tensor in given.items():
            tensor.array[...] = arrays[name]

    with open_engine(write_plan(tmp_path)) as engine:
        gpu.put(fake_gpu.THEIRS, fill)  # what torch's stream has still to do
        for _ in range(6):
            out = engine(given)
        assert isinstance(out, fake_gpu.Tensor)
        gpu.flush(engine.gpu.stream)  # a GPU may run it at once, and yet not before what torch put there
        gpu.flush(fake_gpu.THEIRS)
        np.testing.assert_array_equal(out.array, fake_gpu.expected(arrays))
        assert (
            gpu.count("cuMemAlloc_v2") == gpu.count("cuMemcpyHtoDAsync_v2") == gpu.count("cuStreamSynchronize") - 1 == 0
        )
        assert gpu.count("cuStreamBeginCapture_v2") == 2  # torch's allocator has two places for the output
        assert gpu.count("cuGraphLaunch") == 4


def test_tensors_and_arrays_may_be_mixed_and_tensors_need_not_be_contiguous(gpu, tmp_path):
    with open_engine(write_plan(tmp_path)) as engine:
        for seed in range(3):
            arrays = feeds(seed=seed)
            turned = np.asfortranarray(arrays["sample"])
            out = engine({**arrays, "sample": fake_gpu.Tensor(turned)})
        gpu.flush(fake_gpu.THEIRS)
    np.testing.assert_array_equal(out.array, fake_gpu.expected(arrays))


def test_a_tensor_that_begins_inside_of_another_is_copied_to_where_it_can_be_read(gpu, tmp_path):
    arrays = feeds()
    with open_engine(write_plan(tmp_path)) as engine:
        out = engine({**on_gpu(arrays), "class_labels": fake_gpu.Tensor(arrays["class_labels"], offset=24)})
        gpu.flush(fake_gpu.THEIRS)
    np.testing.assert_array_equal(out.array, fake_gpu.expected(arrays))


def test_arrays_need_not_be_contiguous(gpu, tmp_path):
    with open_engine(write_plan(tmp_path)) as engine:
        arrays = feeds()
        answers(engine, {**arrays, "sample": np.asfortranarray(arrays["sample"])})


def test_a_shape_gets_the_profile_that_it_fits(gpu, tmp_path):
    data = fake_gpu.plan_bytes(spans=[[1, 1, 1], [2, 4, 8]])
    with open_engine(write_plan(tmp_path, data=data)) as engine:
        for rows in (1, 8):
            answers(engine, feeds(rows))
        assert [context.profile for context in sys.modules["tensorrt"].contexts] == [0, 1]
        said = (
            r"fed sample \[9, 2, 4, 4\], and takes \[1, 2, 4, 4\] to \[1, 2, 4, 4\], tuned for \[1, 2, 4, 4\]; or "
            r"\[2, 2, 4, 4\] to \[8, 2, 4, 4\], tuned for \[4, 2, 4, 4\]: lower --batch, or .*build\.batch"
        )
        with pytest.raises(EngineError, match=said):
            engine(feeds(9))
        answers(engine, feeds(8))


def test_shapes_that_were_not_used_for_longest_make_room(gpu, tmp_path):
    with open_engine(write_plan(tmp_path)) as engine:
        for rows in (1, 2, 3, 4, 1, 5, 1):
            answers(engine, feeds(rows, rows))
        assert len(gpu.memory) == backend.SHAPES * 4
        assert len(sys.modules["tensorrt"].contexts) == 5  # 2 rows went, 1 stayed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample": np.ones((2, 2, 4, 4))}, r"sample float64 \[2, 2, 4, 4\], expected float32"),
        ({"timestep": np.ones(2, np.int32)}, r"timestep int32 \[2\], expected int64"),
        ({"sample": np.ones((2, 2, 4), np.float32)}, r"fed sample \[2, 2, 4\], and takes \[1, 2, 4, 4\] to"),
        ({"encoder_hidden_states": np.ones(1)}, "takes sample, timestep, class_labels, but was fed"),
    ],
)
def test_feeds_that_do_not_fit_say_observed_and_expected(gpu, tmp_path, change, says):
    with open_engine(write_plan(tmp_path)) as engine, pytest.raises(EngineError, match=says):
        engine(feeds() | change)


def test_tensors_of_another_kind_or_gpu_are_refused(gpu, tmp_path):
    half = fake_gpu.Tensor(np.ones((2, 2, 4, 4), np.float16))
    with open_engine(write_plan(tmp_path)) as engine:
        with pytest.raises(EngineError, match=r"sample float16 \[2, 2, 4, 4\], expected float32"):
            engine({**on_gpu(feeds()), "sample": half})
        with pytest.raises(EngineError, match=r"runs on cuda:0 and was fed sample on cuda:1: .*\.to\('cuda:0'\)"):
            engine(on_gpu(feeds(), index=1))


@pytest.mark.parametrize(("limit", "name"), [("most", "cuMemAlloc_v2"), ("most_locked", "cuMemAllocHost_v2")])
def test_a_gpu_without_memory_says_what_to_do_and_loses_none(gpu, tmp_path, limit, name):
    setattr(gpu, limit, 64)
    with open_engine(write_plan(tmp_path)) as engine:
        with pytest.raises(EngineError, match=rf"{name} failed: out of memory; close .* lower --batch"):
            engine(feeds())
        assert not gpu.memory and not gpu.locked
        setattr(gpu, limit, 1 << 30)
        answers(engine, feeds())


def test_a_closed_engine_says_so(gpu, tmp_path):
    engine = open_engine(write_plan(tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"unet\.target\.plan is closed"):
        engine(feeds())


@pytest.mark.parametrize("missing", ["sidecar", "plan"])
def test_a_plan_or_sidecar_that_is_not_there_names_the_command(gpu, tmp_path, missing):
    path = write_plan(tmp_path)
    (path if missing == "plan" else path.with_name(f"{path.name}.json")).unlink()
    with pytest.raises(ArtifactError, match="'quaver build RECIPE' builds it"):
        open_engine(path)


def test_a_truncated_plan_is_noticed(gpu, tmp_path):
    path = write_plan(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        ArtifactError, match=r"damaged or not the one that unet\.target\.plan\.json is about: 'quaver b"
    ):
        open_engine(path)


def test_what_the_library_refuses_is_said_in_its_words(gpu, tmp_path):
    with pytest.raises(EngineError, match=r"tensorrt cannot open .* \(Serialized engine is malformed\): 'quaver build"):
        open_engine(write_plan(tmp_path, data=b"?"))
    assert gpu.retained == 0


def test_a_plan_whose_graph_changed_is_noticed(gpu, tmp_path):
    graph = tmp_path / "unet.target.onnx"
    graph.write_bytes(b"one")
    path = write_plan(tmp_path, graph=graph)
    open_engine(path).close()
    graph.write_bytes(b"another")
    with pytest.raises(
        ArtifactError, match=r"built from another unet\.target\.onnx than the one beside it: 'quaver build"
    ):
        open_engine(path)
    graph.unlink()  # a device needs no graph
    open_engine(path).close()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            {"library": "tensorrt_rtx", "compute_capabilities": ["SM86"]},
            "was built for SM86 and this GPU is SM89: add 'SM89'",
        ),
        ({"compute_capabilities": ["SM90"]}, "for SM90 and this GPU is SM89: 'quaver build RECIPE' on this machine"),
        (
            {"library": "tensorrt_rtx", "tensorrt_rtx": "1.6.0"},
            r"built by tensorrt_rtx 1\.6\.0 and 1\.7\.1\.116 is inst",
        ),
        ({"tensorrt": "10.14.1", "options": ["VERSION_COMPATIBLE"]}, r"by tensorrt 10\.14\.1 and 10\.13\.2\.6 is inst"),
        ({"options": ["STRIP_PLAN"]}, "without its weights: .* build.weights = 'kept'"),
    ],
)
def test_a_plan_for_another_machine_is_refused_before_it_is_loaded(gpu, tmp_path, said, says):
    with pytest.raises(EngineError, match=says):
        open_engine(write_plan(tmp_path, **said))
    assert gpu.retained == 0


@pytest.mark.parametrize(
    "said",
    [
        {"compute_capabilities": ["SM80"], "options": ["AMPERE_PLUS"]},
        {"compute_capabilities": []},
        {"tensorrt": "10.2.0", "options": ["VERSION_COMPATIBLE"]},
    ],
)
def test_a_plan_that_was_built_for_more_runs(gpu, tmp_path, said):
    with open_engine(write_plan(tmp_path, **said)) as engine:
        answers(engine, feeds())


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"built": False, "reason": "no tensorrt"}, "was not built: no tensorrt"),
        ({"onnx": None}, "'quaver build RECIPE' builds it anew"),
        ({"plan": {}}, "lacks 'digest'"),
    ],
)
def test_a_sidecar_that_cannot_be_is_one_line(gpu, tmp_path, said, says):
    with pytest.raises(ArtifactError, match=says):
        open_engine(write_plan(tmp_path, **said))


def test_without_a_driver_or_a_gpu_it_says_what_is_missing_and_what_works(tmp_path, monkeypatch):
    monkeypatch.setattr("quaver.runtime.cuda.LIBRARY", "libno-such-driver.so.1")
    path = write_plan(tmp_path)
    with pytest.raises(EngineError, match=r"no NVIDIA driver here \(libno-.* is not installed\): .*--engine ort-cpu"):
        open_engine(path)
    monkeypatch.setattr("quaver.runtime.cuda.load_driver", lambda: fake_gpu.Driver(devices=0))
    with pytest.raises(EngineError, match=r"no NVIDIA GPU here \(.*no CUDA-capable device.*\): .*--engine ort-cpu"):
        open_engine(path)


def test_the_capability_of_a_machine_is_that_of_its_gpu_if_it_has_one(gpu, monkeypatch):
    assert gpu_capability() == ("SM89",) and gpu.retained == 0
    monkeypatch.setattr("quaver.runtime.cuda.load_driver", lambda: fake_gpu.Driver(devices=0))
    assert gpu_capability() == ()


def test_a_library_that_is_not_installed_names_its_extra(gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(QuaverError, match=r"pip install 'quaver\[trt-rtx\]'"):
        open_engine(write_plan(tmp_path, library="tensorrt_rtx"))


def test_the_stand_in_has_no_name_that_the_library_lacks():
    real = pytest.importorskip("tensorrt_rtx")
    driver = fake_gpu.Driver()
    fake = fake_gpu.tensorrt(driver, rtx=True)
    runtime = fake.Runtime(fake.ILogger())
    with Gpu(driver).current():
        engine = runtime.deserialize_cuda_engine(fake_gpu.plan_bytes())
        context = engine.create_execution_context(engine.create_runtime_config())
    for kind, stand_in in (
        (real, fake),
        (real.Runtime, fake.Runtime),
        (real.ICudaEngine, type(engine)),
        (real.IExecutionContext, type(context)),
    ):
        assert [n for n in vars(stand_in) if not n.startswith("_") and n not in ("contexts", *dir(kind))] == []
    assert {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"} <= set(dir(real.IRuntimeConfig))
    assert {"num_io_tensors", "num_optimization_profiles"} <= set(dir(real.ICudaEngine))
    assert hasattr(real.Runtime, "engine_host_code_allowed")
    for name in ("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
        assert {member.name for member in getattr(fake, name)} == set(getattr(real, name).__members__)
    assert real.nptype(real.DataType.INT64) is np.int64


def test_it_is_there_when_one_of_the_libraries_is():
    found = [importlib.util.find_spec(name) for name in VERSIONS]
    assert backend.available() is any(found)
