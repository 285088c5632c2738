"""The demo's quality and cost: the paper's six prompts x seeds, judged by shape and by words.

    python benchmarks/demo.py [--seeds 0,1,2] [--processes 2] [--prior PRIOR] [--out DIR]
                              [--set key=value ...] [--json FILE]

Every asset is optimised, meshed and scored in a process of its own with one thread, as `sjc run
--devices cpu,cpu` does. Printed for each, and summed up at the end:

own IoU     best mean silhouette IoU over the eight views against 64 random procedural instances of
            the prompt's category and 8 azimuth offsets; of the field (opacity > 0.5) and the mesh
rival       the category, of all 24, whose instances match the field's silhouettes best
top-1       share of the eight mesh views for which the judge puts the prompt's category first
turn        1 - mean IoU of views a quarter turn apart: 0 for a body of revolution; in brackets the
            mean over the category's instances
shape       share of the eight grey mesh views for which the prompt wins (geometry_r_precision)
rough       how far a pixel of the grey mesh views is from the mean of its 3 x 3 neighbours, in
            thousandths of white, mean; in brackets that of instances of clay
parts       components of the mesh, in brackets the median of instances: what floats is one more
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from sjc_engine.rendering.camera import Camera
    from sjc_engine.toybox.training.shapes import Toy

MANIFEST = Path(__file__).parents[1] / "manifests" / "paper.csv"
CATEGORY_OF_ID = {"burger", "duck", "ficus", "tank", "icecream", "giraffe"}
INSTANCES, SIZE = 64, 64
INSTANCE_SEED = 424_242  # not one of the training data's
CLAY_INSTANCES = 4
VOXELS = 144  # along each side of a solid whose components are counted


@dataclass(frozen=True)
class Result:
    category: str
    seed: int
    field_iou: float
    rival: str
    rival_iou: float
    turn: float
    instance_turn: float
    instance_roughness: float
    instance_components: float
    cpu_optimize: float
    # Of the mesh; 0 where the field has none
    mesh_iou: float = 0.0
    top1: float = 0.0
    clip_score: float = 0.0
    r_precision: float = 0.0
    geometry_r_precision: float = 0.0
    roughness: float = 0.0
    components: int = 0
    field_mesh_iou: float = 0.0
    cpu_mesh: float = 0.0
    cpu_evaluate: float = 0.0
    peak_mb: float = 0.0
    no_mesh: str = ""


def ring() -> list[Camera]:
    from sjc_engine.rendering.camera import evaluation_cameras

    return evaluation_cameras()[:8]


def ring_rays(size: int) -> tuple[Tensor, Tensor]:
    """The ring's eyes (8, 3) and the directions (8, size^2, 3) of its pixels."""
    import torch

    from sjc_engine.rendering.camera import rays

    bundles = [rays(camera, size, size) for camera in ring()]
    return torch.stack([o[0] for o, _ in bundles]), torch.stack([d for _, d in bundles])


def instance_masks(category: str) -> np.ndarray:
    """Silhouettes (INSTANCES, 8, SIZE, SIZE) of random toys in the evaluation views."""
    import torch

    from sjc_engine.toybox.training.dataset import STUDIO
    from sjc_engine.toybox.training.objects.catalogue import make_toy
    from sjc_engine.toybox.training.raycast import raycast

    torch.set_num_threads(1)
    rng = np.random.default_rng(INSTANCE_SEED)
    origins, directions = ring_rays(SIZE)
    masks = []
    for _ in range(INSTANCES):
        toy, _ = make_toy(category, rng)
        light = STUDIO.sample(rng)
        image = raycast([toy] * 8, origins, directions, [light] * 8)
        masks.append((image[..., 3] > 0.5).view(8, SIZE, SIZE).numpy())
    return np.stack(masks)


def roughness(grey: np.ndarray, masks: np.ndarray) -> float:
    """Mean distance of a pixel from its neighbours' mean, in thousandths; views (V, H, W).

    Of pixels that are inside of their mask with all eight neighbours; 0 where there are none.
    """
    from scipy.ndimage import binary_erosion, uniform_filter

    inside = binary_erosion(masks, np.ones((1, 3, 3)))
    distance = np.abs(grey - uniform_filter(grey, (0, 3, 3)))[inside]
    return 1000 * float(distance.mean()) if inside.any() else 0.0


def clay_instances(category: str) -> tuple[float, float]:
    """Mean roughness and median number of components of random toys of clay."""

    from sjc_engine.recipes import EvaluateRecipe
    from sjc_engine.toybox.training.dataset import clay_light, in_clay
    from sjc_engine.toybox.training.objects.catalogue import make_toy
    from sjc_engine.toybox.training.raycast import raycast

    size = EvaluateRecipe().evaluation_size
    rng = np.random.default_rng(INSTANCE_SEED)
    origins, directions = ring_rays(size)
    lights = [clay_light(camera) for camera in ring()]
    rough, parts = [], []
    for _ in range(CLAY_INSTANCES):
        toy, _ = make_toy(category, rng)
        image = raycast([in_clay(toy)] * 8, origins, directions, lights)
        grey, alpha = image.view(8, size, size, 4)[..., [0, 3]].unbind(-1)
        rough.append(roughness(grey.numpy(), alpha.numpy() > 0.5))
        parts.append(solid_components(toy))
    return mean(rough), median(parts)


def solid_components(toy: Toy) -> int:
    """How many parts of a toy do not touch."""
    from scipy.ndimage import label

    from sjc_engine.toybox.training.shapes import BOX, ELLIPSOID

    line = np.linspace(-0.7, 0.7, VOXELS)
    solid = np.zeros((VOXELS,) * 3, bool)
    for kind, frame, (bottom, top) in zip(toy.kind, toy.to_local, toy.radii, strict=True):
        # Each within the box around its own.
        half_axes = np.linalg.inv(frame[:, :3])
        center = -half_axes @ frame[:, 3]
        reach = np.abs(half_axes) @ (max(bottom, top, 1), 1, max(bottom, top, 1))
        lows, highs = np.searchsorted(line, [center - reach, center + reach])
        around = tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
        points = np.stack(np.meshgrid(*(line[part] for part in around), indexing="ij"), -1)
        x, y, z = np.moveaxis(points @ frame[:, :3].T + frame[:, 3], -1, 0)
        if kind == ELLIPSOID:
            inside = x**2 + y**2 + z**2 <= 1
        elif kind == BOX:
            inside = np.maximum(np.maximum(abs(x), abs(y)), abs(z)) <= 1
        else:
            radius = (bottom + top) / 2 + (top - bottom) / 2 * y
            inside = (abs(y) <= 1) & (np.hypot(x, z) <= radius)
        solid[around] |= inside
    return int(label(solid, np.ones((3, 3, 3)))[1])


def quarter_turn(masks: np.ndarray) -> float:
    """1 - mean IoU of views 90 degrees apart; masks (8, H, W)."""
    other = np.roll(masks, 2, axis=0)
    both, either = (masks & other).sum((1, 2)), (masks | other).sum((1, 2))
    return 1 - float(np.mean(both / np.maximum(either, 1)))


def silhouette_match(field_masks: Tensor, instance_masks: Tensor) -> float:
    """The best mean IoU over instances and azimuth offsets, in [0, 1].

    `field_masks` (views, H, W) and `instance_masks` (n, views, H, W) are bool, seen by the same
    ring of cameras in equal steps of azimuth; an instance turned by k steps shows the same views k
    places on. Views that are empty in both agree fully. Raises ValueError for other shapes.
    """
    import torch

    if field_masks.dim() != 3 or instance_masks.shape[1:] != field_masks.shape:
        raise ValueError(
            "expected masks (views, H, W) and (n, views, H, W), not"
            f" {tuple(field_masks.shape)} and {tuple(instance_masks.shape)}"
        )
    best = 0.0
    for offset in range(len(field_masks)):
        turned = instance_masks.roll(offset, dims=1)
        both = (turned & field_masks).sum(dim=(2, 3), dtype=torch.float64)
        either = (turned | field_masks).sum(dim=(2, 3), dtype=torch.float64)
        overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0)
        best = max(best, float(overlap.mean(dim=1).max()))
    return best


def make(job: tuple[str, str, int, str, str, dict[str, str], Path]) -> Result:
    """One asset, from prompt to scores."""
    category, prompt, seed, prior_id, preset, changes, out = job
    import torch

    from sjc_engine import Recipe, extract_mesh, load_field, load_prior, optimize
    from sjc_engine.evaluation.clip import load_judge
    from sjc_engine.evaluation.metrics import evaluate
    from sjc_engine.evaluation.pictures import contact_sheet, take_pictures
    from sjc_engine.mesh.isosurface import MeshError, face_components
    from sjc_engine.rendering.rasterize import rasterize
    from sjc_engine.rendering.volume import render_views
    from sjc_engine.toybox.captions import NOUNS

    torch.set_num_threads(1)
    prior = load_prior(prior_id)
    recipe = Recipe.for_prior(prior, preset).override(changes)
    started = time.process_time()
    [fresh] = optimize([prompt], prior, recipe, seeds=[seed])
    optimized = time.process_time()
    # What is judged is what a user gets: the field as it is saved.
    path = out / f"{category}-{seed}.safetensors"
    fresh.save(path)
    field = load_field(path)
    with torch.no_grad():
        field_masks = render_views(field, ring(), SIZE, SIZE).opacity > 0.5
    instances = np.load(out / "instances.npz")
    clay = instances[f"clay-{category}"]
    known = {name: torch.from_numpy(instances[name]) for name in NOUNS}
    match = {name: silhouette_match(field_masks, masks) for name, masks in known.items()}
    rival = max(match, key=lambda name: match[name])
    result = Result(
        category=category,
        seed=seed,
        field_iou=match[category],
        rival=rival,
        rival_iou=match[rival],
        turn=quarter_turn(field_masks.numpy()),
        instance_turn=mean(quarter_turn(masks.numpy()) for masks in known[category]),
        instance_roughness=float(clay[0]),
        instance_components=float(clay[1]),
        cpu_optimize=optimized - started,
    )
    meshing = time.process_time()
    try:
        mesh = extract_mesh(field, recipe.mesh)
    except MeshError as error:  # a field without a surface is a result too, with scores of 0
        return replace(result, no_mesh=str(error))
    meshed = time.process_time()
    judge = load_judge("toybox")
    pictures = take_pictures(field, mesh, recipe.evaluate.evaluation_size)
    report = evaluate(pictures, mesh, prompt, judge)
    evaluated = time.process_time()
    contact_sheet(pictures, f"{prompt} (seed {seed})").save(out / f"{category}-{seed}.png")
    mesh_masks = torch.stack(
        [rasterize(mesh, camera, SIZE, SIZE).opacity > 0.5 for camera in ring()]
    )
    metrics: dict[str, Any] = dict(report.metrics)
    words = judge.text_features([f"a photo of a {nouns[0]}" for nouns in NOUNS.values()])
    first = (judge.image_features(pictures.mesh[:8]) @ words.T).argmax(1)
    return replace(
        result,
        mesh_iou=silhouette_match(mesh_masks, known[category]),
        top1=float((first == list(NOUNS).index(category)).float().mean()),
        clip_score=float(metrics["clip_score"]),
        r_precision=float(metrics["clip_r_precision"]),
        geometry_r_precision=float(metrics["geometry_r_precision"]),
        roughness=roughness(
            (pictures.geometry[:8, 0].numpy() + 1) / 2, pictures.mesh_opacity[:8].numpy() > 0.5
        ),
        components=int(face_components(len(mesh.vertices), mesh.faces).max()) + 1,
        field_mesh_iou=float(metrics["field_mesh_iou"]),
        cpu_mesh=meshed - meshing,
        cpu_evaluate=evaluated - meshed,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def show(result: Result) -> None:
    own = "" if result.rival == result.category else f" ({result.rival} {result.rival_iou:.3f})"
    print(
        f"{result.category:9} seed {result.seed}  field {result.field_iou:.3f}"
        f"  mesh {result.mesh_iou:.3f}  best {'own' if not own else 'rival'}{own}"
        f"  top-1 {result.top1:.2f}  turn {result.turn:.2f} [{result.instance_turn:.2f}]"
        f"  clip {result.clip_score:.1f}  shape {result.geometry_r_precision:.2f}"
        f"  rough {result.roughness:.1f} [{result.instance_roughness:.1f}]"
        f"  parts {result.components} [{result.instance_components:g}]"
        f"  field/mesh {result.field_mesh_iou:.3f}"
        f"  CPU s {result.cpu_optimize:.0f}+{result.cpu_mesh:.1f}+{result.cpu_evaluate:.1f}"
        f"  peak {result.peak_mb:.0f} MB  {result.no_mesh}",
        flush=True,
    )


def summarise(results: list[Result], report: Report) -> None:
    by_prompt = {
        category: [r.field_iou for r in results if r.category == category]
        for category in sorted({r.category for r in results})
    }
    print("\nprompt     field IoU by seed, mean")
    for category, values in by_prompt.items():
        print(f"{category:9}  {'  '.join(f'{v:.3f}' for v in values)}   {mean(values):.3f}")
    print()
    for name, value in {
        "field IoU, mean": mean(r.field_iou for r in results),
        "field IoU, worst prompt": min(mean(v) for v in by_prompt.values()),
        "field IoU, worst asset": min(r.field_iou for r in results),
        "mesh IoU, mean": mean(r.mesh_iou for r in results),
        "mesh IoU, worst asset": min(r.mesh_iou for r in results),
        "own category best, share": mean(r.rival == r.category for r in results),
        "judge top-1, mean": mean(r.top1 for r in results),
        "judge top-1, worst asset": min(r.top1 for r in results),
        "geometry_r_precision, mean": mean(r.geometry_r_precision for r in results),
        "roughness over the instances', mean": mean(
            r.roughness / r.instance_roughness for r in results
        ),
        "assets with more parts than instances": sum(
            r.components > r.instance_components for r in results
        ),
        "CPU seconds an asset, median": median(
            r.cpu_optimize + r.cpu_mesh + r.cpu_evaluate for r in results
        ),
        "peak memory of a process, MB": max(r.peak_mb for r in results),
    }.items():
        report.figure(name, value)
    report.tables["assets"] = [asdict(result) for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(sorted(CATEGORY_OF_ID)))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--prior", default="toybox", help="or a folder of the same family")
    parser.add_argument("--recipe", default="toybox")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".runs/demo"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: demo.json in --out")
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tasks.manifest.resolve import read_manifest

    prompts = {row.row_id: row.prompt for row in read_manifest(MANIFEST).rows}
    settings.out.mkdir(parents=True, exist_ok=True)
    from sjc_engine.toybox.training.objects.catalogue import CATEGORIES

    names = ("seeds", "only", "processes", "prior", "recipe", "set")
    report = Report("demo", {name: getattr(settings, name) for name in names})
    changes = dict(pair.split("=", 1) for pair in settings.set)
    jobs = [
        (
            category,
            prompts[category],
            int(seed),
            settings.prior,
            settings.recipe,
            changes,
            settings.out,
        )
        for seed in settings.seeds.split(",")
        for category in settings.only.split(",")
    ]
    started = time.perf_counter()
    # Spawned, so that each asset's peak memory is its own.
    context = multiprocessing.get_context("spawn")
    with context.Pool(settings.processes, maxtasksperchild=1) as pool:
        masks = pool.map(instance_masks, CATEGORIES)
        named: dict[str, Any] = dict(zip(CATEGORIES, masks, strict=True))
        only = settings.only.split(",")
        clay = pool.map(clay_instances, only)
        named |= {f"clay-{name}": pair for name, pair in zip(only, clay, strict=True)}
        np.savez_compressed(settings.out / "instances.npz", **named)
        results = []
        for result in pool.imap_unordered(make, jobs):
            show(result)
            results.append(result)
    results.sort(key=lambda r: (r.category, r.seed))
    summarise(results, report)
    report.figure("wall seconds", time.perf_counter() - started)
    if any(math.isnan(figure["value"]) for figure in report.figures.values()):
        sys.exit("a figure is not a number")
    report.write_json(settings.json or settings.out / "demo.json")
    print(f"\na contact sheet per asset: {settings.out}")


if __name__ == "__main__":
    main()
