"""A texture for a mesh: the field's colours, baked into a UV atlas.

Every texel that a chart covers is a point of the surface with a normal; its colour is what the
field shows along that normal (`surface_color`). Texels beyond a chart's border repeat the nearest
one inside, so that filtering at a seam finds the right colour on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sjc_engine.fields import VoxelField
from sjc_engine.isosurface import Faces, Vertices
from sjc_engine.raster import visible
from sjc_engine.surface_color import surface_colors
from sjc_engine.unwrap import Unwrapped, unwrap


@dataclass(frozen=True, eq=False)
class Texture:
    """How a mesh wears a picture."""

    corners: NDArray[np.int64]  # (W,) the mesh's vertex that each textured one copies
    faces: Faces  # (F, 3) indices into `corners`: the mesh's faces, in their order
    uv: NDArray[np.float32]  # (W, 2) in [0, 1] from the picture's upper left corner
    image: NDArray[np.uint8]  # (T, T, 3) sRGB


def bake(
    field: VoxelField,
    vertices: Vertices,
    faces: Faces,
    normals: NDArray[np.float32],
    size: int,
    seconds: float,
) -> Texture:
    """Unwrap the surface and colour `size` x `size` texels. Raises UnwrapTimeout."""
    flat = unwrap(vertices, faces, size, seconds)
    texel, points, directions = texel_surface(flat, vertices, normals, size, field.device)
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
    return (
        hits.pixel.cpu().numpy(),
        spread(vertices).cpu().numpy(),
        directions.cpu().numpy(),
    )


def dilate(image: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (T, T, 3) with every texel that is not covered (T, T) like its nearest that is."""
    row, column = ndimage.distance_transform_edt(
        ~covered, return_distances=False, return_indices=True
    )
    return np.ascontiguousarray(image[row, column])
