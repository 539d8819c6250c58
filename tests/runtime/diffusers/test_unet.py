"""The engine as a U-Net: what pipelines ask of one, and what is said when it is not theirs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quaver.runtime.diffusers import EngineUNet, corrected_class
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from quaver.runtime.families.onnx import fit
from quaver.runtime.families.tango import feeds
from quaver.runtime.schedule import read_schedule
from tests.exporter.pipelines import saved

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def picture_unet():
    """A U-Net of pictures with random weights."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8,), "norm_num_groups": 4}
    return diffusers.UNet2DModel(layers_per_block=1, **blocks, **sizes).eval()


@pytest.fixture(scope="module")
def picture_engine(picture_unet, tmp_path_factory):
    """The same as an ONNX file, open."""

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = picture_unet

        def forward(self, sample, timestep):
            return self.unet(sample, timestep, return_dict=False)[0]

    path = Path(tmp_path_factory.mktemp("picture") / "unet.onnx")
    torch.onnx.export(
        Alone(),
        (torch.randn(2, *SHAPE), torch.tensor([3, 5])),
        str(path),
        input_names=["sample", "timestep"],
        dynamic_axes={"sample": {0: "batch"}, "timestep": {0: "batch"}},
        dynamo=False,
    )
    with open_engine(path, threads=1) as engine:
        yield engine


@pytest.fixture
def tiny_unet(made_bundle):
    unet = EngineUNet.from_bundle(made_bundle, threads=1)
    yield unet
    unet.close()


class Listening:
    """An engine that answers with what it is told to and keeps what it was fed."""

    digest, tensors = "sha256:0", False

    def __init__(self, *inputs, answer=0.0):
        self.inputs, self.answer = inputs, answer

    def __call__(self, feeds):
        self.fed = feeds
        return np.full_like(feeds[self.inputs[0]], self.answer)


class Undecoded:
    """A decoder of latents that are pictures already."""

    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def drawn(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, generator=generator, num_inference_steps=4, output_type="np", **kwargs).images


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_ddim_pipeline_draws_the_same_pictures_with_the_engine_of_its_unet(picture_unet, picture_engine, eta):
    pipe = diffusers.DDIMPipeline(picture_unet, diffusers.DDIMScheduler())
    expected = drawn(pipe, eta=eta)
    pipe.unet = EngineUNet(picture_engine, SHAPE, config=picture_unet.config)
    assert pipe.to("cpu").components["unet"] is pipe.unet
    np.testing.assert_allclose(drawn(pipe, eta=eta), expected, atol=1e-4)
    assert expected.std() > 0.1
    assert pipe.unet.config.layers_per_block == 1


def test_a_latent_pipeline_draws_the_same_pictures_with_the_engine_of_its_unet(picture_unet, picture_engine):
    pipe = diffusers.LDMPipeline(Undecoded(), picture_unet, diffusers.DPMSolverMultistepScheduler())
    expected = drawn(pipe)
    pipe.unet = EngineUNet(picture_engine, SHAPE)
    np.testing.assert_allclose(drawn(pipe), expected, atol=1e-4)


def test_a_pipeline_can_be_loaded_without_its_unet(picture_unet, picture_engine, tmp_path):
    pipe = diffusers.DDIMPipeline(picture_unet, diffusers.DDIMScheduler())
    expected = drawn(pipe)
    pipe.save_pretrained(tmp_path)
    pipe = diffusers.DDIMPipeline.from_pretrained(tmp_path, unet=None)
    pipe.unet = EngineUNet(picture_engine, SHAPE)
    np.testing.assert_allclose(drawn(pipe), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_pipeline_saved_with_a_corrected_scheduler_loads_and_draws_the_same(picture_unet, tmp_path, kind):
    pipe = diffusers.LDMPipeline(Undecoded(), picture_unet, getattr(diffusers, kind)())
    expected = drawn(pipe)
    saved_pipe = diffusers.DDPMPipeline(picture_unet, corrected_class(kind).from_config(pipe.scheduler.config))
    saved_pipe.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is corrected_class(kind) and loaded.scheduler.correction is None
    pipe.scheduler = loaded.scheduler
    np.testing.assert_allclose(drawn(pipe), expected, atol=1e-4)


class Inside:
    """A U-Net as an engine, without the export between them."""

    digest, tensors = "sha256:0", False
    inputs = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")

    def __init__(self, unet):
        self.unet = unet

    def __call__(self, feeds):
        fed = {name: torch.from_numpy(value) for name, value in feeds.items()}
        added = {name: fed.pop(name) for name in ("text_embeds", "time_ids")}
        with torch.no_grad():
            return self.unet(**fed, added_cond_kwargs=added).sample.numpy()


def test_stable_diffusion_xl_draws_the_same_latents_with_what_it_adds_to_the_time():
    pipe = saved.build(saved.sdxl)
    unet = EngineUNet(Inside(pipe.unet), (4, 8, 8), feeds=feeds, config=pipe.unet.config)
    pipe.set_progress_bar_config(disable=True)

    def draw(**more):
        noise = torch.Generator().manual_seed(3)
        return pipe("a low note", num_inference_steps=2, generator=noise, output_type="latent", **more).images

    expected, larger = draw(), draw(original_size=(64, 64))
    pipe.unet = unet
    torch.testing.assert_close(draw(), expected)
    torch.testing.assert_close(draw(original_size=(64, 64)), larger)
    assert not torch.allclose(larger, expected)


def test_a_bundle_says_what_pipelines_read(tiny_unet):
    assert (tiny_unet.config.in_channels, tiny_unet.config.out_channels, tiny_unet.config["sample_size"]) == (2, 2, 4)
    assert (tiny_unet.dtype, tiny_unet.device.type) == (torch.float32, "cpu")
    assert tiny_unet.to(torch.float16) is tiny_unet


def test_pictures_that_are_not_square_say_both_sizes():
    assert EngineUNet(Listening("sample", "timestep"), (3, 4, 8)).config.sample_size == (4, 8)


def test_a_time_may_be_a_number_a_scalar_or_one_a_sample(tiny_unet):
    x, rows = torch.randn(2, 2, 4, 4), torch.randn(2, 6)
    expected = tiny_unet(x, 501, class_labels=rows).sample
    for t in (501.0, torch.tensor(501), torch.tensor(501.0), torch.tensor([501]), torch.tensor([501, 501])):
        assert torch.equal(tiny_unet(x, t, class_labels=rows).sample, expected)
    other = tiny_unet(x, torch.tensor([501, 1]), class_labels=rows).sample
    assert torch.equal(other[0], expected[0])
    assert not torch.equal(other[1], expected[1])
    with pytest.raises(EngineError, match="3 timesteps for 2 samples"):
        tiny_unet(x, torch.tensor([1, 2, 3]), class_labels=rows)
    with pytest.raises(QuaverError, match=r"timestep 0\.50 and engines take whole ones"):
        tiny_unet(x, 0.5, class_labels=rows)


def test_the_answer_is_in_the_type_of_the_sample(tiny_unet):
    x, rows = torch.randn(2, 2, 4, 4), torch.randn(2, 6)
    expected = tiny_unet(x.half().float(), 501, class_labels=rows.half().float()).sample
    (half,) = tiny_unet(x.half(), 501, class_labels=rows.half(), return_dict=False)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, expected.half(), rtol=0, atol=0)


class Cuda(torch.Tensor):
    """A tensor that says it lies on a GPU, and does not leave it."""

    is_cuda = True

    def cpu(self, *args, **kwargs):
        raise AssertionError("brought to the CPU")

    numpy = cpu


def test_tensors_on_a_gpu_stay_there_for_an_engine_that_reads_them_there():
    class Device(Listening):
        tensors = True

        def __call__(self, feeds):
            self.fed = feeds
            return 2 * feeds["sample"]

    engine, x, rows = Device("sample", "timestep", "class_labels"), torch.randn(2, *SHAPE), torch.randn(2, 6)
    unet = EngineUNet(engine, SHAPE)
    on_gpu = {"sample": x.half().as_subclass(Cuda), "class_labels": rows.as_subclass(Cuda)}
    answer = unet(on_gpu["sample"], 7, class_labels=on_gpu["class_labels"]).sample
    assert [(type(value), value.dtype) for value in engine.fed.values()] == [
        (Cuda, torch.float32), (torch.Tensor, torch.int64), (Cuda, torch.float32)
    ]  # fmt: skip
    assert engine.fed["class_labels"].data_ptr() == rows.data_ptr()  # no copy
    assert (type(answer), answer.dtype) == (Cuda, torch.float16)
    assert torch.equal(torch.Tensor.as_subclass(answer, torch.Tensor), 2 * x.half())
    with pytest.raises(AssertionError, match="brought to the CPU"):  # for one that does not
        EngineUNet(Listening("sample", "timestep"), SHAPE)(on_gpu["sample"], 7)
    unet(x, 7, class_labels=rows)
    assert {type(value) for value in engine.fed.values()} == {np.ndarray}


def test_a_network_on_sigma_is_met_by_its_family():
    """sigma_t = sqrt((1 - a) / a), x_t / sqrt(a): what families.onnx says of such a card."""
    schedule = read_schedule({})
    said = {"sample": "x", "time": "s", "dtype": "float32", "column": True, "sigma": True, "scaling": "ve"}
    engine, x = Listening("x", "s", "context", answer=1.0), torch.randn(2, *SHAPE)
    unet = EngineUNet(engine, SHAPE, feeds=fit({"inputs": said}, schedule).feeds)
    unet(x, 500, context=torch.ones(2, 5))
    a = schedule.alpha_bar[500]
    np.testing.assert_allclose(engine.fed["x"], x.numpy() / np.sqrt(a), rtol=1e-6)
    np.testing.assert_allclose(engine.fed["s"], np.full((2, 1), np.sqrt((1 - a) / a)), rtol=1e-6)
    np.testing.assert_array_equal(engine.fed["context"], np.ones((2, 5)))


def test_conditioning_that_the_engine_does_not_take_is_refused_unless_it_is_none(tiny_unet):
    x, rows = torch.randn(2, 2, 4, 4), torch.randn(2, 6)
    tiny_unet(x, 1, encoder_hidden_states=None, class_labels=rows, cross_attention_kwargs=None)
    with pytest.raises(EngineError, match="gives encoder_hidden_states, and this engine takes sample, timestep, class"):
        tiny_unet(x, 1, rows, class_labels=rows)
    with pytest.raises(EngineError, match="gives cross_attention_kwargs"):
        tiny_unet(x, 1, class_labels=rows, cross_attention_kwargs={"scale": 0.5})
    with pytest.raises(EngineError, match=r"needs class_labels, and the pipeline gives no conditioning"):
        tiny_unet(x, 1)


def test_latents_of_another_shape_are_refused_unless_the_graph_takes_them(tiny_unet):
    with pytest.raises(
        EngineError, match=r"asks for latents \[2, 8, 4\], this engine is of \[2, 4, 4\].*length = 'free'"
    ):
        tiny_unet(torch.randn(1, 2, 8, 4), 1, class_labels=torch.randn(1, 6))
    free = EngineUNet(Listening("sample", "timestep"), (2, 4, 4), free=True)
    assert free(torch.randn(1, 2, 8, 4), 1).sample.shape == (1, 2, 8, 4)
    with pytest.raises(EngineError, match=r"asks for latents \[3, 4, 4\]"):
        free(torch.randn(1, 3, 4, 4), 1)


def test_an_answer_that_is_not_finite_is_said():
    unet = EngineUNet(Listening("sample", "timestep", answer=np.nan), SHAPE)
    with pytest.raises(EngineError, match="at timestep 7 is not finite for row 0"):
        unet(torch.randn(1, *SHAPE), 7)


def test_a_closed_bundle_runs_no_more(made_bundle):
    unet = EngineUNet.from_bundle(made_bundle, engine="float", threads=1)
    unet.close()
    with pytest.raises(EngineError, match="is closed"):
        unet(torch.randn(1, 2, 4, 4), 1, class_labels=torch.randn(1, 6))


def test_an_engine_that_is_not_there_is_named_with_those_that_are(tiny_bundle):
    with pytest.raises(ArtifactError, match=r"no engine 'cuda' \(it has: float, ort-cpu\)"):
        EngineUNet.from_bundle(tiny_bundle, engine="cuda")


def test_a_graph_whose_length_is_free_is_known_by_its_card(tiny_bundle):
    card = json.loads(tiny_bundle.card.read_text())
    tiny_bundle.card.write_text(json.dumps({**card, "length": "free"}))
    unet = EngineUNet.from_bundle(tiny_bundle, threads=1)
    assert unet.free
    unet.close()
