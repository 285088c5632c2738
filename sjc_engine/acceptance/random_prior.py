"""Priors with random weights, of Stable Diffusion 1.5's shape or smaller: its speed, no licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjc_engine.priors.denoiser import Cond, SchedulePrior, frozen
from sjc_engine.priors.families.stable_diffusion import decode_latents
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.progress import OnWork, unheard

TOKENS = 77
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# unet/config.json and vae/config.json of stable-diffusion-v1-5; whatever is left out is diffusers'
# default
SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}

# 3.2 million weights; as in Stable Diffusion attention begins at the full 64 x 64
SMALL: dict[str, Any] = {
    **SD15,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "norm_num_groups": 8,
}
TINY: dict[str, Any] = {**SMALL, "sample_size": 8, "block_out_channels": (8, 16, 16)}
TINY_VAE: dict[str, Any] = {**SD15_VAE, "block_out_channels": (8,) * 4, "norm_num_groups": 4}


class RandomPrior(SchedulePrior):
    """A `UNet2DConditionModel` and an `AutoencoderKL` of given shapes; words become random."""

    latent = True

    def __init__(
        self,
        shape: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        vae: dict[str, Any] | None = None,
    ) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        torch.manual_seed(0)
        with device:  # 860 million random numbers are made where they are needed
            unet: Any = UNet2DConditionModel(**shape)
            self._vae = frozen(AutoencoderKL(**vae), device) if vae else None
        source = ModelSource("prior", "random/sd15", Path(), "random", "stable_diffusion")
        network = torch.nn.Module.to(unet, dtype)  # diffusers' own warns, whatever is asked of it
        super().__init__(source, network, DDPMScheduler(**SCHEDULE), device, dtype)
        self.width: int = shape["cross_attention_dim"]

    def condition(self, prompts: Sequence[str], *_: Any, **__: Any) -> Cond:
        return Cond(torch.randn(len(prompts), TOKENS, self.width, device=self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor, on_work: OnWork = unheard) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1], in float32 as that of a real model."""
        return decode_latents(self._vae, latents, on_work)
