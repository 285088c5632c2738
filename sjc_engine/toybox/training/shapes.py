"""Toys as lists of coloured primitives: ellipsoids, boxes and capped cones.

World axes: +Y up, a toy's front looks along -X, so its left side faces +Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partialmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]

ELLIPSOID, BOX, CONE = 0, 1, 2
PLAIN, BLOTCHES, WAFFLE, BANDS, RIBS, BRICKS = range(6)


@dataclass(frozen=True)
class Toy:
    """n primitives, ready to be ray-cast.

    `kind` (n,) in {ELLIPSOID, BOX, CONE}; `to_local` (n, 3, 4) maps world points into the
    primitive's own frame, where an ellipsoid is the unit sphere, a box is [-1, 1]^3 and a cone
    runs along y in [-1, 1] with radius `radii` (n, 2) at its bottom and top; `color` and
    `color2` (n, 3) in [0, 1]; `pattern` (n,) mixes the two with spatial `frequency` (n,).
    """

    kind: NDArray[np.int64]
    to_local: Array
    radii: Array
    color: Array
    color2: Array
    pattern: NDArray[np.int64]
    frequency: Array


@dataclass(frozen=True)
class Pattern:
    """A second colour on a primitive: where it shows, and how often it comes again."""

    kind: int  # BLOTCHES; WAFFLE or BRICKS around the local y axis; BANDS along it, RIBS down it
    color: ArrayLike
    frequency: float  # BANDS, BRICKS: rows from end to end; RIBS: ribs in a whole turn


@dataclass(frozen=True)
class _Primitive:
    kind: int
    center: Array
    half: Array  # half extents along the local axes
    rotation: Array  # local to world
    radii: tuple[float, float]
    color: ArrayLike
    pattern: Pattern

    def outline(self) -> Array:
        """Points (k, 3) whose bounding sphere is that of the primitive, closely enough."""
        if self.kind == ELLIPSOID:
            local = np.concatenate([np.eye(3), -np.eye(3)])
        elif self.kind == BOX:
            local = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], float)
        else:
            turn = np.tile(np.linspace(0, 2 * math.pi, 8, endpoint=False), 2)
            y, r = np.repeat((-1.0, 1.0), 8), np.repeat(self.radii, 8)
            local = np.stack([r * np.cos(turn), y, r * np.sin(turn)], 1)
        return self.center + (local * self.half) @ self.rotation.T


def rotation(axis: str, radians: float) -> Array:
    """Right-handed rotation (3, 3) about the x, y or z axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    c, s = math.cos(radians), math.sin(radians)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


ALONG, ACROSS = rotation("z", math.pi / 2), rotation("x", math.pi / 2)  # turn y to x, and to z


class Builder:
    """Collects primitives in any units; `build` centres and scales them."""

    def __init__(self) -> None:
        self._primitives: list[_Primitive] = []

    def _add(
        self,
        kind: int,
        center: ArrayLike,
        half: ArrayLike,
        color: ArrayLike,
        turn: Array | None = None,
        pattern: Pattern | None = None,
        radii: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """`half` is one radius or three half axes; `turn` rotates them."""
        at, axes = np.asarray(center, float), np.broadcast_to(np.asarray(half, float), (3,))
        turn = np.eye(3) if turn is None else turn
        pattern = pattern or Pattern(PLAIN, color, 0.0)
        self._primitives.append(_Primitive(kind, at, axes, turn, radii, color, pattern))

    ellipsoid = partialmethod(_add, ELLIPSOID)
    box = partialmethod(_add, BOX)

    def cone(
        self,
        center: ArrayLike,
        half: float | tuple[float, float, float],
        bottom: float,
        top: float,
        color: ArrayLike,
        turn: Array | None = None,
        pattern: Pattern | None = None,
    ) -> None:
        """A capped cone along its local y axis; equal radii make a cylinder.

        `half` is half its height, or three half axes, by which its radii are multiplied as well.
        """
        axes = (1.0, half, 1.0) if isinstance(half, (int, float)) else half
        self._add(CONE, center, axes, color, turn, pattern, (bottom, top))

    def rod(
        self,
        start: ArrayLike,
        end: ArrayLike,
        start_radius: float,
        end_radius: float,
        color: ArrayLike,
        pattern: Pattern | None = None,
    ) -> None:
        """A capped cone from one point to another."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        length = float(np.linalg.norm(b - a))
        y = (b - a) / length
        x = np.cross(y, (1.0, 0.0, 0.0) if abs(y[0]) < 0.9 else (0.0, 0.0, 1.0))
        x /= np.linalg.norm(x)
        turn = np.stack([x, y, np.cross(x, y)], 1)
        self.cone((a + b) / 2, length / 2, start_radius, end_radius, color, turn, pattern)

    def build(self, radius: float) -> Toy:
        """The toy, its bounding box centred on the origin, inside a sphere of `radius`."""
        outline = np.concatenate([p.outline() for p in self._primitives])
        center = (outline.min(0) + outline.max(0)) / 2
        scale = radius / np.linalg.norm(outline - center, axis=1).max()
        to_local = np.zeros((len(self._primitives), 3, 4))
        for row, p in zip(to_local, self._primitives, strict=True):
            row[:, :3] = np.diag(1 / (p.half * scale)) @ p.rotation.T
            row[:, 3] = -row[:, :3] @ ((p.center - center) * scale)
        each = self._primitives
        # Blotches live in world units, so their frequency follows the toy's scale.
        unit = np.array([scale if p.pattern.kind == BLOTCHES else 1 for p in each])
        return Toy(
            kind=np.array([p.kind for p in each], np.int64),
            to_local=to_local,
            radii=np.array([p.radii for p in each]),
            color=np.array([p.color for p in each], float).clip(0, 1),
            color2=np.array([p.pattern.color for p in each], float).clip(0, 1),
            pattern=np.array([p.pattern.kind for p in each], np.int64),
            frequency=np.array([p.pattern.frequency for p in each]) / unit,
        )
