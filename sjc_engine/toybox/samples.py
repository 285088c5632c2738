"""Sample sheet of a pixel prior: `python -m sjc_engine.toybox.samples --out sheet.png`.

One row per prompt and one column per view prefix, sampled with Heun's method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from sjc_engine.figures import Panel, draw, rgb
from sjc_engine.prior import Prior, load_prior
from sjc_engine.sample2d import heun
from sjc_engine.toybox.captions import NOUNS
from sjc_engine.views import view_prompts

PAPER_PROMPTS = (
    "A high quality photo of a delicious burger",
    "a DSLR photo of a yellow duck",
    "A ficus planted in a pot",
    "A product photo of a toy tank",
    "A high quality photo of a chocolate icecream cone",
    "A wide angle zoomed out photo of a giraffe",
)


def sheet(prior: Prior, prompts: Sequence[str], seed: int = 0) -> Image.Image:
    """The labelled grid: a row per prompt, a column per view prefix."""
    views = view_prompts("sided")
    generator = torch.Generator().manual_seed(seed)
    rows = [heun(prior, [f"{view} {prompt}" for view in views], generator) for prompt in prompts]
    pictures = [list(rgb(prior, row)) for row in rows]
    return draw([Panel(f"samples of {prior.id}", list(prompts), views, pictures)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", default="toybox", help="builtin name or folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-category", action="store_true", help="one row for each of the 24")
    settings = parser.parse_args()
    prior = load_prior(settings.prior)
    prompts = [f"a photo of a {nouns[0]}" for nouns in NOUNS.values()]
    sheet(prior, prompts if settings.every_category else PAPER_PROMPTS, settings.seed).save(
        settings.out
    )
    print(settings.out)


if __name__ == "__main__":
    main()
