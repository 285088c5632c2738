"""The colours that captions name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sjc_engine.toybox.captions import COLORS
from sjc_engine.toybox.training.shapes import Array

INK = (0.03, 0.03, 0.03)


def vary(rng: np.random.Generator, color: Sequence[float] | Array, spread: float = 0.03) -> Array:
    """The colour with a little random hue and brightness."""
    shift = rng.normal(0, spread, 3) * 0.7 + rng.normal(0, spread)
    return np.clip(np.asarray(color) + shift, 0, 1)


def pick(rng: np.random.Generator, names: Sequence[str] = tuple(COLORS)) -> tuple[str, Array]:
    """A named colour, uniformly, slightly varied."""
    name = names[int(rng.integers(len(names)))]
    return name, vary(rng, COLORS[name])


def usual(
    rng: np.random.Generator,
    default: Sequence[float],
    chance: float,
    names: Sequence[str] = tuple(COLORS),
) -> tuple[str | None, Array]:
    """The object's own colour with probability `chance`, unnamed; otherwise a named one.

    What has one usual look gets one when a prompt names no colour: the prior's score then
    points to a single object instead of the mean of many.
    """
    if rng.random() < chance:
        return None, vary(rng, default, 0.02)
    return pick(rng, names)
