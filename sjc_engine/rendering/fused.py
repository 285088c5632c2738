"""The renderer of voxel fields in fused kernels; its oracle in torch is `rendering.volume`.

The kernels (`rendering.kernels`) are compiled by Numba, whose wheels bring LLVM along: nobody needs
a compiler. The first use on a machine takes some seconds, later ones find the result in
Numba's cache. A GPU wants the package numba-cuda too. Where they do not run, the oracle renders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from sjc_engine.cpu_tuning import flush_subnormals, keep_freed_memory
from sjc_engine.fields.field import DENSITY_SHIFT, Field
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.memory import out_of_memory

BACKGROUND_DEPTH = 10.0  # where light that leaves the box is said to end (official code)
LOG = logging.getLogger(__name__)

Packed = TypeVar("Packed")


def fits(field: Field) -> TypeGuard[VoxelField]:
    """Whether the kernels render this field. Warns once when they should, and do not run here."""
    if _unsupported(field):
        return False
    reason = device_unavailable_reason(field.device, field.channels)
    if reason:
        _warn_once(reason)
    return not reason


def unavailable_reason(field: Field) -> str:
    """Why the kernels do not render this field; "" when they do."""
    return _unsupported(field) or device_unavailable_reason(field.device, field.channels)


def _unsupported(field: Field) -> str:
    if not isinstance(field, VoxelField):
        return f"a field of kind {field.kind!r}, not 'voxel'"
    if field.channels not in (3, 4) or field.dtype != torch.float32:
        return f"{field.channels} channels of {field.dtype}, not 3 or 4 of float32"
    return ""


@cache
def device_unavailable_reason(device: torch.device, channels: int = 3) -> str:
    """Why the kernels do not run on this device; "" when they do."""
    if device.type not in ("cpu", "cuda"):
        return f"there are none for {device.type}"
    if device.type == "cpu":
        keep_freed_memory()
    try:
        _try(device, channels, flat=False)
    except Exception as error:  # a package's, driver's or compiler's: no reason to stop
        if out_of_memory(error):  # which says nothing of another time
            raise
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def flat_works(device: torch.device, channels: int) -> bool:
    """Whether flat launches do what Numba's do, on a GPU. Warns once when they do not."""
    if device.type != "cuda":
        return False
    try:
        found, wanted = (_try(device, channels, flat=flat) for flat in (True, False))
        reason = "" if torch.allclose(found, wanted, rtol=1e-4) else "another picture or gradient"
    except Exception as error:  # a package's or driver's
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    if reason:
        LOG.warning("kernels are launched by Numba, which takes the CPU longer: %s", reason)
    return not reason


def _try(device: torch.device, channels: int, *, flat: bool) -> Tensor:
    """A ray and its gradients: what does not compile, or cannot be cached, shows in no step."""
    field = VoxelField(2, channels, generator=torch.Generator()).to(device)
    line, chord = torch.ones(1, 3, device=device), torch.ones(1, device=device)
    with torch.enable_grad():
        rays = CutRays(-line, line, chord, chord, chord, 1.0, 0.5, 2, 1.0, chord.cpu())
        seen = torch.cat([part.flatten() for part in march_voxels(field, rays, flat=flat)])
        seen.sum().backward()
    slopes = [p.grad.flatten() for p in (field.density, field.color) if p.grad is not None]
    return torch.cat([seen.detach(), *slopes]).cpu()  # a GPU reports errors when it is waited for


@cache
def _warn_once(reason: str) -> None:
    LOG.warning("rendering with plain torch, which is slower: %s", reason)


@dataclass(frozen=True, eq=False)
class CutRays:
    """n rays through the box, cut into intervals as `render.render_views` says."""

    origins: Tensor  # (n, 3)
    directions: Tensor  # (n, 3)
    near: Tensor  # (n,) distance to the box
    chord: Tensor  # (n,) length inside it
    pixel: Tensor  # (n,) a pixel's width one unit away
    first: float  # share of `step` that the first interval has
    step: float
    count: int  # intervals
    emptiness_scale: float  # beta in log(1 + beta w)
    inside: Tensor  # (n,) on the CPU: how many intervals begin inside the chord

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, part: slice) -> CutRays:
        names = ("origins", "directions", "near", "chord", "pixel", "inside")
        return replace(self, **{name: getattr(self, name)[part] for name in names})

    @property
    def t_edges(self) -> Tensor:
        """Where intervals begin and end (count + 1,), from the box's wall; the chord clips them."""
        return t_edges(self.first, self.step, self.count, self.near.device)


def t_edges(first: float, step: float, count: int, device: torch.device) -> Tensor:
    """Where intervals begin and end (count + 1,), in float64."""
    numbers = torch.arange(-1, count, dtype=torch.float64, device=device)
    return (numbers + first).clamp_(min=0.0) * step


def march_voxels(field: VoxelField, rays: CutRays, *, flat: bool = False) -> tuple[Tensor, ...]:
    """Colour (n, C), opacity, depth, emptiness (n,), weights (n, count), differentiable once.

    The oracle's numbers, to float32's precision. flat: a GPU's kernels, without Numba's launcher.
    """
    names = ("origins", "directions", "near", "chord")
    rays = replace(rays, **{name: getattr(rays, name).float().contiguous() for name in names})
    with torch.cuda.device_of(field.density):
        return _March.apply(field.density, field.color, field.d_scale, field, rays, flat)


class _March(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        density: Tensor,
        color: Tensor,
        d_scale: Tensor,
        field: VoxelField,
        rays: CutRays,
        flat: bool,
    ) -> tuple[Tensor, ...]:
        n, count = len(rays), rays.count
        voxels = color.movedim(1, -1).contiguous()
        colors = density.new_empty(n, count * field.channels)
        kept = *density.new_empty(3, n, count), colors
        rgb = density.new_zeros(n, field.channels)
        opacity, depth, emptiness = density.new_empty(3, n)
        call = _Call(field, rays, density, voxels, d_scale.exp(), flat)
        pixels = call.pack(call.kernels.Pixels, rgb, opacity, depth, emptiness)
        call.forward(call.pack(call.kernels.Samples, *kept), pixels)
        ctx.save_for_backward(voxels, density, d_scale, *kept)
        ctx.field, ctx.rays, ctx.flat = field, rays, flat
        ctx.set_materialize_grads(False)
        return rgb, opacity, depth, emptiness, kept[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        voxels, density, d_scale, *kept = ctx.saved_tensors
        call = _Call(ctx.field, ctx.rays, density, voxels, d_scale.exp(), ctx.flat)
        # Additions are not atomic on the CPU: there each thread has grids of its own.
        d_density = [torch.empty_like(density) for _ in range(call.threads)]
        d_voxels = [torch.empty_like(voxels) for _ in range(call.threads)]
        call.backward(
            call.pack(call.kernels.Samples, *kept),
            call.pack(call.kernels.PixelGradients, *call.whole(given)),
            [call.array(d.view(-1)) for d in d_density],
            [call.array(d.view(-1, d.shape[-1])) for d in d_voxels],
        )
        # Interpolation is linear: the scale's slope is that of the values, summed.
        d_scale_slope = torch.dot(d_density[0].view(-1), density.reshape(-1))
        return d_density[0], d_voxels[0].movedim(-1, 1), d_scale_slope, None, None, None


class _Call:
    """One call of the kernels: a field and rays as arrays, on the CPU's threads or the GPU."""

    def __init__(
        self,
        field: VoxelField,
        rays: CutRays,
        density: Tensor,
        voxels: Tensor,
        scale: Tensor,
        flat: bool,
    ) -> None:
        from sjc_engine.rendering import kernels

        self.n, self.count, self.on_gpu = len(rays), rays.count, _on_gpu(density)
        self.kernels, self.scale = kernels, scale
        self.threads = 1 if self.on_gpu else torch.get_num_threads()
        if self.on_gpu:
            from sjc_engine.rendering import kernels_cuda

            self.cuda = kernels_cuda
            self.launch = kernels_cuda.launcher(density.get_device(), flat=flat)
        real = kernels.real
        self.rays = kernels.Rays(
            *map(self.array, (rays.origins, rays.directions, rays.near, rays.chord)),
            *map(real, (rays.first, rays.step, BACKGROUND_DEPTH, rays.emptiness_scale)),
        )
        self.grid = kernels.Grid(
            self.array(density.reshape(-1)),
            self.array(voxels.view(-1, voxels.shape[-1])),
            np.int32(field.resolution),
            real(field.half_length),
            self.array(scale.view(1)),
            real(DENSITY_SHIFT),
            field.space == "rgb",
            (0,) * field.channels,
        )

    def array(self, tensor: Tensor) -> Any:
        """The tensor's memory, contiguous, as the kernels want it."""
        return self.launch.array(tensor.detach()) if self.on_gpu else tensor.detach().numpy()

    def whole(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        """The gradients of what `march_voxels` returns, contiguous. Only the weights' stay away."""
        n, channels = self.n, len(self.grid.channels)
        shapes = (n, channels), (n,), (n,), (n,), (0, self.count)
        return [
            self.scale.new_zeros(shape) if g is None else g.contiguous()
            for g, shape in zip(given, shapes, strict=True)
        ]

    def pack(self, kind: type[Packed], *tensors: Tensor) -> Packed:
        return kind(*map(self.array, tensors))

    def forward(self, samples: Any, pixels: Any) -> None:
        if self.on_gpu:
            places, size = self._places(), (self.n, self.count)
            self.cuda.forward(self.launch, size, self.rays, self.grid, places, samples, pixels)
            return

        def part(thread: int, begin: int, end: int) -> None:
            self.kernels.forward(begin, end, self.rays, self.grid, samples, pixels)

        self._in_parts(part, self._shares())

    def backward(self, samples: Any, given: Any, d_density: list[Any], d_voxels: list[Any]) -> None:
        """Fills the first of the gradients; there is one for each thread."""
        if self.on_gpu:
            back = self.pack(self.kernels.Back, *self.scale.new_empty(3, self.n, self.count))
            inputs = self.rays, self.grid, self._places(), samples, given
            out = back, d_density[0], d_voxels[0]
            self.cuda.backward(self.launch, (self.n, self.count), *inputs, *out)
            return

        side = int(self.grid.side)
        density = [grid.reshape(side, -1) for grid in d_density]
        color = [grid.reshape(side, -1) for grid in d_voxels]
        reached = [(0, 0)] * self.threads  # from which layer to which colours reach

        def part(thread: int, begin: int, end: int) -> None:
            out = d_density[thread], d_voxels[thread]
            reached[thread] = self.kernels.backward(
                begin, end, self.rays, self.grid, samples, given, *out
            )

        def sum_up(thread: int, begin: int, end: int) -> None:
            _sum_layers(density, color, reached, begin, end)

        self._in_parts(part, self._shares())
        self._in_parts(sum_up, [side * k // self.threads for k in range(self.threads + 1)])

    def _places(self) -> Any:
        """A GPU's room for where all samples lie; a CPU's threads have that of one ray."""
        cell = torch.empty(self.n, self.count, dtype=torch.int32, device=self.scale.device)
        return self.pack(self.kernels.Places, cell, *self.scale.new_empty(3, self.n, self.count))

    def _shares(self) -> list[int]:
        """Where each thread's rays begin, and the last's end: equal lengths inside the box."""
        length = np.cumsum(self.rays.chord, dtype=np.float64)
        inner = [length[-1] * k / self.threads for k in range(1, self.threads)]
        return [0, *(int(edge) for edge in np.searchsorted(length, inner)), self.n]

    def _in_parts(self, work: Callable[[int, int, int], None], edges: list[int]) -> None:
        """work(thread, begin, end) for each part; the kernels let go of the interpreter's lock."""
        flush_subnormals()  # as in the other threads
        others = [
            _pool(self.threads - 1).submit(work, k, edges[k], edges[k + 1])
            for k in range(1, self.threads)
        ]
        work(0, 0, edges[1])  # this thread's share
        for other in others:
            other.result()


def _sum_layers(
    density: list[Any], color: list[Any], reached: list[tuple[int, int]], begin: int, end: int
) -> None:
    """Sums layers begin...end of the threads' grids (side, ...) in those of the first thread.

    A thread's colours are `reached` from one layer to another; outside its memory holds anything.
    """
    low, high = np.clip(reached[0], begin, end)
    color[0][begin:low] = 0
    color[0][high:end] = 0
    for k in range(1, len(reached)):
        density[0][begin:end] += density[k][begin:end]
        low, high = np.clip(reached[k], begin, end)
        color[0][low:high] += color[k][low:high]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "render", initializer=flush_subnormals)
