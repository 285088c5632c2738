"""Procedural toys of 24 categories: the paper's six first, then 18 more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sjc_engine.toybox.training.objects import animals, food_and_plants, things, vehicles
from sjc_engine.toybox.training.shapes import Builder, Toy

# Adds a random toy's primitives; returns the colour word of `make_toy`
Maker = Callable[[Builder, np.random.Generator], str | None]

_MAKERS: tuple[Maker, ...] = (
    food_and_plants.burger, animals.duck, food_and_plants.ficus, vehicles.tank,
    food_and_plants.icecream, animals.giraffe, things.chair, things.table, things.mug,
    vehicles.car, things.house, food_and_plants.mushroom, animals.snowman, vehicles.rocket,
    things.lamp, vehicles.boat, things.castle, food_and_plants.cactus, animals.robot,
    things.teapot, food_and_plants.tree, vehicles.airplane, animals.pig, animals.fish,
)  # fmt: skip
MAKERS = {maker.__name__: maker for maker in _MAKERS}
CATEGORIES = tuple(MAKERS)
PAPER_CATEGORIES = CATEGORIES[:6]


def make_toy(category: str, rng: np.random.Generator) -> tuple[Toy, str | None]:
    """A random toy of the category and the colour word a caption may use (None: its usual look).

    The toy is centred on the origin inside a sphere of radius 0.55 to 0.60.
    """
    builder = Builder()
    color = MAKERS[category](builder, rng)
    return builder.build(rng.uniform(0.55, 0.60)), color
