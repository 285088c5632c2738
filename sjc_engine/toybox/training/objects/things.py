"""Chair, table, mug, lamp, teapot, house and castle."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual, vary
from sjc_engine.toybox.training.shapes import Builder, rotation

CORNERS = tuple((x, z) for x in (-1, 1) for z in (-1, 1))
GLASS = (0.60, 0.80, 0.95)


def chair(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wood = usual(rng, COLORS["brown"], 0.3)
    width, leg, back = rng.uniform(0.38, 0.46), rng.uniform(0.42, 0.52), rng.uniform(0.42, 0.54)
    toy.box((0, 0, 0), (width, 0.06, width), wood)
    for x, z in CORNERS:
        toy.box((x * (width - 0.06), -leg, z * (width - 0.06)), (0.055, leg, 0.055), wood * 0.7)
    toy.box((width - 0.05, back, 0), (0.05, back, width), wood * 0.9)
    return name


def table(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wood = usual(rng, COLORS["brown"], 0.3)
    height = rng.uniform(0.30, 0.38)
    if rng.random() < 0.4:
        toy.cone((0, height, 0), 0.05, 0.75, 0.75, wood)
        toy.cone((0, 0, 0), height, 0.09, 0.09, wood * 0.7)
        toy.cone((0, -height, 0), 0.04, 0.35, 0.30, wood * 0.7)
    else:
        width, depth = rng.uniform(0.65, 0.78), rng.uniform(0.42, 0.52)
        toy.box((0, height, 0), (depth, 0.05, width), wood)
        for x, z in CORNERS:
            foot = (x * (depth - 0.07), 0, z * (width - 0.07))
            toy.box(foot, (0.055, height, 0.055), wood * 0.7)
    return name


def mug(toy: Builder, rng: np.random.Generator) -> str | None:
    name, clay = pick(rng)
    height, radius = rng.uniform(0.40, 0.48), rng.uniform(0.35, 0.40)
    toy.cone((0, 0, 0), height, radius, radius, clay)
    toy.cone((0, height, 0), 0.012, radius * 0.86, radius * 0.86, (0.25, 0.13, 0.06))
    _handle(toy, (0, 0, radius), (0.30, 0.26), 0.065, clay)
    return name


def lamp(toy: Builder, rng: np.random.Generator) -> str | None:
    name, shade = usual(rng, (0.96, 0.90, 0.72), 0.3)
    height, half = rng.uniform(0.42, 0.52), rng.uniform(0.20, 0.27)
    toy.cone((0, -height, 0), 0.04, 0.30, 0.27, shade * 0.5)
    toy.cone((0, 0, 0), height, 0.06, 0.05, shade * 0.5)
    toy.cone((0, height + 0.1, 0), half, rng.uniform(0.42, 0.50), rng.uniform(0.22, 0.30), shade)
    return name


def teapot(toy: Builder, rng: np.random.Generator) -> str | None:
    """The spout points to the front."""
    name, clay = usual(rng, COLORS["white"], 0.3)
    height = rng.uniform(0.36, 0.42)
    toy.ellipsoid((0, 0, 0), (0.48, height, 0.48), clay)
    toy.cone((0, -height * 0.88, 0), 0.05, 0.26, 0.30, clay * 0.85)
    toy.cone((0, height * 0.92, 0), 0.04, 0.24, 0.20, clay * 0.85)
    toy.ellipsoid((0, height + 0.10, 0), 0.08, clay * 0.7)
    toy.rod((-0.40, -0.06, 0), (-0.66, 0.12, 0), 0.13, 0.08, clay)
    toy.rod((-0.66, 0.12, 0), (-0.78, 0.32, 0), 0.08, 0.05, clay)
    _handle(toy, (0.44, 0, 0), (0.26, 0.30), 0.06, clay * 0.85)
    return name


def house(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wall = usual(rng, (0.92, 0.86, 0.72), 0.3)
    roof = vary(rng, (0.55, 0.18, 0.12))
    width, height, depth = rng.uniform(0.43, 0.49), rng.uniform(0.29, 0.35), rng.uniform(0.50, 0.58)
    slope = rng.uniform(0.62, 0.72)
    toy.box((0, 0, 0), (width, height, depth), wall)
    half = (width + 0.1) / math.cos(slope) / 2
    for side in (-1, 1):
        center = (side * half * math.cos(slope), height + (width + 0.02) * math.tan(slope) / 2, 0)
        toy.box(center, (half * 1.05, 0.04, depth + 0.08), roof, rotation("z", -side * slope))
    rise = width * math.tan(slope)
    for k in range(6):  # the gable, in slices
        t = (k + 0.5) / 6
        toy.box((0, height + t * rise, 0), (width * (1 - t), rise / 12, depth * 0.98), wall)
    toy.box((-width, -height * 0.35, 0), (0.02, height * 0.62, 0.11), (0.35, 0.20, 0.10))
    for side in (-1, 1):
        toy.box((-width, height * 0.2, side * 0.32), (0.015, 0.09, 0.09), GLASS)
        for x in (-0.25, 0.25):
            toy.box((x, 0, side * depth), (0.09, 0.09, 0.015), GLASS)
    if rng.random() < 0.6:
        toy.box((0.2, height + rise * 0.8, 0.25), (0.07, 0.20, 0.07), (0.50, 0.25, 0.20))
    return name


def castle(toy: Builder, rng: np.random.Generator) -> str | None:
    """Four round towers around a keep; the colour named is the roofs'."""
    name, roof = usual(rng, COLORS["blue"], 0.3)
    stone = vary(rng, (0.70, 0.68, 0.64))
    width, height = rng.uniform(0.40, 0.46), rng.uniform(0.24, 0.30)
    tower = rng.uniform(0.42, 0.50)
    toy.box((0, 0, 0), (width, height, width), stone * 0.9)
    toy.box((0, height, 0), (width * 0.55, 0.30, width * 0.55), stone)
    toy.cone((0, height + 0.45, 0), 0.16, width * 0.66, 0.02, roof)
    for x, z in CORNERS:
        toy.cone((x * width, tower - height, z * width), tower, 0.16, 0.15, stone)
        toy.cone((x * width, 2 * tower - height + 0.14, z * width), 0.15, 0.20, 0.01, roof)
    toy.box((-width, -height * 0.3, 0), (0.03, height * 0.7, 0.13), (0.30, 0.18, 0.10))
    return name


def _handle(
    toy: Builder,
    center: tuple[float, float, float],
    size: tuple[float, float],
    thickness: float,
    color: np.ndarray,
) -> None:
    """Half a ring of rods, bulging away from the y axis through the origin."""
    height, bulge = size
    at = np.array(center)
    out = at / np.linalg.norm(at)
    turn = np.linspace(-1.35, 1.35, 7)
    points = [at + bulge * math.cos(a) * out + (0, height * math.sin(a), 0) for a in turn]
    for start, end in pairwise(points):
        toy.rod(start, end, thickness, thickness, color)
