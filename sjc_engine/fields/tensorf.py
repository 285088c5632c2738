"""TensoRF (Chen et al. 2022): a grid kept as sums of planes times lines (VM decomposition, eq. 3).

A density grid of N^3 values becomes 3 R (N^2 + N) of them, and is smooth by construction.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjc_engine.fields.field import ConeSamples, Field, grid_density

# The axes of each plane, and of the line that goes with it (x, y, z = 0, 1, 2)
PLANES = ((0, 1), (0, 2), (1, 2))
LINES = (2, 1, 0)
# Standard deviations of the first factors. The authors' 0.1 makes colours too nervous a function
# of factors that move by SJC's large learning rate.
DENSITY_INIT, COLOR_INIT = 0.1, 0.3


class TensorField(Field):
    """Density and colour as vector-matrix products on N cells a side.

    Density is the sum of `density_rank` products for each of the three planes. Colours are a
    linear map (`basis`) of the `color_rank` products of each plane; the paper's small network,
    which turns them into colours of a direction, has no place in a field without reflections.
    """

    kind = "tensorf"
    grid_names = ("density_plane", "density_line", "color_plane", "color_line")
    default_sizes: ClassVar = {"density_rank": 8, "color_rank": 16}

    def create(self, color_init: float, generator: torch.Generator | None) -> None:
        """Density starts close to that of value 0, colours with a deviation of `color_init`."""
        n, rank, color_rank = self.resolution, self.sizes["density_rank"], self.sizes["color_rank"]

        def factor(deviation: float, rank: int, *shape: int) -> nn.Parameter:
            return nn.Parameter(deviation * torch.randn(3, rank, *shape, generator=generator))

        self.density_plane = factor(DENSITY_INIT, rank, n, n)
        self.density_line = factor(DENSITY_INIT, rank, n, 1)
        self.color_plane = factor(COLOR_INIT, color_rank, n, n)
        self.color_line = factor(COLOR_INIT, color_rank, n, 1)
        # 3 * rank products of two factors: this gives colours of color_init.
        spread = color_init / (COLOR_INIT**2 * (3 * color_rank) ** 0.5)
        basis = torch.randn(self.channels, 3 * color_rank, generator=generator)
        self.basis = nn.Parameter(spread * basis)
        self.d_scale = nn.Parameter(torch.zeros(()))

    def sample(self, points: Tensor, cones: ConeSamples | None = None) -> tuple[Tensor, Tensor]:
        unit = (points / self.half_length).to(self.dtype)
        color = self.basis @ self._products(self.color_plane, self.color_line, unit)
        return self._density(points), self._activate_color(color).T

    def sigma(self, points: Tensor) -> Tensor:
        return self._density(points) * self._inside(points)

    def _density(self, points: Tensor) -> Tensor:
        unit = (points / self.half_length).to(self.dtype)
        value = self._products(self.density_plane, self.density_line, unit).sum(0)
        return grid_density(value, self.d_scale)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "density": [self.density_plane, self.density_line, self.d_scale],
            "color": [self.color_plane, self.color_line],
            "network": [self.basis],
            "background": [self.background],
        }

    def _products(self, planes: Tensor, lines: Tensor, unit: Tensor) -> Tensor:
        """(3 * rank, n): every plane's value times its line's at points (n, 3) in [-1, 1]."""
        # Slices, since a GPU would be waited for to be given a list of axes
        on_planes = torch.stack([unit[:, a : b + 1 : b - a] for a, b in PLANES])[:, :, None]
        along = torch.stack([unit[:, axis] for axis in LINES])
        on_lines = torch.stack([torch.zeros_like(along), along], dim=-1)[:, :, None]
        sampled = [
            F.grid_sample(grid, where, padding_mode="border", align_corners=False)
            for grid, where in ((planes, on_planes), (lines, on_lines))
        ]
        return (sampled[0] * sampled[1]).flatten(0, 1)[..., 0]
