"""Models that know one kind of picture and take no words: DDPM, and score models of the VE kind.

The paper's LSUN bedrooms and churches, CelebA-HQ (`google/ddpm-*-256`), and FFHQ
(`google/ncsnpp-ffhq-256`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sjc_engine.priors.denoiser import Cond, Prior, SchedulePrior
from sjc_engine.priors.loading.components import ModelSource

VE_TICKS = 1000


class UnconditionalPrior(SchedulePrior):
    """A `UNet2DModel` under a DDPM schedule."""

    guided = False

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        unet = source.network(UNet2DModel, "unet", dtype)
        super().__init__(source, unet, source.scheduler(DDPMScheduler), device, dtype)

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self._unet(scaled, time).sample


class VEPrior(Prior):
    """A variance-exploding score model (Song et al. 2021): D = u + s^2 score(u; s).

    The network works on u in [0, 1], so that this module's x in [-1, 1] and sigma are twice its.
    """

    guided = False

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import ScoreSdeVeScheduler, UNet2DModel

        unet = source.network(UNet2DModel, "unet", torch.float32)
        # Its features are sines of up to hundreds of radians: half precision would make them noise.
        for part in unet.children():
            part.to(torch.float32 if part is unet.time_proj else dtype)
        config = source.scheduler(ScoreSdeVeScheduler).config
        low, high = 2 * config.sigma_min, 2 * config.sigma_max
        ticks = torch.linspace(math.log(low), math.log(high), VE_TICKS, dtype=torch.float64)
        super().__init__(source, unet, ticks.exp(), device, dtype)

    def _denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        u, s = (x + 1) / 2, sigma / 2
        score = self._unet(u.to(self.dtype), s.float()).sample.float()
        return 2 * (u + s.view(-1, 1, 1, 1) ** 2 * score) - 1


def load(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Prior:
    exploding = source.index["_class_name"] == "ScoreSdeVePipeline"
    return (VEPrior if exploding else UnconditionalPrior)(source, device, dtype)
