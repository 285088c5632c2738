"""Score Jacobian Chaining: the loop that moves scenes along the prior's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sjc_engine.field import VoxelField
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
    groups = [list(range(len(scenes)))] if one_call else [[k] for k in range(len(scenes))]
    stats: list[StepStats] = []
    diverged: list[Scene] = []
    for group in groups:
        asked = [draws[k] for k in group]
        counts = [len(draw.cond) for draw in asked]
        scale = torch.cat(
            [
                torch.full((count,), scenes[k].recipe.optimize.guidance_scale)
                for k, count in zip(group, counts, strict=True)
            ]
        )
        denoised = guide(
            prior,
            torch.cat([draw.z.flatten(0, 1) for draw in asked]),
            torch.cat([draw.sigma.repeat(len(draw.z)) for draw in asked]),
            Cond.cat([draw.cond for draw in asked]),
            Cond.cat([draw.uncond for draw in asked]),
            scale,
        )
        for k, draw, d in zip(group, asked, denoised.split(counts), strict=True):
            try:
                stats.append(scenes[k].learn(draw, d.view_as(draw.z)))
            except Diverged:
                diverged.append(scenes[k])
    if diverged:
        raise Diverged(diverged)
    return stats


def optimize(
    prompts: Sequence[str],
    prior: Prior,
    recipe: Recipe,
    seeds: Sequence[int] | None = None,
    on_step: Callable[[Scene, StepStats], None] | None = None,
    negative_prompts: Sequence[str] | None = None,
) -> list[VoxelField]:
    """Optimise one field per prompt, together; `on_step` hears of every scene's every step.

    `seeds` and `negative_prompts` hold one entry per prompt (default: 0 and none). Raises
    Diverged when any scene does.
    """
    seeds = [0] * len(prompts) if seeds is None else seeds
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    scenes = [
        Scene(prompt, negative, seed, recipe, prior)
        for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
    ]
    for _ in range(recipe.optimize.steps):
        for scene, stats in zip(scenes, step_scenes(scenes, prior), strict=True):
            if on_step:
                on_step(scene, stats)
    return [scene.finish() for scene in scenes]
