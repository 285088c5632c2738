"""What changes from step to step: the noise level and the guidance scale."""

from __future__ import annotations

import torch
from torch import Tensor

from sjc_engine.memory import upload
from sjc_engine.recipes import OptimizeRecipe


def guidance_at(step: int, recipe: OptimizeRecipe) -> float:
    """Constant, or linear from `guidance_scale` to `guidance_end`."""
    start = recipe.guidance_scale
    end = start if recipe.guidance_end < 0 else recipe.guidance_end
    return start + (end - start) * _share(step, recipe.steps)


def sigma_at(
    step: int, recipe: OptimizeRecipe, sigmas: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Noise levels (count,) of a step, out of a prior's `sigmas` (ticks,).

    "random" draws from the range of ticks, whose top falls from `tick_max` to `tick_end` and whose
    bottom from `tick_start` to `tick_min`, until `tick_share` of the steps are done; "annealed"
    goes from its top to its bottom; "fixed" is `sigma_fixed`.
    """
    if recipe.sigma_schedule == "fixed":
        return sigmas.new_full((count,), recipe.sigma_fixed)
    share = min(1.0, _share(step, recipe.steps) / recipe.tick_share)
    start, end = recipe.tick_start or recipe.tick_min, recipe.tick_end or recipe.tick_max
    lowest = round(start + (recipe.tick_min - start) * share)
    highest = round(recipe.tick_max + (end - recipe.tick_max) * share)
    low, high = (min(tick, len(sigmas) - 1) for tick in (lowest, highest))
    if recipe.sigma_schedule == "annealed":
        chosen = torch.full((count,), round(high + (low - high) * share))
    else:
        chosen = torch.randint(low, high + 1, (count,), generator=generator)
    return sigmas[upload(chosen, sigmas.device)]


def _share(step: int, steps: int) -> float:
    return step / max(1, steps - 1)
