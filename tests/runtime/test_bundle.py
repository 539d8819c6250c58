from pathlib import Path

from quaver.runtime.bundle import Bundle


def test_every_file_has_its_own_place_under_the_root():
    bundle = Bundle(Path("b"))
    fixed = [getattr(bundle, name) for name, value in vars(Bundle).items() if isinstance(value, property)]
    targets = [bundle.qdq, bundle.sites, bundle.plan, bundle.plan_sidecar, bundle.error_stats]
    paths = fixed + [place(target) for place in targets for target in ("ort-cpu", "tensorrt-rtx")]
    assert len(set(paths)) == len(paths) >= 24
    assert all(path.is_relative_to("b") for path in paths)


def test_names_are_those_of_the_architecture_page():
    bundle = Bundle(Path("b"))
    assert bundle.qdq("ort-cpu") == Path("b/unet.ort-cpu.onnx")
    assert bundle.float_unet == Path("b/unet.float.onnx")
    assert bundle.samples == Path("b/samples/records.safetensors")
    assert bundle.component("vocoder") == Path("b/vocoder.onnx")
