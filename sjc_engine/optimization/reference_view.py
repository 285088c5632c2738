"""Scenes that start from a picture: what the prior is asked with it, and what it demands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sjc_engine.image_file import InputImage, recenter
from sjc_engine.optimization.losses import depth_smoothness
from sjc_engine.priors.conditioning import no_silhouette
from sjc_engine.priors.denoiser import Cond
from sjc_engine.priors.families.zero123 import Zero123Prior
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.rendering.camera import Camera, orbit
from sjc_engine.rendering.volume import Rendering

# 3drec smooths the picture's own view by a tenth of what it does to others, but from the start.
SMOOTH_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class View:
    """Rendered views and what they look like, at the prior's resolution."""

    rendering: Rendering  # (V, ...)
    images: Tensor  # (V, C, H, W) with gradient


class ReferenceView:
    """The input picture of one scene and the camera that took it.

    Raises SettingError when the recipe wants a silhouette that the picture does not have.
    """

    def __init__(self, image: InputImage, prior: Zero123Prior, recipe: OptimizeRecipe) -> None:
        fov = (recipe.fov_min + recipe.fov_max) / 2
        self.camera = orbit(recipe.image_azimuth, recipe.image_elevation, recipe.radius, fov)
        self._prior, self._recipe = prior, recipe
        if image.opacity is None:
            for error in no_silhouette(recipe):
                raise error
        elif recipe.image_recenter:
            image = recenter(image, image.opacity)
        self._reference = prior.encode(image.rgb, self.camera, recipe.image_pose)
        self._latents = self._reference.latents[None]
        size = (recipe.render_size, recipe.render_size)
        self.white = F.interpolate(prior.white()[None], size, mode="bilinear", antialias=True)[0]
        self._opacity: Tensor | None = None
        if recipe.silhouette_weight and image.opacity is not None:
            mask = image.opacity[None, None].to(self._latents)
            self._opacity = F.interpolate(mask, size, mode="bilinear", antialias=True)[0]

    @property
    def demands(self) -> bool:
        """Whether a step renders this view."""
        return bool(self._recipe.input_view_weight or self._recipe.silhouette_weight)

    def condition(self, cameras: Sequence[Camera]) -> Cond:
        return self._prior.views(self._reference, cameras)

    def unconditional(self) -> Cond:
        return self._prior.unconditional(1)

    def loss(self, view: View) -> Tensor:
        """What the picture demands of its own view, weighted.

        3drec decodes its view and compares pixels; here the picture's scaled latents spare each
        step a pass through the decoder and back.
        """
        r = self._recipe
        loss = r.input_view_weight * F.mse_loss(view.images, self._latents)
        if self._opacity is not None:
            loss = loss + r.silhouette_weight * F.mse_loss(view.rendering.opacity, self._opacity)
        if r.smooth_weight:
            loss = loss + SMOOTH_SHARE * r.smooth_weight * depth_smoothness(view.rendering.depth)
        return loss
