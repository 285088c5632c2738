"""The paper's experiments in 2D: what a score does to pixels before it is chained to a field.

Karras sampling draws from the prior; perturb-and-average scoring moves a picture that no noise was
added to, the way SJC moves its renderings (sections 4.1, 4.2 and 5.1). `experiments` draws them as
one labelled picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sjc_engine.evaluation.pictures import to_image
from sjc_engine.guidance.schedules import sigma_at
from sjc_engine.guidance.score import Denoiser, guide, paas, perturb, weighting
from sjc_engine.priors.denoiser import Prior
from sjc_engine.recipes import OptimizeRecipe, Schedule

SCHEDULES: tuple[Schedule, ...] = ("annealed", "random", "fixed")
FIXED_SIGMA = 1.5
HEUN_STEPS, RHO = 24, 7.0  # of eq. 5 of Karras et al.
LEARNING_RATE = 0.03  # in units of the picture's range of 2, halved
NOISE_SAMPLES = 32
TILE, GAP, LABELS, HEADER = 96, 4, 190, 22  # pixels
SHOWN_SIGMAS = (0.2, 0.5, 1.5, 4.0, 10.0)
SAMPLES = 6
FIRST_TICK = 20  # below it noise is less than a pixel level or two
INK, FAINT = (32, 32, 36), (120, 120, 128)


@torch.no_grad()
def heun(
    prior: Prior, prompts: Sequence[str], generator: torch.Generator, guidance_scale: float
) -> Tensor:
    """Images (B, C, H, W) in the prior's space by Heun's method (Karras et al. 2022, algorithm 1).

    Noise levels follow eq. 5 of that paper from the prior's highest to its lowest, then 0. With
    classifier-free guidance where the prior knows words.
    """
    high, low = float(prior.sigmas[-1]), float(prior.sigmas[0])
    ramp = torch.linspace(1, 0, HEUN_STEPS, dtype=torch.float64)
    levels = (low ** (1 / RHO) + ramp * (high ** (1 / RHO) - low ** (1 / RHO))) ** RHO
    denoise = _guided(prior, prompts, guidance_scale)

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoise(x, torch.full((len(x),), sigma, dtype=torch.float64))) / sigma

    shape = (len(prompts), prior.channels, prior.resolution, prior.resolution)
    x = levels[0].float() * torch.randn(shape, generator=generator).to(prior.device)
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
    sigmas, (low, high) = prior.sigmas.cpu(), ticks
    recipe = OptimizeRecipe(
        steps=steps,
        sigma_schedule=schedule,
        sigma_fixed=FIXED_SIGMA,
        tick_min=low,
        tick_max=min(high, len(sigmas) - 1),
    )
    return torch.cat([sigma_at(k, recipe, sigmas, 1, generator) for k in range(steps)])


@torch.no_grad()
def optimize_pixels(
    prior: Prior,
    prompts: Sequence[str],
    sigmas: Tensor,
    generator: torch.Generator,
    start: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Pictures (B, C, H, W) after one Adam step along the score for each of `sigmas`, any sequence.

    `start` (B, C, H, W) is where they begin.
    """
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=LEARNING_RATE, betas=(0.9, 0.99))
    denoise = _guided(prior, prompts, guidance_scale)
    for sigma in sigmas.to(torch.float64):
        level = sigma.repeat(len(x))
        noise = torch.randn(1, *x.shape, generator=generator).to(x.device)
        towards = paas(denoise, x, level, noise)
        x.grad = -weighting("sjc", level).to(x).view(-1, 1, 1, 1) * towards
        optimizer.step()
    return x.detach()


def _guided(prior: Prior, prompts: Sequence[str], scale: float) -> Denoiser:
    """The prior's denoiser of one picture for each prompt, with guidance."""
    conds = prior.condition(list(prompts)), prior.condition([""] * len(prompts))
    scales = torch.full((len(prompts),), scale)
    return lambda x, sigma: guide(prior, x, sigma, *conds, scales)


def blob(prior: Prior) -> Tensor:
    """A soft orange ball (C, first three channels) on grey: a picture that no prior ever saw."""
    line = torch.linspace(-1, 1, prior.resolution)
    ball = torch.exp(-4 * (line[:, None] ** 2 + line**2))
    color = torch.zeros(prior.channels)
    color[:3] = torch.tensor([0.9, 0.1, -0.7])
    return (color[:, None, None] * ball)[None].to(prior.device)


@torch.no_grad()
def out_of_distribution(
    prior: Prior, prompt: str, sigmas: Sequence[float], generator: torch.Generator
) -> Tensor:
    """The paper's out-of-distribution figure, (3, len(sigmas), C, H, W).

    Row 0 is D(x; sigma) of the blob as it is, row 1 D(x + sigma n; sigma) for one n, row 2 the mean
    over `NOISE_SAMPLES`: where the perturbed score leads. D of a picture without noise takes it
    for noise, and changes little of it or all.
    """
    x, rows = blob(prior), []
    denoise = _guided(prior, [prompt] * (NOISE_SAMPLES + 1), 1.0)
    for sigma in sigmas:
        noise = torch.randn(NOISE_SAMPLES, *x.shape, generator=generator).to(x.device)
        noise = torch.cat([torch.zeros_like(noise[:1]), noise])
        level = torch.tensor([sigma], dtype=torch.float64)
        d = denoise(perturb(x, level, noise).flatten(0, 1), level.repeat(len(noise)))
        rows.append(torch.stack([d[0], d[1], d[1:].mean(0)]))
    return torch.stack(rows, dim=1)


@dataclass(frozen=True)
class Panel:
    """A titled table of pictures, (3, H, W) in [-1, 1] or none, with its labels."""

    title: str
    rows: list[str]
    columns: list[str]
    pictures: list[list[Tensor | None]]


def experiments(
    priors: Sequence[Prior],
    prompt: str,
    *,
    guidance: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
    steps: int = 400,
    seed: int = 0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Image.Image:
    """What scores do to pixels: the problem and samples for each prior, and the ablation grid.

    Of each prior the out-of-distribution figure, and samples by Heun's method. Then pictures that
    perturb-and-average scores moved from a blob: a row for each prior, a column for each schedule
    of noise and scale of guidance (one scale for priors that take no words). `on_done` hears of
    every part as it is finished.
    """
    panels: list[Panel] = []
    total = 3 * len(priors)
    for prior in priors:
        panels.append(_out_of_distribution(prior, prompt, seed))
        on_done(len(panels), total)
        panels.append(_samples(prior, prompt, guidance, seed))
        on_done(len(panels), total)
    grid = []
    for prior in priors:
        grid.append(_moved(prior, prompt, guidance, steps, seed))
        on_done(len(panels) + len(grid), total)
    columns = [f"{schedule}, {s:g}" for schedule in SCHEDULES for s in guidance]
    title = f"Pixels after {steps} steps along the score, by noise schedule and guidance scale"
    return draw([*panels, Panel(title, [prior.id for prior in priors], columns, grid)])


def _out_of_distribution(prior: Prior, prompt: str, seed: int) -> Panel:
    sigmas = [s for s in SHOWN_SIGMAS if s <= float(prior.sigmas[-1])]
    denoised = out_of_distribution(prior, prompt, sigmas, _generator(seed))
    shown = torch.cat([blob(prior).expand(3, 1, -1, -1, -1), denoised], dim=1)
    return Panel(
        f"{_about(prior, prompt)}: denoiser output for an out-of-distribution image",
        ["D(x): no noise added", "D(x + noise): one sample", f"mean of {NOISE_SAMPLES} samples"],
        ["x", *(f"sigma {s:g}" for s in sigmas)],
        [list(rgb(prior, row)) for row in shown],
    )


def _samples(prior: Prior, prompt: str, guidance: Sequence[float], seed: int) -> Panel:
    scales = list(guidance) if prior.guided else [1.0]
    drawn = [heun(prior, [prompt] * SAMPLES, _generator(seed), s) for s in scales]
    return Panel(
        f"{_about(prior, prompt)}: samples (Heun's method, {HEUN_STEPS} steps)",
        [f"guidance {s:g}" for s in scales] if prior.guided else ["no guidance"],
        [""] * SAMPLES,
        [list(rgb(prior, row)) for row in drawn],
    )


def _moved(
    prior: Prior, prompt: str, guidance: Sequence[float], steps: int, seed: int
) -> list[Tensor | None]:
    """One row of the grid."""
    ticks = (FIRST_TICK, len(prior.sigmas) - 1)
    row: list[Tensor | None] = []
    for schedule in SCHEDULES:
        for k, scale in enumerate(guidance):
            if k and not prior.guided:
                row.append(None)
                continue
            sigmas = noise_levels(prior, schedule, steps, _generator(seed), ticks)
            start, generator = blob(prior), _generator(seed)
            end = optimize_pixels(prior, [prompt], sigmas, generator, start, scale)
            row.append(rgb(prior, end)[0])
    return row


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _about(prior: Prior, prompt: str) -> str:
    return f"{prior.id}, {prompt!r}" if prior.guided else prior.id


def rgb(prior: Prior, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] on the CPU from pictures in the prior's space."""
    return prior.decode(pictures).cpu()


def draw(panels: Sequence[Panel]) -> Image.Image:
    """The panels below each other."""
    across = max(len(panel.columns) for panel in panels)
    heights = [2 * HEADER + len(panel.rows) * (TILE + GAP) + HEADER for panel in panels]
    sheet = Image.new("RGB", (LABELS + across * (TILE + GAP), sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    title, label = ImageFont.load_default(16), ImageFont.load_default(12)
    top = 0
    for panel, height in zip(panels, heights, strict=True):
        pen.text((8, top + 4), panel.title, INK, title)
        for column, name in enumerate(panel.columns):
            x = LABELS + column * (TILE + GAP) + TILE / 2
            pen.text((x, top + HEADER + 6), name, FAINT, label, anchor="ma")
        for row, name in enumerate(panel.rows):
            y = top + 2 * HEADER + row * (TILE + GAP)
            pen.text((8, y + TILE / 2), name, INK, label, anchor="lm")
            for column, picture in enumerate(panel.pictures[row]):
                if picture is None:
                    continue
                image = to_image(picture)
                how = Image.Resampling.NEAREST if image.width < TILE else Image.Resampling.BOX
                image = image.resize((TILE, TILE), how)
                sheet.paste(image, (LABELS + column * (TILE + GAP), y))
        top += height
    return sheet
