"""Checkpoints as the web has them: one file with the names of the first code, and LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
}  # fmt: skip
# What a block's layers were called
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def read_component(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / name / f"{WEIGHTS[name]}.safetensors")


def write_single_file(folder: Path, path: Path, *, open_clip: bool = False, **metadata: str) -> str:
    """The weights of a diffusers folder in one file. open_clip: with SD 2's text encoder."""
    unet = read_component(folder, "unet")
    layers = sum("down_blocks.0.resnets" in key and "conv1.weight" in key for key in unet)
    text = read_component(folder, "text_encoder")
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    encoder = "cond_stage_model.model." if open_clip else "cond_stage_model.transformer.text_model."
    parts = {
        "model.diffusion_model.": {_unet_name(key, layers, unet): v for key, v in unet.items()},
        "first_stage_model.": dict(_old_vae(read_component(folder, "vae"))),
        encoder: dict(_open_clip(text)) if open_clip else text,
    }
    weights = {start + key: value for start, part in parts.items() for key, value in part.items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata or None)
    return str(path)


def _unet_name(key: str, layers: int, names: dict[str, Any]) -> str:
    for new, old in UNET_ENDS.items():
        if key.startswith(f"{new}."):
            key = key.replace(new, old, 1)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.", key)
    if found:
        way, block, kind, layer = found[1], int(found[2]), found[3], int(found[4])
        rest, here = key[found.end() :], {"resnets": 0, "attentions": 1}.get(kind, 0)
        if way == "down":
            number = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
            rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
            key = f"input_blocks.{number}.{here}.{rest}"
        else:
            number = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
            if kind == "upsamplers":
                here = 1 + any(name.startswith(f"up_blocks.{block}.attentions") for name in names)
            key = f"output_blocks.{number}.{here}.{rest}"
    if "transformer_blocks" not in key:
        for new, old in RESNET.items():
            key = re.sub(rf"\.{new}\.(?=weight|bias)", f".{old}.", key)
    return key


def _old_vae(weights: dict[str, Tensor]) -> Any:
    blocks = 1 + max(int(m[1]) for key in weights if (m := re.search(r"up_blocks\.(\d+)", key)))
    for key, value in weights.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        up: Callable[[re.Match[str]], str] = lambda m: f"up.{blocks - 1 - int(m[1])}"  # noqa: E731
        name = re.sub(r"up_blocks\.(\d+)", up, name)
        name = name.replace(".resnets.", ".block.").replace(".upsamplers.0", ".upsample")
        name = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
            value = value[..., None, None] if value.dim() == 2 else value
        yield name, value


def _open_clip(weights: dict[str, Tensor]) -> Any:
    ends = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
    }
    layer = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for key, value in weights.items():
        name = ends.get(key, key.replace("final_layer_norm", "ln_final"))
        name = name.replace("encoder.layers", "transformer.resblocks")
        for new, old in layer.items():
            name = name.replace(f".{new}.", f".{old}.")
        found = re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if found:
            every = [key.replace("q_proj", f"{way}_proj") for way in "qkv"]
            yield f"{found[1]}.attn.in_proj_{found[2]}", torch.cat([weights[k] for k in every])
        elif "self_attn" not in name:
            yield name, value


# A layer of each kind, by component: linear, with its index, 1 x 1 and 3 x 3; of the text encoder
LORA_LAYERS = {
    "unet": (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "down_blocks.1.attentions.0.proj_in",
        "down_blocks.0.resnets.0.conv1",
    ),
    "text_encoder": ("encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc1"),
}
RANK = 2


def lora_matrices(folder: Path) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """up and down of LORA_LAYERS for a diffusers folder, by component and layer."""
    generator, found = torch.Generator().manual_seed(5), {}
    for component, layers in LORA_LAYERS.items():
        weights = read_component(folder, component)
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
        for layer in layers:
            rows, *columns = weights[f"{layer}.weight"].shape
            point = [1] * (len(columns) - 1)
            up = torch.randn(rows, RANK, *point, generator=generator)
            found[component, layer] = up, torch.randn(RANK, *columns, generator=generator)
    return found


def write_small_lora(path: Path, folder: Path, scale: float = 1.0) -> str:
    """A LoRA of kohya's for one layer of a diffusers folder's UNet."""
    weights = read_component(folder, "unet")
    name = next(key for key in sorted(weights) if key.endswith("to_q.weight"))
    rows, columns = weights[name].shape
    matrices = scale * torch.ones(rows, 1), torch.ones(1, columns)
    return write_lora(path, {("unet", name.removesuffix(".weight")): matrices})


def write_lora(
    path: Path,
    matrices: dict[tuple[str, str], tuple[Tensor, Tensor]],
    dialect: str = "kohya",
    alpha: float | None = None,
) -> str:
    """LoRA of these matrices as `kohya`, `peft` or `old` (diffusers of 2023) names them."""
    weights = {}
    for (component, layer), (up, down) in matrices.items():
        layer = f"text_model.{layer}" if component == "text_encoder" else layer
        if dialect == "kohya":
            start = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
            name, ends = start + layer.replace(".", "_"), ("lora_up", "lora_down")
        elif dialect == "peft":
            name, ends = f"{component}.{layer}", ("lora_B", "lora_A")
        else:
            name, ends = f"{component}.{layer}", ("lora.up", "lora.down")
            if found := re.fullmatch(r"(.*attn\d)\.(to_\w+?)(\.0)?", name):
                name, ends = (
                    f"{found[1]}.processor",
                    (f"{found[2]}_lora.up", f"{found[2]}_lora.down"),
                )
            elif component == "text_encoder":
                ends = ("lora_linear_layer.up", "lora_linear_layer.down")
        for end, matrix in zip(ends, (up, down), strict=True):
            weights[f"{name}.{end}.weight"] = matrix.contiguous()
        if alpha is not None:
            weights[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(weights, path)
    return str(path)
