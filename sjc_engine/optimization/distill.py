"""From a field of latents to a field of RGB: the same density, new colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.fields.voxel import VoxelField, voxelize
from sjc_engine.memory import out_of_memory
from sjc_engine.priors.denoiser import Prior
from sjc_engine.progress import OnWork, unheard
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.rendering.background import learned_background
from sjc_engine.rendering.camera import Camera, sample_camera
from sjc_engine.rendering.volume import composite, render, render_views

VIEWS_PER_STEP = 2
LEARNING_RATE = 0.05
# Pictures that a GPU decodes together, 1.2 GB each for Stable Diffusion's VAE. A CPU decodes one at
# a time: a batch is no faster there, and an engine is to stay within 8 GB.
DECODED_TOGETHER = 4


def decode_views(
    field: Field,
    prior: Prior,
    cameras: Sequence[Camera],
    size: int,
    *,
    step: float | None = None,
    behind: Tensor | None = None,
    on_work: OnWork = unheard,
) -> Iterator[Tensor]:
    """What the prior sees in a field of its own space: a picture (3, H, W) in [-1, 1] per camera.

    Each view is rendered with size x size rays and decoded by itself, over `behind` (C, size, size)
    or else the learned background; H and W are `size` times what the decoder enlarges by. As the
    frames of a video they are sharper than views of `distill_rgb`'s field, but they may flicker,
    since a decoder sees one at a time. `on_work` hears of every view, and of the decoder's blocks.
    """
    together = 1 if prior.device.type == "cpu" else DECODED_TOGETHER
    what, count, number = "decoding views", len(cameras), 0

    def on_block(block: str, done: int, total: int) -> None:
        on_work(f"{what} {number}/{count}, {block}", done, total)

    on_work(what, 0, count)
    for first in range(0, count, together):
        latents = []
        with torch.no_grad():
            for camera in cameras[first : first + together]:
                view = render(field, camera, size, size, step=step)
                background = learned_background(field, view) if behind is None else behind
                latents.append(composite(view, background))
        for picture in _decode(prior, torch.stack(latents), on_block):
            yield picture
            number += 1
            on_work(what, number, count)


def _decode(prior: Prior, latents: Tensor, on_work: OnWork) -> Iterator[Tensor]:
    """The pictures of some latents, half of them at a time where memory is short."""
    pictures = None
    try:
        with torch.no_grad():
            pictures = prior.decode(latents, on_work)
    except Exception as error:
        if len(latents) == 1 or not out_of_memory(error):
            raise
    if pictures is None:  # only now is the error gone, which held what was computed so far
        for half in latents.chunk(2):
            yield from _decode(prior, half, on_work)
    else:
        yield from pictures


def distill_rgb(
    field: Field,
    prior: Prior,
    recipe: OptimizeRecipe,
    seed: int,
    behind: Tensor | None = None,
    on_work: OnWork = unheard,
) -> VoxelField:
    """Fit RGB colours to decoded views of a latent field, with its density (as voxels) frozen.

    `behind` (C, render_size, render_size) are the latents of its background, if not its own.

    Views are drawn from the training cameras and decoded once each; the decoded pictures, averaged
    down to the rays' resolution, are what the colours are fitted to (mean squared error). `on_work`
    hears of every view and every step.
    """
    generator = torch.Generator().manual_seed(seed)
    size, count = recipe.render_size, recipe.distill_views
    fov = (recipe.fov_min, recipe.fov_max)
    elevation = (recipe.elevation_min, recipe.elevation_max)
    cameras = [sample_camera(generator, recipe.radius, fov, elevation) for _ in range(count)]
    decoded = decode_views(
        field, prior, cameras, size, step=recipe.ray_step, behind=behind, on_work=on_work
    )
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
    for step in range(recipe.distill_steps):
        on_work("fitting colours", step, recipe.distill_steps)
        picks = torch.randint(count, (VIEWS_PER_STEP,), generator=generator).tolist()
        views = render_views(result, [cameras[k] for k in picks], size, size, step=recipe.ray_step)
        pictures = composite(views, learned_background(result, views))
        loss = F.mse_loss(pictures, torch.stack([targets[k] for k in picks]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return result
