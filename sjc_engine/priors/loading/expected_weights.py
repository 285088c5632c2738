"""The weights that a network has by its config.json: names, and shapes where they say something.

Written down so that a checkpoint is checked from its headers alone, before any library that could
build the network is imported. Of diffusers' networks only the blocks are listed: what is inside
them is compared between blocks of one kind (`incomplete`). Loading then misses nothing, since it
asks for every parameter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Shape = tuple[int, ...]
Shapes = dict[str, Shape | None]  # by name; None: any
Config = Mapping[str, Any]

# What transformers leaves out of the two configs inside a CLIPModel's
_CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "max_position_embeddings": 77,
}  # fmt: skip
_CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 224,
    "patch_size": 32,
}  # fmt: skip
# Names of attention from before diffusers 0.18, which it changes while loading
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OPTIONAL = ("conv_shortcut", "position_ids", "downsamplers", "upsamplers")


def _layer(name: str, *shape: int) -> Shapes:
    """A layer's weight, of which `shape` is known, and its bias."""
    return {f"{name}.weight": shape or None, f"{name}.bias": shape[:1] or None}


def _clip_tower(config: Config, start: str) -> Shapes:
    """The transformer that CLIP's text and vision models share."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {}
    for number in range(config["num_hidden_layers"]):
        layer = f"{start}encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _layer(f"{layer}.layer_norm1", width) | _layer(f"{layer}.layer_norm2", width)
        shapes |= _layer(f"{layer}.mlp.fc1", inner, width)
        shapes |= _layer(f"{layer}.mlp.fc2", width, inner)
    return shapes


def _clip_text(config: Config, start: str = "") -> Shapes:
    width, embeddings = config["hidden_size"], f"{start}embeddings"
    return {
        f"{embeddings}.token_embedding.weight": (config["vocab_size"], width),
        f"{embeddings}.position_embedding.weight": (config["max_position_embeddings"], width),
        **_clip_tower(config, start),
        **_layer(f"{start}final_layer_norm", width),
    }


def _clip_vision(config: Config) -> Shapes:
    width, patch, start = config["hidden_size"], config["patch_size"], "vision_model."
    places = (config["image_size"] // patch) ** 2 + 1
    return {
        f"{start}embeddings.class_embedding": (width,),
        f"{start}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{start}embeddings.position_embedding.weight": (places, width),
        **_layer(f"{start}pre_layrnorm", width),
        **_clip_tower(config, start),
        **_layer(f"{start}post_layernorm", width),
        "visual_projection.weight": (config["projection_dim"], width),
    }


def _clip(config: Config) -> Shapes:
    text = {**_CLIP_TEXT, **config["text_config"]}
    width = config["projection_dim"]
    return {
        **_clip_text(text, "text_model."),
        **_clip_vision({**_CLIP_VISION, **config["vision_config"], "projection_dim": width}),
        "text_projection.weight": (width, text["hidden_size"]),
        "logit_scale": (),
    }


def _t5(config: Config) -> Shapes:
    width, inner, heads = config["d_model"], config["d_ff"], config["num_heads"]
    all_heads = heads * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    shapes: Shapes = {
        "shared.weight": (config["vocab_size"], width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            config["relative_attention_num_buckets"], heads,
        ),
        "encoder.final_layer_norm.weight": (width,),
    }  # fmt: skip
    for number in range(config["num_layers"]):
        layer = f"encoder.block.{number}.layer"
        for name in "qkv":
            shapes[f"{layer}.0.SelfAttention.{name}.weight"] = (all_heads, width)
        shapes[f"{layer}.0.SelfAttention.o.weight"] = (width, all_heads)
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{layer}.1.DenseReluDense.{name}.weight"] = (inner, width)
        shapes[f"{layer}.1.DenseReluDense.wo.weight"] = (width, inner)
        shapes |= {f"{layer}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
    return shapes


def _blocks(config: Config, start: str, way: str, extra: int) -> Shapes:
    """One name of each residual block, and of each attention, of a way down or up."""
    shapes: Shapes = {}
    types = config[f"{way}_block_types"]
    counts = config["layers_per_block"]
    counts = list(counts) if isinstance(counts, list | tuple) else [counts] * len(types)
    counts = counts[::-1] if way == "up" else counts
    for number, (kind, count) in enumerate(zip(types, counts, strict=True)):
        for block in range(count + extra):
            name = f"{start}{way}_blocks.{number}"
            shapes |= _layer(f"{name}.resnets.{block}.conv1")
            if "Attn" in kind and "Skip" not in kind:
                norm = "norm" if "CrossAttn" in kind and "Simple" not in kind else "group_norm"
                shapes |= _layer(f"{name}.attentions.{block}.{norm}")
    return shapes


def _ends(start: str, first: int, channels: int, last: int, out: int) -> Shapes:
    """The first and the last layers of a network of convolutions; `channels` go into it."""
    return {
        f"{start}conv_in.weight": (first, channels, 3, 3),
        f"{start}conv_in.bias": (first,),
        **_layer(f"{start}conv_norm_out", last),
        f"{start}conv_out.weight": (out, last, 3, 3),
        f"{start}conv_out.bias": (out,),
    }


def _middle(start: str) -> Shapes:
    resnets = f"{start}mid_block.resnets"
    return _layer(f"{resnets}.0.conv1") | _layer(f"{resnets}.1.conv1")


def _unet(config: Config) -> Shapes:
    width = config["block_out_channels"]
    return {
        **_ends("", width[0], config["in_channels"], width[0], config["out_channels"]),
        **_layer("time_embedding.linear_1"),
        **_layer("time_embedding.linear_2"),
        **_blocks(config, "", "down", 0),
        **(_middle("") if config.get("mid_block_type", "") is not None else {}),
        **_blocks(config, "", "up", 1),
    }


def _vae(config: Config) -> Shapes:
    width, latent = config["block_out_channels"], config["latent_channels"]
    return {
        **_ends("encoder.", width[0], config["in_channels"], width[-1], 2 * latent),
        **_ends("decoder.", width[-1], latent, width[0], config["out_channels"]),
        **_blocks(config, "encoder.", "down", 0),
        **_blocks(config, "decoder.", "up", 1),
        **_middle("encoder."),
        **_middle("decoder."),
        **_layer("quant_conv", 2 * latent, 2 * latent, 1, 1),
        **_layer("post_quant_conv", latent, latent, 1, 1),
    }


def _camera_projection(config: Config) -> Shapes:
    width = config["embedding_dim"]
    return _layer("proj", width, width + config["additional_embeddings"])


def _ldm_residual(name: str, widens: bool) -> Shapes:
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    layers += ["skip_connection"] * widens
    return {k: v for layer in layers for k, v in _layer(f"{name}.{layer}").items()}


def _ldm_attention(name: str, depth: int) -> Shapes:
    """Of `depth` transformer blocks; none at all if 0."""
    if not depth:
        return {}
    shapes = _layer(f"{name}.norm") | _layer(f"{name}.proj_in") | _layer(f"{name}.proj_out")
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for layer in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"):
            shapes |= _layer(f"{block}.{layer}")
        for attention in ("attn1", "attn2"):
            shapes |= {f"{block}.{attention}.to_{kind}.weight": None for kind in "qkv"}
        shapes |= _layer(f"{block}.norm1") | _layer(f"{block}.norm2") | _layer(f"{block}.norm3")
    return shapes


def _ldm_unet(config: Config) -> Shapes:
    """MVDream's network, every weight, in the names of LDM, which number all its blocks through."""
    if config.get("ip_dim"):
        raise ValueError("it is an ImageDream, which starts from a picture")
    width, depth, factors = (
        config[k] for k in ("model_channels", "transformer_depth", "channel_mult")
    )
    attends = [2**level in config["attention_resolutions"] for level in range(len(factors))]
    each = config["num_res_blocks"] + 1  # blocks of a level, with the one that changes the size
    shapes: Shapes = {
        **_layer("time_embed.0", 4 * width, width),
        **_layer("time_embed.2", 4 * width, 4 * width),
        **_layer("camera_embed.0", 4 * width, config["camera_dim"]),
        **_layer("camera_embed.2", 4 * width, 4 * width),
        **_layer("input_blocks.0.0", width, config["in_channels"], 3, 3),
        **_ldm_residual("middle_block.0", widens=False),
        **_ldm_attention("middle_block.1", depth),
        **_ldm_residual("middle_block.2", widens=False),
        **_layer("out.0", width),
        **_layer("out.2", config["out_channels"], width, 3, 3),
    }
    for number in range(1, each * len(factors)):
        level, place = divmod(number, each)
        name = f"input_blocks.{number}"
        if not place:
            shapes |= _layer(f"{name}.0.op")
            continue
        before = factors[level - 1] if level else 1
        shapes |= _ldm_residual(f"{name}.0", widens=place == 1 and factors[level] != before)
        shapes |= _ldm_attention(f"{name}.1", depth * attends[level])
    for number in range(each * len(factors)):
        level, name = len(factors) - 1 - number // each, f"output_blocks.{number}"
        shapes |= _ldm_residual(f"{name}.0", widens=True)
        shapes |= _ldm_attention(f"{name}.1", depth * attends[level])
        if level and number % each == each - 1:
            shapes |= _layer(f"{name}.{1 + attends[level]}.conv")
    return shapes


# Of LPIPS, by network: the convolutions of torchvision's, and those whose outputs are compared
LPIPS = {
    "alex": ((0, 3, 6, 8, 10), (0, 3, 6, 8, 10)),
    "vgg": ((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (2, 7, 14, 21, 28)),
}


def _lpips(config: Config) -> Shapes:
    convolutions, taps = LPIPS[config["network"]]
    shapes: Shapes = {f"lin.{tap}": None for tap in taps}
    for number in convolutions:
        shapes |= _layer(f"features.{number}")
    return shapes


# Settings that leave every shape as it is and change what a network computes; libraries would put
# their defaults for those that are missing. (CLIPModel's configs leave defaults out.)
_UNET_NEEDS = (
    "sample_size", "act_fn", "attention_head_dim", "norm_num_groups", "norm_eps",
    "flip_sin_to_cos", "freq_shift",
)  # fmt: skip
_CLIP_NEEDS = ("hidden_act", "num_attention_heads", "layer_norm_eps")
NEEDED: dict[str, tuple[str, ...]] = {
    "UNet2DConditionModel": _UNET_NEEDS,
    "UNet2DModel": _UNET_NEEDS,
    "AutoencoderKL": ("act_fn", "norm_num_groups"),
    "CLIPTextModel": _CLIP_NEEDS,
    "CLIPVisionModelWithProjection": _CLIP_NEEDS,
    "T5EncoderModel": ("layer_norm_epsilon",),
}
LAYOUTS: dict[str, Callable[[Config], Shapes]] = {
    "UNet2DConditionModel": _unet,
    "UNet2DModel": _unet,
    "MultiViewUNetModel": _ldm_unet,
    "CameraMatrixEmbedding": lambda config: _layer("linear_1") | _layer("linear_2"),
    "AutoencoderKL": _vae,
    "CLIPTextModel": _clip_text,
    "CLIPVisionModelWithProjection": _clip_vision,
    "CLIPModel": _clip,
    "T5EncoderModel": _t5,
    "Lpips": _lpips,
    "CCProjection": lambda config: _layer("projection"),
    "CLIPCameraProjection": _camera_projection,
}


def usual_name(name: str, cls: str) -> str:
    """A weight's name as this module has it; libraries take older ones as well."""
    if cls == "CLIPTextModel":
        return name.removeprefix("text_model.")
    if cls == "T5EncoderModel" and name == "encoder.embed_tokens.weight":
        return "shared.weight"
    stem, dot, last = name.rpartition(".")
    before, _, module = stem.rpartition(".")
    if cls in ("AutoencoderKL", "UNet2DModel") and module in _OLD_ATTENTION:
        return f"{before}.{_OLD_ATTENTION[module]}{dot}{last}"
    return name


def incomplete(names: set[str]) -> Iterator[str]:
    """Names that other blocks of the same kind have, and one block of these names has not."""
    blocks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        found = re.match(r"(.*\.(?:resnets|attentions|transformer_blocks|layers)\.\d+)\.(.*)", name)
        if found and not any(word in found[2] for word in _OPTIONAL):
            kind = re.sub(r"\d+", "#", found[1].rpartition(".")[0].replace("up_", "down_"))
            blocks[kind][found[1]].add(found[2])
    for siblings in blocks.values():
        whole = set().union(*siblings.values())
        for block, inside in sorted(siblings.items()):
            yield from (f"{block}.{name}" for name in sorted(whole - inside))
