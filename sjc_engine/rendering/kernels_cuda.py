"""The kernels of `rendering.kernels` on CUDA: which thread computes which ray and samples.

What needs the whole ray takes one thread a ray, everything else one thread a sample (or block of
samples), neighbours in a ray beside each other.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import torch
from numba import cuda
from numba.extending import overload
from torch import Tensor

from sjc_engine.rendering import kernels as k

THREADS = (32, 4)  # (samples, rays) of a block
COLOR_THREADS = (8, 16)  # (blocks of samples, rays): a ray has about a dozen of them
RAY_THREADS = 64
BLOCK = 16  # samples whose colours one thread adds up: fewer atomic additions to the pixel
SOURCE = hashlib.sha256(Path(k.__file__).read_bytes()).hexdigest()[:8]

# A kernel's blocks in the grid, and threads in a block
Shape = tuple[Any, Any]


def _kernel(function: Callable[..., None]) -> Any:
    """Compiles this function for the GPU, once a machine where Numba has a place for a cache.

    The cache looks at this file only. The name that it goes by therefore changes with `kernels.py`.
    """
    function.__qualname__ += f"_{SOURCE}"
    return cuda.jit(cache=k.OPTIONS["cache"])(function)


@overload(k.add, target="cuda")
def _add_on_cuda(array: Any, place: Any, value: Any) -> Any:
    def atomic(array: Any, place: Any, value: Any) -> None:
        cuda.atomic.add(array, place, value)

    return atomic


overload(k.add_color, target="cuda")(
    lambda array, row, share, color, channels: (
        lambda array, row, share, color, channels: k.add_scalars(array, row, share, color, channels)
    )
)


@_kernel
def _densities(rays, grid, places, samples):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < samples.weight.shape[0] and i < k.samples_inside(rays, r, samples.weight.shape[1]):
        k.locate(rays, grid, places, r, r, i, i + 1)
        k.densities(grid, places, r, samples, r, i, i + 1)


@_kernel
def _composite(rays, samples, picture):  # type: ignore[no-untyped-def]
    r = cuda.grid(1)
    if r < samples.weight.shape[0]:
        k.composite(rays, samples, picture, r)


@_kernel
def _colors(rays, grid, places, samples, picture):  # type: ignore[no-untyped-def]
    b, r = cuda.grid(2)
    if r < samples.weight.shape[0]:
        end = min((b + 1) * BLOCK, k.samples_inside(rays, r, samples.weight.shape[1]))
        if b * BLOCK < end:
            k.colors(grid, places, r, samples, picture, r, b * BLOCK, end)


@_kernel
def _clear(density_gradient, color_gradient):  # type: ignore[no-untyped-def]
    voxel = cuda.grid(1)
    if voxel < density_gradient.shape[0]:
        density_gradient[voxel] = k.ZERO
        for c in range(color_gradient.shape[1]):
            color_gradient[voxel, c] = k.ZERO


@_kernel
def _color_adjoint(rays, grid, places, samples, given, back, gradient):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < back.q.shape[0] and i < k.samples_inside(rays, r, back.q.shape[1]):
        k.locate(rays, grid, places, r, r, i, i + 1)
        k.color_adjoint(rays, grid, places, r, samples, given, back.q, gradient, r, i, i + 1)
        k.density_factors(rays, samples, back, r, r, i, i + 1)


@_kernel
def _density_adjoint(rays, back):  # type: ignore[no-untyped-def]
    r = cuda.grid(1)
    if r < back.q.shape[0]:
        k.density_adjoint(back, r, k.samples_inside(rays, r, back.q.shape[1]))


@_kernel
def _density_scatter(rays, grid, places, q, gradient):  # type: ignore[no-untyped-def]
    i, r = cuda.grid(2)
    if r < q.shape[0] and i < k.samples_inside(rays, r, q.shape[1]):
        k.density_scatter(grid, places, r, q, gradient, i, i + 1)


def forward(
    launch: Launcher,
    size: tuple[int, int],
    rays: k.Rays,
    grid: k.Grid,
    places: k.Places,
    samples: k.Samples,
    picture: k.Pixels,
) -> None:
    """`kernels.forward` for all rays; size: how many they are, and samples of each."""
    n, count = size
    launch(_densities, _shape(THREADS, count, n), rays, grid, places, samples)
    launch(_composite, _shape((RAY_THREADS,), n), rays, samples, picture)
    blocks = -(-count // BLOCK)
    launch(_colors, _shape(COLOR_THREADS, blocks, n), rays, grid, places, samples, picture)


def backward(
    launch: Launcher,
    size: tuple[int, int],
    rays: k.Rays,
    grid: k.Grid,
    places: k.Places,
    samples: k.Samples,
    given: k.PixelGradients,
    back: k.Back,
    density_gradient: Any,
    color_gradient: Any,
) -> None:
    """`kernels.backward` for all rays; size: as in `forward`."""
    n, count = size
    each_sample, each_ray = _shape(THREADS, count, n), _shape((RAY_THREADS,), n)
    each_voxel = _shape((RAY_THREADS,), int(grid.side) ** 3)
    launch(_clear, each_voxel, density_gradient, color_gradient)
    adjoint = rays, grid, places, samples, given, back, color_gradient
    launch(_color_adjoint, each_sample, *adjoint)
    launch(_density_adjoint, each_ray, rays, back)
    launch(_density_scatter, each_sample, rays, grid, places, back.q, density_gradient)


def launcher(device: int, *, flat: bool) -> Launcher:
    """What launches kernels on this device, from this thread. Raises whatever a driver does.

    flat: without Numba's launcher. The device should be torch's current one.
    """
    if cuda.get_current_device().id != device:
        cuda.select_device(device)  # pushes a context, and nobody takes it away again
    return _launcher(device, flat)


@cache
def _launcher(device: int, flat: bool) -> Launcher:
    return FlatLauncher(device) if flat else Launcher(device)


class Launcher:
    """Launches kernels through Numba, in the order of torch's current stream on the device."""

    def __init__(self, device: int) -> None:
        self.device = device

    def array(self, tensor: Tensor) -> Any:
        """A CUDA tensor's memory, without a copy and without waiting."""
        return cuda.as_cuda_array(tensor, sync=False)

    def __call__(self, kernel: Any, shape: Shape, *arguments: Any) -> None:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        _configured(kernel, shape, _numba_stream(self.device, stream))(*arguments)


@cache
def _numba_stream(device: int, handle: int) -> Any:
    """Numba's object for a stream of torch's: one, since Numba knows streams by identity."""
    return cuda.external_stream(handle)


@lru_cache(512)
def _configured(kernel: Any, shape: Shape, stream: Any) -> Any:
    with warnings.catch_warnings():
        # One thread a ray is few for a GPU, but all that can work at the same time.
        warnings.filterwarnings("ignore", ".*low occupancy")
        return kernel[*shape, stream]


@dataclass(frozen=True)
class FlatArray:
    """A contiguous tensor as the parameters of a compiled kernel."""

    _numba_type_: Any
    parameters: tuple[int, ...]


class FlatLauncher(Launcher):
    """Launches kernels that Numba has compiled, with parameters that are made here.

    Numba's own launcher finds out the type of each of the 822 parameters of a step, which takes a
    CPU longer than the kernels take a GPU.
    """

    def __init__(self, device: int) -> None:
        from cuda.core import LaunchConfig, Stream, launch

        super().__init__(device)
        self._launch = launch
        self._stream = cache(Stream.from_handle)
        self._config = lru_cache(512)(lambda shape: LaunchConfig(grid=shape[0], block=shape[1]))
        self._functions: dict[tuple[Any, int], Any] = {}  # by kernel and number of parameters

    def array(self, tensor: Tensor) -> FlatArray:
        size, shape, strides = tensor.element_size(), tensor.shape, tensor.stride()
        owners = (0, 0)  # of memory that Numba would count references of
        parameters = (*owners, tensor.numel(), size, tensor.data_ptr(), *shape)
        strides = tuple(size * stride for stride in strides)
        return FlatArray(_array_type(tensor.dtype, tensor.dim()), parameters + strides)

    def __call__(self, kernel: Any, shape: Shape, *arguments: Any) -> None:
        parameters: list[Any] = []
        _flatten(arguments, parameters)
        key = kernel, len(parameters)  # whose types depend on the number of channels only
        if key not in self._functions:
            compiled = kernel.compile(tuple(map(kernel.typeof_pyval, arguments)))
            compiled.bind()
            self._functions[key] = compiled.library.get_cufunc().kernel
        stream = self._stream(torch.cuda.current_stream(self.device).cuda_stream)
        self._launch(stream, self._config(shape), self._functions[key], *parameters)


@cache
def _array_type(dtype: torch.dtype, dimensions: int) -> Any:
    names = {torch.float32: "float32", torch.int32: "int32"}
    return numba.types.Array(getattr(numba.types, names[dtype]), dimensions, "C")


def _flatten(values: Iterable[Any], parameters: list[Any]) -> None:
    """Adds the parameters of arrays and numbers, also within tuples, in Numba's order."""
    for value in values:
        if isinstance(value, FlatArray):
            parameters += value.parameters
        elif isinstance(value, tuple):
            _flatten(value, parameters)
        else:
            parameters.append(value)


def _shape(threads: tuple[int, ...], *work: int) -> Shape:
    """Blocks of so many threads for this much work, along each axis."""
    return tuple(-(-w // t) for w, t in zip(work, threads, strict=True)), threads
