"""The 2D experiments of `sjc_engine.sample2d` as one labelled picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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
INK, FAINT = (32, 32, 36), (120, 120, 128)


@dataclass(frozen=True)
class Panel:
    """A titled table of pictures (rows, columns, 3, H, W) in [-1, 1] with its labels."""

    title: str
    rows: list[str]
    columns: list[str]
    pictures: Tensor


def experiments(
    priors: Sequence[Prior],
    prompt: str,
    *,
    guidance: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
    steps: int = 400,
    seed: int = 0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Image.Image:
    """What scores do to pixels, for each prior: the problem, samples, and the ablation grid.

    For each prior: the out-of-distribution figure; samples by Heun's method; and pictures moved by
    perturb-and-average scores from a blob, by schedule of noise and scale of guidance (one for
    priors that take no words). `on_done` hears of every table as it is finished.
    """
    panels: list[Panel] = []
    total = 3 * len(priors)
    for prior in priors:
        for panel in _panels(prior, prompt, guidance, steps, seed):
            panels.append(panel)
            on_done(len(panels), total)
    return draw(panels)


def _panels(
    prior: Prior, prompt: str, guidance: Sequence[float], steps: int, seed: int
) -> Iterator[Panel]:
    scales = list(guidance) if prior.guided else [1.0]
    about = f"{prior.id}: {prompt!r}" if prior.guided else prior.id

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    sigmas = [s for s in SHOWN_SIGMAS if s <= float(prior.sigmas[-1])]
    blurred = out_of_distribution(prior, prompt, sigmas, generator())
    shown = torch.cat([blob(prior).expand(3, 1, -1, -1, -1), blurred], dim=1)
    rows = ["D(x): no noise added", "D(x + noise), once", "the mean of 32"]
    columns = ["x", *(f"sigma {s:g}" for s in sigmas)]
    yield Panel(
        f"{about}; the denoiser on a picture it never saw", rows, columns, rgb(prior, shown)
    )

    count = 6
    drawn = torch.stack(
        [heun(prior, [prompt] * count, generator(), guidance_scale=s) for s in scales]
    )
    yield Panel(
        f"{about}; samples (Heun, 24 steps)",
        [f"guidance {s:g}" for s in scales] if prior.guided else ["samples"],
        [""] * count,
        rgb(prior, drawn),
    )

    ticks = (20, len(prior.sigmas) - 1)
    moved = torch.stack(
        [
            torch.cat(
                [
                    optimize_pixels(
                        prior,
                        [prompt],
                        noise_levels(prior, schedule, steps, generator(), ticks),
                        generator(),
                        start=blob(prior),
                        guidance_scale=s,
                    )
                    for s in scales
                ]
            )
            for schedule in SCHEDULES
        ]
    )
    yield Panel(
        f"{about}; {steps} steps along the perturb-and-average score, from a blob",
        [f"{schedule} sigma" for schedule in SCHEDULES],
        [f"guidance {s:g}" for s in scales] if prior.guided else [""],
        rgb(prior, moved),
    )


def rgb(prior: Prior, pictures: Tensor) -> Tensor:
    """(rows, columns, 3, H, W) in [-1, 1] on the CPU from pictures in the prior's space."""
    flat = prior.decode(pictures.flatten(0, 1)).cpu()
    return flat.unflatten(0, pictures.shape[:2])


def draw(panels: Sequence[Panel]) -> Image.Image:
    """The panels below each other."""
    across = max(panel.pictures.shape[1] for panel in panels)
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
                levels = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
                image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")
                image = image.resize((TILE, TILE), Image.Resampling.NEAREST)
                sheet.paste(image, (LABELS + column * (TILE + GAP), y))
        top += height
    return sheet
