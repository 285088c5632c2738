"""The 2D experiments of `sjc_engine.sample2d` as one labelled picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sjc_engine.pictures import to_image
from sjc_engine.prior import Prior
from sjc_engine.sample2d import (
    SCHEDULES,
    blob,
    heun,
    noise_levels,
    optimize_pixels,
    out_of_distribution,
)

TILE, GAP, LABELS, HEADER = 96, 4, 190, 22  # pixels
SHOWN_SIGMAS = (0.2, 0.5, 1.5, 4.0, 10.0)
SAMPLES = 6
FIRST_TICK = 20  # below it noise is less than a pixel level or two
INK, FAINT = (32, 32, 36), (120, 120, 128)


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

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    panels: list[Panel] = []
    total = 3 * len(priors)
    for prior in priors:
        panels.append(_out_of_distribution(prior, prompt, generator()))
        on_done(len(panels), total)
        panels.append(_samples(prior, prompt, guidance, generator))
        on_done(len(panels), total)
    grid = []
    for prior in priors:
        grid.append(_moved(prior, prompt, guidance, steps, generator))
        on_done(len(panels) + len(grid), total)
    columns = [f"{schedule}, {s:g}" for schedule in SCHEDULES for s in guidance]
    title = f"{steps} steps along the perturb-and-average score, by schedule of sigma and guidance"
    return draw([*panels, Panel(title, [prior.id for prior in priors], columns, grid)])


def _out_of_distribution(prior: Prior, prompt: str, generator: torch.Generator) -> Panel:
    sigmas = [s for s in SHOWN_SIGMAS if s <= float(prior.sigmas[-1])]
    denoised = out_of_distribution(prior, prompt, sigmas, generator)
    shown = torch.cat([blob(prior).expand(3, 1, -1, -1, -1), denoised], dim=1)
    return Panel(
        f"{_about(prior, prompt)}: its denoiser on a picture that it never saw",
        ["D(x): no noise added", "D(x + noise), once", "the mean of 32"],
        ["x", *(f"sigma {s:g}" for s in sigmas)],
        [list(rgb(prior, row)) for row in shown],
    )


def _samples(
    prior: Prior,
    prompt: str,
    guidance: Sequence[float],
    generator: Callable[[], torch.Generator],
) -> Panel:
    scales = list(guidance) if prior.guided else [1.0]
    drawn = [heun(prior, [prompt] * SAMPLES, generator(), guidance_scale=s) for s in scales]
    return Panel(
        f"{_about(prior, prompt)}: samples (Heun, 24 steps)",
        [f"guidance {s:g}" for s in scales] if prior.guided else ["no guidance"],
        [""] * SAMPLES,
        [list(rgb(prior, row)) for row in drawn],
    )


def _moved(
    prior: Prior,
    prompt: str,
    guidance: Sequence[float],
    steps: int,
    generator: Callable[[], torch.Generator],
) -> list[Tensor | None]:
    """One row of the grid."""
    ticks = (FIRST_TICK, len(prior.sigmas) - 1)
    row: list[Tensor | None] = []
    for schedule in SCHEDULES:
        for k, scale in enumerate(guidance):
            if k and not prior.guided:
                row.append(None)
                continue
            sigmas = noise_levels(prior, schedule, steps, generator(), ticks)
            end = optimize_pixels(
                prior, [prompt], sigmas, generator(), start=blob(prior), guidance_scale=scale
            )
            row.append(rgb(prior, end)[0])
    return row


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
