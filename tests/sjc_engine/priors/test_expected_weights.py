"""The weights that a config asks for, against the libraries' own networks in published shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
import transformers

from sjc_engine.priors.loading.expected_weights import LAYOUTS, NEEDED, incomplete, usual_name

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD21 = {
    **SD15,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
# DeepFloyd IF, stage I, with narrower blocks
IF: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": (192, 384, 576, 768),
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "act_fn": "gelu",
}
DDPM: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    "attention_head_dim": None,
}
NCSNPP: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
    "down_block_types": (
        *("SkipDownBlock2D",) * 4, "AttnSkipDownBlock2D", *("SkipDownBlock2D",) * 2,
    ),
    "up_block_types": (*("SkipUpBlock2D",) * 2, "AttnSkipUpBlock2D", *("SkipUpBlock2D",) * 4),
    "time_embedding_type": "fourier",
    "norm_num_groups": None,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
}  # fmt: skip
VAE: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
OPEN_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
VISION_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip
T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
}  # fmt: skip


def networks() -> Iterator[tuple[str, Any]]:
    for name, config in (("sd15", SD15), ("sd21", SD21), ("if", IF), ("zero123", SD15)):
        more = {"in_channels": 8} if name == "zero123" else {}
        yield name, lambda c=config | more: diffusers.UNet2DConditionModel(**c)
    # Distilled ones, and one whose blocks have unequal numbers of layers
    uneven = {"layers_per_block": (1, 2, 3, 2)}
    for name, more in (("no middle", {"mid_block_type": None}), ("uneven", uneven)):
        yield name, lambda c=SD15 | more: diffusers.UNet2DConditionModel(**c)
    yield "ddpm", lambda: diffusers.UNet2DModel(**DDPM)
    yield "ncsnpp", lambda: diffusers.UNet2DModel(**NCSNPP)
    yield "vae", lambda: diffusers.AutoencoderKL(**VAE)
    for name, text in (("clip-l", CLIP_L), ("open-clip-h", OPEN_CLIP_H)):
        yield name, lambda t=text: transformers.CLIPTextModel(transformers.CLIPTextConfig(**t))
    vision = transformers.CLIPVisionConfig(**VISION_L, projection_dim=768)
    yield "vision", lambda: transformers.CLIPVisionModelWithProjection(vision)
    judge = transformers.CLIPConfig(text_config=CLIP_L, vision_config=VISION_L, projection_dim=768)
    yield "judge", lambda: transformers.CLIPModel(judge)
    yield "t5", lambda: transformers.T5EncoderModel(transformers.T5Config(**T5_XXL))


@pytest.mark.parametrize(("name", "build"), list(networks()), ids=lambda value: str(value)[:12])
def test_a_config_asks_for_the_networks_own_weights(name: str, build: Any) -> None:
    with torch.device("meta"):
        network = build()
    config, cls = network.config, type(network).__name__
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    assert set(NEEDED.get(cls, ())) <= settings.keys()
    shapes = {usual_name(k, cls): tuple(v.shape) for k, v in network.state_dict().items()}
    wanted = LAYOUTS[cls](settings)
    assert wanted.keys() <= shapes.keys()
    assert {k: s for k, s in wanted.items() if s is not None and s != shapes[k]} == {}
    assert list(incomplete(set(shapes))) == []
    kinds = {key.rpartition(".")[0] for key in shapes}
    if cls.startswith(("CLIP", "T5")):
        assert wanted.keys() == shapes.keys(), "transformers are known whole"
    assert len(kinds) > 10


def test_old_names_of_attention_are_known() -> None:
    old = "decoder.mid_block.attentions.0.proj_attn.weight"
    assert usual_name(old, "AutoencoderKL") == "decoder.mid_block.attentions.0.to_out.0.weight"
    assert (
        usual_name("text_model.final_layer_norm.bias", "CLIPTextModel") == "final_layer_norm.bias"
    )
    assert usual_name("encoder.embed_tokens.weight", "T5EncoderModel") == "shared.weight"
