import pytest
from safetensors.torch import load_file

from quaver.exporter.checkpoints.text_encoder import load_caption_encoder, load_clap, load_t5
from quaver.runtime.errors import RecipeError
from tests.exporter.checkpoints.conftest import DATA, prefixed, relative

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 20,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
IDS = torch.tensor([[2, 3, 4, 5], [2, 3, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_t5_answers_as_the_original_did():
    tensors, io = load_file(DATA / "tango" / "text_encoder.safetensors"), load_file(DATA / "tango" / "io.safetensors")
    encoder = load_t5(tensors, what="it")
    assert relative(encoder(io["input_ids"], io["attention_mask"].long()), io["encoder_hidden_states"]) < 1e-4


def test_flan_t5_has_a_gated_feed_forward():
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=12, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(config).eval()
    found = load_t5(theirs.state_dict(), what="it")(IDS, MASK)
    assert relative(found, theirs(IDS, MASK).last_hidden_state.detach()) < 1e-6


def test_the_clap_branch_comes_back_from_the_layout_of_audioldm():
    torch.manual_seed(0)
    config = transformers.ClapTextConfig(
        **SIZES, projection_dim=8, layer_norm_eps=1e-5, max_position_embeddings=16, pad_token_id=1
    )
    theirs = transformers.ClapTextModelWithProjection(config).eval()
    names = {"text_model.": "text_branch.", "text_projection.linear1": "text_projection.0"}
    names |= {"text_projection.linear2": "text_projection.2"}
    tensors = {}
    for key, value in theirs.state_dict().items():
        old = next(name for name in names if key.startswith(name))
        tensors[key.replace(old, names[old])] = value
    tensors |= {"audio_branch.x": torch.ones(1), "logit_scale_a": torch.ones(1)}
    del tensors["text_branch.embeddings.token_type_ids"]
    found = load_clap(tensors, what="it")(IDS, MASK)
    expected = theirs(IDS, MASK).text_embeds.detach()
    assert relative(found, expected / expected.norm(dim=-1, keepdim=True)) < 1e-6


def test_make_an_audio_takes_every_state_through_a_projection():
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=16)).eval()
    first, second, norm = torch.randn(6, 128) / 11, torch.randn(6, 6), (torch.randn(6), torch.randn(6))
    tensors = prefixed("base.", bert.state_dict()) | {
        "projection.linear1.weight": first,
        "projection.linear2.weight": second,
        "projection.layer_norm.weight": norm[0],
        "projection.layer_norm.bias": norm[1],
    }
    u = bert(IDS).last_hidden_state.detach() @ first.T
    expected = torch.nn.functional.layer_norm(u + torch.nn.functional.gelu(u) @ second.T, (6,), *norm)
    assert relative(load_caption_encoder(tensors, what="it")(IDS, MASK), expected) < 1e-6


def test_a_checkpoint_without_its_text_encoder_says_so():
    with pytest.raises(RecipeError, match=r"main\.bin has no shared\.weight: name the checkpoint that holds"):
        load_t5({}, what="main.bin")
