"""Score Jacobian Chaining: the loop that moves scenes along the prior's score."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sjc_engine.cpu_tuning import flush_subnormals
from sjc_engine.fields.field import Field
from sjc_engine.guidance.score import guide
from sjc_engine.image_file import InputImage
from sjc_engine.memory import out_of_memory
from sjc_engine.optimization.scene import Diverged, Scene, StepStats
from sjc_engine.optimization.step import StepInputs, draw, update
from sjc_engine.priors.denoiser import Cond, Prior
from sjc_engine.progress import OnWork, unheard
from sjc_engine.recipes import Recipe


def step_scenes(
    scenes: Sequence[Scene], prior: Prior, *, one_call: bool | None = None
) -> list[StepStats]:
    """`try_step` of every scene; raises what a scene's own step raised.

    When scenes diverge the others finish their step first; then Diverged names those that did.
    """
    outcomes = try_step(scenes, prior, one_call=one_call)
    errors = {k: outcome for k, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
    for error in errors.values():
        if not isinstance(error, Diverged):
            raise error
    if errors:
        raise Diverged([scenes[k] for k in errors])
    return [outcome for outcome in outcomes if isinstance(outcome, StepStats)]


def try_step(
    scenes: Sequence[Scene], prior: Prior, *, one_call: bool | None = None
) -> list[StepStats | Exception]:
    """One optimisation step of every scene: what it did or, if its own work failed, the error.

    With `one_call` the guided network call is one for all scenes. CPU kernels are chosen by batch
    size, so that a scene would then differ in its last bits with its neighbours (about 1e-6 in
    D); the default on the CPU is therefore one call per scene, which makes a scene's result the
    same, bit for bit, whatever is beside it. Other devices use one call.

    Memory is shared: an allocation that fails is nobody's error and is raised. Scenes that have not
    done their step by then get their random numbers back, and can do it again as if for the first
    time, unless the optimiser was at work (`Scene.intact`).
    """
    if one_call is None:
        one_call = prior.device.type != "cpu"
    if not one_call:  # one scene after the other, so that only one's graph is in memory
        return [outcome for scene in scenes for outcome in try_step([scene], prior, one_call=True)]
    before = [scene.generator.get_state() for scene in scenes]
    outcomes: dict[int, StepStats | Exception] = {}
    flush_subnormals()
    try:
        inputs: dict[int, StepInputs] = {}
        for k, scene in enumerate(scenes):
            with _kept(outcomes, k):
                inputs[k] = draw(scene)
        for k, denoised in _denoise_all(prior, inputs, outcomes):
            with _kept(outcomes, k):
                outcomes[k] = update(scenes[k], inputs[k], denoised)
    except Exception:
        for k, scene in enumerate(scenes):
            if not isinstance(outcomes.get(k), StepStats):
                scene.generator.set_state(before[k])
        raise
    return [outcomes[k] for k in range(len(scenes))]


@contextlib.contextmanager
def _kept(outcomes: dict[int, StepStats | Exception], scene: int) -> Iterator[None]:
    """Keeps an error as the scene's outcome, unless it is one of memory."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        outcomes[scene] = error


def _denoise_all(
    prior: Prior, inputs: Mapping[int, StepInputs], outcomes: dict[int, StepStats | Exception]
) -> Iterator[tuple[int, Tensor]]:
    """Scenes with their D (n, V, C, H, W), from as few network calls as there are kinds of them.

    Scenes with Perp-Neg have one condition more, and late ones larger images. A call for several
    that fails is repeated for each alone, and what then fails is that scene's outcome.
    """
    kinds: dict[tuple[int, int], list[int]] = {}
    for k, own in inputs.items():
        kinds.setdefault((len(own.negatives), own.images.shape[-1]), []).append(k)
    pending = deque(kinds.values())
    while pending:
        group = pending.popleft()
        try:
            denoised = _denoise(prior, [inputs[k] for k in group])
        except Exception as error:
            if out_of_memory(error):
                raise
            if len(group) > 1:
                pending.extend([k] for k in group)
            else:
                outcomes[group[0]] = error
        else:
            yield from zip(group, denoised, strict=True)


def _denoise(prior: Prior, batch: Sequence[StepInputs]) -> list[Tensor]:
    """D (n, V, C, H, W) for each of them, from one guided network call."""
    rescale = None
    if any(own.rescale for own in batch):
        rescale = torch.cat([torch.full_like(own.scale, own.rescale) for own in batch])
    denoised = guide(
        prior,
        torch.cat([own.z.flatten(0, 1) for own in batch]),
        torch.cat([own.sigma.repeat(len(own.z)) for own in batch]),
        Cond.cat([own.cond for own in batch]),
        Cond.cat([own.uncond for own in batch]),
        torch.cat([own.scale for own in batch]),
        [Cond.cat(conds) for conds in zip(*(own.negatives for own in batch), strict=True)],
        torch.cat([own.weights for own in batch], dim=1),
        rescale,
    )
    parts = denoised.split([len(own.cond) for own in batch])
    return [d.view_as(own.z) for d, own in zip(parts, batch, strict=True)]


def optimize(
    prompts: Sequence[str],
    prior: Prior,
    recipe: Recipe,
    seeds: Sequence[int] | None = None,
    on_step: Callable[[Scene, StepStats], None] | None = None,
    negative_prompts: Sequence[str] | None = None,
    images: Sequence[InputImage] | None = None,
    on_work: OnWork = unheard,
) -> list[Field]:
    """Optimise one field per prompt, together; `on_step` hears of every scene's every step.

    `on_work` hears what is done of a field of latents when its colours become RGB.

    `seeds`, `negative_prompts` and `images` (of `read_image`, for priors that start from one) hold
    one entry per prompt (default: 0, none and none). Raises Diverged when any scene does, and
    ValueError for an image that the prior does not take, or wants.
    """
    seeds = [0] * len(prompts) if seeds is None else seeds
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    given = [None] * len(prompts) if images is None else images
    scenes = [
        Scene(prompt, negative, seed, recipe, prior, image)
        for prompt, negative, seed, image in zip(prompts, negatives, seeds, given, strict=True)
    ]
    while active := [scene for scene in scenes if not scene.done]:
        for scene, stats in zip(active, step_scenes(active, prior), strict=True):
            if on_step:
                on_step(scene, stats)
    return [scene.finish(on_work) for scene in scenes]
