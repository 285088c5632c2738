"""Regularisers of the radiance field. All are scalars; smaller is better."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.rendering.volume import Rendering

# The official crop: the central 50 x 50 of 64 x 64 pixels, so a border of 7 / 64 of the side.
BORDER_SHARE = 7 / 64
# Below this difference in depth -log goes on as its tangent, where it would be infinite or NaN.
DEPTH_KNEE = 0.1
# "3drec" below is the part of Zero-1-to-3's code (Liu et al. 2023) that chains its scores.


def emptiness(rendering: Rendering) -> Tensor:
    """SJC's emptiness loss: mean(log(1 + beta w)) over all samples, also those outside the box.

    It rises steeply at w = 0, so that faint fog costs more than a surface of equal opacity. beta is
    the `emptiness_scale` that the views were rendered with, while their weights were at hand; 0,
    the default, makes the loss 0.
    """
    return rendering.emptiness.sum() / rendering.weights.numel()


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


def depth_smoothness(depth: Tensor) -> Tensor:
    """(mean |d_x - d_x+1| + mean |d_y - d_y+1|) / 2 for maps (..., H, W), as 3drec has it."""
    return (depth.diff(dim=-1).abs().mean() + depth.diff(dim=-2).abs().mean()) / 2


def near_view(images: Tensor, near: Tensor, depth: Tensor, near_depth: Tensor) -> Tensor:
    """mean |x - x'| + mean |d - d'| of views and of what is seen from a step aside (3drec).

    Images (V, C, H, W), depths (V, H, W): pixels are compared in place, so that what a small move
    of the camera makes flicker is dear, and what it merely shifts is cheap.
    """
    return (images - near).abs().mean() + (depth - near_depth).abs().mean()


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy (nats) of opacity in [0, 1]: 0 where a ray is clear or blocked."""
    o = opacity.clamp(1e-5, 1 - 1e-5)
    return -(o * torch.log(o) + (1 - o) * torch.log1p(-o)).mean()


def total_variation(field: Field) -> Tensor:
    """Sum of squared differences of neighbouring cells over all of the field's grids."""
    terms = [
        grid.diff(dim=axis).square().sum()
        for grid in field.grids()
        for axis in range(2, grid.dim())
        if grid.shape[axis] > 1
    ]
    return torch.stack(terms).sum()


def distortion(rendering: Rendering) -> Tensor:
    """Mean over rays of mip-NeRF 360's distortion loss (Barron et al. 2022, eq. 15).

    sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 delta_i / 3 over a ray's intervals, with middles m and
    lengths delta in world units: smallest where light stops at one surface.
    """
    t_edges, chord = rendering.t_edges[..., None, :], rendering.chord[..., None]
    edges = torch.minimum(t_edges, chord)  # (..., rays, samples + 1)
    middle, length = (edges[..., 1:] + edges[..., :-1]) / 2, edges.diff()
    w = rendering.weights
    # Middles ascend along a ray, so that the double sum needs only running sums.
    before, moment = w.cumsum(-1) - w, (w * middle).cumsum(-1) - w * middle
    pairs = 2 * (w * (middle * before - moment)).sum(-1)
    return (pairs + (w.square() * length).sum(-1) / 3).mean()
