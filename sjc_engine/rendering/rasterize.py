"""A z-buffer in plain torch: draws a triangle mesh on any device, with no display and no driver.

Every pixel centre inside a triangle is a fragment; the nearest fragment of a pixel wins. All
fragments are made at once, and the z-test is a single `scatter_reduce` with "amin" over int64
keys `depth_bits << 32 | face`: the bits of a positive float sort like the float itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sjc_engine.mesh.gltf import Mesh
from sjc_engine.rendering.camera import Camera

NEAR = 1e-2  # faces that reach nearer than this are dropped whole; there is no clipping
_FRAGMENTS_AT_ONCE = 1_000_000  # bounds the memory at about 150 MB
_EDGE = 1e-6  # barycentric slack: no cracks between neighbours
_EMPTY = torch.iinfo(torch.int64).max


class Fragments(NamedTuple):
    """The visible surface, one entry per covered pixel."""

    pixel: Tensor  # (n,) int64, row * width + column, ascending
    face: Tensor  # (n,) int64
    weights: Tensor  # (n, 3) perspective-correct barycentrics
    depth: Tensor  # (n,) distance along the optical axis


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


def visible(
    x: Tensor, y: Tensor, depth: Tensor, faces: Tensor, height: int, width: int
) -> Fragments:
    """The nearest face at each pixel centre, for vertices already in pixels (V,), (V,), (V,)."""
    corner_x, corner_y, corner_depth = x[faces], y[faces], depth[faces]  # (F, 3)
    # The pixel centres within each face's bounding box; most small faces hold none.
    left = (corner_x.amin(1) - 0.5).ceil().clamp(0, width).long()
    right = (corner_x.amax(1) - 0.5).floor().clamp(-1, width - 1).long()
    top = (corner_y.amin(1) - 0.5).ceil().clamp(0, height).long()
    bottom = (corner_y.amax(1) - 0.5).floor().clamp(-1, height - 1).long()
    drawn = (right >= left) & (bottom >= top) & (corner_depth > NEAR).all(1)
    face = drawn.nonzero()[:, 0]
    box_width = (right - left + 1)[face]
    counts = box_width * (bottom - top + 1)[face]
    ends = counts.cumsum(0)

    def barycentrics(face: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Screen-space barycentrics (n, 3) of pixel positions in faces; not finite if edge-on."""
        ax, bx, cx = (corner_x[face] - x[:, None]).unbind(1)
        ay, by, cy = (corner_y[face] - y[:, None]).unbind(1)
        a, b, c = bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay
        return torch.stack([a, b, c], 1) / (a + b + c)[:, None]

    buffer = torch.full((height * width,), _EMPTY, dtype=torch.int64, device=x.device)
    start = 0
    while start < len(face):
        done = ends[start - 1] if start else 0
        end = max(start + 1, int(torch.searchsorted(ends, done + _FRAGMENTS_AT_ONCE, right=True)))
        owner = torch.repeat_interleave(
            torch.arange(start, end, device=x.device), counts[start:end]
        )
        nth = torch.arange(len(owner), device=x.device) + done - (ends - counts)[owner]
        row = torch.div(nth, box_width[owner], rounding_mode="floor")
        candidate = face[owner]
        column = left[candidate] + nth - row * box_width[owner]
        row = row + top[candidate]
        screen = barycentrics(candidate, column + 0.5, row + 0.5)
        inside = (screen >= -_EDGE).all(1)  # False for the NaN of edge-on faces
        candidate, pixel = candidate[inside], (row * width + column)[inside]
        fragment_depth = 1 / (screen[inside] / corner_depth[candidate]).sum(1)
        keys = (fragment_depth.float().view(torch.int32).long() << 32) | candidate
        buffer.scatter_reduce_(0, pixel, keys, "amin")
        start = end

    pixel = (buffer != _EMPTY).nonzero()[:, 0]
    winner = buffer[pixel] & 0xFFFFFFFF
    row = torch.div(pixel, width, rounding_mode="floor")
    over_depth = barycentrics(winner, pixel % width + 0.5, row + 0.5) / corner_depth[winner]
    winner_depth = 1 / over_depth.sum(1)
    return Fragments(pixel, winner, over_depth * winner_depth[:, None], winner_depth)


def coverage(vertices: Tensor, faces: Tensor, camera: Camera, height: int, width: int) -> Tensor:
    """The silhouette (H, W), bool: pixels whose centre the mesh covers."""
    x, y, depth = project(vertices, camera, height, width)
    mask = torch.zeros(height * width, dtype=torch.bool, device=vertices.device)
    mask[visible(x, y, depth, faces, height, width).pixel] = True
    return mask.view(height, width)


def rasterize(
    mesh: Mesh,
    camera: Camera,
    height: int,
    width: int,
    supersample: int = 2,
    device: torch.device | str = "cpu",
) -> Raster:
    """Draw the mesh, unlit, with its texture or else its vertex colours.

    `supersample`^2 samples to the pixel. A texture that is finer than they are is averaged down.
    """
    vertices, faces = torch.tensor(mesh.vertices).to(device), torch.tensor(mesh.faces).to(device)
    fine_height, fine_width = height * supersample, width * supersample
    x, y, depth = project(vertices, camera, fine_height, fine_width)
    hits = visible(x, y, depth, faces, fine_height, fine_width)

    def spread(values: Tensor, faces: Tensor) -> Tensor:
        """Values per vertex (V, C) at the hits (n, C)."""
        return (values.to(vertices)[faces[hits.face]] * hits.weights[..., None]).sum(1)

    if mesh.texture is None:
        colors = spread(torch.tensor(mesh.colors), faces)
    else:
        uv = spread(torch.tensor(mesh.texture.uv), torch.tensor(mesh.texture.faces).to(device))
        colors = _look_up(mesh.texture.image, uv, len(hits.face))
    normals = F.normalize(spread(torch.tensor(mesh.normals), faces), dim=1)
    depth = hits.depth[:, None]
    values = torch.cat([colors * 2 - 1, normals, depth, torch.ones_like(depth)], 1)
    image = torch.zeros(fine_height * fine_width, 8, dtype=values.dtype, device=device)
    image[hits.pixel] = values
    image = image.view(fine_height, fine_width, 8).permute(2, 0, 1)
    image = F.avg_pool2d(image[None], supersample)[0]
    rgb, normals, depth, opacity = image[:3], image[3:6], image[6], image[7]
    return Raster(rgb, opacity, depth / opacity.clamp(min=1e-9), normals)


def _look_up(image: NDArray[np.uint8], uv: Tensor, samples: int) -> Tensor:
    """Bilinear colours (n, 3) in [0, 1] of a picture (T, T, 3) at uv (n, 2).

    A texel is counted once at most: where there are more texels than samples the picture is halved
    first, as a graphics card does.
    """
    texels = torch.from_numpy(image).to(uv).permute(2, 0, 1)[None] / 255  # (1, 3, T, T)
    # Charts fill about half of the picture, and a view shows about half of them.
    while texels.shape[-1] ** 2 / 4 > 2 * max(1, samples) and texels.shape[-1] % 2 == 0:
        texels = F.avg_pool2d(texels, 2)
    grid = (uv * 2 - 1)[None, None]
    return F.grid_sample(texels, grid, padding_mode="border", align_corners=False)[0, :, 0].T
