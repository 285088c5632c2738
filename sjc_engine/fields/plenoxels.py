"""Plenoxels (Fridovich-Keil et al. 2022): a dense grid with spherical harmonics for its colours.

Density keeps SJC's softplus: Plenoxels' ReLU has no gradient in empty space, and score
distillation has no photographs that would carve an object out of a dense start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjc_engine.fields.field import ConeSamples, GridField, grid_density, interpolate

HARMONICS = 9  # of degree 0 to 2
CONSTANT = 0.28209479177387814  # the first of them, that of degree 0


def harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degree 0, 1 and 2, (n, 9), of unit directions (n, 3)."""
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, CONSTANT),
            0.4886025119029199 * y,
            0.4886025119029199 * z,
            0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * z * z - 1),
            1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ],
        dim=-1,
    )


class PlenoxelField(GridField):
    """Density and, for each channel, nine coefficients on N^3 voxel centres.

    The colour towards d is the activation of sum_k c_k Y_k(d); without a direction it is that of
    the constant term, the mean over all directions before the activation.
    """

    kind = "plenoxels"
    needs_cones = True

    def create(self, color_init: float, generator: torch.Generator | None) -> None:
        """Density starts at 0, colours as N(0, color_init^2) in every direction alike."""
        n, channels = self.resolution, self.channels
        coefficients = torch.zeros(1, channels, HARMONICS, n, n, n)
        constant = torch.randn(1, channels, n, n, n, generator=generator)
        coefficients[:, :, 0] = color_init / CONSTANT * constant
        self.density = nn.Parameter(torch.zeros(1, 1, n, n, n))
        self.color = nn.Parameter(coefficients.flatten(1, 2))  # (1, channels * 9, N, N, N)
        self.d_scale = nn.Parameter(torch.zeros(()))

    def sample(self, points: Tensor, cones: ConeSamples | None = None) -> tuple[Tensor, Tensor]:
        unit = points / self.half_length
        if cones is None:
            constant = self.color[:, ::HARMONICS]
            values = interpolate(torch.cat([self.density, constant], dim=1), unit)
            color = CONSTANT * values[1:]
        else:
            values = interpolate(torch.cat([self.density, self.color], dim=1), unit)
            basis = harmonics(cones.directions).T  # (9, n)
            color = (values[1:].view(self.channels, HARMONICS, -1) * basis).sum(1)
        return grid_density(values[0], self.d_scale), self._activate_color(color).T
