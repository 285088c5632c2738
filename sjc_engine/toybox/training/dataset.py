"""Rendered, captioned toys for training the prior and its judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sjc_engine.evaluation.pictures import AMBIENT, DIFFUSE, lamp
from sjc_engine.guidance.view_prompts import ViewStyle, view_prompt
from sjc_engine.rendering.camera import Camera, rays, sample_camera
from sjc_engine.toybox.captions import caption
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES, PAPER_CATEGORIES, make_toy
from sjc_engine.toybox.training.raycast import Light, raycast
from sjc_engine.toybox.training.shapes import Toy

# How often a caption uses each style of view prefix: the paper's stays known, the finest is learnt
# best.
STYLES: dict[ViewStyle, float] = {"paper": 0.15, "sided": 0.20, "detailed": 0.65}
# A toy fills from two thirds of the frame to just all of it: few sizes are learnt faster than many.
# The toybox recipe renders with the same angles.
FOV_DEG = (46.0, 60.0)
_VIEWS_PER_TOY = 4
_TOYS_PER_BATCH = 16


@dataclass(frozen=True)
class Lighting:
    """How lights are drawn: mean direction, its spread, and ranges of strength."""

    direction: tuple[float, float, float]
    spread: float
    ambient: tuple[float, float]
    diffuse: tuple[float, float]

    def sample(self, rng: np.random.Generator) -> Light:
        towards = np.asarray(self.direction) + rng.normal(0, self.spread, 3)
        x, y, z = towards / np.linalg.norm(towards)
        return Light((x, y, z), rng.uniform(*self.ambient), rng.uniform(*self.diffuse))


STUDIO = Lighting((-0.5, 1.0, 0.25), 0.25, (0.50, 0.60), (0.48, 0.60))  # the prior's
OUTDOORS = Lighting((0.0, 0.9, 0.0), 0.8, (0.35, 0.70), (0.25, 0.70))  # the judge's


def in_clay(toy: Toy) -> Toy:
    """The toy in the white that `clay_light` makes the grey of an asset's `geometry` pictures."""
    return replace(toy, color=np.ones_like(toy.color), color2=np.ones_like(toy.color2))


def clay_light(camera: Camera) -> Light:
    x, y, z = lamp(camera).tolist()
    return Light((x, y, z), AMBIENT, DIFFUSE, wrap=0.0, shadow=0.0)


@dataclass(frozen=True)
class Renders:
    """n images (n, H, W, 4) uint8, colours multiplied by alpha, with what is needed to caption.

    `category` (n,) indexes CATEGORIES; `azimuth` and `elevation` (n,) are the cameras', in
    degrees; `color` holds a word or "".
    """

    images: np.ndarray
    category: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray
    color: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def caption(self, rng: np.random.Generator, index: int) -> str:
        """A fresh random caption of one image."""
        style = list(STYLES)[rng.choice(len(STYLES), p=list(STYLES.values()))]
        category = CATEGORIES[self.category[index]]
        return caption(rng, category, self.color[index] or None, self.view(index, style))

    def view(self, index: int, style: ViewStyle) -> str:
        """The view prefix of one image."""
        return view_prompt(self.azimuth[index], self.elevation[index], style)

    def weights(self, paper: float) -> np.ndarray:
        """Sampling weights (n,): the paper's six categories count `paper` times the others."""
        weight = np.where(self.category < len(PAPER_CATEGORIES), paper, 1.0)
        return weight / weight.sum()


def render_toys(
    count: int,
    size: int,
    seed: int,
    lighting: Lighting = STUDIO,
    categories: Sequence[str] = CATEGORIES,
    clay: float = 0.0,
) -> Renders:
    """`count` images of random toys from random SJC cameras, 2x2 samples a pixel.

    A share `clay` of them, in [0, 1], show the shape alone.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    images: list[np.ndarray] = []
    labels: list[tuple[int, float, float, str]] = []
    while len(labels) < count:
        # One category a batch: its toys have about the same number of primitives.
        kind = CATEGORIES.index(categories[int(rng.integers(len(categories)))])
        toys, lights, names = [], [], []
        for _ in range(_TOYS_PER_BATCH):
            toy, name = make_toy(CATEGORIES[kind], rng)
            toys += [toy] * _VIEWS_PER_TOY
            lights += [lighting.sample(rng)] * _VIEWS_PER_TOY
            names += [name or ""] * _VIEWS_PER_TOY
        cameras = [sample_camera(generator, fov_deg=FOV_DEG) for _ in toys]
        if clay and rng.random() < clay:
            toys, names = [in_clay(toy) for toy in toys], [""] * len(toys)
            lights = [clay_light(camera) for camera in cameras]
        bundles = [rays(camera, 2 * size, 2 * size) for camera in cameras]
        eyes = torch.stack([origins[0] for origins, _ in bundles])
        directions = torch.stack([directions for _, directions in bundles])
        rgba = raycast(toys, eyes, directions, lights)
        small = rgba.view(-1, size, 2, size, 2, 4).mean((2, 4)).mul(255).round().byte()
        images.append(small.numpy())
        pairs = zip(cameras, names, strict=True)
        labels += [(kind, camera.azimuth_deg, camera.elevation_deg, name) for camera, name in pairs]
    *numbers, color = zip(*labels[:count], strict=True)
    category, azimuth, elevation = map(np.array, numbers)
    return Renders(np.concatenate(images)[:count], category, azimuth, elevation, list(color))


def cached_toys(
    folder: Path, count: int, size: int, seed: int, lighting: Lighting, clay: float = 0.0
) -> Renders:
    """`render_toys`, kept as .npy and .npz files under `folder` for the next start."""
    stem = folder / f"toys-{size}px-{count}-seed{seed}"
    images, labels = stem.with_suffix(".npy"), stem.with_suffix(".npz")
    if not labels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = render_toys(count, size, seed, lighting, clay=clay)
        np.save(images, fresh.images)
        np.savez(labels, **{name: row for name, row in vars(fresh).items() if name != "images"})
    kept = dict(np.load(labels))
    color = kept.pop("color").tolist()
    return Renders(np.load(images, mmap_mode="r"), **kept, color=color)


def on_backgrounds(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Composites (B, H, W, 4) images in [0, 1] onto plain or vertically graded colours.

    A third are white, as a product photo is; the rest are random, four in ten of all plain.
    Returns (B, 3, H, W) in [-1, 1].
    """
    count, height = rgba.shape[:2]
    kind, top, bottom = (
        torch.rand(shape, generator=generator).to(rgba.device)
        for shape in ((count, 1, 1, 1), (count, 1, 1, 3), (count, 1, 1, 3))
    )
    bottom = torch.where(kind < 0.4, top, top + (bottom - top) * 0.6)
    ramp = torch.linspace(0, 1, height, device=rgba.device).view(1, height, 1, 1)
    background = torch.where(kind > 0.65, 1.0, top * (1 - ramp) + bottom * ramp)
    image = rgba[..., :3] + (1 - rgba[..., 3:]) * background
    return image.permute(0, 3, 1, 2) * 2 - 1
