"""A z-buffer on the CPU: draws a triangle mesh with no display and no driver (Numba).

Every pixel centre inside a triangle is a fragment; the nearest fragment of a pixel wins, and of two
at one depth that of the first face. There is no fastmath: a picture is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from sjc_engine.mesh.gltf import Mesh
from sjc_engine.rendering.camera import Camera
from sjc_engine.rendering.kernels import OPTIONS

Array = Any

_PLAIN = OPTIONS | {"fastmath": False}
compiled, inlined = njit(**_PLAIN), njit(forceinline=True, **_PLAIN)
real = np.float32
NEAR = real(1e-2)  # faces that reach nearer than this are dropped whole; there is no clipping
_EDGE = real(-1e-6)  # barycentric slack: no cracks between neighbours
_HALF, _ONE = real(0.5), real(1)


class Fragments(NamedTuple):
    """The visible surface, one entry per covered pixel."""

    pixel: Array  # (n,) int64, row * width + column, ascending
    face: Array  # (n,) int64
    weights: Array  # (n, 3) perspective-correct barycentrics
    depth: Array  # (n,) distance along the optical axis


class Raster(NamedTuple):
    """A picture of a mesh. Everything but the depth is multiplied by the opacity."""

    rgb: Tensor  # (3, H, W) in [-1, 1]
    opacity: Tensor  # (H, W) in [0, 1], the covered part of the pixel
    depth: Tensor  # (H, W) distance along the optical axis, 0 where nothing is
    normals: Tensor  # (3, H, W) world space


def project(vertices: Tensor, camera: Camera, height: int, width: int) -> tuple[Tensor, ...]:
    """Pixel coordinates x, y (the first pixel's centre is 0.5, 0.5) and depth of (V, 3) points."""
    world_to_camera = torch.linalg.inv(camera.camera_to_world).to(vertices)
    points = vertices @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depth = -points[:, 2]
    focal = width / 2 / math.tan(camera.fov / 2)
    x = points[:, 0] / depth * focal + width / 2
    y = -points[:, 1] / depth * focal + height / 2
    return x, y, depth


def visible(x: Array, y: Array, depth: Array, faces: Array, height: int, width: int) -> Fragments:
    """The nearest face at each pixel centre, for vertices already in pixels (V,), (V,), (V,)."""
    nearest, owner = np.full(height * width, np.inf, real), np.full(height * width, -1)
    weights = np.empty((height * width, 3), real)
    _draw(x, y, depth, faces, (height, width), nearest, owner, weights)
    pixel = np.flatnonzero(owner >= 0)
    distance = nearest[pixel]
    return Fragments(pixel, owner[pixel], weights[pixel] * distance[:, None], distance)


@compiled
def _draw(
    x: Array, y: Array, depth: Array, faces: Array, shape: tuple[int, int],
    nearest: Array, owner: Array, weights: Array,
) -> None:  # fmt: skip
    """For each pixel: the depth of the nearest face, its number, barycentrics over depths."""
    for face in range(len(faces)):
        i, j, k = faces[face]
        if not (depth[i] > NEAR and depth[j] > NEAR and depth[k] > NEAR):
            continue
        # The pixel centres within its bounding box; most small faces hold none.
        left, right = _centers(x[i], x[j], x[k], shape[1])
        top, bottom = _centers(y[i], y[j], y[k], shape[0])
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                across, down = real(column) + _HALF, real(row) + _HALF
                ax, bx, cx = x[i] - across, x[j] - across, x[k] - across
                ay, by, cy = y[i] - down, y[j] - down, y[k] - down
                a, b, c = bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay
                area = a + b + c
                a, b, c = a / area, b / area, c / area
                if a >= _EDGE and b >= _EDGE and c >= _EDGE:  # False for the NaN of edge-on faces
                    a, b, c = a / depth[i], b / depth[j], c / depth[k]
                    pixel, distance = row * shape[1] + column, _ONE / (a + b + c)
                    if distance < nearest[pixel]:
                        nearest[pixel], owner[pixel] = distance, face
                        weights[pixel, 0], weights[pixel, 1], weights[pixel, 2] = a, b, c


@inlined
def _centers(a: float, b: float, c: float, size: int) -> tuple[int, int]:
    """The first and the last pixel of `size` with its centre between a, b and c; none if beyond."""
    first = min(max(math.ceil(min(a, b, c) - _HALF), 0), size)
    return first, max(min(math.floor(max(a, b, c) - _HALF), size - 1), -1)


@compiled
def spread(values: Array, faces: Array, hits: Fragments) -> Array:
    """Values per vertex (V, C) at the hits (n, C)."""
    result = np.empty((len(hits.face), values.shape[1]), real)
    for n in range(len(result)):
        i, j, k = faces[hits.face[n]]
        a, b, c = hits.weights[n]
        for channel in range(values.shape[1]):
            two = values[i, channel] * a + values[j, channel] * b
            result[n, channel] = two + values[k, channel] * c
    return result


def coverage(vertices: Tensor, faces: Tensor, camera: Camera, height: int, width: int) -> Tensor:
    """The silhouette (H, W), bool: pixels whose centre the mesh covers."""
    x, y, depth = (part.numpy() for part in project(vertices, camera, height, width))
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[visible(x, y, depth, faces.numpy(), height, width).pixel] = True
    return mask.view(height, width)


def rasterize(mesh: Mesh, camera: Camera, height: int, width: int, supersample: int = 2) -> Raster:
    """Draw the mesh as one camera sees it: `rasterize_views`."""
    return next(rasterize_views(mesh, [camera], height, width, supersample))


def rasterize_views(
    mesh: Mesh, cameras: Iterable[Camera], height: int, width: int, supersample: int = 2
) -> Iterator[Raster]:
    """Draw the mesh, unlit, with its texture or else its vertex colours.

    `supersample`^2 samples to the pixel. A texel is counted once at most: where there are more of
    them than samples the texture is halved first, as a graphics card does.
    """
    vertices, texture = torch.from_numpy(mesh.vertices), mesh.texture
    levels = []
    if texture:
        levels.append(torch.from_numpy(texture.image).float().permute(2, 0, 1)[None] / 255)
    fine = height * supersample, width * supersample
    for camera in cameras:
        x, y, depth = (part.numpy() for part in project(vertices, camera, *fine))
        hits = visible(x, y, depth, mesh.faces, *fine)
        if texture:
            colors = _look_up(levels, torch.from_numpy(spread(texture.uv, texture.faces, hits)))
        else:
            colors = torch.from_numpy(spread(mesh.colors, mesh.faces, hits))
        normals = F.normalize(torch.from_numpy(spread(mesh.normals, mesh.faces, hits)), dim=1)
        depths = torch.from_numpy(hits.depth)[:, None]
        values = torch.cat([colors * 2 - 1, normals, depths, torch.ones_like(depths)], 1)
        sums = _sums(hits.pixel, values.numpy(), height, width, supersample)
        image = torch.from_numpy(sums).permute(2, 0, 1) / supersample**2
        depths, opacity = image[6:]
        yield Raster(image[:3], opacity, depths / opacity.clamp(min=1e-9), image[3:6])


@compiled
def _sums(pixels: Array, values: Array, height: int, width: int, supersample: int) -> Array:
    """The values (n, C) at fine pixels, summed up over each pixel (height, width, C)."""
    image = np.zeros((height, width, values.shape[1]), real)
    for n, pixel in enumerate(pixels):
        row, column = pixel // (width * supersample), pixel % (width * supersample)
        for channel in range(values.shape[1]):
            image[row // supersample, column // supersample, channel] += values[n, channel]
    return image


def _look_up(levels: list[Tensor], uv: Tensor) -> Tensor:
    """Bilinear colours (n, 3) in [0, 1] at uv (n, 2), of a texture (1, 3, T, T) and its halvings.

    Halvings are added to `levels` when they are wanted.
    """
    level = 0
    # Charts fill about half of the texture, and a view shows about half of them.
    while (side := levels[level].shape[-1]) ** 2 / 4 > 2 * max(1, len(uv)) and side % 2 == 0:
        level += 1
        if level == len(levels):
            levels.append(F.avg_pool2d(levels[-1], 2))
    grid = (uv * 2 - 1)[None, None]
    seen = F.grid_sample(levels[level], grid, padding_mode="border", align_corners=False)
    return seen[0, :, 0].T
