"""A step of one scene over its network call alone: what rendering, losses and optimiser add.

    python benchmarks/step.py [--unets toybox,small] [--device cpu] [--rounds 7] [--steps 3]
                              [--threads 1] [--compiled] [--json FILE]

toybox  the embedded prior and its recipe: 32 x 32 pixels at first, two views a step
small   a UNet of 3.2 million random weights on 64 x 64 latents, the paper's recipe: 100^3 voxels
sd15    a UNet of Stable Diffusion 1.5's shape with random bfloat16 weights, the paper's recipe; for
        GPUs

Two states of the field: as it starts, and with a ball of 11% of the box in empty space. Rounds are
interleaved and have `--steps` steps; figures are medians over rounds of a round's own ratio. Beside
the fused renderer stands the one in plain torch; with `--compiled` the same network compiled by
torch.compile too, which takes minutes before the first round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Report, interleaved, ratio

from sjc_engine.acceptance.checks import put_ball
from sjc_engine.acceptance.random_prior import SD15, SMALL, RandomPrior
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.guidance.score import guide
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw
from sjc_engine.priors.denoiser import Prior, load_prior
from sjc_engine.recipes import Recipe
from sjc_engine.rendering import volume as render

TARGETS = {("toybox", "cpu"): "<= 1.5", ("small", "cpu"): "<= 1.15", ("sd15", "cuda"): "<= 1.25"}


def load(unet: str, device: torch.device) -> tuple[Prior, Recipe]:
    if unet == "toybox":
        return load_prior("toybox", device=device), Recipe.for_prior("toybox")
    shape, dtype = (SD15, torch.bfloat16) if unet == "sd15" else (SMALL, torch.float32)
    return RandomPrior(shape, device, dtype), Recipe.for_prior("owner/name")


@contextmanager
def plain_torch() -> Iterator[None]:
    fits, render.fits = render.fits, lambda field: False  # type: ignore[assignment]
    try:
        yield
    finally:
        render.fits = fits


def steps_of(scene: Scene, count: int, *, fused: bool) -> Callable[[], None]:
    def work() -> None:
        for _ in range(count):
            step_scenes([scene], scene.prior)

    def in_torch() -> None:
        with plain_torch():
            work()

    return work if fused else in_torch


def calls_of(scene: Scene, count: int) -> Callable[[], None]:
    """The same steps' network calls alone."""
    inputs = draw(scene)
    asked = (
        inputs.z.flatten(0, 1),
        inputs.sigma.repeat(len(inputs.z)),
        inputs.cond,
        inputs.uncond,
        inputs.scale,
    )

    def work() -> None:
        for _ in range(count):
            guide(scene.prior, *asked)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--unets", default="sd15" if gpu else "toybox,small")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--compiled", action="store_true", help="the network too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    report = Report("step", {k: v for k, v in vars(settings).items() if k != "json"})
    rows: list[dict[str, Any]] = []
    for unet in settings.unets.split(","):
        prior, recipe = load(unet, device)
        works: dict[str, Callable[[], None]] = {}
        for state in ("init", "converged"):
            scene = Scene("a thing", "", 0, recipe, prior)
            if state == "converged":
                assert isinstance(scene.field, VoxelField)
                put_ball(scene.field)
            works[f"{state}, fused"] = steps_of(scene, settings.steps, fused=True)
            works[f"{state}, torch"] = steps_of(scene, settings.steps, fused=False)
        works["denoiser"] = calls_of(scene, settings.steps)
        if settings.compiled:
            fast, _ = load(unet, device)
            fast.compile()
            scene = Scene("a thing", "", 0, recipe, fast)
            works["init, compiled"] = steps_of(scene, settings.steps, fused=True)
            works["denoiser, compiled"] = calls_of(scene, settings.steps)
        times = interleaved(works, settings.rounds)
        for name, seconds in times.items():
            over = ratio(times, name, "denoiser")
            milliseconds = 1000 * median(seconds) / settings.steps
            rows.append({"UNet": unet, "step": name, "ms": milliseconds, "over denoiser": over})
            if name.endswith("fused"):
                target = TARGETS.get((unet, device.type), "")
                report.figure(f"{unet}, {name}: step / denoiser", over, "x", target)
    report.table("steps", rows)
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
