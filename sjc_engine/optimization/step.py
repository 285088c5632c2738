"""A step of Score Jacobian Chaining: render, perturb, denoise, chain the score, regularise.

`draw`, a guided call of the prior (`loop.py`, for all scenes at once), and `update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.guidance.schedules import guidance_at, sigma_at
from sjc_engine.guidance.score import average, perturb, weighting
from sjc_engine.guidance.view_prompts import away_from_front, view_prompt
from sjc_engine.memory import upload
from sjc_engine.optimization import losses
from sjc_engine.optimization.reference_view import View
from sjc_engine.optimization.scene import Scene, StepStats
from sjc_engine.priors.denoiser import Cond
from sjc_engine.rendering.background import learned_background, random_background
from sjc_engine.rendering.camera import Camera, nearby, ring, sample_camera
from sjc_engine.rendering.volume import Rendering, composite, render_views


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What one scene brings to a step: its rendered views, perturbed, and their conditions."""

    rendering: Rendering  # (V, ...)
    images: Tensor  # (V, C, H, W) with gradient, of a size that the prior knows
    sigma: Tensor  # (V,)
    z: Tensor  # (n, V, C, H, W): images plus sigma times noise
    cond: Cond  # n * V
    uncond: Cond
    scale: Tensor  # (n * V,) guidance
    negatives: list[Cond]  # each n * V, for Perp-Neg
    weights: Tensor  # (negatives, n * V)
    rescale: float  # of guidance
    near: View | None  # each view again, from a step aside
    reference: View | None  # the input picture's


def draw(scene: Scene) -> StepInputs:
    """Render this step's views and perturb them."""
    scene.grow()
    r, g, prior = scene.recipe.optimize, scene.generator, scene.prior
    count, size = r.views_per_step, scene.render_size
    cameras = _cameras(scene)
    views = render_views(
        scene.field,
        cameras,
        size,
        size,
        step=r.ray_step,
        generator=g if r.ray_jitter else None,
        emptiness_scale=r.emptiness_scale,
        flat=scene.flat,
    )
    backdrop = _background(scene, views)
    images = _image(scene, views, backdrop)
    sigma = sigma_at(scene.step, r, prior.sigmas, count // scene.group, g)
    sigma = sigma.repeat_interleave(scene.group)
    noise = upload(torch.randn(r.noise_samples, *images.shape, generator=g), prior.device)
    if r.score == "naive":  # of the rendering itself
        noise = torch.zeros_like(noise)
    many = r.noise_samples * count
    negatives, weights = [], torch.zeros(0, many, device=prior.device)
    if r.perp_neg_weight:
        negatives = [scene.conds[scene.front].repeat(many)]
        away = [away_from_front(camera.azimuth_deg) for camera in cameras]
        weights = r.perp_neg_weight * torch.tensor([away * r.noise_samples])
        weights = upload(weights, prior.device)
    near = reference = None
    if r.near_view_weight:
        same = backdrop if r.background == "random" else None
        near = _render_plain(scene, [nearby(camera, g) for camera in cameras], size, same)
    if scene.reference and scene.reference.demands:
        reference = _render_plain(scene, [scene.reference.camera], r.render_size)
    cond = Cond.cat([_condition(scene, cameras)] * r.noise_samples)
    uncond = scene.uncond.repeat(many)
    if scene.group > 1:
        cond, uncond, *negatives = (c.seen_from(cameras) for c in (cond, uncond, *negatives))
    return StepInputs(
        views,
        images,
        sigma,
        perturb(images.detach(), sigma, noise),
        cond,
        uncond,
        torch.full((many,), guidance_at(scene.step, r), device=prior.device),
        negatives,
        weights,
        r.guidance_rescale,
        near,
        reference,
    )


def update(scene: Scene, inputs: StepInputs, denoised: Tensor) -> StepStats:
    """Chain the score at `denoised` (n, V, C, H, W) through the renderer and take a step.

    Every term of the loss, in one place. Raises Diverged (`Scene.descend`).
    """
    r, views, images = scene.recipe.optimize, inputs.rendering, inputs.images
    reduced = r.variance_reduction or r.score == "sds"
    score = average(denoised, images.detach(), inputs.z, inputs.sigma, variance_reduction=reduced)
    gradient = weighting(r.score, inputs.sigma).to(score).view(-1, 1, 1, 1) * score
    # d/dtheta of this is -(weight score) . dx/dtheta: the chain rule that names the method
    loss = -(gradient * images).sum() / len(images)
    empty = losses.emptiness(views)
    rising = r.emptiness_multiplier if scene.progress(r.emptiness_step) else 1.0
    loss = loss + r.emptiness_weight * rising * empty
    if r.depth_weight:
        loss = loss + r.depth_weight * losses.center_depth(views.depth, r.depth_loss)
    if r.binary_weight:
        loss = loss + r.binary_weight * losses.opacity_entropy(views.opacity)
    if r.tv_weight:
        loss = loss + r.tv_weight * losses.total_variation(scene.field)
    if r.distortion_weight:
        loss = loss + r.distortion_weight * losses.distortion(views)
    if near := inputs.near:
        change = losses.near_view(images, near.images, views.depth, near.rendering.depth)
        loss = loss + r.near_view_weight * change
    if r.smooth_weight and scene.progress(r.smooth_start):
        loss = loss + r.smooth_weight * losses.depth_smoothness(views.depth)
    if scene.reference and inputs.reference:
        loss = loss + scene.reference.loss(inputs.reference)
    opacity, sigma = views.opacity.mean(), inputs.sigma.mean()
    measured = [gradient.square().mean().sqrt(), empty, opacity, sigma]
    return scene.descend(loss, measured, [images.isfinite().all(), denoised.isfinite().all()])


def _cameras(scene: Scene) -> list[Camera]:
    """This step's, in groups of as many as the prior sees together."""
    r, g = scene.recipe.optimize, scene.generator
    fov, elevation = (r.fov_min, r.fov_max), (r.elevation_min, r.elevation_max)
    firsts = (
        sample_camera(g, _radius(scene), fov, elevation)
        for _ in range(r.views_per_step // scene.group)
    )
    return [camera for first in firsts for camera in ring(first, scene.group)]


def _radius(scene: Scene) -> float:
    """Of this view's camera, from the box's centre."""
    r = scene.recipe.optimize
    if not r.radius_spread:
        return r.radius
    chance = float(torch.rand((), generator=scene.generator, dtype=torch.float64))
    return r.radius + (2 * chance - 1) * r.radius_spread


def _condition(scene: Scene, cameras: Sequence[Camera]) -> Cond:
    """The condition of each camera: the image's object from there, or the prompt's."""
    if scene.reference:
        return scene.reference.condition(cameras)
    r = scene.recipe.optimize
    prefixes = [
        view_prompt(c.azimuth_deg, c.elevation_deg, r.view_style, r.overhead_prompt)
        for c in cameras
    ]
    return Cond.cat([scene.conds[prefix] for prefix in prefixes])


def _render_plain(
    scene: Scene, cameras: Sequence[Camera], size: int, backdrop: Tensor | None = None
) -> View:
    """Views that are not denoised, through the centres of size x size pixels."""
    step = scene.recipe.optimize.ray_step
    views = render_views(scene.field, cameras, size, size, step=step, flat=scene.flat)
    backdrop = _background(scene, views) if backdrop is None else backdrop
    return View(views, _image(scene, views, backdrop))


def _image(scene: Scene, views: Rendering, backdrop: Tensor) -> Tensor:
    """The views over their background, (V, C, H, W) of the nearest size that the prior knows."""
    images, prior = composite(views, backdrop), scene.prior
    known = getattr(prior, "sizes", [prior.resolution])  # a prior of one's own may not say
    side = min(known, key=lambda size: abs(size - images.shape[-1]))
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _background(scene: Scene, views: Rendering) -> Tensor:
    kind = scene.recipe.optimize.background
    if kind == "learned":
        return learned_background(scene.field, views)
    if kind == "white":
        white = scene.reference.white if scene.reference else torch.ones_like(views.rgb)
        return white.expand_as(views.rgb)
    return random_background(views.rgb, scene.generator)
