"""The published SJC renderer's algorithm in our words: the baseline of `benchmarks/renderer.py`.

Two grids, density and colour, are read apart. Every ray has as many samples as the longest chord,
`step` apart from where it enters the box; those beyond its own chord are dropped by a mask. The
density is looked up for what remains (gather), spread into the rectangle again (scatter), and
turned into weights; colour is looked up only where a weight exceeds 1e-4, and spread likewise. The
picture and the emptiness loss go back in two passes, as the published training loop has it.

What it leaves out costs the published code more, not less: its rays are set up here by this
engine, and there is no background texture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_WEIGHT = 1e-4


class Grids(nn.Module):
    """density (1, 1, N, N, N) and color (1, C, N, N, N) over [-1, 1]^3, and the density's scale."""

    def __init__(self, density: Tensor, color: Tensor) -> None:
        super().__init__()
        self.density = nn.Parameter(density.detach().clone().contiguous())
        self.color = nn.Parameter(color.detach().clone().contiguous())
        self.d_scale = nn.Parameter(torch.zeros(()))

    def look_up(self, grid: Tensor, points: Tensor) -> Tensor:
        """(m, C) at points (m, 3) in the box; zero padding, voxels seen as cells."""
        where = points.view(1, -1, 1, 1, 3)
        return F.grid_sample(grid, where, align_corners=False).view(grid.shape[1], -1).T

    def sigma(self, points: Tensor) -> Tensor:
        value = self.look_up(self.density, points)[:, 0]
        return F.softplus(value * self.d_scale.exp() - 1)


def render(
    grids: Grids, origins: Tensor, directions: Tensor, near: Tensor, chord: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (n, C), depth (n,) and weights (samples, n) of n rays, all float32."""
    samples = int(float(chord.max()) / step) + 1
    ticks = step * torch.arange(samples, device=chord.device)[:, None]  # (samples, 1)
    distance = near + ticks  # (samples, n)
    points = origins + directions * distance[..., None]
    mask = ticks < chord
    sigma = torch.zeros_like(distance)
    sigma[mask] = grids.sigma(points[mask])

    alpha = 1 - torch.exp(-sigma * step)
    through = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)[:-1]])
    weights = alpha * through
    mask = weights > LEAST_WEIGHT
    colors = torch.zeros(*mask.shape, grids.color.shape[1], device=mask.device)
    colors[mask] = grids.look_up(grids.color, points[mask])
    rgb = (weights[..., None] * colors).sum(0)
    depth = (weights * distance).sum(0) + (1 - weights.sum(0)) * 10.0
    return rgb, depth, weights


def step_gradients(
    grids: Grids, rays: tuple[Tensor, Tensor, Tensor, Tensor], step: float, score: Tensor
) -> None:
    """One step's forward and backward: the score (n, C) through the picture, then emptiness."""
    rgb, _, weights = render(grids, *rays, step)
    rgb.backward(-score, retain_graph=True)
    (1e4 * torch.log(1 + 10 * weights).mean()).backward()
