"""The iso level, taken from the data: the surface whose silhouettes match the field's own.

A fixed level cannot serve: how dense a field gets depends on its recipe, and the opacity of one
voxel depends on the grid. The silhouettes of the rendered field are what was optimised.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sjc_engine.camera import orbit
from sjc_engine.fields import VoxelField
from sjc_engine.isosurface import EmptyField, OpaqueField, isosurface
from sjc_engine.raster import coverage
from sjc_engine.render import render

SIZE = 96  # pixels; the choice does not change with finer pictures
VIEWS_DEG = ((0.0, 15.0), (70.0, 15.0), (150.0, -15.0), (250.0, 40.0))  # azimuth, elevation
HALF_OPACITY_LENGTH = 0.1  # of the box's side: sigma0 absorbs half the light over this length
COARSE = tuple(2.0**k for k in range(-4, 5))  # candidates in units of sigma0
FINE = tuple(2.0 ** (k / 3) for k in (-2, -1, 1, 2))  # then around the best of them
TOLERANCE = 0.005  # of mean IoU. Equal silhouettes: the higher level has the cleaner surface
MARGIN = 3  # voxels kept around the large parts
FULL_WALL = 0.9  # solid part of the box's outermost layer that no object has


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks of one shape; 1 when both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


@torch.no_grad()
def calibrate_level(
    field: VoxelField, density: NDArray[np.float32], component_fraction: float
) -> float:
    """The level at which to cut `density`, the field's own sampled on a grid [z, y, x].

    The highest candidate within `TOLERANCE` of the best mean IoU between the silhouettes of its
    surface and those of the field (opacity > 0.5). Raises EmptyField when the field is nowhere half
    opaque, and OpaqueField when the best surface is the box itself.
    """
    cameras = [orbit(azimuth, elevation) for azimuth, elevation in VIEWS_DEG]
    visible = _without_floaters(field, component_fraction)
    # One interval per voxel is enough for a mask.
    masks = [
        render(visible, camera, SIZE, SIZE, step=field.voxel_length).opacity.cpu() > 0.5
        for camera in cameras
    ]
    if not any(mask.any() for mask in masks):
        raise EmptyField("the field is nowhere half opaque: it shows no object")

    def score(level: float) -> float:
        """Mean IoU over the views; 0 where there is no surface."""
        try:
            surface = isosurface(density, level, field.half_length, component_fraction)
        except EmptyField:
            return 0.0
        vertices, faces = (torch.from_numpy(array) for array in surface)
        silhouettes = [coverage(vertices, faces, camera, SIZE, SIZE) for camera in cameras]
        return float(np.mean([iou(*pair) for pair in zip(silhouettes, masks, strict=True)]))

    scores = {level: score(level) for level in (factor * _sigma0(field) for factor in COARSE)}
    center = max(scores, key=scores.__getitem__)
    scores |= {factor * center: score(factor * center) for factor in FINE}
    best = max(scores.values())
    if best == 0:
        raise EmptyField("no level gives a surface of the right outline")
    level = max(level for level, score in scores.items() if score >= best - TOLERANCE)
    if _wall_fraction(density > level) >= FULL_WALL:
        raise OpaqueField(
            "the field is opaque up to the walls of its box: there is no object to separate"
        )
    return level


def _sigma0(field: VoxelField) -> float:
    """The density that absorbs half the light over a tenth of the box."""
    return math.log(2) / (HALF_OPACITY_LENGTH * 2 * field.half_length)


def _without_floaters(field: VoxelField, component_fraction: float) -> VoxelField:
    """A copy of the field in which only the large parts, and what is near them, have density.

    Floaters in the field's silhouettes would pull the level up.
    """
    density = field.density_grid().cpu().numpy()
    parts, _ = ndimage.label(density > min(0.7 * _sigma0(field), 0.5 * float(density.max())))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # the outside
    large = (sizes >= component_fraction * sizes.max())[parts]
    near = torch.from_numpy(ndimage.binary_dilation(large, iterations=MARGIN))
    kept = copy.deepcopy(field)
    vanished = -30.0 * torch.exp(-kept.d_scale)  # softplus(-31) is 0 for every purpose
    kept.density.data = torch.where(near.to(kept.density.device), kept.density, vanished)
    return kept


def _wall_fraction(solid: NDArray[np.bool_]) -> float:
    """The solid part of the grid's outermost layer."""
    wall = np.ones_like(solid)
    wall[1:-1, 1:-1, 1:-1] = False
    return float(solid[wall].mean())
