"""Duck, giraffe, pig, fish, snowman and robot: toys with a face."""

from __future__ import annotations

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, INK, pick, usual, vary
from sjc_engine.toybox.training.shapes import BLOTCHES, Builder, Pattern, rotation

SIDES = (-1, 1)


def duck(toy: Builder, rng: np.random.Generator) -> str | None:
    names = ("white", "blue", "green", "pink", "orange", "purple", "red", "black")
    name, skin = usual(rng, COLORS["yellow"], 0.6, names)
    beak = vary(rng, (0.95, 0.45, 0.05), 0.02)
    toy.ellipsoid((0, 0, 0), (0.62, 0.42, 0.45), skin)
    toy.ellipsoid((0.5, 0.18, 0), (0.26, 0.16, 0.24), skin, rotation("z", 0.6))
    head, radius = rng.uniform(0.50, 0.58), rng.uniform(0.28, 0.32)
    toy.ellipsoid((-0.42, head, 0), radius, skin)
    toy.rod((-0.35, 0.1, 0), (-0.42, head, 0), 0.24, 0.20, skin)
    toy.ellipsoid((-0.50 - radius, head - 0.05, 0), (0.17, 0.065, 0.14), beak)
    for side in SIDES:
        eye = (-0.42 - radius * 0.72, head + 0.1, side * radius * 0.55)
        toy.ellipsoid(eye, 0.06, INK)
        toy.ellipsoid((0.1, 0.08, side * 0.4), (0.36, 0.20, 0.10), skin * 0.92)
    return name or "yellow"


def giraffe(toy: Builder, rng: np.random.Generator) -> str | None:
    coat, spots = vary(rng, (0.93, 0.74, 0.36), 0.02), vary(rng, (0.50, 0.27, 0.10), 0.02)
    blotches = Pattern(BLOTCHES, spots, rng.uniform(9, 11))

    def spotted(start: tuple, end: tuple, thick: float, thin: float) -> None:
        toy.rod(start, end, thick, thin, coat, blotches)

    toy.ellipsoid((0, 0, 0), (0.46, 0.25, 0.23), coat, None, blotches)
    leg = rng.uniform(0.68, 0.76)
    for x in (-0.28, 0.28):
        for z in (-0.13, 0.13):
            spotted((x, -0.05, z), (x, -leg, z), 0.085, 0.065)
            toy.cone((x, -leg, z), 0.04, 0.075, 0.075, (0.20, 0.12, 0.08))
    x, y = -0.62 + rng.uniform(-0.03, 0.03), rng.uniform(0.88, 0.97)
    spotted((-0.30, 0.05, 0), (x, y, 0), 0.17, 0.095)
    toy.ellipsoid((x - 0.10, y + 0.02, 0), (0.21, 0.11, 0.11), coat, rotation("z", 0.35))
    toy.ellipsoid((x - 0.24, y - 0.05, 0), (0.09, 0.075, 0.085), coat * 0.8)
    for side in SIDES:
        horn = (x + 0.02, y + 0.2, side * 0.06)
        toy.rod((x, y + 0.08, side * 0.04), horn, 0.025, 0.028, spots * 0.7)
        toy.ellipsoid((x + 0.05, y + 0.08, side * 0.13), (0.03, 0.04, 0.08), coat * 0.9)
        toy.ellipsoid((x - 0.14, y + 0.05, side * 0.09), 0.028, INK)
    toy.rod((0.44, 0.05, 0), (0.54, -0.32, 0), 0.035, 0.035, spots)
    return None


def pig(toy: Builder, rng: np.random.Generator) -> str | None:
    name, skin = usual(rng, COLORS["pink"], 0.6)
    toy.ellipsoid((0.05, 0, 0), (0.58, 0.40, 0.40), skin)
    toy.ellipsoid((-0.52, 0.14, 0), 0.29, skin)
    toy.cone((-0.82, 0.10, 0), 0.06, 0.13, 0.13, skin * 0.85, rotation("z", np.pi / 2))
    for side in SIDES:
        toy.ellipsoid((-0.89, 0.10, side * 0.05), (0.02, 0.035, 0.025), INK)
        toy.ellipsoid((-0.72, 0.26, side * 0.15), 0.045, INK)
        toy.ellipsoid((-0.48, 0.42, side * 0.17), (0.06, 0.12, 0.08), skin * 0.85)
        for x in (-0.28, 0.36):
            toy.cone((x, -0.42, side * 0.2), 0.16, 0.09, 0.11, skin * 0.9)
    toy.ellipsoid((0.66, 0.12, 0), (0.10, 0.05, 0.05), skin * 0.85)
    return name or "pink"


def fish(toy: Builder, rng: np.random.Generator) -> str | None:
    name, skin = usual(rng, COLORS["orange"], 0.4)
    toy.ellipsoid((0, 0, 0), (0.62, rng.uniform(0.32, 0.38), 0.20), skin)
    for side in SIDES:
        tail = rotation("z", side * 0.8)
        toy.ellipsoid((0.74, side * 0.16, 0), (0.26, 0.11, 0.05), skin * 0.8, tail)
        toy.ellipsoid((-0.40, 0.10, side * 0.14), 0.06, (0.95, 0.95, 0.95))
        toy.ellipsoid((-0.43, 0.10, side * 0.18), 0.035, INK)
        toy.ellipsoid((0.0, -0.05, side * 0.22), (0.16, 0.08, 0.03), skin * 0.8)
    toy.ellipsoid((0.08, 0.36, 0), (0.26, 0.12, 0.05), skin * 0.8, rotation("z", -0.2))
    return name or "orange"


def snowman(toy: Builder, rng: np.random.Generator) -> str | None:
    """The colour named is the scarf's."""
    name, scarf = pick(rng, ("red", "blue", "green", "purple", "orange"))
    snow = vary(rng, (0.95, 0.96, 0.98), 0.01)
    for y, radius in ((0.0, 0.45), (0.55, 0.33), (1.0, 0.24)):
        toy.ellipsoid((0, y, 0), radius, snow)
    toy.rod((-0.20, 1.0, 0), (-0.48, 0.98, 0), 0.06, 0.01, (0.96, 0.50, 0.10))
    for side in SIDES:
        toy.ellipsoid((-0.19, 1.1, side * 0.10), 0.04, INK)
        toy.rod((0, 0.6, side * 0.28), (-0.05, 0.8, side * 0.72), 0.04, 0.03, (0.35, 0.20, 0.10))
    for y in (0.45, 0.62, 0.76):
        toy.ellipsoid((-0.33, y, 0), 0.04, INK)
    toy.cone((0, 0.79, 0), 0.06, 0.25, 0.25, scarf)
    if rng.random() < 0.7:
        toy.cone((0, 1.20, 0), 0.02, 0.28, 0.28, (0.08, 0.08, 0.08))
        toy.cone((0, 1.35, 0), 0.15, 0.18, 0.18, (0.08, 0.08, 0.08))
    return name


def robot(toy: Builder, rng: np.random.Generator) -> str | None:
    name, steel = usual(rng, (0.62, 0.65, 0.70), 0.4)
    toy.box((0, 0, 0), (0.22, 0.34, 0.30), steel)
    toy.box((0, 0.56, 0), (0.19, 0.17, 0.22), steel * 0.9)
    toy.box((-0.20, 0.02, 0), (0.04, 0.14, 0.18), vary(rng, (0.20, 0.22, 0.28)))
    toy.rod((0, 0.70, 0), (0, 0.90, 0), 0.025, 0.025, (0.3, 0.3, 0.3))
    toy.ellipsoid((0, 0.92, 0), 0.06, (0.90, 0.15, 0.10))
    for side in SIDES:
        toy.ellipsoid((-0.19, 0.60, side * 0.10), 0.055, (1.0, 0.90, 0.30))
        toy.rod((0, 0.22, side * 0.34), (-0.10, -0.22, side * 0.42), 0.08, 0.07, steel * 0.8)
        toy.ellipsoid((-0.10, -0.26, side * 0.42), 0.09, (0.25, 0.25, 0.28))
        toy.box((0, -0.52, side * 0.14), (0.09, 0.22, 0.08), steel * 0.8)
        toy.box((-0.05, -0.74, side * 0.14), (0.16, 0.06, 0.11), (0.25, 0.25, 0.28))
    return name
