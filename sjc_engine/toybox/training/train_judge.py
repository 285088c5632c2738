"""Trains the judge: `python -m sjc_engine.toybox.training.train_judge --out FOLDER`.

A small image-text contrastive model in transformers' `CLIPModel` layout. It must not share the
prior's blind spots, so it learns from other toys (its own seeds), other lights, cluttered
backgrounds, and images that were blurred, shifted or faded. Some toys are of shaded clay, as
`evaluation.pictures` shows an asset's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sjc_engine.guidance.view_prompts import view_prompts
from sjc_engine.priors.denoiser import tokenize
from sjc_engine.priors.sources import JUDGES
from sjc_engine.toybox.captions import caption
from sjc_engine.toybox.training.dataset import OUTDOORS, cached_toys, on_backgrounds
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES
from sjc_engine.toybox.training.tokenizer import MAX_TOKENS, build_tokenizer
from sjc_engine.toybox.training.training_loop import (
    Draws,
    Training,
    TrainingOptions,
    option_parser,
    warm_start,
)

SHIPPED = JUDGES["toybox"]
SIZE = 48
JUDGE_SEED = 90_000  # far from the prior's data seeds
CLAY = 0.35  # share of toys that are clay, for the geometry R-Precision
PAPER_WEIGHT = 2.0
VIEWS = view_prompts("sided")


def build_judge(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Random weights in the shape of the shipped judge, whose config.json says it all."""
    config: Any = CLIPConfig.from_pretrained(SHIPPED)
    config.text_config.vocab_size = len(tokenizer)
    return CLIPModel(config)


def matches(stated: Tensor, seen: Tensor) -> Tensor:
    """(texts, images) bool: a caption fits every image that it says nothing wrong about.

    What B captions say and B images show: category, colour and view (3, B), as numbers; -1: silent.
    """
    stated = stated[:, :, None]
    return ((stated == -1) | (stated == seen[:, None])).all(0)


def contrastive_loss(similarity: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with several right answers in each row and column."""

    def one_way(logits: Tensor, target: Tensor) -> Tensor:
        share = target / target.sum(1, keepdim=True)
        return -(share * logits.log_softmax(1)).sum(1).mean()

    target = positive.float()
    return (one_way(similarity, target) + one_way(similarity.T, target.T)) / 2


def draw_batch(draws: Draws, tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Degraded images (B, 3, 48, 48), tokens (B, 24) and the match matrix (B texts, B images)."""
    rng, toys, batch = draws.rng, draws.toys, draws.batch
    chosen = draws.indices()
    image = degrade(draws.rgba(chosen), draws.generator)
    numbers = {name: k for k, name in enumerate(sorted(set(toys.color) - {""}))}
    seen_color = np.array([numbers.get(toys.color[i], -2) for i in chosen])
    seen_view = np.array([VIEWS.index(toys.view(i, "sided")) for i in chosen])
    # What has a colour's name is called by it most of the time; clay has none.
    names_color = (seen_color >= 0) & (rng.random(batch) < 0.7)
    names_view = rng.random(batch) < 0.5
    texts = []
    for k, i in enumerate(chosen):
        color = toys.color[i] if names_color[k] else None
        view = VIEWS[seen_view[k]] if names_view[k] else ""
        texts.append(caption(rng, CATEGORIES[toys.category[i]], color, view))
    category = toys.category[chosen]
    said = np.where(names_color, seen_color, -1), np.where(names_view, seen_view, -1)
    stated = torch.from_numpy(np.stack([category, *said]))
    seen = torch.from_numpy(np.stack([category, seen_color, seen_view]))
    return image, tokenize(tokenizer, texts, MAX_TOKENS).input_ids, matches(stated, seen)


def degrade(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Random zoom and shift, backgrounds, blur, fading, noise: (B, 3, 48, 48) in [-1, 1]."""
    count = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    frame = torch.zeros(count, 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = uniform(0.75, 1.30)
    frame[:, :, 2] = uniform(-0.15, 0.15, 2)
    grid = F.affine_grid(frame, [count, 4, SIZE, SIZE], align_corners=False)
    rgba = F.grid_sample(rgba.permute(0, 3, 1, 2), grid, align_corners=False)
    # Optimised fields are soft: shrink and enlarge by a random factor, and fade.
    small = int(torch.randint(16, SIZE + 1, (), generator=generator))
    rgba = F.interpolate(rgba, size=small, mode="area")
    rgba = F.interpolate(rgba, size=SIZE, mode="bilinear", align_corners=False)
    rgba = rgba * uniform(0.8, 1.0, 1, 1, 1)
    image = on_backgrounds(rgba.permute(0, 2, 3, 1), generator)
    # Clutter behind the toy in a third of the images.
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    clutter = F.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=False)
    on_clutter = rgba[:, :3] * 2 + (1 - rgba[:, 3:]) * (clutter + 1) - 1
    image = torch.where(uniform(0, 1, 1, 1, 1) < 0.33, on_clutter, image)
    gain, shift = uniform(0.8, 1.2, 1, 1, 1), uniform(-0.15, 0.15, 1, 1, 1)
    image = image * gain + shift
    noise = torch.randn(image.shape, generator=generator)
    return (image + noise * uniform(0, 0.08, 1, 1, 1)).clamp(-1, 1)


def train(options: TrainingOptions) -> None:
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    judge = build_judge(tokenizer)
    if options.init_from:
        weights = options.init_from / "model.safetensors"
        warm_start(judge, weights, tokenizer, options.init_from)
    optimiser = torch.optim.AdamW(
        judge.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.1
    )

    def bound(*_: Any) -> None:
        judge.logit_scale.data.clamp_(max=4.6)  # as CLIP does: a factor of 100

    optimiser.register_step_post_hook(bound)
    data, seed = options.out / "data", JUDGE_SEED + options.seed
    toys = cached_toys(data, options.images, SIZE, seed, OUTDOORS, CLAY)
    draws = Draws(toys, options.batch, options.seed, PAPER_WEIGHT)

    def loss() -> tuple[Tensor, Tensor]:
        image, tokens, positive = draw_batch(draws, tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similarity = judge(input_ids=tokens, pixel_values=image).logits_per_text
        contrast = contrastive_loss(similarity.float(), positive)
        return contrast, contrast

    def save(folder: Path, averaged: Any) -> None:
        """With the tokenizer and the image processor's settings."""
        averaged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessor.from_pretrained(SHIPPED).save_pretrained(folder)

    Training(options, judge, optimiser, draws).run(loss, save)


def main() -> None:
    parser = option_parser(__doc__.splitlines()[0], steps=4000, batch=128, images=30_000, rate=1e-3)
    parser.add_argument("--init-from", type=Path, help="an earlier judge's folder")
    train(TrainingOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
