"""How a step without the network grows with voxels and rays, against the published algorithm.

    python benchmarks/growth.py [--rounds 5] [--json FILE]

ours        `step.draw` and `step.update`: rendering, all losses, gradients and the optimiser
published   benchmarks/published_renderer.py, and torch's Adamax over its grids

Four channels, intervals of 0.01, one thread, CPU time. Fields: `init`, as a scene starts, and
`tank`, as a run has left it (benchmarks/fields), resampled. Every round has another camera, the
same for both; the learning rate is next to nothing, so that the field stays what it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import published_renderer
import torch
from renderer import STEP, Turn, published_step, put_state
from report import Report, interleaved, ratio

from sjc_engine.acceptance.random_prior import TINY, RandomPrior
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw, update
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import sample_camera

RAYS, SIDE = 64, 100  # per side, as in the paper
SETTINGS = [(side, RAYS) for side in (64, SIDE, 128, 160)] + [(SIDE, r) for r in (32, 96, 128)]
LR = 1e-6


def make_scene(side: int, rays: int, state: str) -> Scene:
    """A scene of the paper's recipe but for its size."""
    recipe = Recipe.for_prior("owner/name")
    optimize = replace(
        recipe.optimize,
        grid_size=side,
        render_size=rays,
        ray_step=STEP,
        lr=LR,
        background_lr=LR,
    )
    prior = RandomPrior({**TINY, "sample_size": rays}, torch.device("cpu"), torch.float32)
    scene = Scene("a thing", "", 0, replace(recipe, optimize=optimize), prior)
    assert isinstance(scene.field, VoxelField)
    put_state(scene.field, state)
    return scene


def our_step(scene: Scene) -> Callable[[int, int], None]:
    def step(number: int, size: int) -> None:
        scene.generator.manual_seed(number)
        torch.set_flush_denormal(True)
        inputs = draw(scene)
        update(scene, inputs, torch.zeros_like(inputs.z))

    return step


def their_step(scene: Scene) -> Callable[[int, int], None]:
    assert isinstance(scene.field, VoxelField)
    grids = published_renderer.Grids(scene.field.density, scene.field.color)
    optimizer = torch.optim.Adamax(grids.parameters(), lr=LR)

    def step(number: int, size: int) -> None:
        generator = torch.Generator().manual_seed(number)
        torch.set_flush_denormal(False)
        camera = sample_camera(generator)
        score = torch.randn(scene.field.channels, size, size, generator=generator)
        published_step(published_renderer, grids, camera, size, score)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("growth", {"step": STEP, "rounds": args.rounds})
    rows = []
    for side, rays in SETTINGS:
        for state in ("init", "tank"):
            scene, turn = make_scene(side, rays, state), Turn()
            works = {"ours": our_step(scene), "published": their_step(scene)}
            runs = {name: turn.of(work, rays) for name, work in works.items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn.number in range(args.rounds):
                warmup = int(turn.number == 0)
                found = interleaved(runs, 1, warmup, time.process_time)
                for name, seconds in found.items():
                    times[name] += seconds
            faster = ratio(times, "published", "ours")
            report.figure(f"{side}^3 voxels, {rays}^2 rays, {state}", faster, "x")
            ms = {f"{name}, ms": 1000 * median(seconds) for name, seconds in times.items()}
            row = {"voxels": f"{side}^3", "rays": f"{rays}^2", "field": state}
            rows.append(row | ms | {"published / ours": faster})
    report.table("a step without the network", rows)
    report.write_json(args.json)


if __name__ == "__main__":
    main()
