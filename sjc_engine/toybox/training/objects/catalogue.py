"""Procedural toys of 24 categories: the paper's six first, then 18 more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sjc_engine.toybox.training.objects import animals, food_and_plants, things, vehicles
from sjc_engine.toybox.training.shapes import Builder, Toy

# Adds a random toy's primitives; returns the colour word of `make_toy`
Maker = Callable[[Builder, np.random.Generator], str | None]

MAKERS: dict[str, Maker] = {
    "burger": food_and_plants.burger,
    "duck": animals.duck,
    "ficus": food_and_plants.ficus,
    "tank": vehicles.tank,
    "icecream": food_and_plants.icecream,
    "giraffe": animals.giraffe,
    "chair": things.chair,
    "table": things.table,
    "mug": things.mug,
    "car": vehicles.car,
    "house": things.house,
    "mushroom": food_and_plants.mushroom,
    "snowman": animals.snowman,
    "rocket": vehicles.rocket,
    "lamp": things.lamp,
    "boat": vehicles.boat,
    "castle": things.castle,
    "cactus": food_and_plants.cactus,
    "robot": animals.robot,
    "teapot": things.teapot,
    "tree": food_and_plants.tree,
    "airplane": vehicles.airplane,
    "pig": animals.pig,
    "fish": animals.fish,
}
CATEGORIES = tuple(MAKERS)
PAPER_CATEGORIES = CATEGORIES[:6]


def make_toy(category: str, rng: np.random.Generator) -> tuple[Toy, str | None]:
    """A random toy of the category and the colour word a caption may use (None: its usual look).

    The toy is centred on the origin inside a sphere of radius 0.55 to 0.60.
    """
    builder = Builder()
    color = MAKERS[category](builder, rng)
    return builder.build(rng.uniform(0.55, 0.60)), color
