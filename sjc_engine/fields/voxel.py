"""SJC's voxel radiance field: a dense grid of density and colour, and a small background."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjc_engine.fields.field import (
    DENSITY_SHIFT,
    ConeSamples,
    Field,
    GridField,
    grid_density,
    interpolate,
)


class VoxelField(GridField):
    """Density and colour on N^3 voxel centres, trilinear in between.

    Grids are (1, C, Z, Y, X) with align_corners=False. In space "rgb" colour is
    2 sigmoid(value) - 1 in [-1, 1]; in space "latent" it is the value itself, unbounded.
    """

    kind = "voxel"

    def create(self, color_init: float, generator: torch.Generator | None) -> None:
        """Density starts at 0, colours as N(0, color_init^2)."""
        n, channels = self.resolution, self.channels
        color = torch.randn(1, channels, n, n, n, generator=generator)
        self.density = nn.Parameter(torch.zeros(1, 1, n, n, n))
        # A voxel's channels beside each other in memory: they are always read together
        self.color = nn.Parameter((color_init * color).to(memory_format=torch.channels_last_3d))
        self.d_scale = nn.Parameter(torch.zeros(()))

    def sample(self, points: Tensor, cones: ConeSamples | None = None) -> tuple[Tensor, Tensor]:
        """See `Field.sample`. One interpolation serves both; the border's values go on outside."""
        grid = torch.cat([self.density, self.color], dim=1)
        values = interpolate(grid, points / self.half_length)
        return grid_density(values[0], self.d_scale), self._activate_color(values[1:]).T

    def rgb(self, points: Tensor) -> Tensor:
        return self._activate_color(interpolate(self.color, points / self.half_length)).T

    def density_grid(self) -> Tensor:
        """Densities at the voxel centres, (N, N, N) in [z, y, x] order."""
        return grid_density(self.density, self.d_scale)[0, 0]


@torch.no_grad()
def voxelize(field: Field) -> VoxelField:
    """Any field as voxels of its resolution, sampled at their centres.

    Colours that depend on the direction become those of `Field.rgb`. A VoxelField is returned as it
    is.
    """
    if isinstance(field, VoxelField):
        return field
    result = VoxelField(
        field.resolution, field.channels, field.half_length, space=field.space, color_init=0.0
    ).to(field.device, field.dtype)
    centers = grid_centers(field.resolution, field.half_length, field.background)
    parts = [field.sample(slab.reshape(-1, 3)) for slab in centers.split(8)]
    density = torch.cat([part[0] for part in parts]).clamp(min=1e-13).view(result.density.shape)
    color = torch.cat([part[1] for part in parts]).T.view(result.color.shape)
    # The inverse of softplus(value + shift), which is the value itself where it is large
    inverse = torch.where(density > 20, density, torch.log(torch.expm1(density.clamp(max=20))))
    result.density.copy_(inverse - DENSITY_SHIFT)
    if field.space == "rgb":
        color = 2 * torch.atanh(color.clamp(-1 + 1e-4, 1 - 1e-4))
    result.color.copy_(color)
    result.background.copy_(field.background)
    return result


def grid_centers(resolution: int, half_length: float, like: Tensor) -> Tensor:
    """Voxel centres (N, N, N, 3) in [z, y, x] order, points x first, as a tensor like `like`."""
    centers = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * half_length
    z, y, x = torch.meshgrid(centers, centers, centers, indexing="ij")
    return torch.stack([x, y, z], dim=-1).to(like)
