"""Writing and reading ONNX files: whole or not at all, stamped, large weights beside the graph.

Protobuf ends at 2 GB, so a model whose weights exceed EMBEDDED bytes keeps them in `<name>.onnx.data`, each at a
multiple of PAGE so that runtimes can map them. The old graph goes before the new weights come: no moment has a graph
with another model's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.runtime.artifact import STAMP_KEY, Stamp, atomic, dump_stamp
from quaver.runtime.errors import ArtifactError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

EMBEDDED = 1 << 30
PAGE = 4096
PRODUCER = "quaver"


def save_model(model: onnx.ModelProto, path: Path, stamp: Stamp, *, embedded: int = EMBEDDED) -> Path:
    """Write a model with its stamp; above `embedded` bytes of weights they leave `model` and go to `path`.data.

    Raises: ArtifactError when the place cannot be written.
    """
    data = path.with_name(path.name + ".data")
    model.producer_name = PRODUCER
    del model.metadata_props[:]
    model.metadata_props.add(key=STAMP_KEY, value=dump_stamp(stamp))
    if sum(len(t.raw_data) for t in model.graph.initializer) > embedded:
        path.unlink(missing_ok=True)
        with atomic(data) as temporary:
            _write_weights(model, temporary, data.name)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    if not any(_external(model)):
        data.unlink(missing_ok=True)
    return path


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a model, with its weights in memory or left where they are.

    Raises: ArtifactError when it is missing or damaged.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: 'quaver run RECIPE' writes it")
    try:
        return need("onnx", extra="export").load(path, load_external_data=weights)
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise ArtifactError(
            f"{path} is damaged ({str(error).splitlines()[0]}): remove it, and 'quaver run RECIPE' writes it anew"
        ) from error


def _write_weights(model: onnx.ModelProto, path: Path, location: str) -> None:
    """Move every sizeable initializer to `path` and refer to it as `location`."""
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < 1024:
                continue
            file.write(b"\0" * (-file.tell() % PAGE))
            entries = {"location": location, "offset": file.tell(), "length": len(tensor.raw_data)}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (t for t in model.graph.initializer if t.data_location == t.EXTERNAL)
