"""Score Jacobian Chaining: the loop that moves scenes along the prior's score."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sjc_engine.fields import Field
from sjc_engine.input_image import InputImage
from sjc_engine.memory import out_of_memory
from sjc_engine.prior import Cond, Prior
from sjc_engine.recipes import Recipe
from sjc_engine.scene import Diverged, Draw, Scene, StepStats
from sjc_engine.score import guide


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
    try:
        draws: dict[int, Draw] = {}
        for k, scene in enumerate(scenes):
            with _kept(outcomes, k):
                draws[k] = scene.draw()
        pending = deque(_groups(draws))
        while pending:
            group = pending.popleft()
            try:
                answers = _ask(prior, [draws[k] for k in group])
            except Exception as error:
                if out_of_memory(error):
                    raise
                if len(group) > 1:  # whose question was it?
                    pending.extend([k] for k in group)
                else:
                    outcomes[group[0]] = error
                continue
            for k, answer in zip(group, answers, strict=True):
                with _kept(outcomes, k):
                    outcomes[k] = scenes[k].learn(draws[k], answer)
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


def _groups(draws: Mapping[int, Draw]) -> list[list[int]]:
    """Scenes that ask alike: those with Perp-Neg have one question more."""
    kinds = sorted({len(draw.negatives) for draw in draws.values()})
    return [[k for k, draw in draws.items() if len(draw.negatives) == kind] for kind in kinds]


def _ask(prior: Prior, asked: Sequence[Draw]) -> list[Tensor]:
    """D (n, V, C, H, W) for each draw, from one guided network call."""
    denoised = guide(
        prior,
        torch.cat([draw.z.flatten(0, 1) for draw in asked]),
        torch.cat([draw.sigma.repeat(len(draw.z)) for draw in asked]),
        Cond.cat([draw.cond for draw in asked]),
        Cond.cat([draw.uncond for draw in asked]),
        torch.cat([draw.scale for draw in asked]),
        [Cond.cat(conds) for conds in zip(*(draw.negatives for draw in asked), strict=True)],
        torch.cat([draw.weights for draw in asked], dim=1),
    )
    parts = denoised.split([len(draw.cond) for draw in asked])
    return [d.view_as(draw.z) for d, draw in zip(parts, asked, strict=True)]


def optimize(
    prompts: Sequence[str],
    prior: Prior,
    recipe: Recipe,
    seeds: Sequence[int] | None = None,
    on_step: Callable[[Scene, StepStats], None] | None = None,
    negative_prompts: Sequence[str] | None = None,
    images: Sequence[InputImage] | None = None,
) -> list[Field]:
    """Optimise one field per prompt, together; `on_step` hears of every scene's every step.

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
    return [scene.finish() for scene in scenes]
