"""SJC's voxel radiance field: a dense grid of density and colour, and a small background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sjc_engine.checkpoint import write_atomically

Space = Literal["rgb", "latent"]

DENSITY_SHIFT = -1.0
BACKGROUND_CELLS = 4  # the background is a 4 x 4 texture on the sphere


class VoxelField(nn.Module):
    """Density and colour on N^3 voxel centres inside [-half, half]^3, trilinear in between.

    Grids are (1, C, Z, Y, X) with align_corners=False. In space "rgb" colour is
    2 sigmoid(value) - 1 in [-1, 1]; in space "latent" it is the value itself, unbounded.
    """

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        half_length: float = 1.0,
        *,
        space: Space = "rgb",
        color_init: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Density starts at 0, colours and background as N(0, color_init^2)."""
        super().__init__()
        if resolution < 2 or channels < 1 or half_length <= 0:
            raise ValueError(
                f"a field needs resolution >= 2, channels >= 1 and half_length > 0,"
                f" not {resolution}, {channels} and {half_length}"
            )
        n = resolution
        color = torch.randn(1, channels, n, n, n, generator=generator)
        texture = torch.randn(1, channels, BACKGROUND_CELLS, BACKGROUND_CELLS, generator=generator)
        self.space: Space = space
        self.half_length = half_length
        self.density = nn.Parameter(torch.zeros(1, 1, n, n, n))
        self.color = nn.Parameter(color_init * color)
        self.background = nn.Parameter(color_init * texture)
        self.d_scale = nn.Parameter(torch.zeros(()))

    @property
    def aabb(self) -> Tensor:
        """The box (2, 3), minimum corner first."""
        corner = torch.full((3,), self.half_length, dtype=torch.float64)
        return torch.stack([-corner, corner])

    @property
    def channels(self) -> int:
        return self.color.shape[1]

    @property
    def resolution(self) -> int:
        return self.density.shape[-1]

    @property
    def voxel_length(self) -> float:
        return 2.0 * self.half_length / self.resolution

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density per unit length (n,) and colour (n, C) at points (n, 3) inside the box.

        One interpolation serves both. Outside the box the border's values go on.
        """
        grid = torch.cat([self.density, self.color], dim=1)
        values = _interpolate(grid, points / self.half_length)
        return self._activate_density(values[0]), self._activate_color(values[1:]).T

    def sigma(self, points: Tensor) -> Tensor:
        """Density per unit length (n,), at least 0, at points (n, 3); zero outside the box."""
        unit = points / self.half_length
        density = self._activate_density(_interpolate(self.density, unit)[0])
        return density * (unit.abs() <= 1).all(dim=-1)

    def rgb(self, points: Tensor) -> Tensor:
        """Colour (n, C) at points (n, 3): [-1, 1] in space "rgb", unbounded in "latent"."""
        return self._activate_color(_interpolate(self.color, points / self.half_length)).T

    def background_rgb(self, directions: Tensor) -> Tensor:
        """The learned background (n, C) seen along unit directions (n, 3)."""
        x, y, z = directions.unbind(-1)
        u = 2 * torch.atan2(torch.hypot(x, y), z) / torch.pi - 1
        v = torch.atan2(y, x) / torch.pi
        uv = torch.stack([u, v], dim=-1).to(self.background.dtype).view(1, -1, 1, 2)
        texture = F.grid_sample(self.background, uv, align_corners=False)
        return self._activate_color(texture.view(self.channels, -1)).T

    def density_grid(self) -> Tensor:
        """Densities at the voxel centres, (N, N, N) in [z, y, x] order."""
        return self._activate_density(self.density)[0, 0]

    def color_grid(self) -> Tensor:
        """Colours at the voxel centres, (C, N, N, N) in [c, z, y, x] order."""
        return self._activate_color(self.color)[0]

    @torch.no_grad()
    def resample(self, resolution: int) -> None:
        """Change the grid's resolution in place (trilinear); the parameters are new objects."""
        self.density = nn.Parameter(resample_grid(self.density, resolution))
        self.color = nn.Parameter(resample_grid(self.color, resolution))

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write fp16 safetensors; the same field always gives the same bytes.

        Raises OverflowError when a value does not fit half precision.
        """
        tensors = {
            "density": self.density.detach().half(),
            "color": self.color.detach().half(),
            "background": self.background.detach().half(),
            "d_scale": self.d_scale.detach().float(),  # exponentiated: keep its precision
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise OverflowError(f"the field's {name} is not finite in half precision")
        header = {
            "half_length": self.half_length,
            "space": self.space,
            "metadata": metadata or {},
        }
        # One entry holds it all, since safetensors writes several in random order.
        text = {"field": json.dumps(header, sort_keys=True)}
        contiguous = {k: v.cpu().contiguous() for k, v in tensors.items()}
        write_atomically(Path(path), save(contiguous, metadata=text))

    def _activate_density(self, value: Tensor) -> Tensor:
        return F.softplus(value * torch.exp(self.d_scale) + DENSITY_SHIFT)

    def _activate_color(self, value: Tensor) -> Tensor:
        return 2 * torch.sigmoid(value) - 1 if self.space == "rgb" else value


def load_field(path: str | Path) -> VoxelField:
    """Read a field written by `VoxelField.save`; ValueError when the file is not one."""
    try:
        header = _header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        space = header["space"]
        if space not in get_args(Space):
            raise KeyError(space)
        resolution, channels = tensors["density"].shape[-1], tensors["color"].shape[1]
        field = VoxelField(
            resolution, channels, float(header["half_length"]), space=cast(Space, space)
        )
        field.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a voxel field: {error}") from error
    return field


def field_metadata(path: str | Path) -> dict[str, str]:
    """The metadata given to `VoxelField.save`."""
    metadata: dict[str, str] = _header(path)["metadata"]
    return metadata


def _header(path: str | Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})["field"])
    return header


def resample_grid(grid: Tensor, resolution: int) -> Tensor:
    """(1, C, N, N, N) at another resolution, trilinear, voxel centres kept in place."""
    return F.interpolate(grid, size=(resolution,) * 3, mode="trilinear", align_corners=False)


def _interpolate(grid: Tensor, unit: Tensor) -> Tensor:
    """Trilinear values (C, n) of grid (1, C, N, N, N) at points (n, 3) in [-1, 1], x first."""
    where = unit.to(grid.dtype).view(1, -1, 1, 1, 3)
    # "border": zero padding would put a faint shell of softplus(-1) on the box's faces.
    values = F.grid_sample(grid, where, padding_mode="border", align_corners=False)
    return values.view(grid.shape[1], -1)
