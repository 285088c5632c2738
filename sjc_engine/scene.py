"""A scene: one prompt on its way to a radiance field, with all the state that this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.camera import sample_camera
from sjc_engine.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from sjc_engine.distill import distill_rgb
from sjc_engine.field import VoxelField
from sjc_engine.losses import center_depth, emptiness, opacity_entropy, total_variation
from sjc_engine.prior import Cond, Prior
from sjc_engine.recipes import RECIPE_VERSION, OptimizeRecipe, Recipe
from sjc_engine.render import (
    Rendering,
    composite,
    learned_background,
    random_background,
    render_views,
)
from sjc_engine.score import average, perturb
from sjc_engine.views import view_prompt, view_prompts


@dataclass(frozen=True)
class StepStats:
    """One scene's step in numbers."""

    step: int  # steps done, this one included
    steps: int  # steps in all
    loss: float  # what was minimised; its score part is a surrogate without a meaning of its own
    score: float  # root mean square of sigma times the score
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
class Draw:
    """What one scene brings to a step: its rendered views and the questions to the prior."""

    rendering: Rendering  # (V, ...)
    images: Tensor  # (V, C, H, W) with gradient, at the prior's resolution
    sigma: Tensor  # (V,)
    z: Tensor  # (n, V, C, H, W): images plus sigma times noise
    cond: Cond  # n * V
    uncond: Cond


class Scene:
    """One prompt being optimised: its field, optimiser, generator and step.

    Every random number comes from the scene's own generator, so that a scene does not depend on
    which others are optimised beside it.
    """

    def __init__(
        self, prompt: str, negative_prompt: str, seed: int, recipe: Recipe, prior: Prior
    ) -> None:
        r = recipe.optimize
        if prior.latent and r.background != "learned":
            raise ValueError(f"background = {r.background!r} needs a prior that works on pixels")
        self.prompt, self.negative_prompt, self.seed = prompt, negative_prompt, seed
        self.recipe, self.prior = recipe, prior
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.field = VoxelField(
            r.grid_start or r.grid_size,
            prior.channels,
            r.half_length,
            space="latent" if prior.latent else "rgb",
            color_init=r.color_init,
            generator=self.generator,
        ).to(prior.device)
        self.optimizer = _adamax(self.field, r)
        prefixes = view_prompts(r.view_style)
        embedded = prior.condition(
            [f"{prefix} {prompt}".strip() for prefix in prefixes] + [negative_prompt]
        )
        self._conds = {prefix: embedded[[k]] for k, prefix in enumerate(prefixes)}
        self._uncond = embedded[[len(prefixes)]]

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.optimize.steps

    def draw(self) -> Draw:
        """Render this step's views and perturb them."""
        r, g, device = self.recipe.optimize, self.generator, self.prior.device
        if r.grid_start and self.field.resolution != r.grid_size and self._progress(r.grid_grow_at):
            self.field.resample(r.grid_size)
            self.optimizer = _adamax(self.field, r)
        count, size = r.views_per_step, r.render_size
        fov, elevation = (r.fov_min, r.fov_max), (r.elevation_min, r.elevation_max)
        cameras = [sample_camera(g, r.radius, fov, elevation) for _ in range(count)]
        views = render_views(
            self.field, cameras, size, size, step=r.ray_step, generator=g if r.ray_jitter else None
        )
        images = composite(views, self._background(views))
        if size != self.prior.resolution:
            shape = (self.prior.resolution, self.prior.resolution)
            images = F.interpolate(images, shape, mode="bilinear", antialias=True)

        ticks = torch.randint(r.tick_min, self._highest_tick() + 1, (count,), generator=g)
        sigma = self.prior.sigmas[ticks.clamp(max=len(self.prior.sigmas) - 1).to(device)]
        noise = torch.randn(r.noise_samples, *images.shape, generator=g).to(device)
        prefixes = [view_prompt(camera, r.view_style, r.overhead_prompt) for camera in cameras]
        asked = r.noise_samples * count
        return Draw(
            views,
            images,
            sigma,
            perturb(images.detach(), sigma, noise),
            Cond.cat([self._conds[prefix] for prefix in prefixes] * r.noise_samples),
            self._uncond[[0] * asked],
        )

    def learn(self, draw: Draw, denoised: Tensor) -> StepStats:
        """Chain the score at `denoised` (n, V, C, H, W) through the renderer and take a step.

        Raises Diverged, with the field as it was, when the loss is not finite.
        """
        r, views = self.recipe.optimize, draw.rendering
        images = draw.images
        score = average(
            denoised,
            images.detach(),
            draw.z,
            draw.sigma,
            variance_reduction=r.variance_reduction,
        )
        gradient = draw.sigma.to(score).view(-1, 1, 1, 1) * score  # the official weighting
        # d/dtheta of this is -(sigma score) . dx/dtheta: the chain rule that names the method
        loss = -(gradient * images).sum() / len(images)
        empty = emptiness(views.weights, r.emptiness_scale)
        rising = r.emptiness_multiplier if self._progress(r.emptiness_step) else 1.0
        loss = loss + r.emptiness_weight * rising * empty
        if r.depth_weight:
            loss = loss + r.depth_weight * center_depth(views.depth, r.depth_loss)
        if r.binary_weight:
            loss = loss + r.binary_weight * opacity_entropy(views.opacity)
        if r.tv_weight:
            loss = loss + r.tv_weight * total_variation(self.field)

        measured = torch.stack([loss, gradient.square().mean().sqrt(), empty, views.opacity.mean()])
        values = measured.detach().tolist()  # the step's one wait for the device
        if not all(map(math.isfinite, values)):
            raise Diverged([self])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return StepStats(self.step, r.steps, *values)

    def finish(self) -> VoxelField:
        """The field in RGB (a latent one is decoded and distilled). Raises Diverged."""
        self._require_finite()
        if not self.prior.latent:
            return self.field
        return distill_rgb(self.field, self.prior, self.recipe.optimize, self.seed)

    def save(self, path: str | Path) -> None:
        """Write everything that the next step depends on. Raises Diverged, writing nothing."""
        self._require_finite()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.field.named_parameters():
            tensors[f"field.{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["generator"] = self.generator.get_state()
        header = {
            "recipe_version": RECIPE_VERSION,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "prior": self.prior.id,
            "prior_revision": self.prior.revision,
            "step": self.step,
        }
        write_checkpoint(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path, prior: Prior) -> Scene:
        """Go on from `save`: the same scene, bit for bit. Raises CheckpointError.

        The prior must be the one that the scene was optimised with.
        """
        tensors, header = read_checkpoint(Path(path))
        wanted = (RECIPE_VERSION, header["prior_revision"])
        if (header["recipe_version"], prior.revision) != wanted:
            raise CheckpointError(f"checkpoint {path} is of another engine version or prior")
        recipe = Recipe.from_json(header["recipe"])
        scene = cls(header["prompt"], header["negative_prompt"], header["seed"], recipe, prior)
        scene.step = header["step"]
        resolution = tensors["field.density"].shape[-1]
        if resolution != scene.field.resolution:
            scene.field.resample(resolution)
            scene.optimizer = _adamax(scene.field, recipe.optimize)
        for name, parameter in scene.field.named_parameters():
            parameter.data.copy_(tensors[f"field.{name}"])
            prefix = f"optimizer.{name}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                # Adamax keeps its step counter, a scalar, on the CPU
                scene.optimizer.state[parameter] = {
                    k: v if k == "step" else v.to(prior.device) for k, v in state.items()
                }
        scene.generator.set_state(tensors["generator"])
        return scene

    def _progress(self, share: float) -> bool:
        """Whether this share of the steps is done."""
        return self.step >= share * self.recipe.optimize.steps

    def _highest_tick(self) -> int:
        r = self.recipe.optimize
        end = r.tick_end or r.tick_max
        return round(r.tick_max + (end - r.tick_max) * self.step / max(1, r.steps - 1))

    def _background(self, views: Rendering) -> Tensor:
        kind = self.recipe.optimize.background
        if kind == "learned":
            return learned_background(self.field, views)
        if kind == "white":
            return torch.ones_like(views.rgb)
        return random_background(views.rgb, self.generator)

    def _require_finite(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.field.parameters()):
            raise Diverged([self])


def _adamax(field: VoxelField, recipe: OptimizeRecipe) -> torch.optim.Adamax:
    groups: list[dict[str, object]] = [
        {"params": [field.density, field.color, field.d_scale], "lr": recipe.lr}
    ]
    if recipe.background == "learned":
        groups.append({"params": [field.background], "lr": recipe.background_lr})
    return torch.optim.Adamax(groups, lr=recipe.lr)
