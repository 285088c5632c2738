"""Text-to-image models of Stable Diffusion's layout, in latents or (the toybox) in pixels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.priors.denoiser import Cond, SchedulePrior, frozen, tokenize, tokens_end
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.progress import OnWork, unheard


class StableDiffusionPrior(SchedulePrior):
    """CLIP text encoder, `UNet2DConditionModel` and, for latents, an `AutoencoderKL`."""

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        unet = self._load_network(source, dtype)
        scheduler = source.scheduler(DDPMScheduler)
        # Text encoder and VAE stay in float32: they run rarely, and SD's VAE overflows in float16.
        encoder = source.encoder(CLIPTextModel, "text_encoder", torch.float32)
        self._text_encoder = frozen(encoder, device)
        self._tokenizer = source.tokenizer(CLIPTokenizer, encoder.config.vocab_size)
        self.latent = (source.index.get("vae") or [None])[0] is not None
        self._vae = None
        if self.latent:
            from diffusers import AutoencoderKL  # with a hundred modules more

            self._vae = frozen(source.network(AutoencoderKL, "vae", torch.float32), device)
        super().__init__(source, unet, scheduler, device, dtype)
        self.channels = self._vae.config.latent_channels if self._vae else 3
        # A network of more channels sees each f x f block of the image as channels.
        self.unshuffle = _unshuffle_factor(source.id, unet.config.in_channels, self.channels)
        self.resolution *= self.unshuffle
        # A pixel model's class label says how often the image was halved in training.
        halvings = 0 if self.latent else (unet.config.num_class_embeds or 1) - 1
        self.sizes = [self.resolution >> times for times in range(halvings + 1)]

    @staticmethod
    def _load_network(source: ModelSource, dtype: torch.dtype) -> Any:
        from diffusers import UNet2DConditionModel

        return source.network(UNet2DConditionModel, "unet", dtype)

    @torch.no_grad()
    def _embed(self, prompts: Sequence[str]) -> Cond:
        tokens = tokenize(self._tokenizer, prompts, self._tokenizer.model_max_length)
        return Cond(self._text_encoder(tokens.input_ids.to(self.device)).last_hidden_state)

    def read_end(self, text: str) -> int:
        return tokens_end(self._tokenizer, text, self._tokenizer.model_max_length)

    @torch.no_grad()
    def decode(self, latents: Tensor, on_work: OnWork = unheard) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] from what `denoise` works on; a pixel prior only clips."""
        if self._vae is None:
            return latents.clamp(-1, 1)
        return decode_latents(self._vae, latents, on_work)

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        named = {"encoder_hidden_states": cond.hidden.to(self.dtype)}
        if len(self.sizes) > 1:
            halvings = sum(scaled.shape[-1] <= side for side in self.sizes[1:])
            named["class_labels"] = torch.full((len(scaled),), halvings, device=self.device)
        output = self._unet(F.pixel_unshuffle(scaled, self.unshuffle), time, **named).sample
        return F.pixel_shuffle(output, self.unshuffle)


def decode_latents(vae: Any, latents: Tensor, on_work: OnWork = unheard) -> Tensor:
    """RGB (B, 3, H, W) in [-1, 1] from scaled latents. `on_work` hears of each of its blocks."""
    unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    blocks = vae.decoder.up_blocks
    with contextlib.ExitStack() as hooks:
        for number, block in enumerate(blocks, 1):
            heard = partial(on_work, "block", number, len(blocks))
            hooks.callback(block.register_forward_hook(lambda *_, heard=heard: heard()).remove)
        return vae.decode(unscaled).sample.clamp(-1, 1)


def _unshuffle_factor(id: str, in_channels: int, channels: int) -> int:
    """f such that the network sees each f x f block of the image as channels."""
    factor = math.isqrt(in_channels // channels)
    if factor**2 * channels != in_channels:
        raise ValueError(
            f"prior {id!r}: a network of {in_channels} channels does not fit {channels}-channel"
            " images"
        )
    return factor


load = StableDiffusionPrior
