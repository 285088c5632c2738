"""Trains the judge: `python -m sjc_engine.toybox.train_judge --out FOLDER`.

A small image-text contrastive model in transformers' `CLIPModel` layout. It must not share the
prior's blind spots, so it learns from other toys (its own seeds), other lights, cluttered
backgrounds, and images that were blurred, shifted, faded or stripped of their colour.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from sjc_engine.toybox.captions import caption
from sjc_engine.toybox.dataset import OUTDOORS, Renders, cached_toys, on_backgrounds
from sjc_engine.toybox.objects import CATEGORIES
from sjc_engine.toybox.tokenizer import MAX_TOKENS, build_tokenizer
from sjc_engine.toybox.train import copy_embeddings, cosine_rate, log_row
from sjc_engine.views import view_prompts

SIZE = 48
JUDGE_SEED = 90_000  # far from the prior's data seeds
GRAY = 0.25  # share of images without colour, for the geometry R-Precision
PAPER_WEIGHT = 2.0
VIEWS = view_prompts("sided")


@dataclass(frozen=True)
class Labels:
    """What B captions (or images) say: indices into CATEGORIES, colours and VIEWS; -1 = silent."""

    category: Tensor
    color: Tensor
    view: Tensor


def build_judge(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = CLIPVisionConfig(
        image_size=SIZE, patch_size=8, hidden_size=128, intermediate_size=384,
        num_hidden_layers=6, num_attention_heads=4, projection_dim=96,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=288, num_hidden_layers=3,
        num_attention_heads=3, max_position_embeddings=MAX_TOKENS, projection_dim=96,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def matches(captions: Labels, images: Labels) -> Tensor:
    """(texts, images) bool: a caption fits every image that it says nothing wrong about."""
    same = captions.category[:, None] == images.category
    for said, seen in ((captions.color, images.color), (captions.view, images.view)):
        same &= (said[:, None] == -1) | (said[:, None] == seen)
    return same


def contrastive_loss(similarity: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with several right answers in each row and column."""

    def one_way(logits: Tensor, target: Tensor) -> Tensor:
        share = target / target.sum(1, keepdim=True)
        return -(share * logits.log_softmax(1)).sum(1).mean()

    target = positive.float()
    return (one_way(similarity, target) + one_way(similarity.T, target.T)) / 2


class Batches:
    """Endless random batches of degraded images with captions and labels."""

    def __init__(self, toys: Renders, tokenizer: CLIPTokenizer, batch: int, seed: int) -> None:
        self.toys, self.tokenizer, self.batch = toys, tokenizer, batch
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cumulative = np.cumsum(toys.weights(PAPER_WEIGHT))
        self.colors = {name: k for k, name in enumerate(sorted(set(toys.color) - {""}))}

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 48, 48), tokens (B, 24) and the match matrix (B texts, B images)."""
        rng, toys = self.rng, self.toys
        chosen = np.searchsorted(self.cumulative, rng.random(self.batch) * self.cumulative[-1])
        gray = rng.random(self.batch) < GRAY
        rgba = torch.from_numpy(toys.images[chosen]).float() / 255
        image = self.degrade(rgba, torch.from_numpy(gray))
        seen_color = np.array([self.colors.get(toys.color[i], -2) for i in chosen])
        seen_view = np.array([VIEWS.index(toys.view(i, "sided")) for i in chosen])
        # An image without colour gets a caption without one; others name it most of the time.
        names_color = ~gray & (seen_color >= 0) & (rng.random(self.batch) < 0.7)
        names_view = rng.random(self.batch) < 0.5
        texts = [
            caption(
                rng,
                CATEGORIES[toys.category[i]],
                toys.color[i] if with_color else None,
                VIEWS[view] if with_view else "",
            )
            for i, view, with_color, with_view in zip(
                chosen, seen_view, names_color, names_view, strict=True
            )
        ]
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )["input_ids"]
        category = torch.from_numpy(toys.category[chosen])
        said = Labels(
            category,
            torch.from_numpy(np.where(names_color, seen_color, -1)),
            torch.from_numpy(np.where(names_view, seen_view, -1)),
        )
        seen = Labels(
            category,
            torch.from_numpy(np.where(gray, -2, seen_color)),
            torch.from_numpy(seen_view),
        )
        return image, tokens, matches(said, seen)

    def degrade(self, rgba: Tensor, gray: Tensor) -> Tensor:
        """Random zoom and shift, backgrounds, blur, fading, noise: (B, 3, 48, 48) in [-1, 1]."""
        count, generator = len(rgba), self.generator

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
        luminance = rgba[:, :3].mean(1, keepdim=True).expand(-1, 3, -1, -1)
        plain = torch.cat([luminance, rgba[:, 3:]], 1)
        rgba = torch.where(gray.view(-1, 1, 1, 1), plain, rgba)
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


def warm_start(judge: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Copies the weights of an earlier judge; token embeddings by token, since ids may differ."""
    weights = load_file(folder / "model.safetensors")
    old = weights.pop("text_model.embeddings.token_embedding.weight")
    judge.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    known = CLIPTokenizer.from_pretrained(str(folder))
    copy_embeddings(judge.text_model.get_input_embeddings().weight, tokenizer, old, known)


def train(
    out: Path,
    steps: int,
    minutes: float | None,
    batch: int,
    images: int,
    seed: int,
    rate: float = 1e-3,
    init_from: Path | None = None,
) -> None:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    judge = build_judge(tokenizer)
    if init_from:
        warm_start(judge, tokenizer, init_from)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.1)
    toys = cached_toys(out / "data", images, SIZE, JUDGE_SEED + seed, OUTDOORS, "cpu")
    batches = Batches(toys, tokenizer, batch, seed)
    step, seconds = 0, 0.0
    state_file = out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        batches.rng.bit_generator.state = json.loads(state["rng"])
        batches.generator.set_state(state["generator"])
        step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds
    recent: list[float] = []
    last = (time.monotonic(), step)
    while True:
        seconds = time.monotonic() - started
        progress = max(step / steps, seconds / (60 * minutes) if minutes else 0.0)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine_rate(step, progress)
        image, tokens, positive = batches.draw()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similarity = judge(input_ids=tokens, pixel_values=image).logits_per_text
        loss = contrastive_loss(similarity.float(), positive)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        if not math.isfinite(norm):
            raise ArithmeticError(f"step {step}: the gradient is not finite")
        optimiser.step()
        with torch.no_grad():
            judge.logit_scale.clamp_(max=4.6)  # CLIP's bound: a factor of 100
        step += 1
        recent.append(float(loss.detach()))
        if step % 50 == 0:
            now = time.monotonic()
            speed = (step - last[1]) * batch / (now - last[0])
            log_row(out, step, seconds, sum(recent) / len(recent), speed, progress)
            recent, last = [], (now, step)
        if step % 500 == 0:
            _save_state(state_file, judge, optimiser, batches, step, seconds)
            save_judge(out / "model", judge, tokenizer)
    _save_state(state_file, judge, optimiser, batches, step, seconds)
    save_judge(out / "model", judge, tokenizer)


def _save_state(
    path: Path,
    judge: CLIPModel,
    optimiser: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    seconds: float,
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "judge": judge.state_dict(),
            "optimiser": optimiser.state_dict(),
            "rng": json.dumps(batches.rng.bit_generator.state),
            "generator": batches.generator.get_state(),
            "step": step,
            "seconds": seconds,
        },
        partial,
    )
    partial.replace(path)


def save_judge(folder: Path, judge: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """The weights in fp16 with the tokenizer and the image processor's settings."""
    fresh = build_judge(tokenizer)
    fresh.load_state_dict(judge.state_dict())
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    fresh.half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, help="ends the schedule by the clock")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=30_000, help="rendered training images")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-from", type=Path, help="an earlier judge's folder")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    train(**vars(settings))


if __name__ == "__main__":
    main()
