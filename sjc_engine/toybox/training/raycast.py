"""A ray-caster for toys: analytic intersections, one directional light and its shadows (Numba).

All in one file: Numba's cache would not see that a function changed which another file holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjc_engine.rendering.kernels import compiled
from sjc_engine.toybox.training.shapes import (
    BANDS,
    BLOTCHES,
    BOX,
    BRICKS,
    CONE,
    ELLIPSOID,
    RIBS,
    WAFFLE,
    Toy,
)

_NEAR, _MISS = 1e-3, 1e9

Array = Any


@dataclass(frozen=True)
class Light:
    """A directional light: unit `direction` to the light, `ambient` and `diffuse` strengths."""

    direction: tuple[float, float, float]
    ambient: float
    diffuse: float
    wrap: float = 0.35  # the share of diffuse light that comes round the object, evenly
    shadow: float = 0.6  # the share of the rest that a shadow takes


class _Shapes(NamedTuple):
    """A toy's arrays as `Toy` has them, and the spheres around its n primitives."""

    kind: Array
    to_local: Array
    radii: Array
    color: Array
    color2: Array
    pattern: Array
    frequency: Array
    center: Array  # (n, 3)
    bound: Array  # (n,)


def raycast(
    toys: Sequence[Toy], origins: Tensor, directions: Tensor, lights: Sequence[Light]
) -> Tensor:
    """Colours seen along rays.

    Args:
        toys: B toys.
        origins: (B, 3) one eye per image, world units.
        directions: (B, R, 3) unit vectors.
        lights: B lights.

    Returns:
        (B, R, 4) RGBA in [0, 1]; alpha is 0 or 1 and the colour of a miss is 0.
    """
    out = np.zeros((*directions.shape[:2], 4), np.float32)
    for image, toy in enumerate(toys):
        light = lights[image]
        strengths = light.ambient, light.diffuse, light.wrap, light.shadow
        sun = np.array([*light.direction, *strengths])
        eye, bundle = origins[image].double().numpy(), directions[image].double().numpy()
        _cast(_shapes(toy), eye, bundle, sun, out[image])
    return torch.from_numpy(out)


def _shapes(toy: Toy) -> _Shapes:
    axes = np.linalg.inv(toy.to_local[:, :, :3])  # columns are a primitive's half axes
    center = -(axes @ toy.to_local[:, :, 3:])[..., 0]
    x, y, z = np.square(axes).sum(1).T
    across = np.maximum(x, z)
    cone = across * toy.radii.max(1) ** 2 + y
    square = np.where(toy.kind == BOX, x + y + z, np.where(toy.kind == CONE, cone, across))
    bound = np.sqrt(np.where(toy.kind == ELLIPSOID, np.maximum(across, y), square))
    return _Shapes(**vars(toy), center=center, bound=bound)


@compiled
def _cast(toy: _Shapes, eye: Array, directions: Array, sun: Array, out: Array) -> None:
    """Fills `out` (R, 4), which is 0, where a ray from `eye` hits."""
    point, local, normal = np.empty(3), np.empty(3), np.empty(3)
    ambient, diffuse, wrap, shadow = sun[3:]
    for ray in range(len(directions)):
        direction = directions[ray]
        slot, distance = _nearest(toy, eye, direction, False)
        if distance == _MISS:
            continue
        matrix = toy.to_local[slot]
        point[:] = eye + distance * direction
        for i in range(3):
            local[i] = _dot(matrix[i, :3], point) + matrix[i, 3]
        _normal(toy, slot, local, normal)
        if _dot(normal, direction) > 0:
            normal *= -1
        shown = _pattern(toy.pattern[slot], toy.frequency[slot], point, local)
        color = toy.color2[slot] if shown else toy.color[slot]
        point += _NEAR * normal
        shade = _nearest(toy, point, sun[:3], True)[1] < _MISS
        cosine = _dot(normal, sun[:3])
        direct = max(cosine, 0.0) * (1 - shadow * shade)
        light = ambient + diffuse * (wrap * (0.5 + 0.5 * cosine) + (1 - wrap) * direct)
        for channel in range(3):
            out[ray, channel] = min(color[channel] * light, 1.0)
        out[ray, 3] = 1


@compiled
def _dot(a: Array, b: Array) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def _nearest(toy: _Shapes, origin: Array, direction: Array, any_hit: bool) -> tuple[int, float]:
    """A ray's first hit, or any: the primitive and the distance, which is _MISS without one."""
    winner, nearest = 0, _MISS
    for slot in range(len(toy.kind)):
        # Most rays pass most primitives by: their bounding spheres say so at once.
        x = toy.center[slot, 0] - origin[0]
        y = toy.center[slot, 1] - origin[1]
        z = toy.center[slot, 2] - origin[2]
        along = x * direction[0] + y * direction[1] + z * direction[2]
        if x * x + y * y + z * z - along * along > toy.bound[slot] ** 2:
            continue
        m = toy.to_local[slot]
        ox, dx = _dot(m[0], origin) + m[0, 3], _dot(m[0], direction)
        oy, dy = _dot(m[1], origin) + m[1, 3], _dot(m[1], direction)
        oz, dz = _dot(m[2], origin) + m[2, 3], _dot(m[2], direction)
        if toy.kind[slot] == ELLIPSOID:
            t = _ellipsoid(ox, oy, oz, dx, dy, dz)
        elif toy.kind[slot] == BOX:
            t = _box(ox, oy, oz, dx, dy, dz)
        else:
            t = _cone(ox, oy, oz, dx, dy, dz, toy.radii[slot, 0], toy.radii[slot, 1])
        if t < nearest:
            winner, nearest = slot, t
            if any_hit:
                break
    return winner, nearest


# Each intersection takes a ray in the primitive's frame and gives the distance to the first hit in
# front of its origin, or _MISS.


@compiled
def _ellipsoid(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    a = dx * dx + dy * dy + dz * dz
    h = ox * dx + oy * dy + oz * dz
    root = h * h - a * (ox * ox + oy * oy + oz * oz - 1)
    if root <= 0:
        return _MISS
    t = (-h - math.sqrt(root)) / a
    return t if t > _NEAR else _MISS


@compiled
def _box(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    enter, leave = -_MISS, _MISS
    for o, d in ((ox, dx), (oy, dy), (oz, dz)):
        safe = d if abs(d) > 1e-8 else 1e-8
        one, other = (-1 - o) / safe, (1 - o) / safe
        enter, leave = max(enter, min(one, other)), min(leave, max(one, other))
    return enter if _NEAR < enter < leave else _MISS


@compiled
def _cone(
    ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, bottom: float, top: float
) -> float:
    """Radius m + n y along the axis, with both caps."""
    m, n = (bottom + top) / 2, (top - bottom) / 2
    at_eye = m + n * oy
    a = dx * dx + dz * dz - (n * dy) ** 2
    a = a if abs(a) > 1e-9 else 1e-9
    h = ox * dx + oz * dz - n * dy * at_eye
    root = h * h - a * (ox * ox + oz * oz - at_eye * at_eye)
    nearest = _MISS
    if root > 0:
        for sign in (-1.0, 1.0):
            t = (-h + sign * math.sqrt(root)) / a
            y = oy + t * dy
            if _NEAR < t < nearest and abs(y) <= 1 and m + n * y >= 0:
                nearest = t
    safe = dy if abs(dy) > 1e-8 else 1e-8
    for cap, radius in ((-1.0, bottom), (1.0, top)):
        t = (cap - oy) / safe
        x, z = ox + t * dx, oz + t * dz
        if _NEAR < t < nearest and x * x + z * z <= radius * radius:
            nearest = t
    return nearest


@compiled
def _normal(toy: _Shapes, slot: int, local: Array, normal: Array) -> None:
    """Sets the unit outward normal (3,) at a point of the primitive's surface."""
    found = local.copy()
    if toy.kind[slot] == BOX:
        face = np.argmax(np.abs(local))
        found[:] = 0
        found[face] = math.copysign(1.0, local[face])
    elif toy.kind[slot] == CONE:
        bottom, top = toy.radii[slot]
        slope = (top - bottom) / 2
        found[1] = -slope * ((bottom + top) / 2 + slope * local[1])
        if abs(local[1]) > 1 - 1e-4:
            found[:] = 0
            found[1] = local[1]
    for i in range(3):
        normal[i] = _dot(toy.to_local[slot, :, i], found)
    normal /= math.sqrt(_dot(normal, normal))


@compiled
def _pattern(pattern: int, frequency: float, point: Array, local: Array) -> bool:
    """Whether the second colour shows."""
    if pattern == BLOTCHES:
        x, y, z = frequency * point[0], frequency * point[1], frequency * point[2]
        wave = math.sin(x + 1.3 * math.sin(0.7 * y)) * math.sin(y + 1.1 * math.sin(0.8 * z))
        return wave + 0.6 * math.sin(z + 0.5 + 1.2 * math.sin(0.6 * x)) > 0.15
    turn = math.atan2(local[2], local[0])
    along, around = frequency * (local[1] + 1) / 2, frequency * turn / math.tau
    if pattern == WAFFLE:
        left = math.sin(frequency * (1.2 * turn + local[1]))
        right = math.sin(frequency * (1.2 * turn - local[1]))
        return min(abs(left), abs(right)) < 0.28
    if pattern == BRICKS:
        return along % 1 < 0.15 or (2 * around + math.floor(along) / 2) % 1 < 0.12
    if pattern == BANDS:
        return along % 1 < 0.2
    return pattern == RIBS and around % 1 < 0.3
