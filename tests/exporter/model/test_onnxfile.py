"""How anybody's ONNX file is found and read: links, folders, weights beside it."""

import os

import numpy as np
import pytest

from quaver.exporter.model.onnxfile import open_file, open_graph, read_values, referenced_files
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.family import read_card
from tests.exporter.model.foreign import agrees, run

onnx = pytest.importorskip("onnx")


def save(model, folder, *, external=True):
    """The model in a new folder, its weights in w.bin beside it or in the file."""
    folder.mkdir()
    onnx.save(model, folder / "unet.onnx", save_as_external_data=external, location="w.bin", size_threshold=256)
    return folder / "unet.onnx"


@pytest.mark.parametrize("external", [False, True])
def test_a_link_to_a_file_is_read_as_the_file(place, tmp_path, model, external):
    real = save(model, tmp_path / "blobs", external=external)
    (place / "unet.onnx").unlink()
    (place / "unet.onnx").symlink_to(real)
    agrees(run(place, tmp_path), real.parent, batches=(2,))
    assert referenced_files(place / "unet.onnx") == ([real.parent / "w.bin"] if external else [])


def test_a_card_keeps_the_name_of_the_link(place, tmp_path):
    (place / "unet.onnx").rename(tmp_path / "3f2a")
    (place / "unet.onnx").symlink_to(tmp_path / "3f2a")
    assert read_card(run(place, tmp_path))["source"] == "unet.onnx"


def test_weights_that_are_a_link_are_not_followed(tmp_path, model):
    path = save(model, tmp_path / "a")
    (tmp_path / "a" / "w.bin").rename(tmp_path / "w.bin")
    (tmp_path / "a" / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(RecipeError, match=r"refers to 'w\.bin', outside the model's own folder: that is not opened"):
        open_graph(path)


def test_a_folder_is_no_missing_file(tmp_path):
    with pytest.raises(RecipeError, match=r"a\.onnx is not a file: name an \.onnx file"):
        (tmp_path / "a.onnx").mkdir()
        open_graph(tmp_path / "a.onnx")
    with pytest.raises(RecipeError, match=r"b\.onnx does not exist: name an \.onnx file as model\.source"):
        open_file(tmp_path / "b.onnx")


def test_weights_are_read_from_a_file_of_two_names(tmp_path, model):
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    path = save(model, tmp_path / "a")
    os.link(path.parent / "w.bin", tmp_path / "another name")
    for tensor in open_graph(path).graph.initializer:
        assert np.array_equal(read_values(tensor, path.parent), expected[tensor.name])
    (path.parent / "w.bin").write_bytes(b"short")
    tensor = next(t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data)
    with pytest.raises(ArtifactError, match=r"the weight [\w.:]+ cannot be read \(.*\): put its data file back"):
        read_values(tensor, path.parent)


def test_half_a_byte_a_code_is_read_too(tmp_path):
    expected = (np.arange(4001) % 16 - 8).astype(pytest.importorskip("ml_dtypes").int4)
    tensor = onnx.numpy_helper.from_array(expected, "codes")
    (tmp_path / "w.bin").write_bytes(b"before" + tensor.raw_data)
    tensor.ClearField("raw_data")
    for key, value in {"location": "w.bin", "offset": "6"}.items():
        tensor.external_data.add(key=key, value=value)
    assert np.array_equal(read_values(tensor, tmp_path), expected)
