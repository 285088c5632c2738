"""Burger, icecream, mushroom, ficus, cactus and tree."""

from __future__ import annotations

import math

import numpy as np

from sjc_engine.toybox.captions import FLAVOURS
from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual, vary
from sjc_engine.toybox.training.shapes import (
    BLOTCHES,
    RIBS,
    WAFFLE,
    Array,
    Builder,
    Pattern,
    rotation,
)

LEAF = (0.14, 0.46, 0.12)


def burger(toy: Builder, rng: np.random.Generator) -> str | None:
    bun, crust = vary(rng, (0.88, 0.58, 0.24), 0.02), vary(rng, (0.72, 0.38, 0.11), 0.02)
    low = rng.uniform(0.10, 0.13)
    toy.cone((0, low, 0), low * 1.1, 0.88, 1.0, bun)
    y, half = 2 * low, rng.uniform(0.12, 0.15)
    meat = vary(rng, (0.34, 0.17, 0.09), 0.02)
    toy.ellipsoid((0, y + half, 0), (1.06, half * 1.3, 1.06), meat, None, _grain(meat * 0.6, 22))
    y += 2 * half
    cheese = vary(rng, (1.0, 0.72, 0.10), 0.02)
    toy.cone((0, y, 0), 0.03, 0.98, 0.98, cheese)
    for turn in rng.uniform(0, 1.5) + np.arange(4) * math.pi / 2:  # its corners melt over the edge
        corner = _around(y - 0.03, 1.0, turn)
        toy.ellipsoid(corner, (0.22, 0.10, 0.36), cheese, rotation("y", -turn))
    toy.cone((0, y + 0.07, 0), 0.05, 0.96, 0.96, vary(rng, (0.86, 0.16, 0.10), 0.02))
    y += 0.14
    for k in range(18):  # a frill of lettuce
        turn = k * math.pi / 9 + rng.uniform(-0.1, 0.1)
        leaf = vary(rng, (0.42, 0.72, 0.16), 0.03) * rng.uniform(0.8, 1.15)
        tilt = rotation("z", rng.uniform(-0.5, 0.1)) @ rotation("x", (-1) ** k * 0.4)
        edge = _around(y + rng.uniform(-0.03, 0.03), 0.90, turn)
        toy.ellipsoid(edge, (0.21, 0.045, 0.20), leaf, rotation("y", -turn) @ tilt)
    dome = rng.uniform(0.52, 0.60)
    toy.ellipsoid((0, y, 0), (1.0, dome, 1.0), bun)
    toy.ellipsoid((0, y + 0.07, 0), (0.965, dome - 0.045, 0.965), crust)
    for k in range(46):  # sesame, evenly by the golden angle
        turn, rise = k * 2.4 + rng.uniform(-0.2, 0.2), math.asin(0.42 + 0.58 * (k + 0.5) / 46)
        seed = _on_ellipsoid(y + 0.07, (0.97, dome - 0.04, 0.97), turn, rise)
        turned = rotation("y", rng.uniform(0, 3))
        toy.ellipsoid(seed, (0.05, 0.035, 0.032), (0.99, 0.93, 0.76), turned)
    return None


def icecream(toy: Builder, rng: np.random.Generator) -> str | None:
    flavour = list(FLAVOURS)[rng.integers(4)] if rng.random() < 0.6 else "chocolate"
    scoop = vary(rng, FLAVOURS[flavour], 0.02)
    waffle = vary(rng, (0.87, 0.62, 0.30), 0.02)
    depth, radius = rng.uniform(0.52, 0.62), rng.uniform(0.35, 0.39)
    lines = Pattern(WAFFLE, (0.60, 0.36, 0.13), 6.0)
    toy.cone((0, -depth, 0), depth, 0.02, radius * 0.95, waffle, pattern=lines)
    toy.cone((0, -0.04, 0), 0.05, radius * 0.93, radius * 1.02, waffle * 0.9)
    folds = _grain(scoop * 0.88, 60)
    balls = [(0.14, radius * 1.06)] + [(0.56, radius * 0.84)] * (rng.random() < 0.35)
    for y, ball in balls:
        toy.ellipsoid((0, y, 0), ball, scoop, None, folds)
        for k in range(11):  # the scoop's ragged skirt
            turn, size = k * 0.571 + rng.uniform(-0.1, 0.1), rng.uniform(0.07, 0.12)
            edge = _around(y - 0.10 - rng.uniform(0, 0.05), ball * 0.9, turn)
            toy.ellipsoid(edge, (0.11, size, 0.11), scoop, None, folds)
        y += ball
    for k in range(14):
        turn, rise = k * 2.4, math.asin(0.35 + 0.6 * (k + 0.5) / 14)
        at = _on_ellipsoid(y - ball, (ball, ball, ball), turn, rise)  # sprinkles on the last ball
        tint = COLORS[("red", "yellow", "blue", "green", "white")[k % 5]]
        toy.ellipsoid(at, (0.045, 0.018, 0.018), tint, rotation("y", k) @ rotation("z", k))
    toy.ellipsoid((0, y + 0.03, 0), 0.075, (0.80, 0.06, 0.08))  # a cherry
    toy.rod((0.13, y - 0.18, 0.10), (0.27, y + 0.20, 0.19), 0.05, 0.05, waffle)  # and a wafer
    return flavour


def mushroom(toy: Builder, rng: np.random.Generator) -> str | None:
    names = ("red", "brown", "orange", "purple", "blue", "white")
    name, cap = usual(rng, COLORS["red"], 0.5, names)
    stem = rng.uniform(0.38, 0.48)
    toy.cone((0, 0, 0), stem, rng.uniform(0.18, 0.23), 0.14, (0.95, 0.91, 0.82))
    toy.ellipsoid((0, -stem, 0), (0.24, 0.14, 0.24), (0.90, 0.85, 0.73))
    toy.cone((0, stem * 0.40, 0), 0.07, 0.28, 0.13, (0.97, 0.94, 0.86))  # the ring
    width, height = rng.uniform(0.54, 0.62), rng.uniform(0.28, 0.36)
    toy.ellipsoid((0, stem, 0), (width, height, width), cap)
    gills = Pattern(RIBS, (0.72, 0.62, 0.48), 40)
    toy.cone((0, stem - 0.11, 0), 0.11, width * 0.70, width * 0.99, (0.93, 0.87, 0.76), None, gills)
    if name != "white":
        for i in range(34):
            turn, rise = i * 2.4 + rng.uniform(-0.3, 0.3), math.asin(0.05 + 0.95 * (i + 0.5) / 34)
            spot = _on_ellipsoid(stem, (width, height, width), turn, rise)
            flat = rotation("y", -turn) @ rotation("z", rise - math.pi / 2)
            half = rng.uniform(0.025, 0.065)
            toy.ellipsoid(spot, (half, 0.02, half * 0.8), (0.98, 0.96, 0.90), flat)
    return name


def ficus(toy: Builder, rng: np.random.Generator) -> str | None:
    """The colour, if named, is the pot's."""
    names = ("white", "orange", "gray", "blue", "red", "black")
    name, pot = usual(rng, (0.70, 0.34, 0.18), 0.7, names)
    height, radius = rng.uniform(0.24, 0.29), rng.uniform(0.30, 0.35)
    toy.cone((0, 0, 0), height, radius * 0.70, radius, pot)
    toy.cone((0, height + 0.03, 0), 0.07, radius * 1.12, radius * 1.14, pot)
    toy.cone((0, height + 0.07, 0), 0.04, radius, radius, (0.20, 0.12, 0.07))
    top = height + rng.uniform(0.42, 0.55)
    crown = rng.uniform(0.44, 0.52)
    middle = top + crown * 0.6
    toy.rod((0, height, 0), (0, top + 0.15, 0), 0.065, 0.05, (0.42, 0.27, 0.15))
    toy.ellipsoid((0, middle, 0), crown * 0.72, np.array(LEAF) * 0.55)
    for k in range(64):  # pointed leaves, drooping outwards from the crown
        turn, height = k * 2.4 + rng.uniform(-0.2, 0.2), 1 - 1.85 * (k + 0.5) / 64
        rise, out = math.asin(height), crown * rng.uniform(0.72, 0.88)
        center = _on_ellipsoid(middle, (out, out, out), turn, rise)
        droop = rotation("z", rise * 0.6 - 0.5) @ rotation("x", rng.uniform(-0.5, 0.5))
        leaf = vary(rng, np.array(LEAF) * rng.uniform(0.75, 1.6), 0.02)
        toy.ellipsoid(center, (0.19, 0.025, 0.095), leaf, rotation("y", -turn) @ droop)
    return name


def cactus(toy: Builder, rng: np.random.Generator) -> str | None:
    name, skin = usual(rng, (0.20, 0.50, 0.22), 0.7)
    height, radius = rng.uniform(0.60, 0.72), rng.uniform(0.17, 0.21)
    ribs = Pattern(RIBS, skin * 0.6, 12)
    toy.cone((0, 0, 0), height, radius, radius, skin, pattern=ribs)
    toy.ellipsoid((0, height, 0), radius, skin, None, ribs)
    for side, low in ((1, rng.uniform(-0.20, -0.05)), (-1, rng.uniform(0.0, 0.15))):
        elbow = (0, low, side * rng.uniform(0.42, 0.48))
        tip = (0, low + rng.uniform(0.36, 0.46), elbow[2])
        arm = radius * 0.68
        toy.rod((0, low, 0), elbow, arm, arm, skin, ribs)
        toy.ellipsoid(elbow, arm, skin)
        toy.rod(elbow, tip, arm, arm, skin, ribs)
        toy.ellipsoid(tip, arm, skin, None, ribs)
    toy.cone((0, -height - 0.04, 0), 0.05, 0.42, 0.36, (0.80, 0.65, 0.40))
    return name


def tree(toy: Builder, rng: np.random.Generator) -> str | None:
    """A conifer, so that its outline is not the ficus's."""
    name, needles = usual(rng, (0.10, 0.38, 0.16), 0.7)
    toy.cone((0, -0.75, 0), 0.20, 0.10, 0.09, (0.40, 0.25, 0.14))
    width = rng.uniform(0.50, 0.58)
    for i in range(3):
        radius, green = width * (1 - 0.25 * i), needles * (0.9 + 0.1 * i)
        branches = Pattern(RIBS, green * 0.7, 16 - 2 * i)
        toy.cone((0, -0.32 + 0.36 * i, 0), 0.28, radius, 0.05, green, pattern=branches)
    if rng.random() < 0.3:
        toy.ellipsoid((0, 0.72, 0), 0.07, pick(rng, ("yellow", "red"))[1])
    return name


def _grain(color: Array, frequency: float) -> Pattern:
    return Pattern(BLOTCHES, color, frequency)


def _around(height: float, radius: float, turn: float) -> tuple[float, float, float]:
    """The point at azimuth `turn` (radians) of a circle around the y axis."""
    return radius * math.cos(turn), height, radius * math.sin(turn)


def _on_ellipsoid(
    height: float, half: tuple[float, float, float], turn: float, rise: float
) -> tuple[float, float, float]:
    """The point at azimuth `turn` and elevation `rise` (radians) of an ellipsoid on the y axis."""
    flat, y = math.cos(rise), height + half[1] * math.sin(rise)
    return half[0] * math.cos(turn) * flat, y, half[2] * math.sin(turn) * flat
