"""`unet_config.params` of the published configurations of latent diffusion and Make-An-Audio."""

SHARED = {"num_res_blocks": 2}
IMAGENET = SHARED | {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 192,
    "attention_resolutions": [8, 4, 2],
    "channel_mult": [1, 2, 3, 5],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "context_dim": 512,
}
BEDROOMS = SHARED | {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 224,
    "attention_resolutions": [8, 4, 2],
    "channel_mult": [1, 2, 3, 4],
    "num_head_channels": 32,
}
CHURCHES = SHARED | {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 192,
    "attention_resolutions": [1, 2, 4, 8],
    "channel_mult": [1, 2, 2, 4, 4],
    "num_heads": 8,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
MAKE_AN_AUDIO = SHARED | {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 1024,
    "legacy": False,
}
