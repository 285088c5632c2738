"""Trains the model without words: `python -m sjc_engine.toybox.train_unconditional --out FOLDER`.

A DDPM of one kind of toy, seen from all sides, in the layout of `google/ddpm-*-256`: what bedrooms
and faces are in the paper, on a small scale. `sjc sample2d --prior toybox-duck` shows with it that
such models need annealed noise (section 5.1), which a guided model does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sjc_engine.toybox.dataset import STUDIO, on_backgrounds, render_toys
from sjc_engine.toybox.objects import CATEGORIES
from sjc_engine.toybox.train import SIZE, build_scheduler, cosine_rate, log_row

EMA_DECAY = 0.995


def build_unet() -> Any:
    """1 to 4 million parameters on 32 x 32 pixels; attention at 4 x 4 alone."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
        attention_head_dim=32,
        norm_num_groups=8,
    )


def train(
    out: Path, category: str, minutes: float, batch: int, images: int, rate: float, seed: int
) -> None:
    """Draws `images` toys of the category, trains by the clock and writes OUT/model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    toys = render_toys(images, SIZE, seed, STUDIO, categories=[category])
    scheduler = build_scheduler()
    kept: Tensor = scheduler.alphas_cumprod
    # High noise decides what is drawn and where: it counts for more, up to five times.
    weight = (1 / kept).clamp(max=5)
    weight = weight / weight.mean()
    unet = build_unet().to(memory_format=torch.channels_last)
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    started, step, losses = time.monotonic(), 0, []
    while (seconds := time.monotonic() - started) < 60 * minutes:
        progress = seconds / (60 * minutes)
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine_rate(step, progress)
        chosen = rng.integers(len(toys), size=batch)
        image = on_backgrounds(torch.from_numpy(toys.images[chosen]).float() / 255, generator)
        timestep = torch.randint(0, len(kept), (batch,), generator=generator)
        noise = torch.randn(image.shape, generator=generator)
        signal = kept[timestep].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * image + (1 - signal).sqrt() * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = unet(noisy, timestep).sample.float()
        error = (output - noise).square().mean((1, 2, 3))
        optimiser.zero_grad(set_to_none=True)
        (error * weight[timestep]).mean().backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            for name, value in unet.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        losses.append(float(error.detach().mean()))
        if step % 50 == 0:
            log_row(out, step, seconds, float(np.mean(losses)), step * batch / seconds, progress)
            losses = []
    save_model(out / "model", average, scheduler)


def save_model(folder: Path, average: dict[str, Tensor], scheduler: Any) -> None:
    """The averaged weights in diffusers layout, fp16, `model_index.json` included."""
    unet = build_unet()
    unet.load_state_dict(average)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    unet.half().save_pretrained(partial / "unet")
    scheduler.save_pretrained(partial / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": unet.config["_diffusers_version"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--category", default="duck", choices=CATEGORIES)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=12_000, help="rendered training images")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    train(**vars(settings))


if __name__ == "__main__":
    main()
