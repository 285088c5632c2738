"""The kernels of `rendering.kernels` on CUDA: which thread computes which ray and samples.

What needs the whole ray takes one thread a ray, everything else one thread a sample (or block of
samples), neighbours in a ray beside each other.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.extending import overload

from sjc_engine.rendering import kernels as k

THREADS = (32, 4)  # (samples, rays) of a block
RAY_THREADS = 64
BLOCK = 16  # samples whose colours one thread adds up: fewer atomic additions to the pixel


@overload(k.add, target="cuda")
def _add_on_cuda(array: Any, place: Any, value: Any) -> Any:
    def atomic(array: Any, place: Any, value: Any) -> None:
        cuda.atomic.add(array, place, value)

    return atomic


@cuda.jit
def _densities(rays, grid, places, samples):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < samples.weight.shape[0] and i < k.samples_inside(rays, r, samples.weight.shape[1]):
        k.locate(rays, grid, places, r, r, i, i + 1)
        k.densities(grid, places, r, samples, r, i, i + 1)


@cuda.jit
def _composite(rays, samples, picture):  # type: ignore[no-untyped-def]
    r = cuda.grid(1)
    if r < samples.weight.shape[0]:
        k.composite(rays, samples, picture, r)


@cuda.jit
def _colors(rays, grid, places, samples, picture):  # type: ignore[no-untyped-def]
    b, r = cuda.grid(2)
    if r < samples.weight.shape[0]:
        end = min((b + 1) * BLOCK, k.samples_inside(rays, r, samples.weight.shape[1]))
        if b * BLOCK < end:
            k.colors(grid, places, r, samples, picture, r, b * BLOCK, end)


@cuda.jit
def _clear(density_gradient, color_gradient):  # type: ignore[no-untyped-def]
    voxel = cuda.grid(1)
    if voxel < density_gradient.shape[0]:
        density_gradient[voxel] = k.ZERO
        for c in range(color_gradient.shape[1]):
            color_gradient[voxel, c] = k.ZERO


@cuda.jit
def _color_adjoint(rays, grid, places, samples, given, back, gradient):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < back.q.shape[0] and i < k.samples_inside(rays, r, back.q.shape[1]):
        k.locate(rays, grid, places, r, r, i, i + 1)
        k.color_adjoint(rays, grid, places, r, samples, given, back.q, gradient, r, i, i + 1)
        k.density_factors(rays, samples, back, r, r, i, i + 1)


@cuda.jit
def _density_adjoint(rays, back):  # type: ignore[no-untyped-def]
    r = cuda.grid(1)
    if r < back.q.shape[0]:
        k.density_adjoint(back, r, k.samples_inside(rays, r, back.q.shape[1]))


@cuda.jit
def _density_scatter(rays, grid, places, q, gradient):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < q.shape[0] and i < k.samples_inside(rays, r, q.shape[1]):
        k.density_scatter(grid, places, r, q, gradient, i, i + 1)


def forward(
    rays: k.Rays, grid: k.Grid, places: k.Places, samples: k.Samples, picture: k.Pixels
) -> None:
    """`kernels.forward` for all rays, in the order of torch's current stream."""
    n, count = samples.weight.shape
    on = stream()
    _densities[*_sample_shape(count, n), on](rays, grid, places, samples)
    _composite[*_ray_shape(n), on](rays, samples, picture)
    blocks = -(-count // BLOCK)
    _colors[*_sample_shape(blocks, n), on](rays, grid, places, samples, picture)


def backward(
    rays: k.Rays,
    grid: k.Grid,
    places: k.Places,
    samples: k.Samples,
    given: k.PixelGradients,
    back: k.Back,
    density_gradient: Any,
    color_gradient: Any,
) -> None:
    """`kernels.backward` for all rays, in the order of torch's current stream."""
    n, count = back.q.shape
    on, shape = stream(), _sample_shape(count, n)
    _clear[*_ray_shape(len(density_gradient)), on](density_gradient, color_gradient)
    _color_adjoint[*shape, on](rays, grid, places, samples, given, back, color_gradient)
    _density_adjoint[*_ray_shape(n), on](rays, back)
    _density_scatter[*shape, on](rays, grid, places, back.q, density_gradient)


def array(tensor: Any) -> Any:
    """A CUDA tensor's memory, without a copy and without waiting."""
    return cuda.as_cuda_array(tensor, sync=False)


def select(device: int) -> None:
    """Lets this thread's kernels run on this device. Raises whatever a driver does."""
    cuda.select_device(device)


def stream() -> Any:
    """Torch's stream on the device that `select` chose, which need not be torch's current one."""
    import torch

    device = cuda.get_current_device().id
    return cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)


def _sample_shape(width: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (-(-width // THREADS[0]), -(-n // THREADS[1])), THREADS


def _ray_shape(n: int) -> tuple[int, int]:
    return -(-n // RAY_THREADS), RAY_THREADS
