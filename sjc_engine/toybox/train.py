"""Trains the embedded prior: `python -m sjc_engine.toybox.train --out FOLDER`.

An epsilon-predicting text-to-image diffusion model of about 5M parameters: 32x32 RGB, folded to
12x16x16 (space to depth), a `UNet2DConditionModel` that attends to the caption at 4x4 and takes
its pooled embedding with the time, and a two-layer `CLIPTextModel`. On a CPU, `--ranks 2` runs
two single-thread processes that average their gradients, much faster than one with two threads.

The run is seeded, logs to FOLDER/log.csv, keeps its state in FOLDER/state and goes on from it when
started again; FOLDER/model is the exponential moving average in diffusers layout, in fp16.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sjc_engine.toybox.dataset import STUDIO, Renders, cached_toys, on_backgrounds
from sjc_engine.toybox.tokenizer import MAX_TOKENS, build_tokenizer

SIZE, FOLD = 32, 2  # image side in pixels; pixels folded into channels along each side
TEXT_WIDTH = 96
EMA_DECAY = 0.998
DROP_CAPTION = 0.1  # the share of empty captions, for classifier-free guidance
PAPER_WEIGHT = 4.0  # how much more often the paper's six categories are drawn than the others


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int
    minutes: float | None
    batch: int
    images: int
    rate: float
    ranks: int
    device: str
    seed: int
    init_from: Path | None


class Model(nn.Module):
    """The trainable pair, called as one."""

    def __init__(self, text_encoder: Any, unet: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet.to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, dtype=torch.bfloat16):
            text = self.text_encoder(input_ids=tokens).last_hidden_state
            return self.unet(noisy, timestep, text).sample.float()


def build_model(tokenizer: CLIPTokenizer) -> Model:
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // FOLD,
        in_channels=3 * FOLD**2,
        out_channels=3 * FOLD**2,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        # Attention at 16x16 would cost 2.6 times as much and shows no gain.
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=32,
        norm_num_groups=8,
        # Without the pooled caption in the time embedding, text has no visible effect early on.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    return Model(text_encoder, unet)


def build_scheduler() -> Any:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )


def warm_start(model: Model, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Copies the weights of an earlier model; token embeddings by token, since ids may differ."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    key = next(name for name in text if name.endswith("token_embedding.weight"))
    old = text.pop(key)
    model.unet.load_state_dict({name: value.float() for name, value in unet.items()})
    model.text_encoder.load_state_dict(
        {name: value.float() for name, value in text.items()}, strict=False
    )
    known = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    copy_embeddings(model.text_encoder.get_input_embeddings().weight, tokenizer, old, known)


@torch.no_grad()
def copy_embeddings(
    new: Tensor, tokenizer: CLIPTokenizer, old: Tensor, known: CLIPTokenizer
) -> None:
    """Fills in the rows (token, width) of all tokens that an earlier tokenizer knew as well."""
    ids = known.get_vocab()
    for token, index in tokenizer.get_vocab().items():
        if token in ids:
            new[index] = old[ids[token]].float()


class Batches:
    """Endless random batches: folded images (B, 12, 16, 16) in [-1, 1] and tokens (B, 24)."""

    def __init__(self, toys: Renders, tokenizer: CLIPTokenizer, batch: int, seed: int) -> None:
        self.toys, self.tokenizer, self.batch = toys, tokenizer, batch
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cumulative = np.cumsum(toys.weights(PAPER_WEIGHT))
        self._encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer(
                text, padding="max_length", max_length=MAX_TOKENS, truncation=True
            )["input_ids"]
        return self._encoded[text]

    def draw(self) -> tuple[Tensor, Tensor]:
        chosen = np.searchsorted(self.cumulative, self.rng.random(self.batch) * self.cumulative[-1])
        rgba = torch.from_numpy(self.toys.images[chosen]).float() / 255
        image = F.pixel_unshuffle(on_backgrounds(rgba, self.generator), FOLD)
        texts = [
            "" if self.rng.random() < DROP_CAPTION else self.toys.caption(self.rng, index)
            for index in chosen
        ]
        return image, torch.tensor([self.encode(text) for text in texts])

    def state(self) -> dict[str, object]:
        return {
            "rng": json.dumps(self.rng.bit_generator.state),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict) -> None:
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.generator.set_state(state["generator"])


def train(rank: int, settings: Settings) -> None:
    """One process's share of the run; rank 0 logs and saves."""
    torch.set_num_threads(1 if settings.ranks > 1 else torch.get_num_threads())
    if settings.ranks > 1:
        store = dist.FileStore(str(settings.out / "rendezvous"), settings.ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=settings.ranks)
    torch.manual_seed(settings.seed)
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    model = build_model(tokenizer)
    if settings.init_from:
        warm_start(model, tokenizer, settings.init_from)
    model.to(settings.device)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    share = settings.images // settings.ranks
    data_seed = settings.seed + 1000 + rank
    toys = cached_toys(settings.out / "data", share, SIZE, data_seed, STUDIO, settings.device)
    batches = Batches(toys, tokenizer, settings.batch, settings.seed + 100 + rank)

    step, before = 0, 0.0
    state_file = settings.out / "state" / f"rank{rank}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=settings.device)
        model.load_state_dict(state["model"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        batches.restore(state["batches"])
        step, before = state["step"], state["seconds"]

    kept = scheduler.alphas_cumprod
    # High noise decides what is drawn and where: it counts for more, up to five times.
    weight = (1 / kept).clamp(max=5)
    weight = (weight / weight.mean()).to(settings.device)
    kept = kept.to(settings.device)
    started, losses = time.monotonic(), []
    last_log, last_step = started, step
    while True:
        seconds = before + time.monotonic() - started
        progress = _agree(_progress(settings, step, seconds), settings)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * cosine_rate(step, progress)
        image, tokens = (part.to(settings.device) for part in batches.draw())
        timestep = torch.randint(0, len(kept), (len(image),), generator=batches.generator)
        noise = torch.randn(image.shape, generator=batches.generator).to(settings.device)
        timestep = timestep.to(settings.device)
        signal = kept[timestep].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * image + (1 - signal).sqrt() * noise
        error = (model(noisy, timestep, tokens) - noise).square().mean((1, 2, 3))
        optimiser.zero_grad(set_to_none=True)
        (error * weight[timestep]).mean().backward()
        _average_gradients(model, settings)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        losses.append(error.detach().mean())
        if step % 50 == 0 and rank == 0:
            now = time.monotonic()
            rate = (step - last_step) * settings.batch * settings.ranks / (now - last_log)
            log_row(settings.out, step, seconds, float(torch.stack(losses).mean()), rate, progress)
            losses, last_log, last_step = [], now, step
        if step % 500 == 0:
            _save_state(state_file, model, average, optimiser, batches, step, seconds)
            if rank == 0:
                save_model(settings.out / "model", model, average, tokenizer, scheduler)
    _save_state(state_file, model, average, optimiser, batches, step, seconds)
    if rank == 0:
        save_model(settings.out / "model", model, average, tokenizer, scheduler)
    if settings.ranks > 1:
        dist.destroy_process_group()


def _progress(settings: Settings, step: int, seconds: float) -> float:
    by_time = seconds / (60 * settings.minutes) if settings.minutes else 0.0
    return max(step / settings.steps, by_time)


def cosine_rate(step: int, progress: float) -> float:
    """Warm-up over 80 steps, then a cosine down to 3%."""
    return min(1, (step + 1) / 80) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))


def _agree(progress: float, settings: Settings) -> float:
    """Rank 0's clock rules."""
    if settings.ranks == 1:
        return progress
    value = torch.tensor([progress], dtype=torch.float64)
    dist.broadcast(value, 0)
    return float(value)


def _average_gradients(model: nn.Module, settings: Settings) -> None:
    """One all-reduce over a flat buffer: faster here than DistributedDataParallel's buckets."""
    if settings.ranks == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= settings.ranks
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def log_row(
    out: Path, step: int, seconds: float, loss: float, rate: float, progress: float
) -> None:
    minutes = seconds / 60
    print(
        f"step {step}  {progress:6.1%}  loss {loss:.4f}  {rate:.0f} images/s  {minutes:.1f} min",
        flush=True,
    )
    with (out / "log.csv").open("a", newline="") as file:
        csv.writer(file).writerow([step, round(seconds, 1), round(loss, 5), round(rate, 1)])


def _save_state(
    path: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    seconds: float,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "model": model.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
            "batches": batches.state(),
            "step": step,
            "seconds": seconds,
        },
        partial,
    )
    partial.replace(path)


def save_model(
    folder: Path,
    model: Model,
    average: dict[str, Tensor],
    tokenizer: CLIPTokenizer,
    scheduler: Any,
) -> None:
    """The averaged weights in diffusers layout, fp16, `model_index.json` included."""
    fresh = build_model(tokenizer)
    fresh.load_state_dict(average)
    fresh.half()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    fresh.unet.save_pretrained(partial / "unet")
    fresh.text_encoder.save_pretrained(partial / "text_encoder")
    tokenizer.save_pretrained(partial / "tokenizer")
    scheduler.save_pretrained(partial / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": fresh.unet.config["_diffusers_version"],
        "requires_safety_checker": False,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": [None, None],
    }
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, help="ends the schedule by the clock")
    parser.add_argument("--batch", type=int, default=96, help="images per rank and step")
    parser.add_argument("--images", type=int, default=96_000, help="rendered training images")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--ranks", type=int, default=1 if cuda else 2, help="processes")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-from", type=Path, help="an earlier model's folder")
    settings = Settings(**vars(parser.parse_args()))
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "rendezvous").unlink(missing_ok=True)
    if settings.ranks > 1:
        torch.multiprocessing.spawn(train, (settings,), nprocs=settings.ranks)
    else:
        train(0, settings)


if __name__ == "__main__":
    main()
