"""Chair, table, mug, lamp, teapot, house and castle."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual, vary
from sjc_engine.toybox.training.shapes import (
    ACROSS,
    ALONG,
    BANDS,
    BRICKS,
    RIBS,
    Array,
    Builder,
    Pattern,
    rotation,
)

CORNERS = tuple((x, z) for x in (-1, 1) for z in (-1, 1))
GLASS = (0.60, 0.80, 0.95)


def chair(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wood = usual(rng, COLORS["brown"], 0.4)
    width, leg, back = rng.uniform(0.38, 0.46), rng.uniform(0.42, 0.52), rng.uniform(0.42, 0.54)
    toy.box((0, 0, 0), (width, width, 0.045), wood, ACROSS, _planks(wood))
    for x, z in CORNERS:
        toy.box((x * (width - 0.06), -leg, z * (width - 0.06)), (0.05, leg, 0.05), wood * 0.75)
    for z in (-1, 1):
        toy.box((width - 0.05, back, z * (width - 0.05)), (0.05, back, 0.05), wood * 0.9)
        toy.box((0, -leg, z * (width - 0.06)), (width - 0.06, 0.03, 0.025), wood * 0.75)
    for k in range(5):  # bars between two rails
        toy.box((width - 0.05, back, 0.36 * width * (k - 2)), (0.022, back, 0.045), wood * 0.8)
    toy.box((width - 0.05, 2 * back - 0.04, 0), (0.055, 0.09, width), wood)
    toy.box((width - 0.05, back * 0.35, 0), (0.03, 0.04, width), wood * 0.9)
    return name


def table(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wood = usual(rng, COLORS["brown"], 0.4)
    height = rng.uniform(0.30, 0.38)
    if rng.random() < 0.25:
        toy.cone((0, height, 0), 0.04, 0.75, 0.75, wood)
        toy.cone((0, 0, 0), height, 0.09, 0.07, wood * 0.75)
        toy.ellipsoid((0, -0.08, 0), (0.13, 0.14, 0.13), wood * 0.75)
        for turn in np.arange(4) * math.pi / 2:
            foot = (0.36 * math.cos(turn), -height, 0.36 * math.sin(turn))
            toy.rod((0, -height * 0.55, 0), foot, 0.07, 0.05, wood * 0.75)
    else:
        width, depth = rng.uniform(0.65, 0.78), rng.uniform(0.42, 0.52)
        long, wide = depth - 0.07, width - 0.07  # of the frame below
        toy.box((0, height, 0), (depth, width, 0.04), wood, ACROSS, _planks(wood))
        for side in (-1, 1):
            toy.box((side * long, height - 0.09, 0), (0.02, 0.06, wide), wood * 0.8)
            toy.box((0, height - 0.09, side * wide), (long, 0.06, 0.02), wood * 0.8)
        for x, z in CORNERS:
            foot = (x * long, 0, z * wide)
            toy.cone(foot, height, 0.04, 0.06, wood * 0.75)
    return name


def mug(toy: Builder, rng: np.random.Generator) -> str | None:
    name, clay = pick(rng)
    height, radius = rng.uniform(0.40, 0.48), rng.uniform(0.35, 0.40)
    toy.cone((0, 0, 0), height, radius * 0.96, radius, clay)
    toy.cone((0, height, 0), 0.012, radius * 0.93, radius * 0.93, clay * 0.6)  # inside
    toy.cone((0, height, 0), 0.016, radius * 0.84, radius * 0.84, (0.22, 0.11, 0.05))
    toy.cone((0, -height * 0.97, 0), height * 0.05, radius * 0.9, radius * 0.93, clay * 0.8)
    _handle(toy, (0, 0, radius), (0.30, 0.26), 0.06, clay)
    return name


def lamp(toy: Builder, rng: np.random.Generator) -> str | None:
    name, shade = usual(rng, (0.96, 0.90, 0.72), 0.3)
    height, half = rng.uniform(0.42, 0.52), rng.uniform(0.22, 0.28)
    wide, narrow = rng.uniform(0.42, 0.50), rng.uniform(0.22, 0.28)
    base = shade * 0.5
    toy.cone((0, -height, 0), 0.04, 0.28, 0.24, base)
    toy.ellipsoid((0, -height * 0.45, 0), (0.17, 0.24, 0.17), base)
    toy.ellipsoid((0, -height * 0.9, 0), (0.20, 0.07, 0.20), base)
    toy.cone((0, 0, 0), height, 0.06, 0.045, (0.75, 0.62, 0.30))
    pleats = Pattern(RIBS, shade * 0.82, 36)
    top = height + 0.1 + half
    toy.cone((0, height + 0.1, 0), half, wide, narrow, shade, None, pleats)
    toy.cone((0, top, 0), 0.012, narrow * 1.04, narrow * 1.04, base)
    toy.cone((0, top - 2 * half, 0), 0.015, wide * 1.02, wide * 1.02, base)
    toy.cone((0, top + 0.005, 0), 0.012, narrow * 0.88, narrow * 0.88, (1.0, 0.97, 0.80))
    toy.ellipsoid((0, top + 0.05, 0), 0.035, (0.75, 0.62, 0.30))
    return name


def teapot(toy: Builder, rng: np.random.Generator) -> str | None:
    """The spout points to the front."""
    name, clay = usual(rng, COLORS["white"], 0.3)
    height = rng.uniform(0.36, 0.42)
    toy.ellipsoid((0, 0, 0), (0.48, height, 0.48), clay)
    toy.cone((0, -height * 0.92, 0), 0.05, 0.26, 0.28, clay * 0.85)
    toy.cone((0, height * 0.90, 0), 0.03, 0.27, 0.25, clay * 0.8)
    toy.ellipsoid((0, height * 0.92, 0), (0.22, 0.09, 0.22), clay)
    toy.ellipsoid((0, height + 0.12, 0), 0.07, clay * 0.8)
    bends = ((-0.38, -0.14, 0.15), (-0.60, 0.0, 0.11), (-0.70, 0.18, 0.08), (-0.82, 0.34, 0.06))
    for (x, y, thick), (x2, y2, thin) in pairwise(bends):
        toy.rod((x, y, 0), (x2, y2, 0), thick, thin, clay)
        toy.ellipsoid((x2, y2, 0), thin, clay)
    toy.ellipsoid((-0.845, 0.37, 0), (0.02, 0.045, 0.045), (0.12, 0.10, 0.10), rotation("z", -0.9))
    _handle(toy, (0.44, 0, 0), (0.26, 0.30), 0.055, clay * 0.9)
    return name


def house(toy: Builder, rng: np.random.Generator) -> str | None:
    name, wall = usual(rng, (0.92, 0.86, 0.72), 0.4)
    roof = vary(rng, (0.55, 0.20, 0.13))
    width, height, depth = rng.uniform(0.43, 0.49), rng.uniform(0.36, 0.42), rng.uniform(0.48, 0.55)
    slope = rng.uniform(0.62, 0.72)
    boards = Pattern(BANDS, wall * 0.82, 9)
    toy.box((0, 0, 0), (width, height, depth), wall, None, boards)
    toy.box((0, -height - 0.02, 0), (width + 0.03, 0.05, depth + 0.03), (0.50, 0.48, 0.46))
    half = (width + 0.1) / math.cos(slope) / 2
    for side in (-1, 1):
        center = (side * half * math.cos(slope), height + (width + 0.02) * math.tan(slope) / 2, 0)
        lean = rotation("z", -side * slope - math.pi / 2)
        tiles = Pattern(BANDS, roof * 0.65, 8)
        toy.box(center, (0.04, half * 1.05, depth + 0.08), roof, lean, tiles)
    rise = width * math.tan(slope)
    for k in range(12):  # the gable, in slices
        t = (k + 0.5) / 12
        toy.box((0, height + t * rise, 0), (width * (1 - t), rise / 24, depth * 0.98), wall)
    _window(toy, (-width, -height * 0.35, 0), (0, height * 0.62, 0.12), (0.42, 0.22, 0.11))
    toy.ellipsoid((-width - 0.03, -height * 0.35, 0.08), 0.02, (0.9, 0.75, 0.3))
    for side in (-1, 1):
        _window(toy, (-width, height * 0.2, side * 0.33), (0, 0.10, 0.09), GLASS)
        _window(toy, (width, 0, side * 0.25), (0, 0.10, 0.09), GLASS)
        for x in (-0.22, 0.22):
            _window(toy, (x, 0.02, side * depth), (0.09, 0.11, 0), GLASS)
        _window(toy, (0, height + rise * 0.32, side * depth * 0.98), (0.07, 0.07, 0), GLASS)
    if rng.random() < 0.6:
        chimney, bricks = (0.2, height + rise * 0.8, 0.25), Pattern(BRICKS, (0.80, 0.72, 0.66), 6)
        toy.box(chimney, (0.07, 0.20, 0.07), (0.58, 0.27, 0.20), None, bricks)
    return name


def castle(toy: Builder, rng: np.random.Generator) -> str | None:
    """Four round towers around a keep."""
    name, stone = usual(rng, (0.76, 0.70, 0.58), 0.6)
    roof = vary(rng, (0.30, 0.33, 0.42), 0.02)
    mortar, dark = Pattern(BRICKS, stone * 0.72, 9), (0.16, 0.12, 0.10)
    width, height = rng.uniform(0.40, 0.46), rng.uniform(0.24, 0.30)
    tower = rng.uniform(0.42, 0.50)
    toy.box((0, 0, 0), (width, height, width), stone * 0.92, None, Pattern(BRICKS, stone * 0.7, 6))
    toy.box((0, height, 0), (width * 0.55, 0.34, width * 0.55), stone, None, mortar)
    toy.cone((0, height + 0.58, 0), 0.26, width * 0.62, 0.02, roof)
    toy.rod((0, height + 0.80, 0), (0, height + 1.02, 0), 0.02, 0.02, dark)
    toy.box((0.09, height + 0.97, 0), (0.09, 0.05, 0.012), COLORS["red"])
    for k in range(-3, 4):  # battlements on the walls
        for x, z in ((-width, 0.12 * k), (width, 0.12 * k), (0.12 * k, -width), (0.12 * k, width)):
            toy.box((x, height + 0.04, z), (0.04, 0.06, 0.04), stone)
    for x, z in CORNERS:
        y = 2 * tower - height
        toy.cone((x * width, tower - height, z * width), tower, 0.16, 0.15, stone, None, mortar)
        toy.cone((x * width, y - 0.02, z * width), 0.05, 0.17, 0.19, stone * 0.9)
        toy.cone((x * width, y + 0.20, z * width), 0.18, 0.21, 0.01, roof)
        toy.box((x * (width + 0.15), y - 0.24, z * width), (0.012, 0.07, 0.03), dark)
        toy.box((x * width, y - 0.24, z * (width + 0.15)), (0.03, 0.07, 0.012), dark)
    for x in (-width * 0.55, width * 0.55):
        toy.box((x, height + 0.16, 0), (0.012, 0.09, 0.05), dark)
    gate = (0.36, 0.21, 0.11)
    toy.box((-width, -height * 0.4, 0), (0.03, height * 0.6, 0.13), gate)
    toy.cone((-width, height * 0.2, 0), 0.03, 0.13, 0.13, gate, ALONG)
    return name


def _planks(wood: Array) -> Pattern:
    return Pattern(BANDS, wood * 0.72, 5)


def _window(toy: Builder, center: tuple, half: tuple, pane: tuple) -> None:
    """A pane with a white frame in a wall across x or z: across the axis in which `half` is 0."""
    toy.box(center, np.array(half) + 0.03 - 0.015 * (np.array(half) == 0), (0.96, 0.96, 0.95))
    toy.box(center, np.array(half) + 0.025 * (np.array(half) == 0), pane)


def _handle(
    toy: Builder,
    center: tuple[float, float, float],
    size: tuple[float, float],
    thickness: float,
    color: np.ndarray,
) -> None:
    """Half a ring of rods, bulging away from the y axis, whose ends reach into the body."""
    height, bulge = size
    at = np.array(center)
    out = at / np.linalg.norm(at)
    turn = np.linspace(-1.35, 1.35, 7)
    ring = [at + bulge * math.cos(a) * out + (0, height * math.sin(a), 0) for a in turn]
    low, high = (0.6 * at + (0, height * math.sin(a), 0) for a in (turn[0], turn[-1]))
    for start, end in pairwise([low, *ring, high]):
        toy.rod(start, end, thickness, thickness, color)
        toy.ellipsoid(end, thickness, color)  # the joint
