"""A tiny U-Net with attention and skips in AudioLDM's shape, traced once for all tests of the exporter."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.progress import quiet

SHAPE = (4, 8, 8)
EMBEDDING = 16


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: U-Net of 0.3 M random weights, scheduler."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    widths = (16, 32)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=widths,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=EMBEDDING,
        class_embeddings_concat=True,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    for name, parameter in unet.named_parameters():
        if "norm" in name:  # equal constants would be merged, which trained ones never are
            parameter.data += 0.1 * torch.randn_like(parameter)
    unet.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(
        folder / "scheduler"
    )
    return folder


@pytest.fixture(scope="session")
def traced(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with that U-Net traced and ranges from running it. Shared: read only."""
    from quaver.exporter.trace import ModelSettings, trace

    bundle = Bundle(tmp_path_factory.mktemp("bundle"))
    trace(bundle, ModelSettings(source=str(model_folder), bins=SHAPE[2]), stamp=Stamp("trace"), progress=quiet())
    save_ranges(bundle, observe(bundle))
    return bundle


@pytest.fixture
def bundle(traced: Bundle, tmp_path: Path) -> Bundle:
    """A copy of `traced` to write into."""
    shutil.copytree(traced.root, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray]:
    """Inputs of the tiny U-Net for a batch of 3."""
    return make_feeds(3)


def make_feeds(batch: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "sample": draw.standard_normal((batch, *SHAPE), np.float32),
        "timestep": np.linspace(1, 999, batch).astype(np.int64),
        "class_labels": draw.standard_normal((batch, EMBEDDING), np.float32),
    }


def observe(bundle: Bundle) -> dict[str, tuple[float, float]]:
    """The range of every edge on those inputs."""
    from quaver.calib.graph import activation_edges

    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(bundle.float_unet)
    edges, there = activation_edges(model), {v.name for v in model.graph.output}
    inputs = make_feeds(3)
    model.graph.output.extend(onnx.ValueInfoProto(name=e) for e in edges if e not in there | inputs.keys())
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    values = inputs | dict(zip(names, session.run(names, inputs), strict=True))
    return {edge: (float(values[edge].min()), float(values[edge].max())) for edge in edges}


def save_ranges(bundle: Bundle, ranges: dict[str, tuple[float, float]]) -> None:
    limits = np.array(list(ranges.values()), np.float32)
    tensors = {"amin": limits[:, 0], "amax": limits[:, 1]}
    save_tensors(bundle.ranges, tensors, Stamp("ranges"), meta={"edges": list(ranges)})
