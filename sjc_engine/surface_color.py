"""Colours of a surface from the field it was cut from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjc_engine.fields import VoxelField

OUTSIDE, INSIDE, STEP = 2.0, 6.0, 0.5  # voxels of the field's grid
_POINTS_AT_ONCE = 32_768  # surface points, of 16 samples each: bounds the memory at about 50 MB


@torch.no_grad()
def surface_colors(
    field: VoxelField, points: NDArray[np.float32], normals: NDArray[np.float32]
) -> NDArray[np.float32]:
    """sRGB colours (n, 3) in [0, 1]: the field composited front to back along each -normal.

    The colour at the surface itself is not what a viewer of the field sees: the surface is fuzzy,
    and outside the shell that was ever visible the colour grid still holds its random start.
    """
    parts = [
        _along_normals(field, torch.from_numpy(p), torch.from_numpy(n))
        for p, n in zip(_chunks(points), _chunks(normals), strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)


def _chunks(rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [rows[k : k + _POINTS_AT_ONCE] for k in range(0, len(rows), _POINTS_AT_ONCE)]


def _along_normals(field: VoxelField, points: Tensor, normals: Tensor) -> NDArray[np.float32]:
    device = field.device
    step = STEP * field.voxel_length
    middles = torch.arange(-OUTSIDE + STEP / 2, INSIDE, STEP, device=device) * field.voxel_length
    inward = -normals.to(device)
    samples = points.to(device)[:, None] + inward[:, None] * middles[:, None]  # (n, samples, 3)
    optical = field.sigma(samples.reshape(-1, 3)).view(samples.shape[:2]) * step
    colors = field.rgb(samples.reshape(-1, 3)).view(samples.shape)
    composited = _composite(optical, colors)
    return ((composited + 1) / 2).clamp(0, 1).cpu().numpy()


def _composite(optical: Tensor, colors: Tensor) -> Tensor:
    """Expected colour (V, 3) of optical depths (V, S) and colours (V, S, 3), front to back."""
    reached = optical.cumsum(1)
    weights = torch.exp(optical - reached) * -torch.expm1(-optical)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return (weights[..., None] * colors).sum(1)
