"""Trains the model without words.

`python -m sjc_engine.toybox.training.train_unconditional --out FOLDER` makes it.

A DDPM of one kind of toy, seen from all sides, in the layout of `google/ddpm-*-256`: what bedrooms
and faces are in the paper, on a small scale. `sjc sample2d --prior toybox-duck` shows with it that
such models need annealed noise (section 5.1), which a guided model does not.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from sjc_engine.priors.sources import BUILTINS
from sjc_engine.toybox.training.dataset import STUDIO, on_backgrounds, render_toys
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES
from sjc_engine.toybox.training.train_prior import SIZE, noise_loss
from sjc_engine.toybox.training.training_loop import Draws, Training, TrainingOptions, option_parser

SHIPPED = BUILTINS["toybox-duck"]
EMA_DECAY = 0.995


def build_unet() -> Any:
    """Random weights in the shape of the shipped model; attention is at 4 x 4 alone."""
    return UNet2DModel.from_config(UNet2DModel.load_config(SHIPPED / "unet"))


def train(options: TrainingOptions, category: str) -> None:
    """Draws toys of the category, trains and writes OUT/model."""
    torch.manual_seed(options.seed)
    toys = render_toys(options.images, SIZE, options.seed, STUDIO, categories=[category])
    draws = Draws(toys, options.batch, options.seed)
    scheduler = DDPMScheduler.from_pretrained(SHIPPED / "scheduler")
    unet = build_unet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=options.rate, betas=(0.9, 0.99), fused=True)

    def loss() -> tuple[Tensor, Tensor]:
        chosen = draws.rng.integers(len(toys), size=options.batch)
        image = on_backgrounds(draws.rgba(chosen), draws.generator)
        return noise_loss(unet, image, scheduler, draws.generator)

    def save(folder: Path, averaged: Any) -> None:
        averaged.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        shutil.copy(SHIPPED / "model_index.json", folder)

    Training(options, unet, optimiser, draws, average_decay=EMA_DECAY).run(loss, save)


def main() -> None:
    defaults = {"minutes": 25.0, "batch": 64, "images": 12_000, "rate": 1.5e-3}
    parser = option_parser(__doc__.splitlines()[0], **defaults)
    parser.add_argument("--category", default="duck", choices=CATEGORIES)
    settings = vars(parser.parse_args())
    category = settings.pop("category")
    train(TrainingOptions(**settings), category)


if __name__ == "__main__":
    main()
