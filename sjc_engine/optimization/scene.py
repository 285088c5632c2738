"""A scene: one prompt on its way to a radiance field, with all the state that this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.errors import SettingError
from sjc_engine.fields.field import Field, Space
from sjc_engine.fields.kinds import make_field
from sjc_engine.guidance.schedules import guidance_at, sigma_at
from sjc_engine.guidance.score import average, perturb, weighting
from sjc_engine.guidance.view_prompts import view_prompt, view_prompts
from sjc_engine.optimization.checkpoint import write_checkpoint
from sjc_engine.optimization.distill import distill_rgb
from sjc_engine.optimization.losses import (
    center_depth,
    depth_smoothness,
    distortion,
    emptiness,
    near_view,
    opacity_entropy,
    total_variation,
)
from sjc_engine.optimization.optimizer import make_optimizer
from sjc_engine.optimization.reference_view import ReferenceView, View
from sjc_engine.optimization.resume import (
    DeferredScalars,
    Recovery,
    clear_gradients_unless,
    put_state,
    read_scene,
    state_tensors,
)
from sjc_engine.priors.conditioning import InputImage, mismatches
from sjc_engine.priors.denoiser import Cond, Prior
from sjc_engine.priors.families.zero123 import Zero123Prior
from sjc_engine.recipes import RECIPE_VERSION, Recipe
from sjc_engine.rendering.camera import Camera, nearby, sample_camera
from sjc_engine.rendering.volume import (
    Rendering,
    composite,
    learned_background,
    random_background,
    render_views,
)


@dataclass(frozen=True)
class StepStats:
    """One scene's step in numbers."""

    step: int  # steps done, this one included
    steps: int  # steps in all
    loss: float  # what was minimised; its score part is a surrogate without a meaning of its own
    score: float  # root mean square of the weighted score
    emptiness: float  # mean log(1 + beta w), before its weight
    opacity: float  # mean over the rendered views, [0, 1]


class Diverged(ArithmeticError):
    """A scene's loss or field is no longer finite. The other scenes of the step are untouched."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = list(scenes)
        self.step = scenes[0].step
        names = ", ".join(f"{scene.prompt!r} at step {scene.step}" for scene in scenes)
        super().__init__(f"not finite any more: {names}")


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What one scene brings to a step: its rendered views, perturbed, and their conditions."""

    rendering: Rendering  # (V, ...)
    images: Tensor  # (V, C, H, W) with gradient, at the prior's resolution
    sigma: Tensor  # (V,)
    z: Tensor  # (n, V, C, H, W): images plus sigma times noise
    cond: Cond  # n * V
    uncond: Cond
    scale: Tensor  # (n * V,) guidance
    negatives: list[Cond]  # each n * V, for Perp-Neg
    weights: Tensor  # (negatives, n * V)
    near: View | None  # each view again, from a step aside
    reference: View | None  # the input picture's


class Scene:
    """One prompt, or picture, being optimised: its field, optimiser, generator and step.

    Every random number comes from the scene's own generator, so that a scene does not depend on
    which others are optimised beside it.
    """

    def __init__(
        self,
        prompt: str,
        negative_prompt: str,
        seed: int,
        recipe: Recipe,
        prior: Prior,
        image: InputImage | None = None,
    ) -> None:
        r = recipe.optimize
        starts_from_image = isinstance(prior, Zero123Prior)
        for error in mismatches(prior.id, starts_from_image, bool(image), negative_prompt, r):
            raise error
        if not prior.guided and (negative_prompt or r.perp_neg_weight):
            key = "negative_prompt" if negative_prompt else "perp_neg_weight"
            raise SettingError(key, f"prior {prior.id!r} takes no words", "leave it out")
        if prior.latent and not starts_from_image and r.background != "learned":
            problem = f"{r.background!r} needs a prior of RGB images"
            raise SettingError("background", problem, "use learned")
        self.prompt, self.negative_prompt, self.seed = prompt, negative_prompt, seed
        self.image_sha256 = image.sha256 if image else None
        self.recipe, self.prior = recipe, prior
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        space: Space = "latent" if prior.latent else "rgb"
        self.field = make_field(r, prior.channels, space, self.generator).to(prior.device)
        self.optimizer = make_optimizer(self.field, r)
        self.recovery = Recovery(r.plateau_steps)
        self.intact = True  # False: an optimiser's step has begun and not ended
        # A GPU works while the next step is prepared: what it measured is read a step later.
        self.reads_late = prior.device.type != "cpu"
        self._reference: ReferenceView | None = None
        if image is not None and isinstance(prior, Zero123Prior):
            self._reference = ReferenceView(image, prior, r)
            self._uncond = self._reference.unconditional()
            return
        prefixes = view_prompts(r.view_style)
        embedded = prior.condition(
            [f"{prefix} {prompt}".strip() for prefix in prefixes] + [negative_prompt]
        )
        self._conds = {prefix: embedded[k : k + 1] for k, prefix in enumerate(prefixes)}
        self._front = prefixes[0]
        self._uncond = embedded[len(prefixes) :]

    @property
    def done(self) -> bool:
        r = self.recipe.optimize
        if self.step >= r.steps:
            self._catch_up()  # which may show that there is more to do
        return self.step >= r.steps or self.recovery.on_plateau(r.plateau_tolerance)

    def draw(self) -> StepInputs:
        """Render this step's views and perturb them."""
        r, g, device = self.recipe.optimize, self.generator, self.prior.device
        if r.grid_start and self.field.resolution != r.grid_size and self._progress(r.grid_grow_at):
            self.field.resample(r.grid_size)
            self.optimizer = make_optimizer(self.field, r, self.recovery.lr_factor)
            self.recovery.snapshot = None
        self.recovery.keep(self.step, self.field, self.optimizer)
        count, size = r.views_per_step, r.render_size
        fov, elevation = (r.fov_min, r.fov_max), (r.elevation_min, r.elevation_max)
        cameras = [sample_camera(g, self._radius(), fov, elevation) for _ in range(count)]
        views = render_views(
            self.field,
            cameras,
            size,
            size,
            step=r.ray_step,
            generator=g if r.ray_jitter else None,
            emptiness_scale=r.emptiness_scale,
        )
        backdrop = self._background(views)
        images = self._picture(views, backdrop)

        sigma = sigma_at(self.step, r, self.prior.sigmas, count, g)
        noise = torch.randn(r.noise_samples, *images.shape, generator=g)
        noise = noise.to(device, non_blocking=True)
        if r.score == "naive":
            noise = torch.zeros_like(noise)
        many = r.noise_samples * count
        negatives, weights = [], torch.zeros(0, many, device=device)
        if r.perp_neg_weight:
            negatives = [self._conds[self._front].repeat(many)]
            behind = [(1 - math.cos(math.radians(c.azimuth_deg))) / 2 for c in cameras]
            weights = r.perp_neg_weight * torch.tensor([behind * r.noise_samples])
            weights = weights.to(device, non_blocking=True)
        near = reference = None
        if r.near_view_weight:
            same = backdrop if r.background == "random" else None
            near = self._render_plain([nearby(camera, g) for camera in cameras], same)
        if self._reference and self._reference.demands:
            reference = self._render_plain([self._reference.camera])
        return StepInputs(
            views,
            images,
            sigma,
            perturb(images.detach(), sigma, noise),
            Cond.cat([self._condition(cameras)] * r.noise_samples),
            self._uncond.repeat(many),
            torch.full((many,), guidance_at(self.step, r), device=device),
            negatives,
            weights,
            near,
            reference,
        )

    def update(self, inputs: StepInputs, denoised: Tensor) -> StepStats:
        """Chain the score at `denoised` (n, V, C, H, W) through the renderer and take a step.

        A loss or gradient that is not finite takes the scene back to its last snapshot, at half the
        learning rate, once; the second time it raises Diverged, with the field as it was. A GPU is
        not waited for, but in a scene's first step: later the numbers, and the news of a
        divergence, are the last step's.
        """
        r, views = self.recipe.optimize, inputs.rendering
        images = inputs.images
        score = average(
            denoised,
            images.detach(),
            inputs.z,
            inputs.sigma,
            variance_reduction=r.variance_reduction or r.score == "sds",
        )
        gradient = weighting(r.score, inputs.sigma).to(score).view(-1, 1, 1, 1) * score
        # d/dtheta of this is -(weight score) . dx/dtheta: the chain rule that names the method
        loss = -(gradient * images).sum() / len(images)
        empty = emptiness(views)
        rising = r.emptiness_multiplier if self._progress(r.emptiness_step) else 1.0
        loss = loss + r.emptiness_weight * rising * empty
        if r.depth_weight:
            loss = loss + r.depth_weight * center_depth(views.depth, r.depth_loss)
        if r.binary_weight:
            loss = loss + r.binary_weight * opacity_entropy(views.opacity)
        if r.tv_weight:
            loss = loss + r.tv_weight * total_variation(self.field)
        if r.distortion_weight:
            loss = loss + r.distortion_weight * distortion(views)
        if inputs.near:
            near = inputs.near
            change = near_view(images, near.images, views.depth, near.rendering.depth)
            loss = loss + r.near_view_weight * change
        if r.smooth_weight and self._progress(r.smooth_start):
            loss = loss + r.smooth_weight * depth_smoothness(views.depth)
        if self._reference and inputs.reference:
            loss = loss + self._reference.loss(inputs.reference)

        self.optimizer.zero_grad()
        loss.backward()
        measured = [loss, gradient.square().mean().sqrt(), empty, views.opacity.mean()]
        slopes = [p.grad.abs().amax() for p in self.field.parameters() if p.grad is not None]
        scalars = DeferredScalars(torch.stack([*measured, torch.stack(slopes).amax()]).detach())
        due: DeferredScalars | None = scalars
        if self.reads_late and self.recovery.measured:
            clear_gradients_unless(scalars.finite(), self.field)
            due, self.recovery.unread = self.recovery.unread, scalars
        if not due or self._accept(due):
            self.intact = False
            self.optimizer.step()
            self.intact = True
            self.step += 1
        assert self.recovery.measured  # a first step that is not finite raises
        return StepStats(self.step, r.steps, *self.recovery.measured)

    def _accept(self, scalars: DeferredScalars) -> bool:
        """Notes what a step measured; if that is not finite, goes back or raises Diverged."""
        if self.recovery.accept(scalars):
            return True
        step = self.recovery.go_back(self.field, self.optimizer) if self.step else None
        if step is None:
            raise Diverged([self])
        self.step = step
        return False

    def _catch_up(self) -> None:
        """Reads what the last step measured, if that is still to be read."""
        scalars, self.recovery.unread = self.recovery.unread, None
        if scalars:
            self._accept(scalars)

    def finish(self) -> Field:
        """The field in RGB (a latent one is decoded and distilled). Raises Diverged."""
        self._require_finite()
        if not self.prior.latent:
            return self.field
        r = self.recipe.optimize
        white = self._reference.white if self._reference and r.background == "white" else None
        return distill_rgb(self.field, self.prior, r, self.seed, white)

    def save(self, path: str | Path) -> None:
        """Write everything that the next step depends on. Raises Diverged, writing nothing."""
        self._catch_up()
        self._require_finite()
        tensors = state_tensors(self.field, self.optimizer) | self.recovery.tensors()
        tensors["generator"] = self.generator.get_state()
        header = {
            "recipe_version": RECIPE_VERSION,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "prior": self.prior.id,
            "prior_revision": self.prior.revision,
            "image": self.image_sha256,
            "step": self.step,
            "resolution": self.field.resolution,
        } | self.recovery.header()
        write_checkpoint(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path, prior: Prior, image: InputImage | None = None) -> Scene:
        """Go on from `save`: the same scene, bit for bit. Raises CheckpointError.

        Prior and image must be those that the scene was optimised with.
        """
        digest = image.sha256 if image else None
        tensors, header = read_scene(Path(path), prior.revision, digest)
        recipe = Recipe.from_json(header["recipe"])
        texts = header["prompt"], header["negative_prompt"]
        scene = cls(*texts, header["seed"], recipe, prior, image)
        scene.step = header["step"]
        scene.recovery.restore(header, tensors)
        if header["resolution"] != scene.field.resolution:
            scene.field.resample(header["resolution"])
        scene.optimizer = make_optimizer(scene.field, recipe.optimize, scene.recovery.lr_factor)
        put_state(scene.field, scene.optimizer, tensors)
        scene.generator.set_state(tensors["generator"])
        return scene

    def _progress(self, share: float) -> bool:
        """Whether this share of the steps is done."""
        return self.step >= share * self.recipe.optimize.steps

    def _radius(self) -> float:
        r = self.recipe.optimize
        if not r.radius_spread:
            return r.radius
        draw = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        return r.radius + (2 * draw - 1) * r.radius_spread

    def _condition(self, cameras: Sequence[Camera]) -> Cond:
        """The condition of each camera: the picture's object from there, or the prompt's."""
        if self._reference:
            return self._reference.condition(cameras)
        r = self.recipe.optimize
        prefixes = [
            view_prompt(c.azimuth_deg, c.elevation_deg, r.view_style, r.overhead_prompt)
            for c in cameras
        ]
        return Cond.cat([self._conds[prefix] for prefix in prefixes])

    def _render_plain(self, cameras: Sequence[Camera], backdrop: Tensor | None = None) -> View:
        """Views that are not denoised, through pixel centres."""
        r = self.recipe.optimize
        views = render_views(self.field, cameras, r.render_size, r.render_size, step=r.ray_step)
        backdrop = self._background(views) if backdrop is None else backdrop
        return View(views, self._picture(views, backdrop))

    def _picture(self, views: Rendering, backdrop: Tensor) -> Tensor:
        """The views over their background, (V, C, H, W) at the prior's resolution."""
        images = composite(views, backdrop)
        if images.shape[-1] == self.prior.resolution:
            return images
        shape = (self.prior.resolution, self.prior.resolution)
        return F.interpolate(images, shape, mode="bilinear", antialias=True)

    def _background(self, views: Rendering) -> Tensor:
        kind = self.recipe.optimize.background
        if kind == "learned":
            return learned_background(self.field, views)
        if kind == "white":
            white = self._reference.white if self._reference else torch.ones_like(views.rgb)
            return white.expand_as(views.rgb)
        return random_background(views.rgb, self.generator)

    def _require_finite(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.field.parameters()):
            raise Diverged([self])
