"""Duck, giraffe, pig, fish, snowman and robot: toys with a face."""

from __future__ import annotations

import math

import numpy as np

from sjc_engine.toybox.training.objects.palette import COLORS, INK, pick, usual, vary
from sjc_engine.toybox.training.shapes import (
    ACROSS,
    ALONG,
    BANDS,
    BLOTCHES,
    RIBS,
    Builder,
    Pattern,
    rotation,
)

SIDES = (-1, 1)


def duck(toy: Builder, rng: np.random.Generator) -> str | None:
    names = ("white", "blue", "green", "pink", "orange", "purple", "red", "black")
    name, skin = usual(rng, COLORS["yellow"], 0.6, names)
    bill = vary(rng, (0.95, 0.45, 0.05), 0.02)
    toy.ellipsoid((0, 0, 0), (0.62, 0.42, 0.43), skin)
    toy.ellipsoid((-0.22, 0.02, 0), (0.42, 0.40, 0.40), skin)
    toy.rod((0.35, 0.08, 0), (0.66, 0.32, 0), 0.27, 0.05, skin)  # the tail
    head, radius = rng.uniform(0.50, 0.58), rng.uniform(0.28, 0.32)
    toy.ellipsoid((-0.42, head, 0), (radius * 1.05, radius, radius * 0.95), skin)
    toy.rod((-0.33, 0.1, 0), (-0.42, head, 0), 0.27, 0.20, skin)
    face = -0.42 - radius
    toy.ellipsoid((face + 0.02, head - 0.04, 0), (0.13, 0.09, 0.12), bill)
    toy.ellipsoid((face - 0.11, head - 0.05, 0), (0.15, 0.042, 0.145), bill, rotation("z", -0.2))
    toy.ellipsoid((face - 0.06, head - 0.11, 0), (0.12, 0.03, 0.11), bill * 0.75)
    for side in SIDES:
        eye = (-0.42 - radius * 0.66, head + 0.10, side * radius * 0.62)
        toy.ellipsoid(eye, 0.075, (0.97, 0.97, 0.97))
        toy.ellipsoid(np.add(eye, (-0.03, 0.005, side * 0.03)), 0.053, INK)
        for k in range(3):  # three rows of feathers
            wing = (0.06 + 0.13 * k, 0.16 - 0.09 * k, side * (0.40 - 0.02 * k))
            half = (0.15 - 0.025 * k, 0.36 - 0.05 * k, 0.075)
            quills = Pattern(BANDS, skin * (0.72 - 0.07 * k), 9)
            toy.ellipsoid(wing, half, skin * (0.94 - 0.07 * k), rotation("z", 1.85), quills)
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
    snout = np.clip(skin * 0.84, 0, 1)
    toy.ellipsoid((0.05, 0, 0), (0.58, 0.41, 0.42), skin)
    toy.ellipsoid((-0.48, 0.13, 0), (0.30, 0.29, 0.30), skin)
    toy.cone((-0.80, 0.08, 0), 0.07, 0.15, 0.13, snout, ALONG)
    for side in SIDES:
        toy.ellipsoid((-0.875, 0.09, side * 0.055), (0.02, 0.045, 0.028), INK)
        toy.ellipsoid((-0.70, 0.25, side * 0.15), 0.055, (0.97, 0.97, 0.97))
        toy.ellipsoid((-0.73, 0.255, side * 0.165), 0.04, INK)
        ear = rotation("x", side * 0.45) @ rotation("z", 0.5)
        toy.rod((-0.42, 0.34, side * 0.15), (-0.56, 0.56, side * 0.27), 0.12, 0.02, skin)
        toy.ellipsoid((-0.53, 0.43, side * 0.22), (0.04, 0.09, 0.055), snout, ear)
        for x in (-0.28, 0.36):
            toy.cone((x, -0.36, side * 0.22), 0.16, 0.10, 0.13, skin)
            toy.cone((x, -0.53, side * 0.22), 0.045, 0.105, 0.10, snout * 0.55)
    toy.box((0.05, 0.405, 0), (0.13, 0.012, 0.022), INK)  # a piggy bank's slot
    for k in range(10):  # the curly tail
        curl = (0.60 + 0.018 * k, 0.14 + 0.06 * math.sin(0.6 * k), 0.06 * math.cos(0.6 * k))
        toy.ellipsoid(curl, 0.035, snout)
    return name or "pink"


def fish(toy: Builder, rng: np.random.Generator) -> str | None:
    name, skin = usual(rng, COLORS["orange"], 0.6)
    high, fin = rng.uniform(0.33, 0.39), skin * 0.9
    white, rays = (0.97, 0.96, 0.93), Pattern(RIBS, skin * 0.6, 44)
    toy.ellipsoid((0, 0, 0), (0.60, high, 0.20), skin)
    for x, half in ((-0.26, 0.08), (0.10, 0.09), (0.42, 0.06)):  # white bands with dark edges
        girth = math.sqrt(1 - (x / 0.60) ** 2)
        for wide, more, color in ((half + 0.02, 0.985, INK), (half, 1.0, white)):
            band = (high * girth * more + 0.012, wide, 0.20 * girth * more + 0.012)
            toy.cone((x, 0, 0), band, 1, 1, color, ALONG)
    toy.ellipsoid((-0.36, 0.01, 0), (0.27, high * 0.77, 0.18), skin)
    toy.rod((0.35, 0, 0), (0.62, 0, 0), 0.13, 0.07, skin)
    for side in SIDES:
        for spread in (0.35, 0.85):
            lobe = (0.60 + 0.28 * np.cos(spread), side * 0.28 * np.sin(spread), 0)
            toy.ellipsoid(lobe, (0.30, 0.11, 0.025), fin, rotation("z", side * spread), rays)
        toy.ellipsoid((-0.44, 0.09, side * 0.145), (0.075, 0.075, 0.04), (0.96, 0.94, 0.88))
        toy.ellipsoid((-0.45, 0.09, side * 0.172), (0.045, 0.045, 0.03), INK)
        gill = rotation("y", side * 0.5) @ rotation("z", 0.5)
        toy.ellipsoid((-0.06, -0.10, side * 0.22), (0.17, 0.085, 0.02), fin, gill, rays)
    toy.ellipsoid((0.05, high + 0.02, 0), (0.34, 0.14, 0.025), fin, rotation("z", -0.22), rays)
    toy.ellipsoid((0.25, -high + 0.04, 0), (0.15, 0.10, 0.022), fin, rotation("z", 0.6), rays)
    toy.ellipsoid((-0.60, -0.05, 0), (0.035, 0.025, 0.07), skin * 0.55)  # the mouth
    return name or "orange"


def snowman(toy: Builder, rng: np.random.Generator) -> str | None:
    name, snow = usual(rng, (0.95, 0.96, 0.98), 0.6)
    scarf, hat = pick(rng, ("red", "blue", "green", "purple"))[1], (0.08, 0.08, 0.09)
    for y, radius in ((0.0, 0.45), (0.55, 0.33), (1.0, 0.24)):
        toy.ellipsoid((0, y, 0), radius, snow)
    toy.rod((-0.20, 1.0, 0), (-0.50, 0.97, 0), 0.06, 0.01, (0.96, 0.50, 0.10))
    twig = (0.35, 0.20, 0.10)
    for side in SIDES:
        toy.ellipsoid((-0.19, 1.1, side * 0.10), 0.04, INK)
        toy.rod((0, 0.6, side * 0.28), (-0.05, 0.8, side * 0.72), 0.035, 0.025, twig)
        for tip in ((-0.03, 0.92, 0.70), (-0.16, 0.84, 0.76)):
            toy.rod((-0.04, 0.74, side * 0.60), np.multiply(tip, (1, 1, side)), 0.02, 0.015, twig)
    for k in range(5):  # a smile
        turn = (k - 2) * 0.28
        coal = (-0.225 * math.cos(turn), 0.90 + 0.03 * abs(k - 2), 0.225 * math.sin(turn))
        toy.ellipsoid(coal, 0.022, INK)
    for y in (0.42, 0.55, 0.68):  # buttons
        toy.ellipsoid((-math.sqrt(0.33**2 - (y - 0.55) ** 2), y, 0), 0.04, INK)
    toy.cone((0, 0.79, 0), 0.06, 0.26, 0.24, scarf)
    toy.box((-0.27, 0.66, 0.14), (0.03, 0.16, 0.07), scarf, rotation("z", 0.15))
    if rng.random() < 0.7:
        toy.cone((0, 1.20, 0), 0.02, 0.30, 0.30, hat)
        toy.cone((0, 1.36, 0), 0.16, 0.18, 0.20, hat)
        toy.cone((0, 1.25, 0), 0.035, 0.187, 0.19, scarf)
    return name


def robot(toy: Builder, rng: np.random.Generator) -> str | None:
    name, steel = usual(rng, (0.62, 0.65, 0.70), 0.4)
    dark, lamp = (0.25, 0.25, 0.28), (1.0, 0.90, 0.30)
    toy.box((0, 0, 0), (0.22, 0.34, 0.30), steel)
    toy.box((0, 0.56, 0), (0.19, 0.17, 0.22), steel * 0.9)
    toy.cone((0, 0.37, 0), 0.04, 0.10, 0.10, dark)
    toy.box((-0.20, 0.02, 0), (0.04, 0.20, 0.20), vary(rng, (0.20, 0.22, 0.28)))
    for k, color in enumerate((COLORS["red"], lamp, COLORS["green"])):
        toy.ellipsoid((-0.24, 0.12, 0.11 * (k - 1)), 0.035, color)
    toy.box((-0.24, -0.08, 0), (0.012, 0.06, 0.14), (0.85, 0.87, 0.82))
    toy.rod((0, 0.70, 0), (0, 0.90, 0), 0.025, 0.025, dark)
    toy.ellipsoid((0, 0.92, 0), 0.06, (0.90, 0.15, 0.10))
    toy.box((-0.19, 0.46, 0), (0.015, 0.03, 0.13), dark, None, Pattern(RIBS, (0.8, 0.8, 0.8), 24))
    joints = Pattern(BANDS, steel * 0.5, 6)
    for side in SIDES:
        toy.cone((-0.19, 0.60, side * 0.10), 0.02, 0.075, 0.075, dark, ALONG)
        toy.ellipsoid((-0.20, 0.60, side * 0.10), 0.055, lamp)
        toy.cone((0, 0.56, side * 0.24), 0.03, 0.07, 0.07, dark, ACROSS)
        toy.ellipsoid((0, 0.22, side * 0.34), 0.10, dark)
        shoulder, hand = (0, 0.22, side * 0.36), (-0.10, -0.22, side * 0.42)
        toy.rod(shoulder, hand, 0.08, 0.07, steel * 0.8, joints)
        toy.ellipsoid((-0.10, -0.26, side * 0.42), 0.09, dark)
        toy.cone((0, -0.52, side * 0.14), 0.22, 0.085, 0.085, steel * 0.8, None, joints)
        toy.box((-0.05, -0.74, side * 0.14), (0.16, 0.06, 0.11), dark)
    return name
