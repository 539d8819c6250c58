"""Pipelines of random weights, tiny and whole."""

import pytest

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")

LEVELS = {"sample_size": 8, "block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 8}
PLAIN = {
    **LEVELS,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}  # the middle alone attends: torch takes its time for every attention that it traces
WITHOUT_MIDDLE = {**PLAIN, "down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None}
TEXT = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 1,
}
CLAP = {**TEXT, "num_hidden_layers": 1, "max_position_embeddings": 80, "projection_dim": 12}


def unlike(network):
    """A network whose norms are no equal constants, which trained ones never are."""
    for name, parameter in network.named_parameters():
        if "norm" in name or "_embed" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def words(pad="<pad>"):
    """A tokenizer of eight words that ends every prompt; `pad` is not the first of them."""
    listed = {word: i for i, word in enumerate(("<unk>", pad, "a", "low", "note", "dog", "barks", "</s>"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(listed, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 7)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, eos_token="</s>", unk_token="<unk>", model_max_length=77
    )


def autoencoder(kind, channels, latents, **more):
    """A first stage of two levels, with a scale of its own."""
    levels = {"block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": latents}
    levels |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return unlike(kind(in_channels=channels, out_channels=channels, scaling_factor=0.9, **levels, **more))


def kl(channels):
    return autoencoder(diffusers.AutoencoderKL, channels, 4, mid_block_add_attention=False)


def ddim(**more):
    ends = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    return diffusers.DDIMScheduler(**ends, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **more)


def vocoder():
    """mel [B, T, 16] -> waveform [B, 128 T], loud enough for 16 bits."""
    kernels = {"upsample_rates": [16, 8], "upsample_kernel_sizes": [32, 16]}
    blocks = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "upsample_initial_channel": 16}
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=16, normalize_before=False, **kernels, **blocks)
    network = transformers.SpeechT5HifiGan(config).eval()
    for parameter in network.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape) * scale
    return network


def clip(kind, width, layers=2):
    sizes = {**TEXT, "hidden_size": width, "max_position_embeddings": 77, "projection_dim": width}
    sizes["num_hidden_layers"] = layers
    return kind(transformers.CLIPTextConfig(**sizes, eos_token_id=7, bos_token_id=0)).eval()


def audioldm():
    film = {"class_embed_type": "simple_projection", "class_embeddings_concat": True}
    film |= {"projection_class_embeddings_input_dim": 12, "cross_attention_dim": 16}
    return diffusers.AudioLDMPipeline(
        vae=kl(1),
        text_encoder=transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**CLAP)).eval(),
        tokenizer=words(),
        unet=unlike(diffusers.UNet2DConditionModel(**WITHOUT_MIDDLE, **film)),
        scheduler=ddim(),
        vocoder=vocoder(),
    )


def audioldm2():
    heard = {"spec_size": 64, "num_mel_bins": 64, "patch_embeds_hidden_size": 8, "hidden_size": 16}
    heard |= {"depths": [1, 1], "num_attention_heads": [1, 1], "projection_dim": 12}
    both = transformers.ClapConfig(text_config=CLAP, audio_config=heard, projection_dim=12)
    t5 = transformers.T5Config(vocab_size=20, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    gpt2 = {"vocab_size": 4, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
    speaker = transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2, bos_token_id=0, eos_token_id=0)).eval()
    speaker.config.max_new_tokens = 3
    return diffusers.AudioLDM2Pipeline(
        vae=kl(1),
        text_encoder=transformers.ClapModel(both).eval(),
        text_encoder_2=transformers.T5EncoderModel(t5).eval(),
        projection_model=unlike(diffusers.AudioLDM2ProjectionModel(12, 24, 16)),
        language_model=speaker,
        tokenizer=words(),
        tokenizer_2=words(),
        feature_extractor=transformers.ClapFeatureExtractor(),
        unet=unlike(diffusers.AudioLDM2UNet2DConditionModel(**PLAIN, cross_attention_dim=((None, 16, 24),))),
        scheduler=ddim(),
        vocoder=vocoder(),
    )


def stable_diffusion():
    return diffusers.StableDiffusionPipeline(
        vae=kl(3),
        text_encoder=clip(transformers.CLIPTextModel, 32, layers=1),
        tokenizer=words("!"),
        unet=unlike(diffusers.UNet2DConditionModel(**WITHOUT_MIDDLE, cross_attention_dim=32)),
        scheduler=ddim(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    added |= {"projection_class_embeddings_input_dim": 24 + 6 * 8, "cross_attention_dim": 32 + 24}
    ends = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(3),
        text_encoder=clip(transformers.CLIPTextModel, 32),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection, 24),
        tokenizer=words("<end>"),
        tokenizer_2=words("!"),
        unet=unlike(diffusers.UNet2DConditionModel(**WITHOUT_MIDDLE, **added)),
        scheduler=diffusers.EulerDiscreteScheduler(**ends, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def noise_unet(channels):
    kinds = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {**LEVELS, "attention_head_dim": 4, "in_channels": channels, "out_channels": channels}
    return unlike(diffusers.UNet2DModel(**sizes, **kinds, add_attention=False))


def pixels():
    return diffusers.DDIMPipeline(noise_unet(3), diffusers.DDIMScheduler())


def latents():
    stage = autoencoder(diffusers.VQModel, 3, 4, num_vq_embeddings=32)
    return diffusers.LDMPipeline(vqvae=stage, unet=noise_unet(4), scheduler=ddim())


def build(make):
    """The same pipeline every time."""
    torch.manual_seed(0)
    return make()
