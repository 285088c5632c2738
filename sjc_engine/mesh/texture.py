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
from torch import Tensor

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.gltf import Mesh, Texture
from sjc_engine.mesh.isosurface import Vertices
from sjc_engine.mesh.unwrap import Unwrapped, unwrap
from sjc_engine.rendering.rasterize import visible

OUTSIDE, INSIDE, STEP = 2.0, 6.0, 0.5  # voxels of the field's grid
_POINTS_AT_ONCE = 32_768  # surface points, of 16 samples each: bounds the memory at about 50 MB


def bake(field: VoxelField, mesh: Mesh, size: int, seconds: float) -> Texture:
    """Unwrap the surface and colour `size` x `size` texels. Raises UnwrapTimeout."""
    flat = unwrap(mesh.vertices, mesh.faces, size, seconds)
    texel, points, directions = texel_surface(flat, mesh.vertices, mesh.normals, size, field.device)
    image = np.zeros((size * size, 3), np.uint8)
    colors = surface_colors(field, points, directions)
    image[texel] = (colors * 255).round().astype(np.uint8)
    covered = np.zeros(size * size, bool)
    covered[texel] = True
    image = dilate(image.reshape(size, size, 3), covered.reshape(size, size))
    return Texture(flat.corners, flat.faces, flat.uv, image)


def texel_surface(
    flat: Unwrapped,
    vertices: Vertices,
    normals: NDArray[np.float32],
    size: int,
    device: torch.device | str = "cpu",
) -> tuple[NDArray[np.int64], Vertices, NDArray[np.float32]]:
    """What each covered texel shows: its index row * size + column (n,), position and unit normal.

    The rasteriser draws the charts in the plane of the texture, at one depth.
    """
    faces = torch.from_numpy(flat.faces).to(device)
    x, y = (torch.from_numpy(flat.uv).to(device) * size).unbind(1)
    hits = visible(x, y, torch.ones_like(x), faces, size, size)
    corners = torch.from_numpy(flat.corners).to(device)[faces[hits.face]]  # (n, 3)

    def spread(values: NDArray[np.float32]) -> Tensor:
        return (torch.from_numpy(values).to(device)[corners] * hits.weights[..., None]).sum(1)

    directions = F.normalize(spread(normals), dim=1)
    return (hits.pixel.cpu().numpy(), spread(vertices).cpu().numpy(), directions.cpu().numpy())


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
    batches = (torch.from_numpy(rows).split(_POINTS_AT_ONCE) for rows in (points, normals))
    return np.concatenate([_along_normals(field, *batch) for batch in zip(*batches, strict=True)])


def _along_normals(field: VoxelField, points: Tensor, normals: Tensor) -> NDArray[np.float32]:
    device = field.device
    step = STEP * field.voxel_length
    middles = torch.arange(-OUTSIDE + STEP / 2, INSIDE, STEP, device=device) * field.voxel_length
    inward = -normals.to(device)
    samples = points.to(device)[:, None] + inward[:, None] * middles[:, None]  # (n, samples, 3)
    optical = field.sigma(samples.reshape(-1, 3)).view(samples.shape[:2]) * step
    colors = field.rgb(samples.reshape(-1, 3)).view(samples.shape)
    reached = optical.cumsum(1)
    weights = torch.exp(optical - reached) * -torch.expm1(-optical)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    composited = (weights[..., None] * colors).sum(1)  # front to back
    return ((composited + 1) / 2).clamp(0, 1).cpu().numpy()
