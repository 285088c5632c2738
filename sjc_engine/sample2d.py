"""The paper's experiments in 2D: what a score does to pixels before it is chained to a field.

Karras sampling draws from the prior; perturb-and-average scoring moves a picture that no noise was
added to, the way SJC moves its renderings (sections 4.1, 4.2 and 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sjc_engine.prior import Prior
from sjc_engine.recipes import Score
from sjc_engine.schedules import Schedule, draw_sigma
from sjc_engine.score import guide, paas, perturb, weighting

SCHEDULES: tuple[Schedule, ...] = ("annealed", "random", "fixed")
FIXED_SIGMA = 1.5


@torch.no_grad()
def heun(
    prior: Prior,
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    guidance_scale: float = 3.0,
    steps: int = 24,
    rho: float = 7.0,
) -> Tensor:
    """Images (B, C, H, W) in the prior's space by Heun's method (Karras et al. 2022, algorithm 1).

    Noise levels follow eq. 5 of that paper from the prior's highest to its lowest, then 0. With
    classifier-free guidance where the prior knows words.
    """
    high, low = float(prior.sigmas[-1]), float(prior.sigmas[0])
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64)
    levels = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    conds = prior.condition(list(prompts)), prior.condition([""] * len(prompts))
    scale = torch.full((len(prompts),), guidance_scale)

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        return (x - guide(prior, x, level, *conds, scale)) / sigma

    x = levels[0].float() * _noise(prior, len(prompts), generator)
    for sigma, following in pairwise([*levels.tolist(), 0.0]):
        d = slope(x, sigma)
        ahead = x + (following - sigma) * d
        if following > 0:
            d = (d + slope(ahead, following)) / 2
            ahead = x + (following - sigma) * d
        x = ahead
    return x


def noise_levels(
    prior: Prior, schedule: Schedule, steps: int, generator: torch.Generator, ticks: tuple[int, int]
) -> Tensor:
    """Sigma (steps,) of every step; `ticks` are the ends of its range, inclusive."""
    sigmas = prior.sigmas.cpu()
    levels = [
        draw_sigma(schedule, k / max(1, steps - 1), ticks, FIXED_SIGMA, sigmas, 1, generator)
        for k in range(steps)
    ]
    return torch.cat(levels)


@torch.no_grad()
def optimize_pixels(
    prior: Prior,
    prompts: Sequence[str],
    sigmas: Tensor,
    generator: torch.Generator,
    *,
    start: Tensor,
    guidance_scale: float = 3.0,
    score: Score = "sjc",
    noise_samples: int = 1,
    lr: float = 0.03,
) -> Tensor:
    """Pictures (B, C, H, W) after one Adam step along the score for each of `sigmas`, any sequence.

    `start` (B, C, H, W) is where they begin; lr is in units of the picture's range of 2, halved.
    """
    cond, uncond = prior.condition(list(prompts)), prior.condition([""] * len(prompts))
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr, betas=(0.9, 0.99))
    n = noise_samples
    scale = torch.full((n * len(x),), guidance_scale)
    repeated = list(range(len(x))) * n

    def denoise(z: Tensor, level: Tensor) -> Tensor:
        return guide(prior, z, level, cond[repeated], uncond[repeated], scale)

    for sigma in sigmas.to(torch.float64):
        level = sigma.repeat(len(x))
        noise = torch.randn(n, *x.shape, generator=generator).to(x.device)
        if score == "naive":
            noise = torch.zeros_like(noise)
        towards = paas(denoise, x, level, noise)
        x.grad = -weighting(score, level).to(x).view(-1, 1, 1, 1) * towards
        optimizer.step()
    return x.detach()


def blob(prior: Prior, count: int = 1) -> Tensor:
    """A soft orange ball (C, first three channels) on grey: a picture that no prior ever saw."""
    line = torch.linspace(-1, 1, prior.resolution)
    ball = torch.exp(-4 * (line[:, None] ** 2 + line**2))
    color = torch.zeros(prior.channels)
    color[:3] = torch.tensor([0.9, 0.1, -0.7])
    return (color[:, None, None] * ball).expand(count, -1, -1, -1).to(prior.device)


@torch.no_grad()
def out_of_distribution(
    prior: Prior,
    prompt: str,
    sigmas: Sequence[float],
    generator: torch.Generator,
    *,
    guidance_scale: float = 1.0,
    noise_samples: int = 32,
) -> Tensor:
    """The paper's out-of-distribution figure, (3, len(sigmas), C, H, W).

    Row 0 is D(x; sigma) of the blob as it is, row 1 D(x + sigma n; sigma) for one n, row 2 the mean
    over `noise_samples`: where the perturbed score leads. D of a picture without noise takes it
    for noise, and changes little of it or all.
    """
    x, rows = blob(prior), []
    for sigma in sigmas:
        noise = torch.randn(noise_samples, *x.shape, generator=generator).to(x.device)
        noise = torch.cat([torch.zeros_like(noise[:1]), noise])
        level = torch.tensor([sigma], dtype=torch.float64)
        z = perturb(x, level, noise).flatten(0, 1)
        count = len(z)
        d = guide(
            prior,
            z,
            level.repeat(count),
            prior.condition([prompt] * count),
            prior.condition([""] * count),
            torch.full((count,), guidance_scale),
        )
        rows.append(torch.stack([d[0], d[1], d[1:].mean(0)]))
    return torch.stack(rows, dim=1)


def _noise(prior: Prior, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, prior.channels, prior.resolution, prior.resolution)
    return torch.randn(shape, generator=generator).to(prior.device)
