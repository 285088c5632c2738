"""Regularisers of the radiance field. All are scalars; smaller is better."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sjc_engine.field import VoxelField

# The official crop: the central 50 x 50 of 64 x 64 pixels, so a border of 7 / 64 of the side.
BORDER_SHARE = 7 / 64
# Below this difference in depth -log goes on as its tangent, where it would be infinite or NaN.
DEPTH_KNEE = 0.1


def emptiness(weights: Tensor, scale: float = 10.0) -> Tensor:
    """SJC's emptiness loss: mean(log(1 + beta w)) over all samples, also those outside the box.

    It rises steeply at w = 0, so that faint haze costs more than a surface of equal opacity.
    """
    return torch.log1p(scale * weights).mean()


def center_depth(depth: Tensor, form: Literal["fixed", "official"] = "fixed") -> Tensor:
    """-log(mean border depth - mean center depth) for maps (..., H, W), mean over maps.

    It draws the object to the center of the picture. "official" is what the published code does:
    it swaps border and center and takes the log of a negative number. The value is NaN there, but
    the gradient is that of -log |difference|, used here: right while the center is in front,
    wrong once it is behind. "fixed" has the right direction everywhere.
    """
    *_, height, width = depth.shape
    dy, dx = max(1, round(height * BORDER_SHARE)), max(1, round(width * BORDER_SHARE))
    inner = depth[..., dy:-dy, dx:-dx]
    center = inner.mean(dim=(-2, -1))
    rest = depth.sum(dim=(-2, -1)) - inner.sum(dim=(-2, -1))
    border = rest / (height * width - inner.shape[-2] * inner.shape[-1])
    difference = border - center
    if form == "official":
        return -torch.log(difference.abs() + 1e-12).mean()
    above = difference.clamp(min=DEPTH_KNEE)
    return (-torch.log(above) + (above - difference) / DEPTH_KNEE).mean()


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy (nats) of opacity in [0, 1]: 0 where a ray is clear or blocked."""
    o = opacity.clamp(1e-5, 1 - 1e-5)
    return -(o * torch.log(o) + (1 - o) * torch.log1p(-o)).mean()


def total_variation(field: VoxelField) -> Tensor:
    """Sum of squared differences of neighbouring voxels, over density and colour."""
    grids = torch.cat([field.density, field.color], dim=1)
    return torch.stack([grids.diff(dim=axis).square().sum() for axis in (2, 3, 4)]).sum()
