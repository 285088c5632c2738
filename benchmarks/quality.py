"""Time to quality: how well a field fits its prompt, by CPU seconds of optimisation and recipe.

    python benchmarks/quality.py [--curves draft,fast,toybox] [--only duck,tank,giraffe]
                                 [--seeds 0,1] [--processes 2] [--picture FILE] [--json FILE]
    python benchmarks/quality.py --curves "toybox;toybox views_per_step=1 steps=2000"

A curve is a preset of the toybox, with settings of its own after it; curves with settings are
parted by `;`. Each asset is optimised in a process with one thread, and measured at twelve places
on its way: the mean silhouette IoU over eight views with the best of 64 random toys of the
prompt's kind (as benchmarks/demo.py has it). Seconds are CPU time of the steps alone, without the
measuring. Beside each curve stands when it first came within 0.01 of what `toybox` ends with.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from demo import MANIFEST, SIZE, instance_masks, ring, silhouette_match
from report import Report

PLACES = 12
NEAR = 0.01  # of IoU

Track = list[tuple[int, float, float]]  # steps, CPU seconds, IoU


def track(job: tuple[str, str, int, str, dict[str, Any], Path]) -> Track:
    """One asset on its way."""
    category, prompt, seed, preset, changes, known = job
    import torch

    from sjc_engine import Recipe, load_prior
    from sjc_engine.optimization.loop import step_scenes
    from sjc_engine.optimization.scene import Scene
    from sjc_engine.rendering.volume import render_views

    torch.set_num_threads(1)
    toys = torch.from_numpy(np.load(known)[category])
    prior = load_prior("toybox")
    recipe = Recipe.for_prior(prior, preset).override(changes)
    scene = Scene(prompt, "", seed, recipe, prior)
    places = {round(recipe.optimize.steps * (k + 1) / PLACES) for k in range(PLACES)}
    found: Track = []
    spent = 0.0
    while not scene.done:
        began = time.process_time()
        step_scenes([scene], prior)
        spent += time.process_time() - began
        if scene.step in places or scene.done:
            with torch.no_grad():
                masks = render_views(scene.field, ring(), SIZE, SIZE).opacity > 0.5
            found.append((scene.step, spent, silhouette_match(masks, toys)))
    return found


def when(curve: Sequence[tuple[float, float]], level: float) -> float:
    """CPU seconds when a curve (seconds, IoU) first reaches a level; infinite if never."""
    return next((seconds for seconds, iou in curve if iou >= level), float("inf"))


def middle(tracks: list[Track]) -> list[tuple[float, float]]:
    """Mean seconds and IoU at each place."""
    return [
        (mean(t[k][1] for t in tracks), mean(t[k][2] for t in tracks))
        for k in range(min(map(len, tracks)))
    ]


def draw(curves: dict[str, list[tuple[float, float]]], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        seconds, ious = zip(*curve, strict=True)
        axes.plot(seconds, ious, marker="o", markersize=3, label=name)
    best = max(iou for curve in curves.values() for _, iou in curve)
    axes.set(xlabel="CPU seconds of optimisation", ylabel="silhouette IoU", title=title)
    axes.set(xlim=(0, None), ylim=(best - 0.2, best + 0.01))  # where they differ
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", default="draft,fast,toybox")
    parser.add_argument("--only", default="duck,tank,giraffe")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from tasks.manifest.resolve import read_manifest

    report = Report("quality", {k: v for k, v in vars(settings).items() if v and k != "json"})
    parts = settings.curves.split(";" if ";" in settings.curves else ",")
    curves = {part: part.split() for part in map(str.strip, parts)}
    prompts = {row.row_id: row.prompt for row in read_manifest(MANIFEST).rows}
    chosen, seeds = settings.only.split(","), [int(seed) for seed in settings.seeds.split(",")]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, spawn.Pool(settings.processes) as pool:
        known = Path(folder) / "instances.npz"
        np.savez(known, **dict(zip(chosen, pool.map(instance_masks, chosen), strict=True)))
        jobs = {
            (name, category, seed): (
                category, prompts[category], seed, preset,
                dict(pair.split("=", 1) for pair in changes), known,
            )
            for category in chosen for seed in seeds for name, (preset, *changes) in curves.items()
        }  # fmt: skip
        tracks = dict(zip(jobs, pool.map(track, jobs.values(), chunksize=1), strict=True))
    lines = {name: middle([t for key, t in tracks.items() if key[0] == name]) for name in curves}
    level = (lines.get("toybox") or next(iter(lines.values())))[-1][1] - NEAR
    rows = [
        {
            "curve": name,
            "CPU s": line[-1][0],
            "IoU": line[-1][1],
            **{
                category: mean(tracks[name, category, seed][-1][2] for seed in seeds)
                for category in chosen
            },
            f"CPU s to {level:.3f}": when(line, level),
        }
        for name, line in lines.items()
    ]
    report.table("curves", rows)
    for name, line in lines.items():
        report.table(name, [{"CPU s": seconds, "IoU": iou} for seconds, iou in line])
    if settings.picture:
        draw(lines, settings.picture, f"{', '.join(chosen)}: mean over seeds {settings.seeds}")
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
