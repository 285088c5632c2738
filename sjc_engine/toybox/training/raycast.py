"""A batched ray-caster for toys: analytic intersections, one directional light and its shadows.

Plain torch, so that the same lines run on a CPU and on a GPU. Images of one batch go through
primitive by primitive: a running nearest hit over (images, rays) stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

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
SHADOW = 0.6  # the share of direct light that a shadow takes


@dataclass(frozen=True)
class Light:
    """A directional light: unit `direction` to the light, `ambient` and `diffuse` strengths."""

    direction: tuple[float, float, float]
    ambient: float
    diffuse: float


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
    table = _pack(toys, origins.device)
    winner, distance = _nearest(table, origins[:, None], directions)
    return _shade(table, winner, distance, origins, directions, lights)


def _nearest(
    table: dict[str, Tensor], origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Slot and distance, both (B, R), of each ray's first hit; the distance of a miss is _MISS.

    `origins` and `directions` are (B, R, 3), or (B, 1, 3) where an image's rays have it in common.
    """
    scale, shift = table["to_local"][..., :3], table["to_local"][..., 3]
    shape = torch.broadcast_shapes(origins.shape, directions.shape)[:2]
    nearest = torch.full(shape, _MISS, device=origins.device)
    winner = torch.zeros(shape, dtype=torch.long, device=origins.device)
    for slot in range(table["kind"].shape[1]):
        kinds = table["kind"][:, slot]
        for kind, intersect in ((ELLIPSOID, _ellipsoid), (BOX, _box), (CONE, _cone)):
            rows = (kinds == kind).nonzero()[:, 0]
            if not len(rows):
                continue
            o = torch.einsum("bij,brj->ibr", scale[rows, slot], origins[rows])
            d = torch.einsum("bij,brj->ibr", scale[rows, slot], directions[rows])
            t = intersect(o + shift[rows, slot].T[..., None], d, table["radii"][rows, slot])
            best = nearest[rows]
            closer = t < best
            nearest[rows] = torch.where(closer, t, best)
            winner[rows] = torch.where(closer, slot, winner[rows])
    return winner, nearest


def _pack(toys: Sequence[Toy], device: torch.device) -> dict[str, Tensor]:
    """Each array of the toys, padded to (B, P, ...); a padded slot's kind is -1."""
    size = max(len(toy.kind) for toy in toys)

    def stack(arrays: list[np.ndarray]) -> Tensor:
        out = np.full((len(arrays), size, *arrays[0].shape[1:]), -1, arrays[0].dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        tensor = torch.from_numpy(out).to(device)
        return tensor.float() if tensor.is_floating_point() else tensor

    return {field.name: stack([getattr(t, field.name) for t in toys]) for field in fields(Toy)}


# Each intersection takes o and d, (3, b, R) or (3, b, 1), in the primitive's frame and gives the
# distance (b, R) to the first hit in front of the origin, or _MISS.


def _ellipsoid(o: Tensor, d: Tensor, radii: Tensor) -> Tensor:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    h = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    q = (o * o).sum(0) - 1
    root = h * h - a * q
    t = (-h - root.clamp(min=0).sqrt()) / a
    return torch.where((root > 0) & (t > _NEAR), t, _MISS)


def _box(o: Tensor, d: Tensor, radii: Tensor) -> Tensor:
    d = torch.where(d.abs() < 1e-8, 1e-8, d)
    t1, t2 = (-1 - o) / d, (1 - o) / d
    enter = torch.minimum(t1, t2).amax(0)
    leave = torch.maximum(t1, t2).amin(0)
    return torch.where((enter < leave) & (enter > _NEAR), enter, _MISS)


def _cone(o: Tensor, d: Tensor, radii: Tensor) -> Tensor:
    """Radius m + n y along the axis, with both caps."""
    bottom, top = radii[:, 0:1], radii[:, 1:2]
    m, n = (bottom + top) / 2, (top - bottom) / 2
    at_eye = m + n * o[1]
    a = d[0] * d[0] + d[2] * d[2] - (n * d[1]) ** 2
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    h = o[0] * d[0] + o[2] * d[2] - n * d[1] * at_eye
    q = o[0] * o[0] + o[2] * o[2] - at_eye * at_eye
    root = h * h - a * q
    sqrt = root.clamp(min=0).sqrt()
    nearest = torch.full_like(a, _MISS)
    for t in ((-h - sqrt) / a, (-h + sqrt) / a):
        y = o[1] + t * d[1]
        ok = (root > 0) & (t > _NEAR) & (y.abs() <= 1) & (m + n * y >= 0) & (t < nearest)
        nearest = torch.where(ok, t, nearest)
    safe = torch.where(d[1].abs() < 1e-8, 1e-8, d[1])
    for cap, radius in ((-1.0, bottom), (1.0, top)):
        t = (cap - o[1]) / safe
        x, z = o[0] + t * d[0], o[2] + t * d[2]
        ok = (x * x + z * z <= radius * radius) & (t > _NEAR) & (t < nearest)
        nearest = torch.where(ok, t, nearest)
    return nearest


def _shade(
    table: dict[str, Tensor],
    winner: Tensor,
    distance: Tensor,
    origins: Tensor,
    directions: Tensor,
    lights: Sequence[Light],
) -> Tensor:
    image, ray = (distance < _MISS / 2).nonzero(as_tuple=True)
    hit = {name: values[image, winner[image, ray]] for name, values in table.items()}
    point = origins[image] + distance[image, ray, None] * directions[image, ray]
    matrix = hit["to_local"]
    local = torch.einsum("kij,kj->ki", matrix[:, :, :3], point) + matrix[:, :, 3]

    normal = _local_normal(local, hit["kind"], hit["radii"])
    normal = torch.einsum("kij,ki->kj", matrix[:, :, :3], normal)
    normal = torch.nn.functional.normalize(normal, dim=1)
    away = (normal * directions[image, ray]).sum(1, keepdim=True) > 0
    normal = torch.where(away, -normal, normal)

    sun = torch.tensor([[*x.direction, x.ambient, x.diffuse] for x in lights]).to(point)
    light, points = sun[image], torch.zeros_like(directions)  # what is hit looks to the light
    points[image, ray] = point + _NEAR * normal
    shade = _nearest(table, points, sun[:, None, :3])[1][image, ray] < _MISS / 2
    cosine = (normal * light[:, :3]).sum(1)
    direct = cosine.clamp(min=0) * (1 - SHADOW * shade.float())
    wrapped = 0.35 * (0.5 + 0.5 * cosine) + 0.65 * direct
    mix = _pattern(hit["pattern"], hit["frequency"], point, local).unsqueeze(1)
    color = hit["color"] * (1 - mix) + hit["color2"] * mix
    color = (color * (light[:, 3] + light[:, 4] * wrapped).unsqueeze(1)).clamp(0, 1)

    out = torch.zeros(*distance.shape, 4, device=distance.device)
    out[image, ray] = torch.cat([color, torch.ones_like(color[:, :1])], 1)
    return out


def _local_normal(local: Tensor, kind: Tensor, radii: Tensor) -> Tensor:
    """Outward normals (k, 3), unnormalised, in each primitive's frame."""
    face = local.abs().argmax(1)
    flat = torch.zeros_like(local)
    flat.scatter_(1, face[:, None], local.gather(1, face[:, None]).sign())
    m, n = radii.sum(1) / 2, (radii[:, 1] - radii[:, 0]) / 2
    side = torch.stack([local[:, 0], -n * (m + n * local[:, 1]), local[:, 2]], 1)
    cap = torch.zeros_like(local)
    cap[:, 1] = local[:, 1].sign()
    on_cap = (local[:, 1].abs() > 1 - 1e-4).unsqueeze(1)
    cone = torch.where(on_cap, cap, side)
    kind = kind.unsqueeze(1)
    return torch.where(kind == BOX, flat, torch.where(kind == CONE, cone, local))


def _pattern(pattern: Tensor, frequency: Tensor, point: Tensor, local: Tensor) -> Tensor:
    """How much of the second colour shows, 0 or 1: (k,)."""
    x, y, z = point.unbind(1)
    f = frequency
    blotches = (
        torch.sin(f * x + 1.3 * torch.sin(0.7 * f * y))
        * torch.sin(f * y + 1.1 * torch.sin(0.8 * f * z))
        + 0.6 * torch.sin(f * z + 0.5 + 1.2 * torch.sin(0.6 * f * x))
    ) > 0.15
    turn = torch.atan2(local[:, 2], local[:, 0])
    waffle = (torch.sin(f * (1.2 * turn + local[:, 1])).abs() < 0.28) | (
        torch.sin(f * (1.2 * turn - local[:, 1])).abs() < 0.28
    )
    along, around = f * (local[:, 1] + 1) / 2, f * turn / (2 * math.pi)
    joints = (along % 1 < 0.15) | ((2 * around + along.floor() / 2) % 1 < 0.12)
    shown = {BLOTCHES: blotches, WAFFLE: waffle, BRICKS: joints}
    shown |= {BANDS: along % 1 < 0.2, RIBS: around % 1 < 0.3}
    second = torch.zeros_like(f, dtype=torch.bool)
    for kind, where in shown.items():
        second |= (pattern == kind) & where
    return second.float()
