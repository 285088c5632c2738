"""From a field of latents to a field of RGB: the same density, new colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sjc_engine.camera import sample_camera
from sjc_engine.fields import Field, VoxelField, voxelize
from sjc_engine.prior import Prior
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.render import composite, learned_background, render, render_views

VIEWS = 64
STEPS = 400
VIEWS_PER_STEP = 2
LEARNING_RATE = 0.05


def distill_rgb(field: Field, prior: Prior, recipe: OptimizeRecipe, seed: int) -> VoxelField:
    """Fit RGB colours to decoded views of a latent field, with its density (as voxels) frozen.

    Views are drawn from the training cameras and decoded once each; the decoded pictures, averaged
    down to the rays' resolution, are what the colours are fitted to (mean squared error).
    """
    generator = torch.Generator().manual_seed(seed)
    size = recipe.render_size
    fov = (recipe.fov_min, recipe.fov_max)
    cameras = [sample_camera(generator, recipe.radius, fov) for _ in range(VIEWS)]
    targets = []
    with torch.no_grad():
        for camera in cameras:
            view = render(field, camera, size, size, step=recipe.ray_step)
            latents = composite(view, learned_background(field, view))
            targets.append(F.interpolate(prior.decode(latents[None]), (size, size), mode="area")[0])

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
