"""What renderer, optimiser and mesher ask of a radiance field, and what all fields share.

A field fills the box [-half_length, half_length]^3 with density per unit length and colour. In
space "rgb" colour lies in [-1, 1]; in space "latent" it is a latent of the prior, unbounded.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from sjc_engine.files import write_atomically

Space = Literal["rgb", "latent"]

DENSITY_SHIFT = -1.0  # density = softplus(value + shift)
BACKGROUND_CELLS = 4  # the background is a 4 x 4 texture on the sphere


@dataclass(frozen=True, eq=False)
class ConeSamples:
    """How rays saw n points: what a field needs that looks different from elsewhere or afar."""

    directions: Tensor  # (n, 3) unit vectors, away from the camera
    along: Tensor  # (n,) standard deviation of a sample's interval, along its ray
    across: Tensor  # (n,) and of its pixel's cone, across the ray


class Field(nn.Module, ABC):
    """A radiance field with a learned background.

    A subclass sets `kind` and implements `create`, `sample` and `groups`.
    """

    kind: ClassVar[str]
    default_sizes: ClassVar[dict[str, int]] = {}  # what the kind has beyond the resolution
    grid_names: ClassVar[tuple[str, ...]] = ()  # of parameters (B, C, ...) whose cells are places
    needs_cones: ClassVar[bool] = False  # whether `sample` makes use of a ConeSamples
    background: nn.Parameter

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        half_length: float = 1.0,
        *,
        space: Space = "rgb",
        color_init: float = 1.0,
        generator: torch.Generator | None = None,
        **sizes: int,
    ) -> None:
        """Colours and background start with a standard deviation of `color_init`.

        `sizes` are some or all of `default_sizes`.
        """
        super().__init__()
        if unknown := sizes.keys() - self.default_sizes.keys():
            raise TypeError(f"a field of kind {self.kind!r} has no {', '.join(sorted(unknown))}")
        self.sizes = self.default_sizes | sizes
        if any(size < 1 for size in self.sizes.values()):
            raise ValueError(f"sizes must be at least 1: {self.sizes}")
        if resolution < 2 or channels < 1 or half_length <= 0:
            raise ValueError(
                f"a field needs resolution >= 2, channels >= 1 and half_length > 0,"
                f" not {resolution}, {channels} and {half_length}"
            )
        self.resolution = resolution  # voxels per side: of the grid, or that show all detail
        self.channels = channels
        self.half_length = half_length
        self.space: Space = space
        self.create(color_init, generator)
        shape = (1, channels, BACKGROUND_CELLS, BACKGROUND_CELLS)
        self.background = nn.Parameter(color_init * torch.randn(shape, generator=generator))

    @abstractmethod
    def create(self, color_init: float, generator: torch.Generator | None) -> None:
        """Draw the field's own parameters."""

    @abstractmethod
    def sample(self, points: Tensor, cones: ConeSamples | None = None) -> tuple[Tensor, Tensor]:
        """Density per unit length (n,) and colour (n, C) at points (n, 3) inside the box.

        Without `cones` the colour is that of no direction in particular, of a mere point.
        """

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what learns alike: "density", "color", "network", "background"."""

    def grids(self) -> list[Tensor]:
        """The grids (B, C, ...) whose neighbouring cells are neighbours in space."""
        return [getattr(self, name) for name in self.grid_names]

    @torch.no_grad()
    def resample(self, resolution: int) -> None:
        """Change the resolution in place; the grids are new parameters, the scene the same."""
        for name in self.grid_names:
            setattr(self, name, nn.Parameter(resized(getattr(self, name), resolution)))
        self.resolution = resolution

    @property
    def device(self) -> torch.device:
        return self.background.device

    @property
    def dtype(self) -> torch.dtype:
        return self.background.dtype

    @property
    def aabb(self) -> Tensor:
        """The box (2, 3), minimum corner first."""
        corner = torch.full((3,), self.half_length, dtype=torch.float64)
        return torch.stack([-corner, corner])

    @property
    def voxel_length(self) -> float:
        return 2.0 * self.half_length / self.resolution

    def sigma(self, points: Tensor) -> Tensor:
        """Density per unit length (n,), at least 0, at points (n, 3); zero outside the box."""
        return self.sample(points)[0] * self._inside(points)

    def rgb(self, points: Tensor) -> Tensor:
        """Colour (n, C) at points (n, 3): [-1, 1] in space "rgb", unbounded in "latent"."""
        return self.sample(points)[1]

    def background_rgb(self, directions: Tensor) -> Tensor:
        """The learned background (n, C) seen along unit directions (n, 3)."""
        x, y, z = directions.unbind(-1)
        u = 2 * torch.atan2(torch.hypot(x, y), z) / torch.pi - 1
        v = torch.atan2(y, x) / torch.pi
        uv = torch.stack([u, v], dim=-1).to(self.dtype).view(1, -1, 1, 2)
        texture = F.grid_sample(self.background, uv, align_corners=False)
        return self._activate_color(texture.view(self.channels, -1)).T

    def save(self, path: str | Path) -> None:
        """Write fp16 safetensors; the same field always gives the same bytes.

        Raises OverflowError when a value does not fit half precision.
        """
        tensors = {}
        for name, value in self.state_dict().items():
            # d_scale is exponentiated: keep its precision.
            kept = value.float() if name == "d_scale" else value.half()
            if not torch.isfinite(kept).all():
                raise OverflowError(f"the field's {name} is not finite in half precision")
            tensors[name] = kept.cpu().contiguous()
        header = {
            "kind": self.kind,
            "resolution": self.resolution,
            "channels": self.channels,
            "half_length": self.half_length,
            "space": self.space,
            "config": self.sizes,
            "metadata": {},  # never used; without it the same field would have other bytes
        }
        # One entry holds it all, since safetensors writes several in random order.
        text = {"field": json.dumps(header, sort_keys=True)}
        write_atomically(Path(path), save(tensors, metadata=text))

    def _inside(self, points: Tensor) -> Tensor:
        return (points.abs() <= self.half_length).all(dim=-1)

    def _activate_color(self, value: Tensor) -> Tensor:
        return 2 * torch.sigmoid(value) - 1 if self.space == "rgb" else value


class GridField(Field):
    """A field whose `density` and `color` are grids of voxels."""

    grid_names = ("density", "color")
    density: nn.Parameter  # (1, 1, N, N, N)
    color: nn.Parameter
    d_scale: nn.Parameter

    def sigma(self, points: Tensor) -> Tensor:
        density = interpolate(self.density, points / self.half_length)[0]
        return grid_density(density, self.d_scale) * self._inside(points)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "density": [self.density, self.d_scale],
            "color": [self.color],
            "background": [self.background],
        }


def grid_density(value: Tensor, d_scale: Tensor) -> Tensor:
    """SJC's density of a grid's value, with a learned scale () that all cells share (appendix)."""
    return F.softplus(value * torch.exp(d_scale) + DENSITY_SHIFT)


def interpolate(grid: Tensor, unit: Tensor) -> Tensor:
    """Trilinear values (C, n) of grid (1, C, N, N, N) at points (n, 3) in [-1, 1], x first."""
    where = unit.to(grid.dtype).view(1, -1, 1, 1, 3)
    # "border": zero padding would put a faint shell of softplus(-1) on the box's faces.
    values = F.grid_sample(grid, where, padding_mode="border", align_corners=False)
    return values.view(grid.shape[1], -1)


def resized(grid: Tensor, resolution: int) -> Tensor:
    """A grid (B, C, ...) at another resolution, linear, cell centres kept in place.

    An axis of one cell stays.
    """
    size = [1 if cells == 1 else resolution for cells in grid.shape[2:]]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(grid, size=size, mode=mode, align_corners=False)
