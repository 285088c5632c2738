"""Score Jacobian Chaining: the loop that moves scenes along the prior's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sjc_engine.fields import Field
from sjc_engine.input_image import InputImage
from sjc_engine.prior import Cond, Prior
from sjc_engine.recipes import Recipe
from sjc_engine.scene import Diverged, Scene, StepStats
from sjc_engine.score import guide


def step_scenes(
    scenes: Sequence[Scene], prior: Prior, *, one_call: bool | None = None
) -> list[StepStats]:
    """One optimisation step of every scene.

    With `one_call` the guided network call is one for all scenes. CPU kernels are chosen by batch
    size, so that a scene would then differ in its last bits with its neighbours (about 1e-6 in
    D); the default on the CPU is therefore one call per scene, which makes a scene's result the
    same, bit for bit, whatever is beside it. Other devices use one call.

    When scenes diverge the others finish their step first; then Diverged names those that did.
    """
    if one_call is None:
        one_call = prior.device.type != "cpu"
    draws = [scene.draw() for scene in scenes]
    # Scenes ask alike in one call: those with Perp-Neg have one question more.
    kinds = sorted({len(draw.negatives) for draw in draws})
    groups = [[k for k, draw in enumerate(draws) if len(draw.negatives) == n] for n in kinds]
    if not one_call:
        groups = [[k] for k in range(len(scenes))]
    stats: dict[int, StepStats] = {}
    diverged: list[Scene] = []
    for group in groups:
        asked = [draws[k] for k in group]
        counts = [len(draw.cond) for draw in asked]
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
        for k, draw, d in zip(group, asked, denoised.split(counts), strict=True):
            try:
                stats[k] = scenes[k].learn(draw, d.view_as(draw.z))
            except Diverged:
                diverged.append(scenes[k])
    if diverged:
        raise Diverged(diverged)
    return [stats[k] for k in range(len(scenes))]


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
