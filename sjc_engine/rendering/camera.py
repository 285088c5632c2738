"""Cameras on a sphere around the object, and their rays.

World: right-handed, +Y up; the object's front looks along -X. Camera axes are OpenGL's (x right,
y up, looking along -z). Azimuth 0 sees the front, 90 the object's own left side (camera at +Z),
180 its back, 270 its right side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sjc_engine.guidance.view_prompts import HIGHEST_DEG, LOWEST_DEG

RADIUS = 1.5
NEAREST_TO_POLE = 1e-2 * 2 / math.pi  # in 1 - cos(polar); the pole itself has no azimuth
EVALUATION_FOV_DEG = 50.0
NEAR = 0.05  # world units to a near view, as Zero-1-to-3's 3drec has it


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera that looks at the origin."""

    camera_to_world: Tensor  # (4, 4) float64, OpenGL axes
    fov: float  # radians, across the image's width
    azimuth_deg: float  # [0, 360)
    elevation_deg: float  # [-90, 90], 90 minus the polar angle


def orbit(
    azimuth_deg: float, elevation_deg: float, radius: float = RADIUS, fov_deg: float = 50.0
) -> Camera:
    """The camera at the given angles (degrees) and distance, looking at the origin."""
    polar = math.radians(90.0 - elevation_deg)
    turn = math.pi - math.radians(azimuth_deg)
    backward = torch.tensor(
        [math.sin(polar) * math.cos(turn), math.cos(polar), math.sin(polar) * math.sin(turn)],
        dtype=torch.float64,
    )
    # cross(+Y, backward), normalised by hand so that it also exists straight above the object
    right = torch.tensor([math.sin(turn), 0.0, -math.cos(turn)], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(backward, right), backward], dim=1)
    pose[:3, 3] = radius * backward
    return Camera(pose, math.radians(fov_deg), azimuth_deg % 360.0, elevation_deg)


def warped_polar(draw: float) -> float:
    """Polar angle (radians) for a uniform draw in [0, pi]: uniform over the sphere's area."""
    return math.acos(1.0 - 2.0 * draw / math.pi)


def sample_camera(
    generator: torch.Generator,
    radius: float = RADIUS,
    fov_deg: tuple[float, float] = (40.0, 70.0),
    elevation_deg: tuple[float, float] = (LOWEST_DEG, HIGHEST_DEG),
) -> Camera:
    """SJC's training camera: any azimuth, uniform over the sphere's area between two elevations.

    `generator` lives on the CPU; three numbers are drawn from it.
    """
    azimuth, height, zoom = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    bottom, top = (math.sin(math.radians(angle)) for angle in elevation_deg)
    rise = min(top - height * (top - bottom), 1.0 - NEAREST_TO_POLE)
    low, high = fov_deg
    return orbit(azimuth * 360.0, math.degrees(math.asin(rise)), radius, low + zoom * (high - low))


def ring(camera: Camera, count: int) -> list[Camera]:
    """`count` cameras at equal angles around the object, the first of them this one."""
    radius, fov_deg = float(camera.camera_to_world[:3, 3].norm()), math.degrees(camera.fov)
    azimuths = [camera.azimuth_deg + 360.0 * k / count for k in range(1, count)]
    return [camera, *(orbit(a, camera.elevation_deg, radius, fov_deg) for a in azimuths)]


def nearby(camera: Camera, generator: torch.Generator, distance: float = NEAR) -> Camera:
    """A camera `distance` from this one in any direction, looking at the origin too.

    `generator` lives on the CPU; three numbers are drawn from it.
    """
    step = torch.randn(3, generator=generator, dtype=torch.float64)
    eye = camera.camera_to_world[:3, 3] + distance * step / step.norm()
    x, y, z = eye.tolist()
    radius = math.hypot(x, y, z)
    azimuth, elevation = math.degrees(math.atan2(z, -x)), math.degrees(math.asin(y / radius))
    return orbit(azimuth, elevation, radius, math.degrees(camera.fov))


def evaluation_cameras() -> list[Camera]:
    """The "8 + 1" evaluation views: eight around the object, then one from above."""
    around = 90.0 - math.degrees(warped_polar(math.radians(70.0)))
    above = 90.0 - math.degrees(warped_polar(math.radians(15.0)))
    ring = [orbit(45.0 * k, around, fov_deg=EVALUATION_FOV_DEG) for k in range(8)]
    return [*ring, orbit(math.degrees(0.4), above, fov_deg=EVALUATION_FOV_DEG)]


def rays(
    camera: Camera,
    height: int,
    width: int,
    jitter: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Ray origins and unit directions, each (height * width, 3), pixels in row-major order.

    `jitter` (height, width, 2) shifts each ray by (x, y) pixels from its pixel's centre. The
    arithmetic is in float64, since float32 moves samples across the box's border; `dtype` is
    what is returned.
    """
    focal = width / 2 / math.tan(camera.fov / 2)  # pixels
    x = torch.arange(width, dtype=torch.float64)[:, None] - (width / 2 - 0.5)
    y = torch.arange(height, dtype=torch.float64)[:, None, None] - (height / 2 - 0.5)
    if jitter is not None:
        x, y = x + jitter[..., :1], y + jitter[..., 1:]
    right, up, backward = camera.camera_to_world[:3, :3].T
    directions = (x * (right / focal) - y * (up / focal) - backward).view(-1, 3)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = camera.camera_to_world[:3, 3].expand_as(directions)
    return origins.to(dtype), directions.to(dtype)
