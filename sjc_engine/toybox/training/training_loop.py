"""What the trainings of the toybox's models share: options, random draws and one loop.

A training is seeded, logs to OUT/log.csv, keeps its state in OUT/state, resumes from there when it
is started again, and writes OUT/model. Several ranks average their gradients.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sjc_engine.toybox.training.dataset import Renders

LOG_STEPS, SAVE_STEPS = 50, 500


@dataclass(frozen=True)
class TrainingOptions:
    """What every training asks for."""

    out: Path
    steps: int | None
    minutes: float | None  # ends the schedule by the clock
    batch: int  # images per rank and step
    images: int  # rendered training images
    rate: float  # peak learning rate
    seed: int = 0
    init_from: Path | None = None  # an earlier model's folder
    ranks: int = 1
    device: str = "cpu"

    def progress(self, step: int, seconds: float) -> float:
        """How much of the schedule is over, from 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        return max(by_steps, seconds / (60 * self.minutes) if self.minutes else 0.0)


def option_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A command line of the options that every training has, with its own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, help="ends the schedule by the clock")
    parser.add_argument("--batch", type=int, help="images per rank and step")
    parser.add_argument("--images", type=int, help="rendered training images")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    return parser


class Draws:
    """Random draws from rendered toys; the generators' state belongs to a training's."""

    def __init__(self, toys: Renders, batch: int, seed: int, paper_weight: float = 1.0) -> None:
        self.toys, self.batch = toys, batch
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self._cumulative = np.cumsum(toys.weights(paper_weight))

    def indices(self) -> np.ndarray:
        """A batch of toys (B,), the paper's categories as much more often as their weight says."""
        total = self._cumulative[-1]
        return np.searchsorted(self._cumulative, self.rng.random(self.batch) * total)

    def rgba(self, indices: np.ndarray) -> Tensor:
        """The toys' images (B, H, W, 4) in [0, 1]."""
        return torch.from_numpy(self.toys.images[indices]).float() / 255

    def state(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"].cpu())


class Training:
    """A model, the moving average of its weights, and all else that a resumed run needs."""

    def __init__(
        self,
        options: TrainingOptions,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        draws: Draws,
        *,
        average_decay: float = 0.0,
        rank: int = 0,
    ) -> None:
        """Resumes where the last run in the same folder ended. Decay 0 averages nothing."""
        options.out.mkdir(parents=True, exist_ok=True)
        self.options, self.rank = options, rank
        self.model, self.optimiser, self.draws = model, optimiser, draws
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.average_decay = average_decay
        self.step, self.seconds = 0, 0.0
        self._state_file = options.out / "state" / f"rank{rank}.pt"
        if self._state_file.exists():
            state = torch.load(self._state_file, weights_only=True, map_location=options.device)
            model.load_state_dict(state["model"])
            self.average = state["average"]
            optimiser.load_state_dict(state["optimiser"])
            draws.restore(state["batches"])
            self.step, self.seconds = state["step"], state["seconds"]

    def run(
        self, loss: Callable[[], tuple[Tensor, Tensor]], save: Callable[[Path, Any], None]
    ) -> None:
        """Steps until the schedule is over.

        `loss` draws a batch and returns two scalars: what is minimised and what is logged. `save`
        writes the model, which has the averaged weights in fp16, into a folder.
        """
        options, before, started = self.options, self.seconds, time.monotonic()
        losses: list[Tensor] = []
        last_log = started
        while True:
            self.seconds = before + time.monotonic() - started
            progress = _agreed(options.progress(self.step, self.seconds))
            if progress >= 1:
                break
            losses.append(self._update(loss, options.rate * cosine_rate(self.step, progress)))
            if self.step % LOG_STEPS == 0:
                now = time.monotonic()
                if self.rank == 0:
                    images = len(losses) * options.batch * options.ranks
                    mean, speed = float(torch.stack(losses).mean()), images / (now - last_log)
                    log_row(options.out, self.step, self.seconds, mean, speed, progress)
                losses, last_log = [], now
            if self.step % SAVE_STEPS == 0:
                self._save(save)
        self._save(save)

    def _update(self, loss: Callable[[], tuple[Tensor, Tensor]], rate: float) -> Tensor:
        """One step; what is logged of it. Raises ArithmeticError when it is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        minimised, logged = loss()
        self.optimiser.zero_grad(set_to_none=True)
        minimised.backward()
        _average_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not math.isfinite(norm):
            raise ArithmeticError(f"step {self.step}: the gradient is not finite")
        self.optimiser.step()
        self.step += 1
        decay = min(self.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
        return logged.detach()

    def _save(self, save: Callable[[Path, Any], None]) -> None:
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._state_file.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "batches": self.draws.state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, partial)
        partial.replace(self._state_file)
        if self.rank == 0:
            averaged = copy.deepcopy(self.model)
            averaged.load_state_dict(self.average)
            folder, partial = self.options.out / "model", self.options.out / "model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            save(partial, averaged.half())
            shutil.rmtree(folder, ignore_errors=True)  # only now that there is a whole one
            partial.rename(folder)


def cosine_rate(step: int, progress: float) -> float:
    """Warm-up over 80 steps, then a cosine down to 3%."""
    return min(1, (step + 1) / 80) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))


def _agreed(progress: float) -> float:
    """Rank 0's clock rules."""
    if not dist.is_initialized():
        return progress
    value = torch.tensor([progress], dtype=torch.float64)
    dist.broadcast(value, 0)
    return float(value)


def _average_gradients(model: nn.Module) -> None:
    """One all-reduce over a flat buffer: faster here than DistributedDataParallel's buckets."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
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


@torch.no_grad()
def warm_start(model: nn.Module, file: Path, tokenizer: CLIPTokenizer, known: Path) -> None:
    """Copies the weights of an earlier model of text, whose tokenizer is in folder `known`.

    Token embeddings are copied by token, since ids may differ.
    """
    weights = {name: value.float() for name, value in load_file(file).items()}
    old = weights.pop(next(name for name in weights if name.endswith("token_embedding.weight")))
    model.load_state_dict(weights, strict=False)
    new = next(p for name, p in model.named_parameters() if name.endswith("token_embedding.weight"))
    ids = CLIPTokenizer.from_pretrained(str(known)).get_vocab()
    for token, index in tokenizer.get_vocab().items():
        if token in ids:
            new[index] = old[ids[token]]
