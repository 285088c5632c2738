"""The renderer of voxel fields in fused kernels; `sjc_engine.render` has its oracle in torch.

The kernels (`sjc_engine.kernels`) need NVIDIA Warp, whose wheel compiles them for the CPU or GPU
at hand: no compiler and no CUDA toolkit of the user's. The first use on a machine takes some
seconds, later ones find the result in Warp's cache. Where that fails, the oracle renders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sjc_engine.fields import Field, VoxelField
from sjc_engine.fields.protocol import DENSITY_SHIFT

LOG = logging.getLogger(__name__)
BLOCK = 16  # samples of a ray that one thread of a GPU adds up


def fits(field: Field) -> bool:
    """Whether the kernels render this field. Says so once when they could, were Warp there."""
    if _misfit(field):
        return False
    reason = trouble(field.device)
    if reason:
        _say_once(reason)
    return not reason


def misfit(field: Field) -> str:
    """Why the kernels do not render this field; "" when they do."""
    return _misfit(field) or trouble(field.device)


def _misfit(field: Field) -> str:
    if not isinstance(field, VoxelField):
        return f"a field of kind {field.kind!r}, not 'voxel'"
    if field.channels not in (3, 4) or field.dtype != torch.float32:
        return f"{field.channels} channels of {field.dtype}, not 3 or 4 of float32"
    return ""


@cache
def trouble(device: torch.device) -> str:
    """Why the kernels do not run on this device; "" when they do. Compiles them if need be."""
    try:
        import warp
    except ImportError:
        return "the package warp-lang is not installed"
    try:
        warp.config.log_level = warp.LOG_ERROR
        warp.init()
        from sjc_engine import kernels

        warp.load_module(kernels, device=warp.device_from_torch(device))
    except Exception as error:  # a driver's or a compiler's, which is no reason to stop
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def _say_once(reason: str) -> None:
    LOG.warning("rendering with plain torch, which is slower: %s", reason)


@dataclass(frozen=True, eq=False)
class Rays:
    """n rays through the box, cut into intervals as `render.render_views` says."""

    origins: Tensor  # (n, 3) float32, as all of them
    directions: Tensor  # (n, 3)
    near: Tensor  # (n,) distance to the box
    chord: Tensor  # (n,) length inside it
    first: float  # share of `step` that the first interval has
    step: float
    count: int  # intervals
    background_depth: float  # where light ends that leaves the box

    def __len__(self) -> int:
        return len(self.origins)


def march(field: VoxelField, rays: Rays) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour (n, C), opacity (n,), depth (n,) and weights (n, count), all differentiable once.

    The oracle's numbers, to float32's precision.
    """
    outcome: tuple[Tensor, Tensor, Tensor, Tensor] = _March.apply(
        field.density, field.color, field.d_scale, field, rays
    )
    return outcome


class _March(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, color: Tensor, d_scale: Tensor, field: VoxelField, rays: Rays
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from sjc_engine import kernels as k

        n, count = len(rays), rays.count
        voxels = color.movedim(1, -1).contiguous()
        sigma, weights, through = _samples(density, 3, count, n)
        opacity, depth = density.new_empty(2, n)
        rgb = density.new_zeros(n, field.channels)
        call = _Call(field, d_scale, rays)

        def part(thread: int, begin: int, size: int) -> None:
            call.samples(k.densities, begin, size, density.view(-1), sigma)
            call.rays(k.composites, begin, size, sigma, weights, through, opacity, depth)
            call.samples(k.colors, begin, size, _vectors(voxels), weights, _vectors(rgb))

        _in_parts(part, n, _threads(density))
        ctx.save_for_backward(voxels, density, d_scale, sigma, weights, through)
        ctx.field, ctx.rays = field, rays
        return rgb, opacity, depth, weights.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        from sjc_engine import kernels as k

        voxels, density, d_scale, sigma, weights, through = ctx.saved_tensors
        d_rgb, d_opacity, d_depth, d_weights = given
        d_rgb, d_weights = d_rgb.contiguous(), d_weights.T
        n = len(ctx.rays)
        call = _Call(ctx.field, d_scale, ctx.rays)
        q = torch.empty_like(sigma)
        frozen = not (ctx.needs_input_grad[0] or ctx.needs_input_grad[2])
        # Additions are not atomic on the CPU: there each thread has grids of its own.
        threads = _threads(density)
        d_density = [torch.zeros_like(density) for _ in range(threads)]
        d_voxels = [torch.zeros_like(voxels) for _ in range(threads)]

        def part(thread: int, begin: int, size: int) -> None:
            rays_in = _vectors(d_rgb), d_opacity.contiguous(), d_depth.contiguous(), d_weights
            grids = _vectors(voxels), _vectors(d_voxels[thread])
            call.samples(k.color_adjoint, begin, size, weights, *rays_in, q, *grids)
            if frozen:
                return
            call.rays(k.density_adjoint, begin, size, sigma, weights, through, q)
            call.samples(k.density_scatter, begin, size, q, d_density[thread].view(-1))

        _in_parts(part, n, threads)
        for more in zip(d_density[1:], d_voxels[1:], strict=True):
            d_density[0] += more[0]
            d_voxels[0] += more[1]
        # Interpolation is linear: the scale's slope is that of the values, summed.
        d_scale_slope = torch.dot(d_density[0].view(-1), density.view(-1))
        return d_density[0], d_voxels[0].movedim(-1, 1), d_scale_slope, None, None


class _Call:
    """Launches kernels on the field's device, in torch's order, with what they all begin with."""

    def __init__(self, field: VoxelField, d_scale: Tensor, rays: Rays) -> None:
        import warp

        from sjc_engine import kernels

        self.device = warp.device_from_torch(d_scale.device)
        self.stream = warp.stream_from_torch(d_scale.device) if d_scale.is_cuda else None
        self.ray_set, self.grid = kernels.Rays(), kernels.Grid()
        self.ray_set.origins = _vectors(rays.origins)
        self.ray_set.directions = _vectors(rays.directions)
        self.ray_set.near = warp.from_torch(rays.near)
        self.ray_set.chord = warp.from_torch(rays.chord)
        self.count = rays.count
        self.ray_set.first, self.ray_set.step = rays.first, rays.step
        self.ray_set.background_depth = rays.background_depth
        self.grid.side, self.grid.half_length = field.resolution, field.half_length
        self.scale = d_scale.detach().exp().view(1)
        self.grid.density_scale = warp.from_torch(self.scale)
        self.grid.density_shift = DENSITY_SHIFT
        self.grid.bounded = field.space == "rgb"

    def rays(self, kernel: Any, begin: int, size: int, *inputs: Any) -> None:
        """One thread for each of `size` rays."""
        self._launch(kernel, (size,), begin, *inputs)

    def samples(self, kernel: Any, begin: int, size: int, *inputs: Any) -> None:
        """One thread for each block of their samples."""
        block = BLOCK if self.stream else self.count
        self._launch(kernel, (-(-self.count // block), size), begin, block, *inputs)

    def _launch(self, kernel: Any, shape: tuple[int, ...], *inputs: Any) -> None:
        import warp

        arrays = [
            warp.from_torch(value.detach()) if isinstance(value, Tensor) else value
            for value in inputs
        ]
        warp.launch(
            kernel,
            shape,
            [self.ray_set, self.grid, *arrays],
            device=self.device,
            stream=self.stream,
            record_tape=False,
        )


def _samples(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised (..., count, n): neighbours in memory are what one core visits in turn."""
    *more, count, n = shape
    if like.is_cuda:
        return like.new_empty(shape)
    return like.new_empty(*more, n, count).mT


def _vectors(values: Tensor) -> Any:
    """(..., C) contiguous as a flat array of vectors."""
    import warp

    kind = {3: warp.vec3, 4: warp.vec4}[values.shape[-1]]
    return warp.from_torch(values.detach().view(-1, values.shape[-1]), dtype=kind)


def _threads(like: Tensor) -> int:
    return 1 if like.is_cuda else torch.get_num_threads()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="render")


def _in_parts(work: Callable[[int, int, int], None], rays: int, threads: int) -> None:
    """work(thread, begin, size) over all rays, in threads of its own where there are several."""
    if threads == 1:
        work(0, 0, rays)
        return
    size = -(-rays // threads)
    begins = range(0, rays, size)
    sizes = [min(size, rays - begin) for begin in begins]
    list(_pool(threads).map(work, range(len(sizes)), begins, sizes))
