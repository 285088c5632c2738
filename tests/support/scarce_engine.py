"""The engine process on a device with little memory: `python scarce_engine.py bytes|batch LIMIT`.

bytes: once the prior is loaded its address space can grow by LIMIT bytes; allocations that fail are
real. batch: a stand-in for a GPU. All scenes ask in one network call, and the network raises what
torch raises on CUDA when it is asked for more than LIMIT pictures.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import Cond, Prior
from sjc_engine.priors.traced import CALLS
from sjc_engine.recipes import Recipe
from sjc_engine.worker import __main__ as worker

load_prior = worker.load_prior


def with_little_address_space(limit: int, *prior: Any, **options: Any) -> Prior:
    loaded = load_prior(*prior, **options)
    small = Recipe.for_prior("toybox").override({"grid_size": 8, "ray_step": 0.1})
    scene = Scene("", "", 0, small, loaded)
    for _ in range(CALLS + 1):  # what is loaded or traced once is no scene's
        worker.try_step([scene], loaded)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return loaded


def with_small_batches(limit: int, *prior: Any, **options: Any) -> Prior:
    loaded = load_prior(*prior, **options)
    denoise = loaded.denoise

    def scarce(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        if len(x) > limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(x)} pictures")
        return denoise(x, sigma, cond)

    loaded.denoise = scarce  # type: ignore[method-assign]
    return loaded


if __name__ == "__main__":
    kind, limit = sys.argv.pop(1), int(sys.argv.pop(1))
    scarce = with_little_address_space if kind == "bytes" else with_small_batches
    worker.load_prior = partial(scarce, limit)
    if kind == "batch":
        worker.try_step = partial(worker.try_step, one_call=True)
    worker.main()
