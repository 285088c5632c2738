"""Volume rendering of a radiance field, in plain torch or, for voxels, in fused kernels.

A ray's chord through the box is cut into intervals of length `step`, the last one clipped at the
box, so that a constant density gives the exact transmittance exp(-sigma L). Each interval takes
the density and colour of its midpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sjc_engine.fields.field import ConeSamples, Field
from sjc_engine.memory import upload
from sjc_engine.rendering.camera import Camera, rays
from sjc_engine.rendering.fused import (
    BACKGROUND_DEPTH,
    CutRays,
    fits,
    flat_works,
    march_voxels,
    t_edges,
    unavailable_reason,
)

RAYS_PER_CHUNK = 1 << 14  # bounds the memory of large pictures
UNIFORM = 12**-0.5  # standard deviation of a uniform distribution of width 1


@dataclass(frozen=True, eq=False)
class Rendering:
    """One view, or a stack of views with one more leading dimension."""

    rgb: Tensor  # (C, H, W), premultiplied by opacity
    opacity: Tensor  # (H, W) in [0, 1]
    depth: Tensor  # (H, W) expected distance; the unabsorbed part counts as BACKGROUND_DEPTH
    emptiness: Tensor  # (H, W) sum of log(1 + beta w) over a ray's weights; 0 unless asked for
    weights: Tensor  # (H * W, samples): the share of each interval in its ray's colour
    directions: Tensor  # (H * W, 3) unit vectors
    chord: Tensor  # (H * W,) length of each ray inside the box
    t_edges: Tensor  # (samples + 1,) ends of intervals, from the box's wall; the chord clips them


def composite(rendering: Rendering, background: Tensor) -> Tensor:
    """The picture (..., C, H, W) over a background that broadcasts to it."""
    return rendering.rgb + (1 - rendering.opacity).unsqueeze(-3) * background


def render(
    field: Field, camera: Camera, height: int, width: int, *, step: float | None = None
) -> Rendering:
    """Render one view through pixel centres. See `render_views`."""
    stack = render_views(field, [camera], height, width, step=step)
    return Rendering(*(getattr(stack, name)[0] for name in Rendering.__dataclass_fields__))


def render_views(
    field: Field,
    cameras: Sequence[Camera],
    height: int,
    width: int,
    *,
    step: float | None = None,
    generator: torch.Generator | None = None,
    emptiness_scale: float = 0.0,
    fused: bool | None = None,
    flat: bool = False,
) -> Rendering:
    """Render several views of one field in one pass; every tensor gains a leading view axis.

    `step` is the interval's length in world units (default: half a voxel). With a CPU `generator`
    each ray moves inside its pixel and the first interval of all rays is shortened at random (one
    number for the whole call); without, rays pass through pixel centres. `emptiness_scale` is the
    beta of `losses.emptiness`, if that is wanted. `fused` asks for the kernels of
    `sjc_engine.rendering.fused` or for plain torch, their oracle (default: kernels that fit).
    `flat` launches a GPU's kernels without Numba's launcher (`Prior.enable_fast_launch`).
    """
    step = field.voxel_length / 2 if step is None else step
    if not step > 0:
        raise ValueError(f"step must be positive, not {step}")
    voxels = field if fused is not False and fits(field) else None
    if fused and not voxels:
        raise ValueError("no fused kernels for this field: " + unavailable_reason(field))
    flat = flat and flat_works(field.device, field.channels)
    march = partial(march_voxels, voxels, flat=flat) if voxels else partial(_march, field)
    lines = _cut_rays(field, cameras, height, width, step, generator, emptiness_scale)
    # Gradients of a whole grid are made for each chunk: with them there should be one
    size = RAYS_PER_CHUNK if torch.is_grad_enabled() else RAYS_PER_CHUNK // 4
    chunks = [march(lines[start : start + size]) for start in range(0, len(lines), size)]
    rgb, opacity, depth, emptiness, weights = (
        torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True)
    )
    views = len(cameras)
    return Rendering(
        rgb.view(views, height, width, -1).movedim(-1, -3),
        opacity.view(views, height, width),
        depth.view(views, height, width),
        emptiness.view(views, height, width),
        weights.view(views, height * width, -1),
        lines.directions.to(rgb.dtype).view(views, height * width, 3),
        lines.chord.to(rgb.dtype).view(views, height * width),
        lines.t_edges.to(rgb.dtype).expand(views, -1),
    )


@torch.no_grad()
def render_lines(
    field: Field, origins: Tensor, directions: Tensor, length: float, step: float
) -> tuple[Tensor, Tensor]:
    """What the first `length` of rays (n, 3) shows: RGB (n, C), times the opacity, and that (n,).

    They may begin inside of the box. Cut into steps as in `render_views`.
    """
    origins, directions = origins.double(), directions.double()
    near, chord = intersect_box(origins, directions, field.aabb.cpu())
    chord = chord.minimum(length - near).clamp(min=0.0)
    count = math.ceil(length / step)
    inside = torch.searchsorted(t_edges(1.0, step, count, chord.device)[:-1], chord)
    origins, directions, near, chord = (
        part.to(field.device) for part in (origins, directions, near, chord)
    )
    no_cones = torch.zeros_like(near)
    lines = CutRays(origins, directions, near, chord, no_cones, 1.0, step, count, 0.0, inside)
    march = partial(march_voxels, field) if fits(field) else partial(_march, field)
    starts, size = range(0, len(lines), RAYS_PER_CHUNK), RAYS_PER_CHUNK
    parts = [march(lines[start : start + size])[:2] for start in starts]
    rgb, opacity = zip(*parts, strict=True)
    return torch.cat(rgb), torch.cat(opacity)


def _cut_rays(
    field: Field,
    cameras: Sequence[Camera],
    height: int,
    width: int,
    step: float,
    generator: torch.Generator | None,
    emptiness_scale: float,
) -> CutRays:
    """The rays of all views, one after the other, float64 on the field's device."""
    first = 1.0
    jitters: list[Tensor | None] = [None] * len(cameras)
    if generator is not None:
        first = 1.0 - float(torch.rand((), generator=generator, dtype=torch.float64))
        jitters = [torch.rand(height, width, 2, generator=generator) - 0.5 for _ in cameras]
    bundles = [
        rays(camera, height, width, jitter, torch.float64)
        for camera, jitter in zip(cameras, jitters, strict=True)
    ]
    origins, directions = (torch.cat(parts) for parts in zip(*bundles, strict=True))
    # Still on the CPU, so that the numbers of intervals are known without waiting for the device
    near, chord = intersect_box(origins, directions, field.aabb)
    count = max(1, math.ceil(float(chord.max()) / step + 1.0 - first))
    inside = torch.searchsorted(t_edges(first, step, count, chord.device)[:-1], chord)
    # A pixel's width one unit away, for fields that look at cones and not at points
    widths = torch.tensor([[2 * math.tan(camera.fov / 2) / width] for camera in cameras])
    pixel = widths.expand(-1, height * width).reshape(-1)
    # One copy instead of five
    lines = torch.cat([origins, directions, torch.stack([near, chord, pixel], dim=1)], dim=1)
    lines = upload(lines, field.device)
    origins, directions = lines[:, :3], lines[:, 3:6]
    near, chord, pixel = lines[:, 6:].unbind(dim=1)
    places = origins, directions, near, chord, pixel
    return CutRays(*places, first, step, count, emptiness_scale, inside)


def intersect_box(origins: Tensor, directions: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Distance at which each ray (n, 3) enters the box (2, 3), and the length of its chord.

    Nothing behind the origin counts; a ray that misses the box has length 0.
    """
    # A component of exactly 0 makes 0/0 on the box's face; a tiny one keeps the comparison right.
    safe = torch.where(directions.abs() < 1e-12, torch.full_like(directions, 1e-12), directions)
    hits = (aabb[:, None, :] - origins) / safe  # (2, n, 3)
    near = hits.amin(dim=0).amax(dim=-1).clamp(min=0.0)
    far = hits.amax(dim=0).amin(dim=-1)
    return near, (far - near).clamp(min=0.0)


def _march(field: Field, rays: CutRays) -> tuple[Tensor, ...]:
    """Colour (n, C), opacity, depth and emptiness (n,), and weights (n, samples) of n rays."""
    dtype = field.dtype
    edges = torch.minimum(rays.t_edges, rays.chord[:, None])  # (n, samples + 1), float64
    deltas = edges.diff()
    middle = rays.near[:, None] + edges[:, :-1] + deltas / 2
    # The m samples inside the box, ray by ray: where they are in (n, samples), and on which ray
    number, total = upload(rays.inside, rays.chord.device), int(rays.inside.sum())
    ray = torch.arange(len(rays), device=number.device)
    ray = ray.repeat_interleave(number, output_size=total)
    before = number.cumsum(dim=0) - number  # samples of the rays before
    inside = ray * rays.count + torch.arange(total, device=number.device) - before[ray]
    distance = middle.flatten()[inside]
    points = rays.origins[ray] + rays.directions[ray] * distance[:, None]
    cones = None
    if field.needs_cones:
        cones = ConeSamples(
            rays.directions[ray].to(dtype),
            along=deltas.flatten()[inside].to(dtype) * UNIFORM,
            across=(distance.to(dtype) * rays.pixel[ray].to(dtype)) * UNIFORM,
        )
    sigma, color = field.sample(points.to(dtype), cones)

    optical = sigma.new_zeros(deltas.numel())
    optical = optical.index_copy(0, inside, sigma * deltas.flatten()[inside].to(dtype))
    optical = optical.view(deltas.shape)
    reached = optical.cumsum(dim=1)
    weights = torch.exp(optical - reached) * -torch.expm1(-optical)
    opacity = -torch.expm1(-reached[:, -1])
    rgb = color.new_zeros(len(rays), color.shape[1])
    rgb = rgb.index_add(0, ray, color * weights.flatten()[inside, None])
    depth = (weights * middle.to(dtype)).sum(dim=1) + (1 - opacity) * BACKGROUND_DEPTH
    beta = rays.emptiness_scale
    emptiness = torch.log1p(beta * weights).sum(dim=1) if beta else torch.zeros_like(depth)
    return rgb, opacity, depth, emptiness, weights
