"""Scenes side by side on one device: speed and memory of K = 1, 2, 4, 8.

    python benchmarks/scenes.py [--unet toybox|sd15] [--device cuda] [--scenes 1,2,4,8]
                                [--steps 4] [--rounds 5] [--threads 1] [--set key=value ...]
                                [--json FILE]

toybox is the embedded prior with its own recipe; sd15 a UNet of Stable Diffusion 1.5's shape with
random bfloat16 weights and the paper's recipe, for GPUs. On a CPU each scene has a network call of
its own, as in a run; `one call` is one for all, as on a GPU. Rounds are interleaved, figures are
medians:

scene-steps/s   steps of the optimisation, of all scenes together
per scene-step  time of a scene's step over that of K = 1, in the same round
step / denoiser  the step's time over that of its network calls alone, in the same round
added           memory above what the prior takes, at most, in the steps of a round
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peak import Peak
from report import Report, interleaved, ratio

from sjc_engine.acceptance.random_prior import SD15, RandomPrior
from sjc_engine.guidance.score import guide
from sjc_engine.memory import MemoryProbe
from sjc_engine.optimization.loop import try_step
from sjc_engine.optimization.scene import Scene, StepStats
from sjc_engine.optimization.step import draw
from sjc_engine.priors.denoiser import Prior, load_prior
from sjc_engine.recipes import Recipe

OVER = "step / denoiser"


def steps_of(scenes: list[Scene], prior: Prior, count: int, one_call: bool) -> Callable[[], None]:
    def work() -> None:
        for _ in range(count):
            for outcome in try_step(scenes, prior, one_call=one_call):
                if not isinstance(outcome, StepStats):
                    raise outcome

    return work


def calls_of(scenes: list[Scene], prior: Prior, count: int, one_call: bool) -> Callable[[], None]:
    """The network calls of the same steps, and nothing else."""
    inputs = draw(scenes[0])
    many = len(scenes) if one_call else 1
    z = inputs.z.flatten(0, 1).repeat(many, 1, 1, 1)
    sigma = inputs.sigma.repeat(len(inputs.z)).repeat(many)
    every = list(range(len(inputs.cond))) * many
    cond, uncond, scale = inputs.cond[every], inputs.uncond[every], inputs.scale.repeat(many)

    def work() -> None:
        for _ in range(count * len(scenes) // many):
            guide(prior, z, sigma, cond, uncond, scale)

    return work


def added(make: Callable[[], list[Scene]], prior: Prior, one_call: bool) -> int:
    """Bytes that scenes add in their first two steps, from before they are made."""
    if prior.device.type == "cuda":
        torch.cuda.empty_cache()
        probe = MemoryProbe(prior.device)
        steps_of(make(), prior, 2, one_call)()
        return probe.capacity(1).each
    with Peak() as peak:
        steps_of(make(), prior, 2, one_call)()
    return int(peak.added * 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--unet", choices=("toybox", "sd15"), default="sd15" if gpu else "toybox")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--scenes", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=4, help="in a round")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    used = {k: v for k, v in vars(settings).items() if k not in ("json", "set") and v is not None}
    changes: dict[str, Any] = dict(pair.split("=", 1) for pair in settings.set)
    device = torch.device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    report = Report("scenes", used | changes)
    prior: Prior
    if settings.unet == "sd15":
        prior = RandomPrior(SD15, device, torch.bfloat16)
        recipe = Recipe.for_prior("owner/name")
    else:
        prior, recipe = load_prior("toybox", device=device), Recipe.for_prior("toybox")
    recipe = recipe.override(changes)
    numbers = [int(number) for number in settings.scenes.split(",")]

    def scenes(count: int) -> list[Scene]:
        return [Scene(f"thing {k}", "", k, recipe, prior) for k in range(count)]

    own = device.type == "cpu"
    ways = {"one call each": False, "one call": True} if own else {"one call": True}
    works: dict[str, Callable[[], None]] = {}
    memory: dict[str, int] = {}
    for way, one_call in ways.items():
        for count in numbers:
            name = f"{way}, {count}"
            memory[name] = added(partial(scenes, count), prior, one_call)
            board = scenes(count)
            works[name] = steps_of(board, prior, settings.steps, one_call)
            works[f"{name}, denoiser"] = calls_of(board, prior, settings.steps, one_call)
    times = interleaved(works, settings.rounds)
    for way in ways:
        first = f"{way}, {numbers[0]}"
        rows = []
        for count in numbers:
            name = f"{way}, {count}"
            each = ratio(times, name, first) * numbers[0] / count
            seconds = median(times[name])
            rows.append({
                "K": count,
                "scene-steps/s": count * settings.steps / seconds,
                "ms per scene-step": 1000 * seconds / count / settings.steps,
                "per scene-step": each,
                OVER: ratio(times, name, f"{name}, denoiser"),
                "added MB": memory[name] / 1e6,
                "MB a scene": memory[name] / 1e6 / count,
            })  # fmt: skip
        report.table(way, rows)
        targets = not own and settings.unet == "sd15"
        for row in rows:
            bound = {1: "<= 1.25", 8: "<= 1.1"}.get(row["K"], "") if targets else ""
            report.figure(f"{way}, K = {row['K']}: step / denoiser", row[OVER], "x", bound)
        last = rows[-1]
        bound = "<= 0.6" if targets and (numbers[0], numbers[-1]) == (1, 8) else ""
        name = f"{way}, K = {last['K']}: a scene-step over that of K = {numbers[0]}"
        report.figure(name, last["per scene-step"], "x", bound)
        if targets:
            official = 2.4  # 25 minutes on an A5000
            an_hour = 3600 / 10_000 * last["scene-steps/s"]
            report.figure("10,000-step assets an hour", an_hour)
            report.figure("over the official code's on an A5000", an_hour / official, "x")
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
