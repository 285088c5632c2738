"""2D priors: a text-to-image diffusion model in diffusers layout seen as a Karras denoiser.

The contract is `denoise(x, sigma, cond) -> D`: the expected clean image given x = image + sigma n.
Prediction type, input scaling, timesteps and pixel layout stay inside this module.

With abar the scheduler's cumulative alphas and sigma = sqrt((1 - abar) / abar), the network sees
x / sqrt(1 + sigma^2) at the timestep of sigma, and its output o gives
    epsilon       D = x - sigma o
    v_prediction  D = x / (1 + sigma^2) - sigma o / sqrt(1 + sigma^2)
    sample        D = o
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.sources import Source, find_prior, no_progress_bar

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class Cond:
    """Text embeddings of a batch; index it like a tensor, join it with `Cond.cat`."""

    hidden: Tensor  # (B, tokens, width)

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: slice | list[int] | Tensor) -> Cond:
        return Cond(self.hidden[index])

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        return Cond(torch.cat([part.hidden for part in parts]))


class Prior:
    """A loaded model. Build it with `load_prior`."""

    def __init__(
        self,
        source: Source,
        unet: Any,
        scheduler: Any,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.id = source.id
        self.revision = source.revision
        self.device = device
        self.dtype = dtype  # of the network's weights and activations; images stay float32
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prior {source.id!r} predicts {self.prediction!r};"
                f" this engine knows {', '.join(PREDICTIONS)}"
            )
        self.latent = vae is not None
        self.channels: int = vae.config.latent_channels if vae else 3
        self.unshuffle = _unshuffle_factor(source.id, unet.config.in_channels, self.channels)
        self.resolution: int = unet.config.sample_size * self.unshuffle
        abar = scheduler.alphas_cumprod.double()
        # A zero-terminal-SNR schedule ends at abar = 0, where sigma does not exist.
        self.sigmas: Tensor = ((1 - abar) / abar).sqrt()[abar > 0].to(device)  # (ticks,) ascending
        self._unet = _frozen(unet, device)
        self._text_encoder = _frozen(text_encoder, device)
        self._tokenizer = tokenizer
        self._vae = _frozen(vae, device) if vae else None

    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's (fractional) timestep for sigma (B,): linear in log sigma between ticks.

        Levels beyond the schedule's ends take the end's timestep.
        """
        ticks = self.sigmas.log()
        level = sigma.double().log().clamp(ticks[0], ticks[-1])
        upper = torch.searchsorted(ticks, level).clamp(1, len(ticks) - 1)
        low, high = ticks[upper - 1], ticks[upper]
        return upper - 1 + (level - low) / (high - low)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """D(x; sigma): (B, C, H, W) float32 from x (B, C, H, W), sigma (B,), cond of length B.

        Each sample has its own sigma. H and W equal `resolution`, or any size the network takes.
        """
        if not len(x) == len(sigma) == len(cond):
            raise ValueError(f"{len(x)} images, {len(sigma)} sigmas, {len(cond)} conditions")
        level = sigma.to(self.device, torch.float64)
        time = self.timestep(level).float()
        s = level.view(-1, 1, 1, 1)
        c_in = 1 / (1 + s**2).sqrt()
        scaled = F.pixel_unshuffle((x * c_in).to(self.dtype), self.unshuffle)
        text = cond.hidden.to(self.dtype)
        output = self._unet(scaled, time, encoder_hidden_states=text).sample
        o = F.pixel_shuffle(output.float(), self.unshuffle)
        if self.prediction == "epsilon":
            denoised = x - s * o
        elif self.prediction == "v_prediction":
            denoised = c_in**2 * x - s * c_in * o
        else:
            denoised = o
        return denoised.float()

    @torch.no_grad()
    def condition(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor] | None = None,
        cameras: Sequence[Any] | None = None,
    ) -> Cond:
        """Embed prompts. A text prior knows no cameras (they are in the words) and no images."""
        if images is not None:
            raise ValueError(f"prior {self.id!r} takes text only, not images")
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return Cond(self._text_encoder(tokens.input_ids.to(self.device)).last_hidden_state)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] from what `denoise` works on; a pixel prior only clips."""
        if self._vae is None:
            return latents.clamp(-1, 1)
        shift = self._vae.config.shift_factor or 0.0
        unscaled = latents / self._vae.config.scaling_factor + shift
        image: Tensor = self._vae.decode(unscaled).sample
        return image.clamp(-1, 1)


def load_prior(
    id: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Prior:
    """Load "toybox", a diffusers folder, or a hub id such as "owner/name".

    `dtype` is the network's precision: float32 on the CPU (bfloat16 gains nothing for a small
    model) and float16 elsewhere unless given. Only safetensors are read. Raises ValueError with
    the reason when there is no such prior, or a folder's digest is not the given `revision`.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    source = find_prior(id, revision, local_files_only)
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.float16
    has_vae = (source.index().get("vae") or [None])[0] is not None
    # Text encoder and VAE stay in float32: they run rarely, and SD's VAE overflows in float16.
    weights = {"use_safetensors": True, "low_cpu_mem_usage": False}
    full = {"torch_dtype": torch.float32, **weights}
    try:
        unet = source.component(UNet2DConditionModel, "unet", torch_dtype=dtype, **weights)
        scheduler = source.component(DDPMScheduler, "scheduler")
        tokenizer = source.component(CLIPTokenizer, "tokenizer")
        with no_progress_bar():
            text_encoder = source.component(
                CLIPTextModel, "text_encoder", use_safetensors=True, dtype=torch.float32
            )
        vae = source.component(AutoencoderKL, "vae", **full) if has_vae else None
    except OSError as error:
        raise ValueError(f"prior {id!r} cannot be loaded: {error}") from error
    return Prior(source, unet, scheduler, tokenizer, text_encoder, vae, device, dtype)


def _unshuffle_factor(id: str, in_channels: int, channels: int) -> int:
    """f such that the network sees each f x f block of the image as channels."""
    factor = math.isqrt(in_channels // channels)
    if factor**2 * channels != in_channels:
        raise ValueError(
            f"prior {id!r}: a network of {in_channels} channels does not fit {channels}-channel"
            " images"
        )
    return factor


def _frozen(model: Any, device: torch.device) -> Any:
    return model.eval().requires_grad_(False).to(device)
