"""From a field of latents to a field of RGB: the same density, new colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.fields.voxel import VoxelField, voxelize
from sjc_engine.priors.denoiser import Prior
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.rendering.camera import Camera, sample_camera
from sjc_engine.rendering.volume import composite, learned_background, render, render_views

# 64 views of the paper's 64 x 64 rays meet each of the 6 x 100^2 voxels of a cube's faces four
# times, and 400 steps show every view a dozen times. They cost as much as 800 of the paper's
# 10,000 steps without their network.
VIEWS = 64
STEPS = 400
VIEWS_PER_STEP = 2
LEARNING_RATE = 0.05


def decode_views(
    field: Field,
    prior: Prior,
    cameras: Sequence[Camera],
    size: int,
    *,
    step: float | None = None,
    behind: Tensor | None = None,
) -> Iterator[Tensor]:
    """What the prior sees in a field of its own space: a picture (3, H, W) in [-1, 1] per camera.

    Each view is rendered with size x size rays and decoded by itself, over `behind` (C, size, size)
    or else the learned background; H and W are `size` times what the decoder enlarges by. As the
    frames of a video they are sharper than views of `distill_rgb`'s field, but they may flicker,
    since a decoder sees one at a time.
    """
    for camera in cameras:
        with torch.no_grad():
            view = render(field, camera, size, size, step=step)
            latents = composite(view, learned_background(field, view) if behind is None else behind)
            picture = prior.decode(latents[None])[0]
        yield picture


def distill_rgb(
    field: Field, prior: Prior, recipe: OptimizeRecipe, seed: int, behind: Tensor | None = None
) -> VoxelField:
    """Fit RGB colours to decoded views of a latent field, with its density (as voxels) frozen.

    `behind` (C, render_size, render_size) are the latents of its background, if not its own.

    Views are drawn from the training cameras and decoded once each; the decoded pictures, averaged
    down to the rays' resolution, are what the colours are fitted to (mean squared error).
    """
    generator = torch.Generator().manual_seed(seed)
    size = recipe.render_size
    fov = (recipe.fov_min, recipe.fov_max)
    elevation = (recipe.elevation_min, recipe.elevation_max)
    cameras = [sample_camera(generator, recipe.radius, fov, elevation) for _ in range(VIEWS)]
    decoded = decode_views(field, prior, cameras, size, step=recipe.ray_step, behind=behind)
    targets = [F.interpolate(picture[None], (size, size), mode="area")[0] for picture in decoded]

    result = VoxelField(
        field.resolution, 3, field.half_length, color_init=0.0, generator=generator
    ).to(field.device)
    voxels = voxelize(field)
    result.density.data.copy_(voxels.density)
    result.d_scale.data.copy_(voxels.d_scale)
    result.density.requires_grad_(False)
    result.d_scale.requires_grad_(False)
    optimizer = torch.optim.Adam([result.color, result.background], lr=LEARNING_RATE)
    for _ in range(STEPS):
        picks = torch.randint(VIEWS, (VIEWS_PER_STEP,), generator=generator).tolist()
        views = render_views(result, [cameras[k] for k in picks], size, size, step=recipe.ray_step)
        pictures = composite(views, learned_background(result, views))
        loss = F.mse_loss(pictures, torch.stack([targets[k] for k in picks]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return result
