import pytest
from safetensors.torch import load_file

from quaver.exporter.checkpoints import audioldm, first_stage, ldm, tango
from quaver.exporter.checkpoints.layout import read_settings
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import read_tensors, under
from quaver.runtime.errors import RecipeError
from tests.exporter.checkpoints.conftest import CLASSES, DATA, FILM, relative, unet_weights
from tests.exporter.checkpoints.published import BEDROOMS, CHURCHES, IMAGENET, MAKE_AN_AUDIO
from tests.exporter.checkpoints.unet_by_keys import unet as unet_by_keys

torch = pytest.importorskip("torch")
NAMES = ("ldm4-bedrooms", "ldm8-churches", "make-an-audio")
COUNTS = {
    "audioldm-s": (128, 185_036_552),
    "audioldm-m": (192, 415_954_568),
    "audioldm-l": (256, 739_139_080),
    "make-an-audio": (MAKE_AN_AUDIO, 160_223_684),
    "ldm4-imagenet": (IMAGENET, 400_920_579),
    "ldm4-bedrooms": (BEDROOMS, 274_056_163),
    "ldm8-churches": (CHURCHES, 294_966_916),
    "tango": (None, 865_933_768),
}


@pytest.fixture(scope="module", params=NAMES)
def known(request):
    folder = DATA / request.param
    params = read_settings(folder / "config.yaml")["model"]["params"]
    return params, read_tensors(folder / "model.ckpt"), load_file(folder / "io.safetensors")


def test_the_unet_answers_as_the_original_did(known):
    params, tensors, io = known
    shape = ldm.read_shape(params["unet_config"]["params"])
    unet = ldm.load_unet(shape, under(tensors, UNET), what="it")
    given = (io["x"], io["t"], *([io["context"]] if "context" in io else []))
    assert relative(unet(*given).sample, io["eps"]) < 1e-4


def test_the_first_stage_draws_as_the_original_did(known):
    params, tensors, io = known
    shape = first_stage.read_shape(params["first_stage_config"]["params"])
    scale = float(tensors.get("scale_factor", 1.0))
    decoder = first_stage.load_decoder(shape, under(tensors, "first_stage_model."), scale=scale, what="it")
    assert relative(decoder(io["latent"]), io["decoded"]) < 1e-4


def test_the_unet_by_keys_is_the_original_too():
    tensors, io = read_tensors(DATA / "make-an-audio" / "model.ckpt"), load_file(DATA / "make-an-audio/io.safetensors")
    weights = {key: value.float() for key, value in under(tensors, UNET).items()}
    found = unet_by_keys(weights, io["x"], io["t"], heads=lambda width: 8, context=io["context"])
    assert relative(found, io["eps"]) < 1e-4


def test_a_class_is_a_context_of_one_token():
    weights, draw = unet_weights(CLASSES), torch.Generator().manual_seed(1)
    x, context, t = torch.randn(2, 2, 8, 8, generator=draw), torch.randn(2, 1, 12, generator=draw), torch.tensor([3, 9])
    found = ldm.load_unet(ldm.read_shape(CLASSES), weights, what="it")(x, t, context).sample
    assert relative(found, unet_by_keys(weights, x, t, heads=lambda width: 1, context=context)) < 1e-5


def test_film_is_joined_to_the_time_and_heads_follow_the_width():
    weights, draw = unet_weights(FILM), torch.Generator().manual_seed(1)
    x, film, t = torch.randn(2, 2, 8, 8, generator=draw), torch.randn(2, 6, generator=draw), torch.tensor([3, 900])
    found = ldm.load_unet(ldm.read_shape(FILM), weights, what="it")(x, t, None, class_labels=film).sample
    assert relative(found, unet_by_keys(weights, x, t, heads=lambda width: width // 16, film=film)) < 1e-5
    assert relative(found, unet_by_keys(weights, x, t, heads=lambda width: 8, film=film)) > 1e-3


def test_fused_queries_keys_and_values_are_parted_head_by_head():
    shape = ldm.read_shape(FILM | {"num_head_channels": 2})
    fused = torch.arange(12.0).reshape(12, 1, 1)  # 4 channels: 2 heads of 2
    parts = ldm.split_heads({"middle_block.1.qkv.weight": fused}, shape)
    rows = {key.split(".")[2]: value.flatten().tolist() for key, value in parts.items()}
    assert rows == {"q": [0, 1, 6, 7], "k": [2, 3, 8, 9], "v": [4, 5, 10, 11]}


@pytest.mark.parametrize(("shape", "count"), COUNTS.values(), ids=COUNTS)
def test_the_full_shapes_have_the_published_number_of_parameters(shape, count):
    """Statement 18: the counts of the shapes, exactly.

    Of the churches the 1,536 more than a plain UNet2DModel has are the norm of the attention in the middle (2 x 768),
    which diffusers leaves out of a scale-shift U-Net unless it is told its groups.
    """
    if shape is None:
        unet = tango.make_unet(tango.UNET)
    else:
        unet = ldm.make_unet(audioldm_shape(shape) if isinstance(shape, int) else ldm.read_shape(shape))
    assert sum(p.numel() for p in unet.parameters()) == count
    assert {p.device.type for p in unet.parameters()} == {"meta"}


def audioldm_shape(width):
    meta = {"input_blocks.0.0.weight": (width, 8, 3, 3), "film_emb.weight": (4 * width, 512)}
    tensors = {UNET + key: torch.empty(size, device="meta") for key, size in meta.items()}
    return ldm.read_shape(audioldm.published_params(tensors)["unet_config"]["params"])


@pytest.mark.parametrize(("width", "heads"), [(128, [8, 12, 20]), (192, [12, 18, 30]), (256, [8, 12, 20])])
def test_audioldm_has_its_own_heads_at_every_level(width, heads):
    unet = ldm.make_unet(audioldm_shape(width))
    assert [b.attentions[0].transformer_blocks[0].attn1.heads for b in unet.down_blocks[1:]] == heads
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn2.heads == heads[-1]


def test_the_churches_have_eight_heads_at_every_level():
    unet = ldm.make_unet(ldm.read_shape(CHURCHES))
    found = {block.attentions[0].heads for block in (*unet.down_blocks[:4], unet.mid_block, *unet.up_blocks[1:])}
    assert found == {8}


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "num_classes": ({"num_classes": 10}, "num_classes = 10, which is not supported"),
        "no width": ({"model_channels": None}, "unet_config lacks 'model_channels'"),
        "no heads": ({"num_heads": -1}, "neither num_heads nor num_head_channels"),
        "both": ({"resblock_updown": True}, "unsupported"),
    }.values(),
)
def test_a_configuration_that_says_too_little_or_too_much_is_refused(change, said):
    params = {key: value for key, value in {**CLASSES, **change}.items() if value is not None}
    with pytest.raises(RecipeError, match=said):
        ldm.read_shape(params)
