"""Burger, icecream, mushroom, ficus, cactus and tree."""

from __future__ import annotations

import math

import numpy as np

from sjc_engine.toybox.captions import FLAVOURS
from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual, vary
from sjc_engine.toybox.training.shapes import WAFFLE, Builder, Pattern, rotation

LEAF = (0.12, 0.45, 0.12)


def burger(toy: Builder, rng: np.random.Generator) -> str | None:
    bun = vary(rng, (0.82, 0.52, 0.20), 0.02)
    height = rng.uniform(0.18, 0.24)
    toy.cone((0, 0, 0), height / 2, 0.92, 0.98, bun)
    y = height / 2
    fillings = (
        ("patty", (0.32, 0.16, 0.08), rng.uniform(0.13, 0.18), 1.00),
        ("cheese", (0.98, 0.75, 0.10), 0.035, 0.91),
        ("tomato", (0.85, 0.15, 0.10), 0.06, 0.93),
        ("lettuce", (0.35, 0.70, 0.15), 0.06, 1.08),
    )
    for name, color, half, width in fillings:
        y += half
        tint = vary(rng, color, 0.02)
        if name == "cheese":
            toy.box((0, y, 0), (width, half, width), tint, rotation("y", rng.uniform(0, 1.5)))
        elif name == "lettuce":
            toy.ellipsoid((0, y, 0), (width, half * 1.5, width), tint)
        else:
            toy.cone((0, y, 0), half, width, width, tint)
        y += half * 0.9
    dome = rng.uniform(0.50, 0.60)
    toy.ellipsoid((0, y, 0), (1.0, dome, 1.0), bun)
    for _ in range(9):
        turn, rise = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.4)
        seed = _on_ellipsoid(y, (1.0, dome, 1.0), turn, rise)
        toy.ellipsoid(seed, (0.06, 0.035, 0.06), (0.98, 0.92, 0.75))
    return None


def icecream(toy: Builder, rng: np.random.Generator) -> str | None:
    flavour = list(FLAVOURS)[rng.integers(4)] if rng.random() < 0.6 else "chocolate"
    scoop = vary(rng, FLAVOURS[flavour], 0.02)
    waffle = vary(rng, (0.85, 0.60, 0.28), 0.02)
    depth, radius = rng.uniform(0.52, 0.62), rng.uniform(0.35, 0.39)
    lines = Pattern(WAFFLE, (0.62, 0.38, 0.14), 4.0)
    toy.cone((0, -depth, 0), depth, 0.02, radius * 0.95, waffle, pattern=lines)
    toy.ellipsoid((0, 0.12, 0), radius * 1.08, scoop)
    toy.cone((0, 0.0, 0), 0.06, radius * 1.1, radius * 1.15, scoop)
    if rng.random() < 0.35:
        toy.ellipsoid((0, 0.52, 0), radius * 0.82, scoop)
    return flavour


def mushroom(toy: Builder, rng: np.random.Generator) -> str | None:
    names = ("red", "brown", "orange", "purple", "blue", "white")
    name, cap = usual(rng, COLORS["red"], 0.4, names)
    stem = rng.uniform(0.38, 0.48)
    toy.cone((0, 0, 0), stem, rng.uniform(0.20, 0.26), 0.16, (0.93, 0.90, 0.82))
    width, height = rng.uniform(0.52, 0.62), rng.uniform(0.32, 0.42)
    toy.ellipsoid((0, stem, 0), (width, height, width), cap)
    gills = cap * 0.85 + 0.1
    toy.cone((0, stem - height * 0.55, 0), height * 0.45, width * 0.75, width * 0.95, gills)
    if name != "white":
        for i in range(9):
            turn, rise = i * 2.4 + rng.uniform(-0.2, 0.2), rng.uniform(0.25, 1.4)
            spot = _on_ellipsoid(stem, (width, height, width), turn, rise)
            toy.ellipsoid(spot, rng.uniform(0.06, 0.10), (0.97, 0.95, 0.90))
    return name


def ficus(toy: Builder, rng: np.random.Generator) -> str | None:
    """The colour, if named, is the pot's."""
    names = ("white", "orange", "gray", "blue", "red", "black")
    name, pot = usual(rng, (0.62, 0.30, 0.16), 0.7, names)
    height, radius = rng.uniform(0.24, 0.29), rng.uniform(0.30, 0.35)
    toy.cone((0, 0, 0), height, radius * 0.72, radius, pot)
    toy.cone((0, height + 0.03, 0), 0.06, radius * 1.1, radius * 1.1, pot)
    toy.cone((0, height + 0.06, 0), 0.04, radius * 0.95, radius * 0.95, (0.20, 0.12, 0.07))
    top = height + rng.uniform(0.42, 0.55)
    crown = rng.uniform(0.44, 0.52)
    toy.rod((0, height, 0), (0, top + 0.15, 0), 0.075, 0.06, (0.40, 0.25, 0.14))
    for i in range(14):
        turn, rise = i * 2.4 + rng.uniform(-0.3, 0.3), rng.uniform(-0.6, 1.3)
        out = crown * rng.uniform(0.55, 0.80)
        center = _on_ellipsoid(top + crown * 0.6, (out, out, out), turn, rise)
        half = (rng.uniform(0.18, 0.24), rng.uniform(0.15, 0.20), rng.uniform(0.18, 0.24))
        toy.ellipsoid(center, half, vary(rng, np.array(LEAF) * rng.uniform(0.8, 1.5)))
    toy.ellipsoid((0, top + crown * 0.6, 0), crown * 0.75, np.array(LEAF) * 0.8)
    return name


def cactus(toy: Builder, rng: np.random.Generator) -> str | None:
    name, skin = usual(rng, (0.20, 0.50, 0.22), 0.7)
    height, radius = rng.uniform(0.60, 0.72), rng.uniform(0.17, 0.21)
    toy.cone((0, 0, 0), height, radius, radius, skin)
    toy.ellipsoid((0, height, 0), radius, skin)
    for side, low in ((1, rng.uniform(-0.20, -0.05)), (-1, rng.uniform(0.0, 0.15))):
        elbow = (0, low, side * rng.uniform(0.42, 0.48))
        tip = (0, low + rng.uniform(0.36, 0.46), elbow[2])
        arm = radius * 0.68
        toy.rod((0, low, 0), elbow, arm, arm, skin)
        toy.ellipsoid(elbow, arm, skin)
        toy.rod(elbow, tip, arm, arm, skin)
        toy.ellipsoid(tip, arm, skin)
    toy.cone((0, -height - 0.04, 0), 0.05, 0.42, 0.36, (0.80, 0.65, 0.40))
    return name


def tree(toy: Builder, rng: np.random.Generator) -> str | None:
    """A conifer, so that its outline is not the ficus's."""
    name, needles = usual(rng, (0.10, 0.38, 0.16), 0.7)
    toy.cone((0, -0.75, 0), 0.20, 0.10, 0.09, (0.40, 0.25, 0.14))
    width = rng.uniform(0.50, 0.58)
    for i in range(3):
        radius = width * (1 - 0.25 * i)
        toy.cone((0, -0.32 + 0.36 * i, 0), 0.28, radius, 0.05, needles * (0.9 + 0.1 * i))
    if rng.random() < 0.3:
        toy.ellipsoid((0, 0.72, 0), 0.07, pick(rng, ("yellow", "red"))[1])
    return name


def _on_ellipsoid(
    height: float, half: tuple[float, float, float], turn: float, rise: float
) -> tuple[float, float, float]:
    """The point at azimuth `turn` and elevation `rise` (radians) of an ellipsoid on the y axis."""
    flat, y = math.cos(rise), height + half[1] * math.sin(rise)
    return half[0] * math.cos(turn) * flat, y, half[2] * math.sin(turn) * flat
