"""The iso level, taken from the data: the surface whose silhouettes match the field's own.

A fixed level cannot serve: how dense a field gets depends on its recipe, and the opacity of one
voxel depends on the grid. The silhouettes of the rendered field are what was optimised.

The surface is a level set of the occupancy sigma / (sigma + sigma0) in [0, 1), not of the density
sigma itself. Density has no upper bound: inside a real field it varies a hundredfold from voxel to
voxel without any visible effect, and a smoothing or interpolation of it follows the largest value.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.isosurface import EmptyField, OpaqueField, isosurface
from sjc_engine.rendering.camera import Camera, orbit, rays
from sjc_engine.rendering.rasterize import coverage
from sjc_engine.rendering.volume import intersect_box

SIZE = 96  # pixels; the choice does not change with finer pictures
VIEWS_DEG = ((0.0, 15.0), (70.0, 15.0), (150.0, -15.0), (250.0, 40.0))  # azimuth, elevation
HALF_OPACITY_LENGTH = 0.1  # of the box's side: sigma0 absorbs half the light over this length
COARSE = tuple(2.0**k for k in range(-4, 5))  # candidates in units of sigma0
FINE = (2.0**0.5, 2.0**0.25, 2.0**0.125, 2.0**0.0625)  # then by ever smaller steps around the best
TOLERANCE = 0.001  # of mean IoU. Equal silhouettes: the higher level has the cleaner surface
ENOUGH = 64  # samples per side that show SIZE pixels what they can see
RAYS_AT_ONCE = 2048  # bounds the memory at about 30 MB
MARGIN = 3  # voxels kept around the large parts
FULL_WALL = 0.9  # solid part of the box's outermost layer that no object has


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks of one shape; 1 when both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def half_density(field: Field) -> float:
    """sigma0: the density that absorbs half the light over a tenth of the box."""
    return math.log(2) / (HALF_OPACITY_LENGTH * 2 * field.half_length)


@torch.no_grad()
def calibrate_level(
    field: VoxelField, occupancy: NDArray[np.float32], component_fraction: float
) -> float:
    """The level in (0, 1) at which to cut `occupancy`, the field's own sampled on a grid [z, y, x].

    The highest candidate within `TOLERANCE` of the best mean IoU between the silhouettes of its
    surface and those of the field (opacity > 0.5). Raises EmptyField when the field is nowhere half
    opaque, and OpaqueField when the best surface is the box itself.
    """
    cameras = [orbit(azimuth, elevation) for azimuth, elevation in VIEWS_DEG]
    visible = _without_floaters(field, component_fraction)
    masks = [_half_opaque(visible, camera) for camera in cameras]
    if not any(mask.any() for mask in masks):
        raise EmptyField("the field is nowhere half opaque: it shows no object")
    if len(occupancy) >= 2 * ENOUGH and len(occupancy) % 2 == 0:
        n = len(occupancy) // 2
        occupancy = occupancy.reshape(n, 2, n, 2, n, 2).mean((1, 3, 5))
    scores: dict[float, float] = {}  # by density in units of sigma0

    def score(density: float) -> None:
        """Mean IoU over the views; 0 where there is no surface."""
        scores[density] = 0.0
        level = density / (density + 1)
        try:
            surface = isosurface(occupancy, level, field.half_length, component_fraction)
        except EmptyField:
            return
        vertices, faces = (torch.from_numpy(array) for array in surface)
        silhouettes = [coverage(vertices, faces, camera, SIZE, SIZE) for camera in cameras]
        scores[density] = float(np.mean([iou(*p) for p in zip(silhouettes, masks, strict=True)]))

    for density in COARSE:
        score(density)
    for factor in FINE:
        center = max(scores, key=scores.__getitem__)
        score(center / factor)
        score(center * factor)
    best = max(scores.values())
    if best == 0:
        raise EmptyField("no level gives a surface of the right outline")
    density = max(density for density, score in scores.items() if score >= best - TOLERANCE)
    level = density / (density + 1)
    if _wall_fraction(occupancy > level) >= FULL_WALL:
        raise OpaqueField(
            "the field is opaque up to the walls of its box: there is no object to separate"
        )
    return level


def _half_opaque(field: VoxelField, camera: Camera) -> Tensor:
    """The mask (SIZE, SIZE) of opacity > 0.5, which needs no colours; one sample per voxel."""
    origins, directions = rays(camera, SIZE, SIZE)
    origins, directions = origins.to(field.device), directions.to(field.device)
    near, length = intersect_box(origins, directions, field.aabb.to(origins))
    count = math.ceil(float(length.max()) / field.voxel_length)
    middles = (torch.arange(count, device=field.device) + 0.5) / count
    depths = []
    for start in range(0, len(origins), RAYS_AT_ONCE):
        part = slice(start, start + RAYS_AT_ONCE)
        distance = near[part, None] + length[part, None] * middles  # (rays, count)
        points = origins[part, None] + directions[part, None] * distance[..., None]
        density = field.sigma(points.view(-1, 3)).view(distance.shape)
        depths.append(density.mean(1) * length[part])
    return (torch.cat(depths) > math.log(2)).view(SIZE, SIZE).cpu()


def _without_floaters(field: VoxelField, component_fraction: float) -> VoxelField:
    """The field's large parts, and what is near them, in one colour channel of no meaning.

    Floaters in the field's silhouettes would pull the level up.
    """
    density = field.density_grid().cpu().numpy()
    parts, _ = ndimage.label(density > min(0.7 * half_density(field), 0.5 * float(density.max())))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # the outside
    large = (sizes >= component_fraction * sizes.max())[parts]
    near = torch.from_numpy(ndimage.binary_dilation(large, iterations=MARGIN)).to(field.device)
    kept = VoxelField(field.resolution, 1, field.half_length, color_init=0.0)
    kept = kept.to(field.device, field.dtype)
    kept.d_scale.copy_(field.d_scale)
    vanished = -30.0 * torch.exp(-field.d_scale)  # softplus(-31) is 0 for every purpose
    kept.density.copy_(torch.where(near, field.density, vanished))
    return kept


def _wall_fraction(solid: NDArray[np.bool_]) -> float:
    """The solid part of the grid's outermost layer."""
    wall = np.ones_like(solid)
    wall[1:-1, 1:-1, 1:-1] = False
    return float(solid[wall].mean())
