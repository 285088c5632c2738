"""Fields with known shapes and colours, for the tests of meshes and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.mesh.iso_level import iou
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import coverage, rasterize
from sjc_engine.rendering.volume import render

HALF = 0.7
Array = NDArray[np.float64]
Distance = Callable[[Array], Array]  # points (..., 3) -> signed distance (...), negative inside


def sphere(radius: float, center: tuple[float, float, float] = (0, 0, 0)) -> Distance:
    return lambda p: np.linalg.norm(p - center, axis=-1) - radius


def box(half: tuple[float, float, float], center: tuple[float, float, float]) -> Distance:
    def distance(p: Array) -> Array:
        q = np.abs(p - center) - half
        return np.linalg.norm(q.clip(0), axis=-1) + q.max(axis=-1).clip(max=0)

    return distance


def torus(ring: float, tube: float, height: float = 0.0) -> Distance:
    """Around the Y axis."""
    return lambda p: np.hypot(np.hypot(p[..., 0], p[..., 2]) - ring, p[..., 1] - height) - tube


def stalk(bottom: float, top: float, radius: float) -> Distance:
    """A capsule along the Y axis."""

    def distance(p: Array) -> Array:
        gap = p[..., 1] - p[..., 1].clip(bottom, top)
        return np.sqrt(p[..., 0] ** 2 + gap**2 + p[..., 2] ** 2) - radius

    return distance


def union(*parts: Distance) -> Distance:
    return lambda p: np.min([part(p) for part in parts], axis=0)


TOTEM = union(
    torus(0.32, 0.13, -0.25),
    sphere(0.22, (0, 0.22, 0)),
    stalk(-0.3, 0.1, 0.05),
    box((0.32, 0.05, 0.05), (0, -0.25, 0)),
)
POT = box((0.16, 0.1, 0.16), (0, -0.45, 0))
FICUS = union(sphere(0.28, (0, 0.22, 0)), stalk(-0.16, 0.1, 0.04), POT)  # 0.15 above its pot


def centers(resolution: int) -> Array:
    """Voxel centres (n, n, n, 3), indexed [z, y, x], with x, y, z as the last axis."""
    ticks = ((np.arange(resolution) + 0.5) / resolution * 2 - 1) * HALF
    z, y, x = np.meshgrid(ticks, ticks, ticks, indexing="ij")
    return np.stack([x, y, z], axis=-1)


def soft_density(distance: Array, density: float = 20.0, softness: float = 0.012) -> Array:
    """A density that falls from `density` to 0 across the surface."""
    return density / (1 + np.exp((distance / softness).clip(-40, 40)))


def shell_colors(
    colors: Array, distance: Array, density: float, softness: float = 0.012, seen: float = 0.3
) -> Array:
    """The colours (n, n, n, 3) where a viewer of `soft_density` sees them, and noise elsewhere.

    A field learns colours in proportion to a sample's weight in the picture. On a ray that meets
    the surface head-on the weight is sigma exp(-optical depth), here in closed form; colours are
    right where it is at least `seen` of its maximum.
    """
    scaled = (distance / softness).clip(-40, 40)
    weight = np.exp(-density * softness * np.logaddexp(0, -scaled)) / (1 + np.exp(scaled))
    garbage = np.random.default_rng(0).uniform(-0.99, 0.99, colors.shape)
    return np.where((weight >= seen * weight.max())[..., None], colors, garbage)


def floaters(resolution: int, count: int, away_from: Array, seed: int = 0) -> Array:
    """The density of small dense balls, none of them near the object."""
    rng, points = np.random.default_rng(seed), centers(resolution)
    total = np.zeros(points.shape[:3])
    for _ in range(count):
        ball = sphere(rng.uniform(0.02, 0.04), tuple(rng.uniform(-0.65, 0.65, 3)))(points)
        total += soft_density(ball, rng.uniform(20, 100)) * (away_from > 0.1)
    return total


UNSEEN = [orbit(25.0 + 45 * k, (-10.0, 5.0, 25.0, 50.0)[k % 4]) for k in range(8)]


def silhouette_ious(field: VoxelField, mesh: Mesh, size: int) -> list[float]:
    """IoU of the field's outlines with the mesh's, in eight views that no level search saw."""
    vertices, faces = torch.tensor(mesh.vertices), torch.tensor(mesh.faces)
    return [
        iou(
            render(field, camera, size, size, step=field.voxel_length).opacity > 0.5,
            coverage(vertices, faces, camera, size, size),
        )
        for camera in UNSEEN
    ]


def interior_psnr(field: VoxelField, mesh: Mesh, size: int, views: int = 8) -> float:
    """PSNR (dB) of the mesh's pictures against the field's, where both cover the whole pixel."""
    errors = []
    for camera in UNSEEN[:views]:
        seen = render(field, camera, size, size)
        drawn = rasterize(mesh, camera, size, size)
        inside = (seen.opacity > 0.99) & (drawn.opacity == 1)
        errors.append((drawn.rgb - seen.rgb / seen.opacity)[:, inside].flatten())
    return float(10 * torch.log10(4 / torch.cat(errors).square().mean()))


def colored_by_points(field: VoxelField, mesh: Mesh) -> Mesh:
    """The mesh with the colour that the field holds at each vertex, as a plain export would."""
    colors = (field.rgb(torch.from_numpy(mesh.vertices)).numpy() + 1) / 2
    return replace(mesh, colors=colors.astype(np.float32), texture=None)


def noise(resolution: int, seed: int = 0) -> Array:
    """Smooth noise of unit variance."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal((resolution,) * 3), 1.2)
    return values / values.std()


def make_field(density: Array, colors: Array | None = None) -> VoxelField:
    """The field of densities (n, n, n) and RGB colours (n, n, n, 3) in (-1, 1) at voxel centres."""
    resolution = len(density)
    field = VoxelField(resolution, half_length=HALF).requires_grad_(False)
    sigma = torch.from_numpy(np.maximum(density, 1e-9))
    raw = torch.where(sigma > 20, sigma, torch.log(torch.expm1(sigma.clamp(max=20))))
    field.density[0, 0] = (raw + 1).float()  # the inverse of softplus(value - 1)
    if colors is None:
        colors = np.broadcast_to([0.6, 0.2, -0.4], (*density.shape, 3))
    field.color[0] = torch.from_numpy(np.arctanh(colors) * 2).permute(3, 0, 1, 2).float()
    return field
