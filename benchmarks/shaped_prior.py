"""Priors with random weights, of Stable Diffusion 1.5's shape or small: speed without a licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.priors.denoiser import Cond, SchedulePrior
from sjc_engine.priors.sources import ModelSource
from sjc_engine.rendering.camera import Camera

TOKENS = 77
# unet/config.json of stable-diffusion-v1-5; whatever is left out is diffusers' default
SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}

# 3.2 million weights; as in Stable Diffusion attention begins at the full 64 x 64
SMALL: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "norm_num_groups": 8,
}


class ShapedPrior(SchedulePrior):
    """A `UNet2DConditionModel` of a given shape; words become random embeddings."""

    latent = True

    def __init__(self, shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel

        torch.manual_seed(0)
        with device:  # 860 million random numbers are made where they are needed
            unet = UNet2DConditionModel(**shape)
        schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        source = ModelSource("prior", "random/sd15", Path(), "random", "stable_diffusion")
        network = unet.to(dtype)  # type: ignore[attr-defined]
        super().__init__(source, network, schedule, device, dtype)
        self.width: int = shape["cross_attention_dim"]

    def condition(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor] | None = None,
        cameras: Sequence[Camera] | None = None,
    ) -> Cond:
        return Cond(torch.randn(len(prompts), TOKENS, self.width, device=self.device))

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8).clamp(-1, 1)

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self._unet(scaled, time, encoder_hidden_states=cond.hidden.to(self.dtype)).sample
