"""Models without a text encoder: fed from rows of samples, from the trace to latents."""

import json
from pathlib import Path

import numpy as np
import pytest

from quaver.calib.capture import CaptureSettings, capture
from quaver.calib.graph import layers, read_model
from quaver.calib.records import load_records
from quaver.exporter.cli import main
from quaver.exporter.model.tracing import check, trace_module
from quaver.exporter.stages import run_recipe
from quaver.exporter.trace import ModelSettings, trace
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.family import read_card
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings

onnx, torch = pytest.importorskip("onnx"), pytest.importorskip("torch")
RECIPE = Path(__file__).parents[3] / "engines" / "tiny-onnx.toml"


@pytest.fixture
def recipe(example, tmp_path, monkeypatch):
    """The example's recipe where its files are."""
    monkeypatch.chdir(tmp_path)
    example.main([])
    Path("tiny-onnx.toml").write_text(RECIPE.read_text())
    return Path("tiny-onnx.toml")


SHORT = ("sampling.steps=3", "capture.records=8", "stats.trajectories=4", "validate.trajectories=4", "validate.clips=0",
         "validate.latency_runs=2", "validate.latency_warmup=1")  # fmt: skip


def test_the_examples_recipe_ends_in_a_report_and_in_latents(recipe, capsys):
    written = run_recipe(recipe, overrides=SHORT, progress=quiet())
    report = json.loads(written[0].read_text())
    found = report["engines"][0]["corrections"][0]
    assert report["clips"] == [] and found["log_spectral_db"] is None and 0 < found["latent_error"]["value"] < 0.2
    run_recipe(recipe, overrides=SHORT, progress=quiet())
    assert main(["generate", "tiny-onnx", "--row", "3", "--guidance", "2", "--quiet"]) == 0
    assert main(["generate", "tiny-onnx", "--row", "3", "--guidance", "2", "--quiet", "--out", "a.safetensors"]) == 0
    first = np.load("row-3-0.npy", allow_pickle=False)
    assert first.shape == (4, 8, 8) and first.dtype == np.float32
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file("a.safetensors")["latents"], first)
    assert main(["generate", "tiny-onnx", "--row", "20", "--quiet"]) == 1
    assert "'row 20' is none: --row 0 to --row 19" in capsys.readouterr().err
    assert main(["prompts", str(recipe), "--quiet"]) == 1
    assert "the rows of model.samples are the prompts" in capsys.readouterr().err


def test_an_edited_sample_makes_the_trace_stale_and_nothing_else_does(recipe, capsys):
    run_recipe(recipe, until="capture", overrides=SHORT)
    capsys.readouterr()
    run_recipe(recipe, until="capture", overrides=SHORT)
    assert "trace: current" in capsys.readouterr().err
    held = dict(np.load("build/tiny-onnx/samples.npz"))
    np.savez("build/tiny-onnx/samples.npz", **{**held, "context": held["context"] + 1})
    run_recipe(recipe, until="trace", overrides=SHORT)
    assert "trace: samples.npz changed" in capsys.readouterr().err


def test_guidance_without_an_unconditional_row_says_what_to_add(recipe):
    held = dict(np.load("build/tiny-onnx/samples.npz"))
    np.savez("build/tiny-onnx/samples.npz", context=held["context"])
    with pytest.raises(RecipeError, match=r"add uncond_context to model\.samples, or set sampling\.guidance = 1"):
        run_recipe(recipe, until="capture", overrides=SHORT, progress=quiet())
    run_recipe(recipe, until="ranges", overrides=(*SHORT, "sampling.guidance=1"), progress=quiet())
    assert load_records(Bundle(Path("tiny-onnx")).samples).uncond == {}


def given(bundle, count=12):
    """Samples that are records: three timesteps, each row telling its own number."""
    draw, held = np.random.default_rng(0), dict(np.load("build/tiny-onnx/samples.npz"))
    np.savez(
        "build/tiny-onnx/samples.npz",
        x=draw.standard_normal((count, 4, 8, 8), np.float32),
        t=np.repeat([10.0, 500.0, 990.0], count // 3),
        context=held["context"][:count],
        uncond_context=held["uncond_context"],
    )
    return dict(np.load("build/tiny-onnx/samples.npz"))


def test_samples_with_x_and_t_are_records_and_capture_draws_from_them(recipe):
    bundle = Bundle(Path("tiny-onnx"))
    held = given(bundle)
    run_recipe(recipe, until="trace", progress=quiet())
    assert read_card(bundle)["given"]
    stamped = {"stamp": Stamp("capture"), "progress": quiet()}
    capture(bundle, CaptureSettings(records=100), SamplingSettings(guidance=2.0), **stamped)
    every = load_records(bundle.samples)
    np.testing.assert_array_equal(every.x_t, held["x"])
    np.testing.assert_array_equal(every.t, held["t"])
    assert (every.guidance, set(every.layer)) == (2.0, {-1}) and every.prompts[3] == "row 3"
    capture(bundle, CaptureSettings(records=7, batch=2), SamplingSettings(), **stamped)
    drawn = load_records(bundle.samples)
    assert len(drawn.t) == 7 and set(drawn.layer) <= set(range(9)) and min(drawn.layer) >= 0
    for k, row in enumerate(drawn.prompt):
        np.testing.assert_array_equal(drawn.x_t[k], held["x"][row])
        np.testing.assert_array_equal(drawn.cond["context"][k], held["context"][row])
        assert drawn.t[k] == held["t"][row]


def test_the_variance_of_given_records_is_that_of_what_layers_read(recipe):
    bundle = Bundle(Path("tiny-onnx"))
    held = given(bundle)
    run_recipe(recipe, until="capture", overrides=("sampling.guidance=1",), progress=quiet())
    tensors, meta = load_tensors(bundle.moments, "moments")
    assert tensors["timesteps"].tolist() == [990, 500, 10]
    row = meta["layers"].index("conv_in")
    expected = [held["x"][held["t"] == t].astype(np.float64).var() for t in (990, 500, 10)]
    np.testing.assert_allclose(tensors["variance"][row], expected, rtol=1e-5)


def run(folder, tmp_path, **settings):
    bundle = Bundle(tmp_path / "bundle")
    trace(bundle, ModelSettings(source=str(folder), **settings), stamp=Stamp("trace"), progress=quiet())
    return bundle


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a U-Net of another class than AudioLDM's and a scheduler, and nothing else."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("bare")
    torch.manual_seed(0)
    diffusers.UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
        class_embed_type="identity",
    ).save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def test_a_bare_unet_folder_captures_from_samples(bare, tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", class_labels=draw.standard_normal((6, 32)), uncond_class_labels=np.zeros((1, 32)))
    bundle = run(bare, tmp_path, family="onnx", samples=str(tmp_path / "s.npz"), latent=(4, 8, 8))
    card = read_card(bundle)
    assert (card["rows"], card["given"], card["latent_shape"]) == (6, False, [4, 8, 8])
    sampling = SamplingSettings(steps=2)
    capture(bundle, CaptureSettings(records=4), sampling, stamp=Stamp("capture"), progress=quiet())
    records = load_records(bundle.samples)
    assert records.x_t.shape == (4, 4, 8, 8) and list(records.cond) == ["class_labels"]
    argv = ["generate", str(bundle.root), "--row", "5", "--steps", "2", "--engine", "float", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (4, 8, 8)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A folder with a U-Net of AudioLDM's shape that has attention in its middle alone, which is faster to trace."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("shallow")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.slow
def test_the_family_audioldm_takes_rows_too(shallow, tmp_path):
    np.savez(tmp_path / "s.npz", class_labels=np.random.default_rng(0).standard_normal((6, 16)))
    bundle = run(shallow, tmp_path, samples=str(tmp_path / "s.npz"), latent=(4, 8, 8))
    sampling = SamplingSettings(steps=2, guidance=1.0)
    capture(bundle, CaptureSettings(records=4), sampling, stamp=Stamp("capture"), progress=quiet())
    assert list(load_records(bundle.samples).cond) == ["class_labels"]


def test_samples_name_arguments_of_the_unet(bare, tmp_path):
    np.savez(tmp_path / "s.npz", class_label=np.zeros((6, 16)))
    with pytest.raises(RecipeError, match=r"unknown argument of the U-Net 'class_label'; did you mean 'class_labels'"):
        run(bare, tmp_path, samples=str(tmp_path / "s.npz"), latent=(4, 8, 8))
    with pytest.raises(RecipeError, match=r"the family onnx is fed from samples: set model\.samples"):
        run(bare, tmp_path, family="onnx")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_lost_its_rows_says_so(recipe):
    run_recipe(recipe, until="trace", progress=quiet())
    bundle = Bundle(Path("tiny-onnx"))
    bundle.rows.unlink()
    from quaver.runtime.session import open_bundle

    with (
        pytest.raises(ArtifactError, match=r"lacks samples/rows\.safetensors"),
        open_bundle(bundle, engine_file="float"),
    ):
        pass


class Convolutions(torch.nn.Module):
    """What a U-Net has of lengths: a stride, a norm, a resize by size, a skip."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.ModuleDict(
            {
                "down": torch.nn.Conv2d(4, 8, 3, stride=2, padding=1),
                "norm": torch.nn.GroupNorm(2, 8),
                "up": torch.nn.Conv2d(8, 4, 3, padding=1),
            }
        )

    def forward(self, sample, timestep):
        h = self.net["norm"](self.net["down"](sample)) * timestep.float()[:, None, None, None]
        h = torch.nn.functional.interpolate(h, size=sample.shape[2:], mode="nearest")
        return sample + self.net["up"](h)


def test_a_graph_of_free_length_answers_at_two_lengths_and_counts_its_work_at_one():
    from quaver.exporter.model.normal import note_macs

    torch.manual_seed(0)
    network = Convolutions().eval()
    feeds = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7])}
    traced = check(trace_module(network, feeds, ("out",), free_length=True), "unet")
    assert traced.feeds["sample"].shape == (2, 4, 16, 8)
    assert [d.dim_param for d in traced.model.graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "frames", ""]
    assert "GroupNormalization" not in {node.op_type for node in traced.model.graph.node}
    import onnxruntime as ort

    session = ort.InferenceSession(traced.model.SerializeToString())
    for length in (8, 12, 30):
        x, t = torch.randn(1, 4, length, 8), torch.tensor([5])
        with torch.no_grad():
            expected = network(x, t).numpy()
        found = session.run(None, {"sample": x.numpy(), "timestep": t.numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    note_macs(traced.model, {"sample": (4, 8, 8)})
    assert {layer.name: layer.macs for layer in layers(traced.model)} == {
        "down": 4 * 4 * 8 * 4 * 9,
        "up": 8 * 8 * 4 * 8 * 9,
    }


@pytest.mark.slow
def test_every_node_of_a_traced_unet_that_comes_from_a_module_says_which(traced):
    from quaver.calib.graph import module_of

    graph = read_model(traced.float_unet).graph
    bare = [node.name for node in graph.node if not module_of(node)]
    assert len(bare) < 0.05 * len(graph.node), bare


@pytest.mark.slow
def test_a_unet_of_free_length_exports_as_any_other(shallow, tmp_path):
    bundle = run(shallow, tmp_path, length="free", bins=8)
    fixed = {layer.name: layer.macs for layer in layers(read_model(bundle.float_unet))}
    assert all(fixed.values()) and read_card(bundle)["length"] == "free"
    engine = onnx.load(bundle.float_unet)
    onnx.checker.check_model(engine, full_check=True)
