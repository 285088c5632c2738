"""Trains the embedded prior: `python -m sjc_engine.toybox.training.train_prior --out FOLDER`.

An epsilon-predicting text-to-image diffusion model of about 5M parameters: 64x64 RGB, folded to
12x32x32 (space to depth), a `UNet2DConditionModel` that attends to the caption at 4x4 and takes
its pooled embedding with the time, and a two-layer `CLIPTextModel`. A third of the images are
32x32, at half the cost; the network is told by a class label how often its image was halved.
On a CPU, `--ranks 2` runs two single-thread processes that average their gradients, much faster
than one with two threads.

FOLDER/model is the exponential moving average in diffusers layout, in fp16. A later training goes
on from it with `--init-from`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sjc_engine.priors.denoiser import tokenize
from sjc_engine.priors.sources import BUILTINS
from sjc_engine.toybox.training.dataset import STUDIO, cached_toys, on_backgrounds
from sjc_engine.toybox.training.tokenizer import MAX_TOKENS, build_tokenizer
from sjc_engine.toybox.training.training_loop import (
    Draws,
    Training,
    TrainingOptions,
    option_parser,
    warm_start,
)

SIZE, FOLD = 64, 2  # image side in pixels; pixels folded into channels along each side
HALVED = 1 / 3  # the share of images of half the side
SHIPPED = BUILTINS["toybox"]
EMA_DECAY = 0.998
DROP_CAPTION = 0.1  # the share of empty captions, for classifier-free guidance
PAPER_WEIGHT = 2.0  # how much more often the paper's six categories are drawn than the others


class Model(nn.Module):
    """The trainable pair, called as one."""

    def __init__(self, text_encoder: Any, unet: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet.to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, halvings: Tensor) -> Any:
        text = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(noisy, timestep, text, class_labels=halvings)


def build_model(tokenizer: CLIPTokenizer, shape: Path = SHIPPED) -> Model:
    """Random weights in the shape of another model, whose config.json files say it all.

    Attention at 16x16, and not at 4x4 alone, would cost 2.6 times as much and shows no gain.
    Without the pooled caption in the time embedding, text has no visible effect early on.
    """
    text = CLIPTextConfig.from_pretrained(shape / "text_encoder", vocab_size=len(tokenizer))
    unet = UNet2DConditionModel.load_config(shape / "unet")
    return Model(CLIPTextModel(text), UNet2DConditionModel.from_config(unet))


def draw_batch(draws: Draws, tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 64, 64) in [-1, 1] and tokens (B, 24)."""
    chosen, rng = draws.indices(), draws.rng
    image = on_backgrounds(draws.rgba(chosen), draws.generator)
    texts = [
        "" if rng.random() < DROP_CAPTION else draws.toys.caption(rng, index) for index in chosen
    ]
    return image, tokenize(tokenizer, texts, MAX_TOKENS).input_ids


def noise_loss(
    predict: Callable[..., Any],
    image: Tensor,
    scheduler: Any,
    generator: torch.Generator,
    *cond: Tensor,
) -> tuple[Tensor, Tensor]:
    """The mean squared error of the noise that `predict` finds in noised images, weighted and not.

    `predict` is called as a diffusers network is: with noisy images (B, C, H, W), timesteps (B,)
    and `cond`.
    """
    kept: Tensor = scheduler.alphas_cumprod
    # High noise decides what is drawn and where: it counts for more, up to five times.
    weight = (1 / kept).clamp(max=5)
    weight = weight / weight.mean()
    timestep = torch.randint(0, len(kept), (len(image),), generator=generator)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    weight, timestep = weight[timestep].to(image.device), timestep.to(image.device)
    noisy = scheduler.add_noise(image, noise, timestep)
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        found = predict(noisy, timestep, *cond).sample
    error = (found.float() - noise).square().mean((1, 2, 3))
    return (error * weight).mean(), error.mean()


def train(rank: int, options: TrainingOptions) -> None:
    """One process's share of the run; rank 0 logs and saves."""
    if options.ranks > 1:
        torch.set_num_threads(1)
        store = dist.FileStore(str(options.out / "rendezvous"), options.ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    torch.manual_seed(options.seed)
    tokenizer, scheduler = build_tokenizer(), DDPMScheduler.from_pretrained(SHIPPED / "scheduler")
    model = build_model(tokenizer, options.init_from or SHIPPED)
    if options.init_from:
        earlier = options.init_from
        unet = load_file(earlier / "unet" / "diffusion_pytorch_model.safetensors")
        model.unet.load_state_dict({name: value.float() for name, value in unet.items()})
        text = earlier / "text_encoder" / "model.safetensors"
        warm_start(model.text_encoder, text, tokenizer, earlier / "tokenizer")
    model.to(options.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    share, seed = options.images // options.ranks, options.seed + 1000 + rank
    toys = cached_toys(options.out / "data", share, SIZE, seed, STUDIO)
    draws = Draws(toys, options.batch, options.seed + 100 + rank, PAPER_WEIGHT)

    def loss() -> tuple[Tensor, Tensor]:
        image, tokens = (part.to(options.device) for part in draw_batch(draws, tokenizer))
        halved = round(HALVED * options.batch)
        found = torch.zeros(2, device=options.device)
        for times, part in enumerate((slice(halved, None), slice(halved))):
            folded = F.pixel_unshuffle(F.avg_pool2d(image[part], 2**times), FOLD)
            labels = torch.full((len(folded),), times, device=options.device)
            cond = (tokens[part], labels)
            losses = noise_loss(model, folded, scheduler, draws.generator, *cond)
            found = found + torch.stack(losses) * len(folded) / options.batch
        return found[0], found[1]

    def save(folder: Path, averaged: Any) -> None:
        """In diffusers layout; the shipped model's index names the parts of this one too."""
        averaged.text_encoder.save_pretrained(folder / "text_encoder")
        averaged.unet.save_pretrained(folder / "unet")
        tokenizer.save_pretrained(folder / "tokenizer")
        scheduler.save_pretrained(folder / "scheduler")
        shutil.copy(SHIPPED / "model_index.json", folder)

    Training(options, model, optimiser, draws, average_decay=EMA_DECAY, rank=rank).run(loss, save)
    if options.ranks > 1:
        dist.destroy_process_group()


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = option_parser(
        __doc__.splitlines()[0], steps=12_000, batch=96, images=96_000, rate=1e-3
    )
    parser.add_argument("--ranks", type=int, default=1 if cuda else 2, help="processes")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--init-from", type=Path, help="an earlier model's folder")
    options = TrainingOptions(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rendezvous").unlink(missing_ok=True)
    if options.ranks > 1:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.ranks)
    else:
        train(0, options)


if __name__ == "__main__":
    main()
