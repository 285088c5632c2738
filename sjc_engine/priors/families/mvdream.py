"""MVDream (Shi et al. 2023): four views of one object at a time, each told its camera.

It is Stable Diffusion but for two things, both of which diffusers' own network has room for. Its
self-attention runs over the pixels of all four views of a group, and an embedding of each view's
camera is added to that of the time, in the place of a class embedding. Trained on 256 x 256
pictures, it works on 32 x 32 latents.

Two layouts are public. In `ashawkey/mvdream-*` and its copies the network has the names and the
settings of the published checkpoint, those of LDM; in `lzq49/mvdream-*` and `mindazhao/mvdream-*`
it has diffusers' own, and the camera's embedding is a component, `camera_proj`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sjc_engine.priors.denoiser import Cond
from sjc_engine.priors.families.stable_diffusion import StableDiffusionPrior
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.rendering.camera import Camera

VIEWS = 4
LARGEST = 32  # latents a side, whatever a conversion's settings say
# Rows of a camera-to-world matrix: our (x, y, z) is (y, z, x) of MVDream's frame, Blender's, whose
# z is up. A front view, ours from -X, is then taken from -Y, as those of its training data.
AXES = [2, 0, 1, 3]


class MVDreamPrior(StableDiffusionPrior):
    """Batches are groups of four views: one sigma, cameras a quarter turn apart at one height."""

    group = VIEWS

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        self.resolution = min(self.resolution, LARGEST)
        for name, module in self._unet.named_modules():
            if name.endswith(".attn1"):  # a transformer block's self-attention
                module.set_processor(CrossViewAttention(module.processor))

    @staticmethod
    def _load_network(source: ModelSource, dtype: torch.dtype) -> Any:
        from diffusers import UNet2DConditionModel
        from diffusers.models.embeddings import TimestepEmbedding

        if "camera_proj" not in source.index:
            return _from_ldm(source, dtype)

        def camera_embedding(weights: Mapping[str, Tensor]) -> Any:
            width, numbers = weights["linear_1.weight"].shape
            embedding = TimestepEmbedding(numbers, width)
            embedding.load_state_dict(weights)
            return embedding.to(dtype)

        unet = source.network(UNet2DConditionModel, "unet", dtype)
        unet.class_embedding = source.convert("camera_proj", camera_embedding)
        return unet

    def condition(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor] | None = None,
        cameras: Sequence[Camera] | None = None,
    ) -> Cond:
        """Embed prompts, as seen from `cameras` if they are known yet (`Cond.seen_from`)."""
        cond = super().condition(prompts, images)
        return cond.seen_from(cameras) if cameras else cond

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        if cond.camera is None or len(scaled) % VIEWS:
            fix = f"it sees {VIEWS} views at a time, each with its camera"
            raise ValueError(f"prior {self.id!r} was asked about {len(scaled)} views; {fix}")
        return self._unet(
            scaled,
            time,
            encoder_hidden_states=cond.hidden.to(self.dtype),
            class_labels=camera_numbers(cond.camera).to(self.dtype),
        ).sample


class CrossViewAttention:
    """Attention of each pixel of a group's views to all of them; `within` is that of one view."""

    def __init__(self, within: Any) -> None:
        self.within = within

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        together = hidden_states.unflatten(0, (-1, VIEWS)).flatten(1, 2)
        attended: Tensor = self.within(attention, together, *args, **kwargs)
        return attended.unflatten(1, (VIEWS, -1)).flatten(0, 1)


def camera_numbers(camera_to_world: Tensor) -> Tensor:
    """What the network knows of cameras (B, 4, 4): (B, 16), in its own frame, from distance 1."""
    rows = camera_to_world.unbind(dim=1)
    pose = torch.stack([rows[k] for k in AXES], dim=1)  # a list as index would be waited for
    pose[:, :3, 3] = pose[:, :3, 3] / pose[:, :3, 3].norm(dim=1, keepdim=True)
    return pose.flatten(1)


def _from_ldm(source: ModelSource, dtype: torch.dtype) -> Any:
    """The network of a checkpoint in LDM's names. Every weight comes from the files."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

    config = ldm_config(json.loads(source.settings("unet")[0].read_text("utf-8")))

    def convert(weights: Mapping[str, Tensor]) -> Any:
        with torch.device("meta"):  # the weights are those of the files
            unet: Any = UNet2DConditionModel(**config)
        # LDM's own name for an embedding that is added to that of the time
        names = {name: name.replace("camera_embed.", "label_emb.0.") for name in weights}
        ldm = {LDM_UNET_KEY + names[name]: weight.to(dtype) for name, weight in weights.items()}
        unet.load_state_dict(convert_ldm_unet_checkpoint(ldm, unet.config), assign=True)
        return unet

    return source.convert("unet", convert)


def ldm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """LDM's settings of a network as those of a UNet2DConditionModel."""
    levels = range(len(config["channel_mult"]))
    attends = [2**level in config["attention_resolutions"] for level in levels]
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    return {
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": [("Down", "CrossAttnDown")[a] + "Block2D" for a in attends],
        "up_block_types": [("Up", "CrossAttnUp")[a] + "Block2D" for a in reversed(attends)],
        # Diffusers' name for the number of heads
        "attention_head_dim": [width // config["num_head_channels"] for width in widths],
        "cross_attention_dim": config["context_dim"],
        "transformer_layers_per_block": config["transformer_depth"],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": config["camera_dim"],
    }


load = MVDreamPrior
