"""2D priors: a diffusion model in diffusers layout seen as a Karras denoiser.

The contract is `denoise(x, sigma, cond) -> D`: the expected clean image given x = image + sigma n.
Prediction type, input scaling, timesteps and pixel layout stay behind it. What is particular to a
family of models lies in `sjc_engine.priors`, one module each.

With abar the scheduler's cumulative alphas and sigma = sqrt((1 - abar) / abar), the network sees
x / sqrt(1 + sigma^2) at the timestep of sigma, and its output o gives
    epsilon       D = x - sigma o
    v_prediction  D = x / (1 + sigma^2) - sigma o / sqrt(1 + sigma^2)
    sample        D = o
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sjc_engine.errors import PriorError, SettingError
from sjc_engine.memory import upload
from sjc_engine.priors.loading import lora
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.priors.loading.model_check import DOWNLOAD, broken
from sjc_engine.priors.sources import find_prior, precision_on
from sjc_engine.priors.tokens import read_end
from sjc_engine.priors.traced import TracedNetwork
from sjc_engine.progress import OnWork, unheard
from sjc_engine.rendering.camera import Camera

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class Cond:
    """What a batch is conditioned on; index it like a tensor, join it with `Cond.cat`."""

    hidden: Tensor  # (B, tokens, width) embeddings
    concat: Tensor | None = None  # (B, C, H, W) channels beside the noisy image
    camera: Tensor | None = None  # (B, 4, 4) camera-to-world of each view, for priors that ask

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: slice | list[int] | Tensor) -> Cond:
        rest = [None if part is None else part[index] for part in (self.concat, self.camera)]
        return Cond(self.hidden[index], *rest)

    def seen_from(self, cameras: Sequence[Camera]) -> Cond:
        """The same of these views, over and over as often as it takes."""
        poses = torch.stack([camera.camera_to_world for camera in cameras])
        poses = upload(poses.to(self.hidden.dtype), self.hidden.device)
        return replace(self, camera=poses.repeat(len(self) // len(cameras), 1, 1))

    def repeat(self, count: int) -> Cond:
        """The first of them, `count` times."""
        first = self[:1]  # a list of indices would be copied to the device, which is waited for
        rest = [
            None if part is None else part.expand(count, *part.shape[1:])
            for part in (first.concat, first.camera)
        ]
        return Cond(first.hidden.expand(count, -1, -1), *rest)

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        rest = [[part.concat for part in parts], [part.camera for part in parts]]
        present = [[tensor for tensor in tensors if tensor is not None] for tensors in rest]
        joined = [torch.cat(tensors) if tensors else None for tensors in present]
        return Cond(torch.cat([part.hidden for part in parts]), *joined)


class Prior(ABC):
    """A loaded model, whatever its family. Build it with `load_prior`."""

    guided = True  # whether a condition says anything, so that guidance has a meaning
    group = 1  # views that its network sees together: one sigma, cameras evenly around the object
    latent = False
    fast_launch = False  # see `enable_fast_launch`

    def __init__(
        self,
        source: ModelSource,
        network: Any,
        sigmas: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.id = source.id
        self.revision = source.revision
        self.loras = source.loras
        self.sigmas = sigmas.to(device)  # (ticks,) ascending, float64
        # Of the images: the network's own, unless a family knows better
        self.channels: int = network.config.in_channels
        self.resolution = sample_size(network.config)
        self.sizes = [
            self.resolution
        ]  # sides of images that it was trained with, the largest first
        self._unet = frozen(network, device)
        if device.type == "cpu":
            self._unet = TracedNetwork(self._unet)
        self.device = device
        self.dtype = dtype  # of the network's weights and activations; images stay float32

    @property
    def precision(self) -> str:
        """The name of `dtype`, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """D(x; sigma): (B, C, H, W) float32 from x (B, C, H, W), sigma (B,), cond of length B.

        Each sample has its own sigma. H and W equal `resolution`, or any size the network takes.
        """
        if not len(x) == len(sigma) == len(cond):
            raise ValueError(f"{len(x)} images, {len(sigma)} sigmas, {len(cond)} conditions")
        return self._denoised(x, sigma.to(self.device, torch.float64), cond).float()

    def condition(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor] | None = None,
        cameras: Sequence[Camera] | None = None,
    ) -> Cond:
        """Embed prompts, or pictures (3, H, W) in [-1, 1] of which `cameras` are the views."""
        if images is not None:
            raise ValueError(f"prior {self.id!r} takes text only, not images")
        return self._embed(prompts)

    def decode(self, latents: Tensor, on_work: OnWork = unheard) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] from what `denoise` works on; a pixel prior only clips.

        `on_work` hears of the blocks of a decoder: a picture takes it half a minute on a CPU.
        """
        return latents.clamp(-1, 1)

    def read_end(self, text: str) -> int:
        """The index from which on a text is cut before it is embedded; its length if it is not."""
        return len(text)

    def compile(self) -> None:
        """Has the network compiled (`sjc_engine.priors.compiled`) when it is next called.

        D keeps its value to a few roundings, but not bit for bit.
        """
        from sjc_engine.priors.compiled import CompiledNetwork

        self._unet = CompiledNetwork(getattr(self._unet, "network", self._unet))

    def enable_fast_launch(self) -> None:
        """Has less of a GPU's step wait for Python; changes nothing on a CPU.

        The network is replayed as a CUDA graph, and the renderer's kernels are launched without
        Numba's launcher (`render_views(..., flat=True)`) in scenes of this prior. Neither has run
        on a GPU yet. Where one of them does not work, the plain way is taken, with a warning.
        """
        from sjc_engine.priors.compiled import ReplayedNetwork

        if self.device.type == "cuda":
            self.fast_launch = True
            self._unet = ReplayedNetwork(self._unet)

    def _embed(self, prompts: Sequence[str]) -> Cond:
        """Prompts for the network; nothing, once for each, where they mean nothing to it."""
        return Cond(torch.zeros(len(prompts), 1, 1, device=self.device))

    @abstractmethod
    def _denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """`denoise`, once its arguments are known to fit; sigma (B,) is float64."""


class SchedulePrior(Prior):
    """A network trained under a schedule of abar, as diffusers' schedulers have it."""

    def __init__(
        self,
        source: ModelSource,
        network: Any,
        scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            reason = f"predicts {self.prediction!r}"
            fix = f"use one with {', '.join(PREDICTIONS)}"
            raise broken(source.id, "scheduler", "scheduler_config.json", reason, fix)
        abar = scheduler.alphas_cumprod.double()
        # A zero-terminal-SNR schedule ends at abar = 0, where sigma does not exist.
        sigmas = ((1 - abar) / abar).sqrt()[abar > 0]
        super().__init__(source, network, sigmas, device, dtype)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's (fractional) timestep for sigma (B,): linear in log sigma between ticks.

        Levels beyond the schedule's ends take the end's timestep.
        """
        ticks = self.sigmas.log()
        level = sigma.double().log().clamp(ticks[0], ticks[-1])
        upper = torch.searchsorted(ticks, level).clamp(1, len(ticks) - 1)
        low, high = ticks[upper - 1], ticks[upper]
        return upper - 1 + (level - low) / (high - low)

    def _denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        c_in = 1 / (1 + s**2).sqrt()
        o = self._network((x * c_in).to(self.dtype), self.timestep(sigma).float(), cond)
        o = o[:, : self.channels].float()  # some predict their variance too
        if self.prediction == "epsilon":
            return x - s * o
        if self.prediction == "v_prediction":
            return c_in**2 * x - s * c_in * o
        return o

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The network's output (B, C, H, W) for its scaled input and timesteps (B,)."""
        return self._unet(scaled, time, encoder_hidden_states=cond.hidden.to(self.dtype)).sample


def load_prior(
    id: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    loras: str = lora.NONE,
    on_work: OnWork = unheard,
) -> Prior:
    """Load "toybox", a diffusers folder, or a hub id: "owner/name", "owner/name@revision".

    Or a single .safetensors file of Stable Diffusion 1.x or 2.x, whose settings and vocabulary are
    those of "FILE@BASE", a folder or hub id. `loras` are what a recipe's key of that name says:
    "FILE.safetensors:WEIGHT, ...".

    `dtype` is the network's precision, a torch.dtype or its name; None and "auto" are float32 on
    the CPU (bfloat16 gains nothing for a small model) and float16 elsewhere. In half precision
    |D_half - D| <= 16 u g(sigma): u is 2^-11 for float16 and 2^-8 for bfloat16, and g, what D
    multiplies the network's output of order 1 with, is sigma for eps and score models,
    sigma / sqrt(1 + sigma^2) for v and 1 for samples. A network that overflows in float16 wants
    bfloat16.

    Only safetensors are read, those of variant "fp16" where there are no others. With
    `allow_pickle`, a component without safetensors may have `.bin` files, which torch's restricted
    unpickler reads: it makes tensors, and calls nothing else. `on_work` hears of each component,
    before it is loaded. Raises PriorError, and for `loras` SettingError, when there is no such
    prior, the engine does not know its kind, a folder's digest is not the given `revision`, or any
    weight, word or setting of the model would not come from its files.
    """
    source = find_prior(id, revision, local_files_only, allow_pickle, lora.pin(loras))
    device = torch.device(device)
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, precision_on(device.type, dtype))
    assert isinstance(dtype, torch.dtype)
    source.fetch(half=dtype == torch.float16)
    source = replace(source, on_work=on_work)
    home = importlib.import_module(f"sjc_engine.priors.families.{source.family}")
    try:
        with _uncollected():
            prior: Prior = home.load(source, device, dtype)
    except SettingError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # settings that do not fit
        raise PriorError("prior", f"{id!r} cannot be loaded ({error})", DOWNLOAD) from error
    return prior


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through each new module again and again.

    Importing diffusers and transformers makes half a million objects, all to stay: a fifth of the
    time that loading takes. What loading leaves in cycles is let go at its end: among it are the
    mapped weight files, 2 GB of them for Stable Diffusion in float32.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.collect(0)  # all that is new; once frozen, nothing is ever collected
            gc.freeze()
            gc.enable()


def sample_size(config: Any) -> int:
    """Pixels or latents a side that a network was trained with. Raises ValueError."""
    size = config.sample_size
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"its unet is for {size[0]} x {size[1]}, which is not square")
        size = size[0]
    # Conversions of Stable Diffusion by diffusers before 0.9 had half the size, as diffusers says.
    version = str(config.get("_diffusers_version", "9")).split(".")[:2]
    old = [int(part) for part in version if part.isdigit()] < [0, 9]
    return 64 if old and size == 32 and config.in_channels == 4 else int(size)


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """Token ids (B, length), padded or cut, and their attention mask, as transformers has them."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), max_length=length, **options)


def tokens_end(tokenizer: Any, text: str, length: int) -> int:
    """The index from which on `tokenize` cuts a text."""
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    ).offset_mapping
    return read_end(text, found, length - tokenizer.num_special_tokens_to_add())


def frozen(model: Any, device: torch.device) -> Any:
    """The model on the device, for inference only."""
    # Tensor cores want a pixel's channels beside each other; on a CPU it is no faster.
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return model.eval().requires_grad_(False).to(device=device, memory_format=layout)
