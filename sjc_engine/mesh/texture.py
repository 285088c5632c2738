"""Colours of a surface from the field it was cut from: of points, or baked into a UV atlas.

Every texel that a chart covers is a point of the surface with a normal; its colour is what the
field shows along that normal (`surface_colors`). Texels beyond a chart's border repeat the nearest
one inside, so that filtering at a seam finds the right colour on either side.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.gltf import Mesh, Texture
from sjc_engine.mesh.isosurface import Vertices
from sjc_engine.mesh.unwrap import Unwrapped, unwrap
from sjc_engine.rendering.rasterize import spread, visible
from sjc_engine.rendering.volume import render_lines

OUTSIDE, INSIDE, STEP = 2.0, 6.0, 0.5  # voxels of the field's grid


def bake(field: VoxelField, mesh: Mesh, size: int, seconds: float) -> Texture:
    """Unwrap the surface and colour `size` x `size` texels. Raises UnwrapTimeout."""
    flat = unwrap(mesh.vertices, mesh.faces, size, seconds)
    texel, points, directions = texel_surface(flat, mesh.vertices, mesh.normals, size)
    image = np.zeros((size * size, 3), np.uint8)
    colors = surface_colors(field, points, directions)
    image[texel] = (colors * 255).round().astype(np.uint8)
    covered = np.zeros(size * size, bool)
    covered[texel] = True
    image = dilate(image.reshape(size, size, 3), covered.reshape(size, size))
    return Texture(flat.corners, flat.faces, flat.uv, image)


def texel_surface(
    flat: Unwrapped, vertices: Vertices, normals: NDArray[np.float32], size: int
) -> tuple[NDArray[np.int64], Vertices, NDArray[np.float32]]:
    """What each covered texel shows: its index row * size + column (n,), position and unit normal.

    The rasteriser draws the charts in the plane of the texture, at one depth.
    """
    x, y = np.ascontiguousarray(flat.uv.T * np.float32(size))
    hits = visible(x, y, np.ones_like(x), flat.faces, size, size)
    corners = flat.corners[flat.faces]
    directions = F.normalize(torch.from_numpy(spread(normals, corners, hits)), dim=1)
    return hits.pixel, spread(vertices, corners, hits), directions.numpy()


def dilate(image: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (T, T, 3) with every texel that is not covered (T, T) like its nearest that is."""
    row, column = ndimage.distance_transform_edt(
        ~covered, return_distances=False, return_indices=True
    )
    return np.ascontiguousarray(image[row, column])


@torch.no_grad()
def surface_colors(
    field: VoxelField, points: NDArray[np.float32], normals: NDArray[np.float32]
) -> NDArray[np.float32]:
    """sRGB colours (n, 3) in [0, 1]: the field composited front to back along each -normal.

    The colour at the surface itself is not what a viewer of the field sees: the surface is fuzzy,
    and outside the shell that was ever visible the colour grid still holds its random start.
    """
    voxel, outward = field.voxel_length, torch.from_numpy(normals)
    origins = torch.from_numpy(points) + outward * (OUTSIDE * voxel)
    length, step = (OUTSIDE + INSIDE) * voxel, STEP * voxel
    rgb, opacity = render_lines(field, origins, -outward, length, step)
    colors = rgb / opacity[:, None].clamp(min=1e-12)
    return ((colors + 1) / 2).clamp(0, 1).cpu().numpy()
