"""Tank, car, rocket, boat and airplane."""

from __future__ import annotations

import math

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, pick, usual
from sjc_engine.toybox.training.shapes import Builder, rotation

SIDES = (-1, 1)
ACROSS = rotation("x", math.pi / 2)  # turns a cone's axis from y to z
RUBBER = (0.10, 0.10, 0.10)


def tank(toy: Builder, rng: np.random.Generator) -> str | None:
    """One usual look: olive hull, dark tracks with light wheels, a thick barrel to the front."""
    names = ("red", "blue", "yellow", "gray", "brown", "white", "orange")
    name, hull = usual(rng, (0.33, 0.43, 0.17), 0.7, names)
    width = rng.uniform(0.37, 0.42)
    toy.box((0, 0.02, 0), (0.76, 0.15, width), hull)
    toy.box((0.05, 0.19, 0), (0.64, 0.06, width * 0.95), hull * 1.08)
    for side in SIDES:
        z = side * (width + 0.11)
        toy.box((0, -0.10, z), (0.56, 0.17, 0.13), (0.16, 0.16, 0.15))
        for x in (-0.56, 0.56):  # the tracks' round ends
            toy.cone((x, -0.10, z), 0.13, 0.17, 0.17, (0.16, 0.16, 0.15), ACROSS)
        for k in range(4):
            wheel = (-0.54 + 0.36 * k, -0.12, side * (width + 0.23))
            toy.cone(wheel, 0.025, 0.12, 0.12, (0.45, 0.45, 0.42), ACROSS)
        toy.box((0, 0.10, z), (0.70, 0.03, 0.15), hull * 0.9)
    turret = rng.uniform(0.34, 0.38)
    toy.cone((0.10, 0.37, 0), 0.14, turret, turret * 0.82, hull * 0.95)
    toy.cone((0.16, 0.54, 0), 0.04, 0.13, 0.12, hull * 0.6)
    muzzle = -0.20 - rng.uniform(0.78, 0.90)
    toy.rod((-0.10, 0.38, 0), (muzzle, 0.41, 0), 0.085, 0.075, hull * 0.65)
    toy.rod((muzzle, 0.41, 0), (muzzle - 0.12, 0.415, 0), 0.105, 0.105, hull * 0.5)
    return name


def car(toy: Builder, rng: np.random.Generator) -> str | None:
    name, paint = usual(rng, COLORS["red"], 0.25)
    length, width = rng.uniform(0.75, 0.83), 0.38
    cabin = rng.uniform(0.02, 0.10)
    toy.box((0, 0, 0), (length, 0.16, width), paint)
    toy.box((cabin, 0.28, 0), (0.40, 0.15, width * 0.88), paint)
    toy.box((cabin, 0.28, 0), (0.41, 0.10, width * 0.80), (0.15, 0.20, 0.28))
    toy.box((cabin, 0.28, 0), (0.33, 0.10, width * 0.90), (0.15, 0.20, 0.28))
    for side in SIDES:
        for x in (-0.6 * length, 0.6 * length):
            toy.cone((x, -0.14, side * width), 0.07, 0.18, 0.18, RUBBER, ACROSS)
            toy.cone((x, -0.14, side * (width + 0.03)), 0.06, 0.08, 0.08, (0.7, 0.7, 0.7), ACROSS)
        toy.ellipsoid((-length, 0.04, side * 0.25), 0.07, (1.0, 0.95, 0.60))
        toy.box((length, 0.04, side * 0.26), (0.02, 0.05, 0.07), (0.80, 0.05, 0.05))
    return name


def rocket(toy: Builder, rng: np.random.Generator) -> str | None:
    """The colour named is that of nose and fins."""
    names = ("red", "blue", "green", "orange", "purple", "black", "yellow")
    name, trim = usual(rng, COLORS["red"], 0.3, names)
    body = (0.93, 0.93, 0.95)
    height, radius = rng.uniform(0.52, 0.62), rng.uniform(0.19, 0.23)
    toy.cone((0, 0, 0), height, radius, radius, body)
    toy.cone((0, height + 0.2, 0), 0.2, radius, 0.02, trim)
    toy.cone((0, -height - 0.06, 0), 0.06, radius * 0.6, radius * 0.8, (0.25, 0.25, 0.25))
    toy.cone((0, height * 0.55, 0), 0.04, radius * 1.03, radius * 1.03, trim)
    for k in range(4):
        turn = k * math.pi / 2
        center = ((radius + 0.1) * math.cos(turn), 0.15 - height, (radius + 0.1) * math.sin(turn))
        toy.box(center, (0.14, 0.20, 0.03), trim, rotation("y", -turn) @ rotation("z", 0.35))
    toy.ellipsoid((-radius, height * 0.2, 0), (0.03, 0.09, 0.09), (0.20, 0.40, 0.80))
    return name


def boat(toy: Builder, rng: np.random.Generator) -> str | None:
    name, hull = usual(rng, COLORS["blue"], 0.25)
    toy.box((0.1, 0, 0), (0.48, 0.14, 0.26), hull)
    toy.ellipsoid((-0.38, 0.04, 0), (0.42, 0.18, 0.26), hull)
    toy.box((0.05, 0.13, 0), (0.48, 0.02, 0.24), (0.70, 0.50, 0.30))
    mast = rng.uniform(0.54, 0.64)
    toy.rod((0, 0.1, 0), (0, 0.15 + 2 * mast, 0), 0.035, 0.03, (0.40, 0.25, 0.15))
    for front, reach in ((1, 0.42), (-1, -0.32)):  # two triangular sails, in slices
        top = (2.0 if front > 0 else 1.6) * mast - 0.2
        for k in range(7):
            t = (k + 0.5) / 7
            x = front * 0.05 + reach * (1 - t) / 2
            half = (abs(reach) * (1 - t) / 2 + 0.01, top / 14, 0.02)
            toy.box((x, 0.28 + t * top, 0), half, (0.96, 0.95, 0.92))
    return name


def airplane(toy: Builder, rng: np.random.Generator) -> str | None:
    name, trim = pick(rng, tuple(n for n in COLORS if n != "white"))
    body = np.array((0.92, 0.93, 0.95))
    length = rng.uniform(0.76, 0.84)
    toy.ellipsoid((0, 0, 0), (length, 0.17, 0.17), body)
    toy.ellipsoid((-length * 0.68, 0.09, 0), (0.14, 0.07, 0.10), (0.15, 0.25, 0.40))
    toy.box((length * 0.86, 0.22, 0), (0.11, 0.17, 0.03), trim, rotation("z", -0.3))
    for side in SIDES:
        wing = rotation("y", side * 0.35)
        toy.box((0.06, -0.03, side * 0.46), (0.17, 0.03, 0.46), trim, wing)
        toy.box((length * 0.86, 0.04, side * 0.18), (0.09, 0.025, 0.20), trim, wing)
        engine = (-0.06, -0.13, side * 0.42)
        toy.cone(engine, 0.15, 0.07, 0.07, (0.4, 0.4, 0.42), rotation("z", math.pi / 2))
    return name
