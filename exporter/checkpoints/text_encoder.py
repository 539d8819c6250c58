"""Text encoders inside checkpoints, input_ids and attention_mask [B, L] -> what conditions the U-Net.

    T5      (arXiv:1910.10683), TANGO             encoder_hidden_states [B, L, D]
    CLAP    (arXiv:2211.06687), AudioLDM          text_embeds [B, D], |.| = 1: RoBERTa, pooled, two layers
    CLAP    (arXiv:2206.04769), Make-An-Audio     encoder_hidden_states [B, L, D]: BERT, every state through
                                                  LayerNorm(u + W2 gelu(u)), u = W1 h

Sizes are read off the weights; what they cannot say (heads of BERT and RoBERTa, 64 wide; the eps of norms) is that of
the published models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.places import assign, build
from quaver.exporter.checkpoints.tensors import under
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

HEAD = 64  # channels of a head in every BERT
STATES, EMBEDS = ("encoder_hidden_states",), ("text_embeds",)


def load_t5(tensors: Tensors, *, what: str) -> torch.nn.Module:
    """T5's encoder, of `tensors` as below `text_encoder.`. Raises: RecipeError where they do not fit."""
    transformers = need("transformers", extra="export")
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = _size(tensors, "shared.weight", what)
    buckets, heads = _size(tensors, f"{attention}.relative_attention_bias.weight", what)
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors
    config = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=_size(tensors, f"{attention}.q.weight", what)[0] // heads,
        d_ff=_size(tensors, "encoder.block.0.layer.1.DenseReluDense.wo.weight", what)[1],
        num_layers=_count(tensors, "encoder.block."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    encoder = build(lambda: transformers.T5EncoderModel(config))
    assign(encoder, tensors, what=what, ignored=("encoder.embed_tokens",))
    encoder.tie_weights()  # the same table, stored twice
    return as_encoder(lambda ids, mask: encoder(ids, mask).last_hidden_state, [encoder], STATES)


def load_clap(tensors: Tensors, *, what: str) -> torch.nn.Module:
    """CLAP's text branch, of `tensors` as below `cond_stage_model.model.`.

    Raises: RecipeError where they do not fit.
    """
    transformers = need("transformers", extra="export")
    sizes = _bert_sizes(tensors, "text_branch.", what)
    out = _size(tensors, "text_projection.2.weight", what)[0]
    config = transformers.ClapTextConfig(**sizes, projection_dim=out, layer_norm_eps=1e-5)
    model = build(lambda: transformers.ClapTextModelWithProjection(config))
    places = {"text_model": "text_branch"}
    places |= {f"text_projection.linear{n}": f"text_projection.{i}" for n, i in ((1, 0), (2, 2))}
    own = {k: v for k, v in tensors.items() if k.startswith(("text_branch.", "text_projection."))}
    assign(model, own, places, what=what, ignored=("text_branch.embeddings.position_ids",))
    _number_positions(model.text_model.embeddings)
    unit = need("torch", extra="export").nn.functional.normalize
    return as_encoder(lambda ids, mask: unit(model(ids, mask).text_embeds, dim=-1), [model], EMBEDS)


def load_caption_encoder(tensors: Tensors, *, what: str) -> torch.nn.Module:
    """Make-An-Audio's, of `tensors` as below `cond_stage_model.caption_encoder.`.

    Raises: RecipeError where they do not fit.
    """
    transformers, nn = need("transformers", extra="export"), need("torch", extra="export").nn
    config = transformers.BertConfig(**_bert_sizes(tensors, "base.", what))
    wide, out = config.hidden_size, _size(tensors, "projection.linear1.weight", what)[0]
    bert = build(lambda: transformers.BertModel(config))
    assign(bert, under(tensors, "base."), what=what, ignored=("embeddings.position_ids",))
    _number_positions(bert.embeddings)
    layers = {
        "linear1": lambda: nn.Linear(wide, out, bias=False),
        "linear2": lambda: nn.Linear(out, out, bias=False),
        "layer_norm": lambda: nn.LayerNorm(out),
    }
    head = build(lambda: nn.ModuleDict({name: make() for name, make in layers.items()}))
    assign(head, under(tensors, "projection."), what=what)

    def states(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        u = head["linear1"](bert(ids).last_hidden_state)  # its authors give it no mask
        return head["layer_norm"](u + head["linear2"](nn.functional.gelu(u)))

    return as_encoder(states, [bert, head], STATES)


def as_encoder(
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], networks: list[Any], answers: tuple[str, ...]
) -> torch.nn.Module:
    """A function of ids and mask, with the networks that it calls, as a module to trace."""
    nn = need("torch", extra="export").nn

    class Encoder(nn.Module):  # type: ignore[name-defined]
        outputs = answers

        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return encode(input_ids, attention_mask)

    return Encoder().eval()


def _bert_sizes(tensors: Tensors, prefix: str, what: str) -> dict[str, int]:
    """What BERT and RoBERTa are told, read off the weights below `prefix`."""
    embeddings = f"{prefix}embeddings"
    vocabulary, width = _size(tensors, f"{embeddings}.word_embeddings.weight", what)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": _count(tensors, f"{prefix}encoder.layer."),
        "num_attention_heads": max(1, width // HEAD),
        "intermediate_size": _size(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", what)[0],
        "max_position_embeddings": _size(tensors, f"{embeddings}.position_embeddings.weight", what)[0],
        "type_vocab_size": _size(tensors, f"{embeddings}.token_type_embeddings.weight", what)[0],
    }


def _number_positions(embeddings: torch.nn.Module) -> None:
    """Give a network made on the meta device the two tables that are no weights."""
    torch = need("torch", extra="export")
    count = embeddings.position_ids.shape[-1]
    embeddings.position_ids = torch.arange(count).expand(1, -1)
    embeddings.token_type_ids = torch.zeros(1, count, dtype=torch.long)


def _size(tensors: Tensors, key: str, what: str) -> tuple[int, ...]:
    if key not in tensors:
        raise RecipeError(f"{what} has no {key}: name the checkpoint that holds the text encoder too")
    return tuple(tensors[key].shape)


def _count(tensors: Tensors, prefix: str) -> int:
    """How many layers are numbered below a prefix."""
    return len({key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix)})
