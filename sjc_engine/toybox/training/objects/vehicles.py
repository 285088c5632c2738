"""Tank, car, rocket, boat and airplane."""

from __future__ import annotations

import math

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual
from sjc_engine.toybox.training.shapes import (
    ACROSS,
    ALONG,
    BANDS,
    BLOTCHES,
    Builder,
    Pattern,
    rotation,
)

SIDES = (-1, 1)
RUBBER = (0.10, 0.10, 0.10)
GLASS = (0.22, 0.30, 0.38)
WHEEL = (  # of a car, from the arch to the hub: offset, half width, radius, colour
    (-0.03, 0.07, 0.20, (0.05, 0.05, 0.05)),
    (0.00, 0.07, 0.18, RUBBER),
    (0.03, 0.05, 0.10, (0.75, 0.76, 0.78)),
    (0.05, 0.04, 0.04, (0.30, 0.30, 0.30)),
)


def tank(toy: Builder, rng: np.random.Generator) -> str | None:
    """One usual look: olive hull, dark tracks with light wheels, a thick barrel to the front."""
    names = ("red", "blue", "yellow", "gray", "brown", "white", "orange")
    name, hull = usual(rng, (0.38, 0.42, 0.20), 0.7, names)
    camouflage = Pattern(BLOTCHES, hull * 0.62, rng.uniform(5, 7))
    width = rng.uniform(0.37, 0.42)
    toy.box((0.04, 0.06, 0), (0.66, 0.13, width), hull, None, camouflage)
    toy.box((-0.62, 0.02, 0), (0.22, 0.06, width), hull, rotation("z", 0.62), camouflage)
    grille = Pattern(BANDS, hull * 0.3, 5)
    toy.box((0.58, 0.18, 0), (0.05, 0.16, width * 0.8), hull * 0.8, ALONG, grille)
    links = Pattern(BANDS, (0.32, 0.31, 0.29), 16)
    for side in SIDES:
        z = side * (width + 0.11)
        toy.box((0, -0.10, z), (0.16, 0.56, 0.13), (0.15, 0.15, 0.14), ALONG, links)
        for x in (-0.56, 0.56):  # the tracks' round ends
            toy.cone((x, -0.10, z), 0.13, 0.17, 0.17, (0.15, 0.15, 0.14), ACROSS)
        for k in range(5):
            x, outside = -0.56 + 0.28 * k, side * (width + 0.24)
            toy.cone((x, -0.13, outside), 0.03, 0.13, 0.13, hull * 0.85, ACROSS)
            toy.cone((x, -0.13, outside + side * 0.02), 0.03, 0.06, 0.06, hull * 0.5, ACROSS)
        toy.box((0.02, 0.10, z), (0.68, 0.03, 0.16), hull, None, camouflage)
        toy.ellipsoid((-0.67, 0.09, side * width * 0.8), 0.05, (0.95, 0.92, 0.75))
    turret = rng.uniform(0.34, 0.38)
    toy.cone((0.10, 0.25, 0), 0.06, turret * 0.8, turret * 0.8, hull * 0.7)
    toy.box((0.12, 0.36, 0), (turret, 0.11, turret * 0.72), hull, None, camouflage)
    toy.ellipsoid((-0.18, 0.36, 0), (0.20, 0.12, 0.22), hull, None, camouflage)
    toy.cone((0.20, 0.49, turret * 0.3), 0.035, 0.12, 0.11, hull * 0.65)
    toy.rod((0.36, 0.46, -0.16), (0.56, 0.72, -0.16), 0.018, 0.014, RUBBER)  # the antenna
    muzzle = -0.20 - rng.uniform(0.78, 0.90)
    toy.rod((-0.30, 0.38, 0), (muzzle, 0.43, 0), 0.062, 0.05, hull * 0.75)
    toy.rod((muzzle, 0.43, 0), (muzzle - 0.14, 0.435, 0), 0.08, 0.08, hull * 0.5)
    return name


def car(toy: Builder, rng: np.random.Generator) -> str | None:
    name, paint = usual(rng, COLORS["red"], 0.4)
    length, width = rng.uniform(0.75, 0.83), 0.38
    cabin = rng.uniform(0.04, 0.12)
    toy.box((0, -0.04, 0), (length * 0.97, 0.10, width), paint)
    toy.ellipsoid((-length * 0.45, 0.03, 0), (length * 0.57, 0.16, width), paint)
    toy.ellipsoid((length * 0.60, 0.04, 0), (length * 0.42, 0.17, width), paint)
    toy.ellipsoid((cabin, 0.12, 0), (0.48, 0.24, width * 0.84), GLASS)
    toy.ellipsoid((cabin + 0.03, 0.23, 0), (0.33, 0.15, width * 0.66), paint)
    stripe = COLORS["black" if name in ("white", "yellow") else "white"]
    toy.box((length * 0.86, 0.27, 0), (0.08, 0.015, width * 0.95), paint * 0.8)  # the spoiler
    for side in SIDES:
        toy.box((length * 0.86, 0.20, side * width * 0.7), (0.04, 0.07, 0.02), paint * 0.8)
        toy.ellipsoid((-length * 0.45, 0.034, side * 0.09), (length * 0.57, 0.16, 0.045), stripe)
        for x in (-0.60 * length, 0.62 * length):
            for out, half, size, color in WHEEL:
                toy.cone((x, -0.14, side * (width + out)), half, size, size, color, ACROSS)
        toy.ellipsoid((-length * 0.97, 0.05, side * 0.25), (0.06, 0.05, 0.08), (1.0, 0.97, 0.80))
        toy.box((length, 0.05, side * 0.26), (0.02, 0.04, 0.08), (0.80, 0.05, 0.05))
        toy.box((0.05, 0.06, side * (width + 0.002)), (0.07, 0.012, 0.01), (0.2, 0.2, 0.2))
    toy.box((-length, -0.03, 0), (0.025, 0.05, 0.15), (0.12, 0.12, 0.13))
    for x in (-length, length):
        toy.box((x, -0.11, 0), (0.03, 0.03, width), (0.72, 0.73, 0.75))
    return name


def rocket(toy: Builder, rng: np.random.Generator) -> str | None:
    name, body = usual(rng, (0.93, 0.93, 0.95), 0.5)
    trim = COLORS["white" if name == "red" else "red"]
    height, radius = rng.uniform(0.52, 0.62), rng.uniform(0.16, 0.20)
    toy.cone((0, 0, 0), height, radius, radius, body)
    toy.cone((0, height + 0.10, 0), 0.10, radius, radius * 0.72, trim)
    toy.cone((0, height + 0.30, 0), 0.10, radius * 0.72, 0.02, trim)
    toy.cone((0, -height - 0.06, 0), 0.06, radius * 0.9, radius * 0.6, (0.25, 0.25, 0.25))
    for y in (0.62, -0.35):
        toy.cone((0, height * y, 0), 0.03, radius * 1.03, radius * 1.03, trim)
    for k in range(4):
        turn = k * math.pi / 2
        out = rotation("y", -turn)
        for low, reach in ((-0.04, 0.24), (0.10, 0.18), (0.24, 0.10)):  # a swept fin, in slices
            center = out @ (radius + reach / 2, low - height, 0)
            toy.box(center, (reach / 2 + 0.02, 0.085, 0.025), trim, out)
        toy.box(out @ (radius, 0.06, 0), (0.012, 0.12, 0.03), (0.15, 0.15, 0.18), out)
    toy.ellipsoid((-radius, height * 0.3, 0), (0.03, 0.09, 0.09), (0.20, 0.40, 0.80))
    return name


def boat(toy: Builder, rng: np.random.Generator) -> str | None:
    name, hull = usual(rng, COLORS["blue"], 0.25)
    wood = Pattern(BANDS, (0.55, 0.36, 0.20), 8)
    for k in range(8):  # the hull, in slices that widen upwards
        t = (k + 0.5) / 8
        y, reach, half = 0.30 * t - 0.18, 0.36 + 0.16 * t, 0.10 + 0.19 * t**0.6
        color = np.array((0.96, 0.96, 0.94)) if k == 5 else hull
        toy.box((0.12, y, 0), (reach, 0.021, half), color)
        toy.cone((0.12 - reach, y, 0), 0.021, half, half, color)
        toy.cone((0.02 - reach, y, 0), 0.021, half * 0.72, half * 0.72, color)
        toy.cone((-0.08 - reach, y, 0), 0.021, half * 0.40, half * 0.40, color)
    toy.box((0.10, 0.12, 0), (0.02, 0.23, 0.48), (0.80, 0.58, 0.35), ALONG @ ACROSS, wood)
    toy.box((0.26, 0.19, 0), (0.18, 0.06, 0.15), (0.95, 0.94, 0.92))
    toy.box((0.26, 0.20, 0), (0.12, 0.03, 0.155), GLASS)
    mast = rng.uniform(0.54, 0.64)
    toy.rod((0, 0.1, 0), (0, 0.15 + 2 * mast, 0), 0.028, 0.02, (0.40, 0.25, 0.15))
    toy.rod((0, 0.22, 0), (0.52, 0.22, 0), 0.022, 0.02, (0.40, 0.25, 0.15))
    top = 2 * mast - 0.20
    seams = Pattern(BANDS, (0.86, 0.85, 0.80), 5)
    for side, wide in ((1, 0.30), (-1, 0.26)):  # each leans so that one edge is upright
        lean = math.atan2(wide, top)
        center = (side * (0.015 + wide * math.cos(lean) / 2), 0.32 + top / 2, 0)
        upright = rotation("z", side * lean / 2)
        toy.cone(center, (wide, top / 2, 0.012), 1, 0.01, (0.98, 0.97, 0.94), upright, seams)
    toy.box((0.07, 0.15 + 2 * mast, 0), (0.07, 0.04, 0.012), pick(rng, ("red", "yellow"))[1])
    return name


def airplane(toy: Builder, rng: np.random.Generator) -> str | None:
    name, body = usual(rng, (0.93, 0.94, 0.96), 0.4)
    trim, length = body * 0.6 + np.array((0.30, 0.31, 0.33)), rng.uniform(0.76, 0.84)
    toy.rod((-length * 0.62, 0, 0), (length * 0.35, 0, 0), 0.13, 0.13, body)
    toy.ellipsoid((-length * 0.62, 0, 0), (length * 0.36, 0.13, 0.13), body)
    toy.rod((length * 0.34, 0, 0), (length * 1.02, 0.06, 0), 0.13, 0.04, body)
    toy.box((-length * 0.88, 0.06, 0), (0.045, 0.03, 0.06), GLASS, rotation("z", 0.5))
    fin = rotation("z", -0.5)
    toy.box((length * 0.90, 0.24, 0), (0.10, 0.19, 0.018), trim, fin)
    for side in SIDES:
        back = rotation("y", side * 0.5)
        for reach, chord in ((0.20, 0.17), (0.42, 0.14), (0.64, 0.11), (0.82, 0.08)):
            center = (-0.06 + 0.52 * reach, -0.05 + 0.08 * reach, side * reach)
            toy.box(center, (chord, 0.018, 0.15), trim, back)
        toy.box((length * 0.92, 0.08, side * 0.19), (0.075, 0.015, 0.19), trim, back)
        engine = (-0.02, -0.12, side * 0.36)
        toy.box((0.06, -0.06, side * 0.36), (0.06, 0.045, 0.015), trim)  # the engine's pylon
        toy.cone(engine, 0.14, 0.045, 0.065, (0.80, 0.81, 0.84), ALONG)
        toy.cone(engine, 0.148, 0.035, 0.05, (0.15, 0.15, 0.17), ALONG)
        toy.box((-0.12, 0.035, side * 0.126), (length * 0.6, 0.022, 0.01), GLASS)
        for k in range(11):  # panes between the windows
            x = -0.12 + length * 0.6 * (k / 5 - 1)
            toy.box((x, 0.035, side * 0.13), (0.022, 0.024, 0.01), body)
    return name
