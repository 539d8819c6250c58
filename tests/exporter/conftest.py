"""A tiny U-Net with attention and skips in AudioLDM's shape, traced once for all tests of the exporter; and the whole
chain on a model of the embedded one's shape."""

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.progress import quiet

Once = Callable[[str, Callable[[Path], object]], Path]
SHAPE = (4, 8, 8)
EMBEDDING = 16
RECIPE = """
[model]
source = "{source}"
[prompts]
source = "demo"
count = 6
budget = 2
held_out = 4
[sampling]
steps = 3
[capture]
records = 8
batch = 4
[export]
targets = ["ort-cpu"]
[stats]
trajectories = 4
batch = 4
[validate]
trajectories = 4
clips = 1
latency_runs = 2
latency_warmup = 1
generations = 0
batch = 4
"""


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    """A cache of the hub, where HF_HOME would have it, and no way to the hub itself."""
    constants = pytest.importorskip("huggingface_hub.constants")
    home = tmp_path / "hub_home"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


@pytest.fixture(scope="session")
def model_folder(once: Once) -> Path:
    """A diffusers folder: U-Net of 0.3 M random weights, scheduler."""
    return once("model", save_unet)


def save_unet(folder: Path) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
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


@pytest.fixture(scope="session")
def traced(model_folder: Path, once: Once) -> Bundle:
    """A bundle with that U-Net traced and ranges from running it. Shared: read only."""
    from quaver.exporter.trace import ModelSettings, trace

    def make(folder: Path) -> None:
        bundle = Bundle(folder)
        trace(bundle, ModelSettings(source=str(model_folder), bins=SHAPE[2]), stamp=Stamp("trace"), progress=quiet())
        save_ranges(bundle, observe(bundle))

    return Bundle(once("bundle", make))


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


@pytest.fixture(scope="session")
def source(once: Once) -> Path:
    """A model folder: the embedded model's own parts, a random probe, a U-Net of one level of random weights."""
    return once("source", save_source)


def save_source(folder: Path) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from quaver.demo.probe import Probe
    from quaver.demo.weights import save_weights

    demo = Path(str(files("quaver.demo"))) / "model"
    for name in ("text_encoder", "tokenizer", "vae", "vocoder"):
        shutil.copytree(demo / name, folder / name)
    torch.manual_seed(0)
    save_weights(Probe(), folder / "probe", {"_class_name": "Probe"})
    diffusers.UNet2DConditionModel(  # one level, with attention in the middle: the more nodes, the longer to trace
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=(16,),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=128,
        class_embeddings_concat=True,
        attention_head_dim=4,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")


@pytest.fixture(scope="session")
def built(source: Path, once: Once) -> Path:
    """A recipe of the whole chain, run, with its bundle beside it. Shared: read only."""
    from quaver.exporter.stages import run_recipe

    def make(folder: Path) -> None:
        (folder / "tiny.toml").write_text(RECIPE.format(source=source))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("quaver.demo.vocoder.ITERATIONS", 1)  # phase retrieval unrolled once is faster to trace
            run_recipe(folder / "tiny.toml", progress=quiet())

    return once("engines", make) / "tiny.toml"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of that recipe and bundle to write into."""
    shutil.copytree(built.parent, tmp_path / "engines")
    return tmp_path / "engines" / built.name
