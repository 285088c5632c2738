"""A scene: one prompt on its way to a radiance field, with all the state that this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sjc_engine.errors import SettingError
from sjc_engine.fields.field import Field, Space
from sjc_engine.fields.kinds import make_field
from sjc_engine.guidance.view_prompts import view_prompts
from sjc_engine.image_file import InputImage
from sjc_engine.optimization.checkpoint import write_checkpoint
from sjc_engine.optimization.distill import distill_rgb
from sjc_engine.optimization.optimizer import make_optimizer
from sjc_engine.optimization.reference_view import ReferenceView
from sjc_engine.optimization.resume import put_state, read_scene
from sjc_engine.optimization.rollback import HISTORY_POINTS, DeferredScalars, Recovery
from sjc_engine.priors.conditioning import mismatches
from sjc_engine.priors.denoiser import Prior
from sjc_engine.priors.families.zero123 import Zero123Prior
from sjc_engine.priors.loading.lora import NONE, same
from sjc_engine.priors.tokens import prompt_end, words_from
from sjc_engine.progress import OnWork, unheard
from sjc_engine.recipes import RECIPE_VERSION, Recipe

# What a history has of each of its steps
HISTORY = ("steps", "loss", "score_norm", "emptiness", "opacity", "sigma")


@dataclass(frozen=True)
class StepStats:
    """One scene's step in numbers."""

    step: int  # steps done, this one included
    steps: int  # steps in all
    loss: float  # what was minimised; its score part is a surrogate without a meaning of its own
    score: float  # root mean square of the weighted score
    emptiness: float  # mean log(1 + beta w), before its weight
    opacity: float  # mean over the rendered views, [0, 1]
    sigma: float | None = None  # mean noise level; None right after an older checkpoint


class Diverged(ArithmeticError):
    """A scene is no longer finite; `culprits` says what of each was the first not to be.

    The other scenes of the step are untouched.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = list(scenes)
        self.culprits = [scene.recovery.culprit for scene in scenes]
        self.step = scenes[0].step
        names = ", ".join(
            f"{scene.prompt!r} at step {scene.step}{_cure(scene)}" for scene in scenes
        )
        super().__init__(f"not finite any more: {names}")


def _cure(scene: Scene) -> str:
    """What is no longer finite, and what to do about it."""
    match scene.recovery.culprit:
        case "field":
            return " (the field; use a lower lr or another seed)"
        case "loss":
            return " (the loss or its gradient; use a lower lr, or lower the weights of the loss)"
        case "prior":
            precision = _precision(scene.prior)
            others = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(precision)
            fix = "its weights may be damaged, so download it again"
            if others:
                fix = f"use --dtype {others}"
            return f" (the prior's answer in {precision}; {fix})"
    return ""


def _precision(prior: Prior) -> str:
    return getattr(prior, "precision", "float32")  # a prior of one's own may not say


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
        self.group = getattr(prior, "group", 1)  # a prior of one's own may not say
        for error in mismatches(
            prior.id, starts_from_image, self.group, bool(image), negative_prompt, r
        ):
            raise error
        if not prior.guided and (negative_prompt or r.perp_neg_weight):
            key = "negative_prompt" if negative_prompt else "perp_neg_weight"
            raise SettingError(key, f"prior {prior.id!r} takes no words", "leave it out")
        if prior.latent and not starts_from_image and r.background != "learned":
            problem = f"{r.background!r} needs a prior of RGB images"
            raise SettingError("background", problem, "use learned")
        if r.dtype not in ("auto", precision := _precision(prior)):
            problem = f"{r.dtype!r} is asked of prior {prior.id!r}, which is loaded in {precision}"
            raise SettingError("dtype", problem, f"use load_prior(..., dtype={r.dtype!r})")
        if not same(r.loras, getattr(prior, "loras", NONE)):
            problem = f"{r.loras!r} is asked of prior {prior.id!r}, which is loaded with others"
            raise SettingError("loras", problem, f"use load_prior(..., loras={r.loras!r})")
        self.prompt, self.negative_prompt, self.seed = prompt, negative_prompt, seed
        self.image_sha256 = image.sha256 if image else None
        self.recipe, self.prior = recipe, prior
        self.flat = getattr(prior, "fast_launch", False)  # how kernels are launched
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        space: Space = "latent" if prior.latent else "rgb"
        self.field = make_field(r, prior.channels, space, self.generator).to(prior.device)
        self.optimizer = make_optimizer(self.field, r)
        self.recovery = Recovery(r.plateau_steps, math.ceil(r.steps / HISTORY_POINTS))
        self.intact = True  # False: an optimiser's step has begun and not ended
        # A GPU works while the next step is prepared: what it measured is read a step later.
        self.reads_late = prior.device.type != "cpu"
        self.words_cut: list[str] = []  # of both prompts, which the prior has no tokens for
        self.reference: ReferenceView | None = None
        if image is not None and isinstance(prior, Zero123Prior):
            self.reference = ReferenceView(image, prior, r)
            self.uncond = self.reference.unconditional()
            return
        prefixes = view_prompts(r.view_style)
        prompts = [f"{prefix} {prompt}".strip() for prefix in prefixes]
        embedded = prior.condition([*prompts, negative_prompt])
        self.conds = {prefix: embedded[k : k + 1] for k, prefix in enumerate(prefixes)}
        self.front = prefixes[0]
        read_end = getattr(prior, "read_end", len)  # a prior of one's own may read everything
        self.words_cut = words_from(prompt, prompt_end(read_end, prompt, prefixes))
        self.words_cut += words_from(negative_prompt, prompt_end(read_end, negative_prompt))
        self.uncond = embedded[len(prefixes) :]

    @property
    def done(self) -> bool:
        r = self.recipe.optimize
        if self.step >= r.steps:
            self._catch_up()  # which may show that there is more to do
        return self.step >= r.steps or self.recovery.on_plateau(r.plateau_tolerance)

    @property
    def render_size(self) -> int:
        """Rays per side at this step."""
        r = self.recipe.optimize
        return r.render_size if self.progress(r.grid_grow_at) else r.render_start or r.render_size

    def grow(self) -> None:
        """Doubles the grid when it is time, and takes a snapshot when one is due."""
        r = self.recipe.optimize
        if r.grid_start and self.field.resolution != r.grid_size and self.progress(r.grid_grow_at):
            self.field.resample(r.grid_size)
            self.optimizer = make_optimizer(self.field, r, self.recovery.lr_factor)
            self.recovery.snapshot = None
        self.recovery.keep(self.step, self.field, self.optimizer)

    def descend(
        self, loss: Tensor, measured: Sequence[Tensor], finite: Sequence[Tensor]
    ) -> StepStats:
        """Take the optimiser's step down this loss. measured: the rest of `StepStats`, each ().

        finite: whether the rendered images, and the prior's answer to them, are, ().

        A loss or gradient that is not finite takes the scene back to its last snapshot, at half the
        learning rate, once; the second time it raises Diverged, with the field as it was. A GPU is
        not waited for, but in a scene's first step: later the numbers, and the news of a
        divergence, are the last step's.
        """
        self.optimizer.zero_grad()
        loss.backward()
        slopes = [p.grad.abs().amax() for p in self.field.parameters() if p.grad is not None]
        steepest = torch.stack(slopes).amax()
        numbers = torch.stack([loss, *measured, steepest, *(flag.to(loss) for flag in finite)])
        scalars = DeferredScalars(self.step + 1, numbers.detach())
        due: DeferredScalars | None = scalars
        if self.reads_late and self.recovery.measured:
            scalars.clear_gradients_unless_finite(self.field)
            due, self.recovery.unread = self.recovery.unread, scalars
        if not due or self._accept(due):
            self.intact = False
            self.optimizer.step()
            self.intact = True
            self.step += 1
        assert self.recovery.measured  # a first step that is not finite raises
        return StepStats(self.step, self.recipe.optimize.steps, *self.recovery.measured)

    def _accept(self, scalars: DeferredScalars) -> bool:
        """Notes what a step measured; if that is not finite, goes back or raises Diverged."""
        if self.recovery.accept(scalars):
            return True
        if not self._field_is_finite():
            self.recovery.culprit = "field"  # even where no view shows it
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

    def finish(self, on_work: OnWork = unheard) -> Field:
        """The field in RGB (a latent one is decoded and distilled). Raises Diverged."""
        self._require_finite()
        if not self.prior.latent:
            return self.field
        r = self.recipe.optimize
        white = self.reference.white if self.reference and r.background == "white" else None
        return distill_rgb(self.field, self.prior, r, self.seed, white, on_work)

    def save(self, path: str | Path) -> None:
        """Write everything that the next step depends on. Raises Diverged, writing nothing."""
        self._catch_up()
        self._require_finite()
        tensors = self.recovery.tensors(self.field, self.optimizer)
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

    @property
    def history(self) -> dict[str, list[float]]:
        """A list for each of `HISTORY`, over about 100 of the steps so far; {} before the first.

        The same however often the scene was interrupted.
        """
        return dict(zip(HISTORY, map(list, zip(*self.recovery.history, strict=True)), strict=False))

    def progress(self, share: float) -> bool:
        """Whether this share of the steps is done."""
        return self.step >= share * self.recipe.optimize.steps

    def _require_finite(self) -> None:
        if not self._field_is_finite():
            self.recovery.culprit = "field"
            raise Diverged([self])

    def _field_is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.field.parameters())
