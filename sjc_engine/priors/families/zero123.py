"""Zero-1-to-3 (Liu et al. 2023): a new view of the object in a picture, from a relative pose.

The network sees cat[noisy scaled latents, the picture's latents], the latter as the VAE's mode
gives them: they were never multiplied by its scaling factor. It attends to one token, a linear
layer of cat[CLIP embedding of the picture, pose]. Unconditional is zeros for both.

Two layouts have that layer under different names: `cc_projection` in diffusers' community pipeline
(the hub's `kxic/...`), and `clip_camera_projection` in threestudio's Zero123Pipeline
(`bennyguo/...`, `ashawkey/...`). Either may hold Stable Zero123, whose pose ends otherwise: see
`relative_pose`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.memory import upload
from sjc_engine.priors.denoiser import Cond, SchedulePrior, frozen
from sjc_engine.priors.families.stable_diffusion import decode_latents
from sjc_engine.priors.image_pose import ImagePose, image_pose
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.progress import OnWork, unheard
from sjc_engine.rendering.camera import Camera, orbit

POSE = 4  # numbers in a relative pose
# OpenAI's CLIP, which the model was trained with; its feature extractor's settings are these too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture as the model knows it, so that no step has to encode it again."""

    camera: Camera  # where it was taken from
    pose: ImagePose
    embedding: Tensor  # (width,) CLIP's, projected
    concat: Tensor  # (C, H, W) latents as the network wants them, unscaled
    latents: Tensor  # (C, H, W) scaled, like those that are optimised


class Zero123Prior(SchedulePrior):
    """Conditioned in two stages: `encode` once for a picture, `views` for each step's cameras."""

    latent = True

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPVisionModelWithProjection

        # All but the network stays in float32: it runs once a scene, the VAE overflows in float16.
        full = torch.float32
        unet = source.network(UNet2DConditionModel, "unet", dtype)
        scheduler = source.scheduler(DDPMScheduler)
        vae = source.network(AutoencoderKL, "vae", full)
        projection = _pose_projection(source)
        image_encoder = source.encoder(CLIPVisionModelWithProjection, "image_encoder", full)
        channels: int = vae.config.latent_channels
        width = image_encoder.config.projection_dim
        if unet.config.in_channels != 2 * channels or projection.in_features != width + POSE:
            raise ValueError(
                f"prior {source.id!r} is no Zero-1-to-3: a network of {unet.config.in_channels}"
                f" channels beside latents of {channels}, a projection of"
                f" {projection.in_features} numbers beside an embedding of {width}"
            )
        super().__init__(source, unet, scheduler, device, dtype)
        self.channels = channels
        self._vae = frozen(vae, device)
        self._image_encoder = frozen(image_encoder, device)
        self._projection = frozen(projection, device)
        self._pose = image_pose(source.id, source.revision)[0]
        self._factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels per latent

    @torch.no_grad()
    def encode(self, image: Tensor, camera: Camera, pose: ImagePose | None = None) -> Reference:
        """Encode a picture (3, H, W) in [-1, 1] that `camera` took.

        pose: how its views' poses end; None is what the prior's name says.
        """
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"an image is (3, H, W), not {tuple(image.shape)}")
        side = self.resolution * self._factor
        picture = image[None].float().to(self.device)
        if picture.shape[-2:] != (side, side):
            picture = F.interpolate(picture, (side, side), mode="bicubic", antialias=True)
            picture = picture.clamp(-1, 1)
        concat = self._vae.encode(picture).latent_dist.mode()[0]
        embedding = self._image_encoder(self._clip_input(picture)).image_embeds[0]
        latents = concat * self._vae.config.scaling_factor
        return Reference(camera, pose or self._pose, embedding, concat, latents)

    @torch.no_grad()
    def views(self, reference: Reference, cameras: Sequence[Camera]) -> Cond:
        """The condition of each of `cameras`: this object, from there."""
        poses = torch.stack(
            [relative_pose(camera, reference.camera, reference.pose) for camera in cameras]
        )
        embedding = reference.embedding.expand(len(cameras), -1)
        poses = upload(poses.to(embedding.dtype), self.device)
        token = self._projection(torch.cat([embedding, poses], dim=1))
        return Cond(token[:, None], reference.concat.expand(len(cameras), -1, -1, -1))

    def unconditional(self, count: int) -> Cond:
        """What guidance leads away from: no picture, no pose."""
        side = self.resolution
        return Cond(
            torch.zeros(count, 1, self._projection.out_features, device=self.device),
            torch.zeros(count, self.channels, side, side, device=self.device),
        )

    def condition(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor] | None = None,
        cameras: Sequence[Camera] | None = None,
    ) -> Cond:
        """Views of pictures (3, H, W) in [-1, 1]; the prompts are labels, and say nothing to it.

        The pictures count as taken from the front, level, from their camera's distance; for
        another place call `encode`. Without cameras the wanted view is the picture's own.
        """
        if images is None:
            raise ValueError(f"prior {self.id!r} starts from an image; give one for each prompt")
        wanted = [orbit(0.0, 0.0)] * len(images) if cameras is None else list(cameras)
        if not len(prompts) == len(images) == len(wanted):
            raise ValueError(f"{len(prompts)} prompts, {len(images)} images, {len(wanted)} cameras")
        fronts = [orbit(0.0, 0.0, _distance(camera)) for camera in wanted]
        pairs = zip(images, fronts, wanted, strict=True)
        return Cond.cat([self.views(self.encode(image, front), [c]) for image, front, c in pairs])

    @torch.no_grad()
    def decode(self, latents: Tensor, on_work: OnWork = unheard) -> Tensor:
        return decode_latents(self._vae, latents, on_work)

    @torch.no_grad()
    def white(self) -> Tensor:
        """Scaled latents (C, H, W) of a white picture, the background of all its training."""
        side = self.resolution * self._factor
        blank = torch.ones(1, 3, side, side, device=self.device)
        return self._vae.encode(blank).latent_dist.mode()[0] * self._vae.config.scaling_factor

    def _clip_input(self, pictures: Tensor) -> Tensor:
        """As in training: bicubic with corners aligned and no antialiasing."""
        side = self._image_encoder.config.image_size
        resized = F.interpolate(pictures, (side, side), mode="bicubic", align_corners=True)
        mean, std = pictures.new_tensor([CLIP_MEAN, CLIP_STD])[:, :, None, None].unbind(0)
        return ((resized + 1) / 2 - mean) / std

    def _network(self, scaled: Tensor, time: Tensor, cond: Cond) -> Tensor:
        if cond.concat is None:
            raise ValueError(f"prior {self.id!r} was asked without an image")
        both = torch.cat([scaled, cond.concat.to(self.dtype)], dim=1)
        return super()._network(both, time, cond)


def relative_pose(camera: Camera, reference: Camera, pose: ImagePose = "distance") -> Tensor:
    """[polar - polar', sin(azimuth - azimuth'), cos(...), last] (4,), in radians.

    Zero-1-to-3 measures the polar angle from the zenith downwards and the azimuth against the
    clock as seen from above: a camera that rises has a negative first number, one that moves to
    its own right a positive sine. Our azimuth turns the same way, from the front (-X, azimuth 0)
    over the object's own left (+Z, 90 degrees), which is to the right of who looks at its front;
    only elevation and polar angle are opposite.

    The last number is radius - radius' or, for Stable Zero123, which was trained at one distance,
    the picture's own polar angle polar', whatever the wanted view is (threestudio's
    stable_zero123_guidance.py).
    """
    polar = math.radians(reference.elevation_deg - camera.elevation_deg)
    turn = math.radians(camera.azimuth_deg - reference.azimuth_deg)
    last = math.radians(90 - reference.elevation_deg)
    if pose == "distance":
        last = _distance(camera) - _distance(reference)
    return torch.tensor([polar, math.sin(turn), math.cos(turn), last])


def _distance(camera: Camera) -> float:
    return float(camera.camera_to_world[:3, 3].norm())


def _pose_projection(source: ModelSource) -> Any:
    """The linear layer of the layout's own module."""
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config

    class CCProjection(ModelMixin, ConfigMixin):
        """Its weights are `projection.{weight,bias}`."""

        @register_to_config
        def __init__(self, in_channel: int = 768 + POSE, out_channel: int = 768) -> None:
            super().__init__()
            self.projection = torch.nn.Linear(in_channel, out_channel)

    class CLIPCameraProjection(ModelMixin, ConfigMixin):
        """Its weights are `proj.{weight,bias}`."""

        @register_to_config
        def __init__(self, embedding_dim: int = 768, additional_embeddings: int = POSE) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    if any(part.name == "cc_projection" for part in source.parts):
        return source.network(CCProjection, "cc_projection", torch.float32).projection
    return source.network(CLIPCameraProjection, "clip_camera_projection", torch.float32).proj


load = Zero123Prior
