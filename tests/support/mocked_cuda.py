"""numba-cuda without a driver: kernels compile, and launches are noted down instead.

For a Python that has the packages of scripts/cuda-compiler.txt. Tensors of the CPU stand for those
of a GPU; all else of a launch is real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cuda.core
import torch
from cuda.core._kernel_arg_handler import ParamHolder
from numba import cuda as numba_cuda
from numba.cuda import codegen, dispatcher
from numba.cuda.cudadrv import devices, driver

from sjc_engine.rendering import fused, kernels_cuda


@dataclass
class Driver:
    """What a driver was asked for."""

    STREAM = 0x5EA  # torch's current one
    compute_capability: tuple[int, int] = (8, 0)
    device: int = 0  # the thread's current one
    launches: list[tuple[str, Any, tuple[Any, ...]]] = field(default_factory=list)
    contexts_pushed: int = 0
    streams: list[Any] = field(default_factory=list)


class _Context:
    def __init__(self, made: Driver) -> None:
        self.made = made

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=self.made.device, compute_capability=self.made.compute_capability)

    def create_external_stream(self, handle: int) -> Any:
        self.made.streams.append(handle)
        return driver.Stream(driver.binding.CUstream(handle), external=True)


class _Interface:
    """A tensor with what torch gives those of a GPU."""

    def __init__(self, tensor: torch.Tensor) -> None:
        item = tensor.element_size()
        self.__cuda_array_interface__ = {
            "typestr": {torch.float32: "<f4", torch.int32: "<i4"}[tensor.dtype],
            "shape": tuple(tensor.shape),
            "strides": None if tensor.is_contiguous() else tuple(item * s for s in tensor.stride()),
            "data": (tensor.data_ptr() if tensor.numel() else 0, False),
            "version": 2,
        }


@contextlib.contextmanager
def mocked_driver() -> Iterator[Driver]:
    """As on a GPU within; what is launched computes nothing."""
    made = Driver()
    context = _Context(made)

    def select(number: int) -> None:
        made.device, made.contexts_pushed = number, made.contexts_pushed + 1

    def launch(stream: Any, config: Any, kernel: Any, *parameters: Any) -> None:
        ParamHolder(parameters)  # what the driver gets
        made.launches.append((kernel, (int(stream.handle), config.grid, config.block), parameters))

    def function(library: Any) -> Any:
        return SimpleNamespace(kernel=library.name, module=None)

    stream = SimpleNamespace(cuda_stream=made.STREAM)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (dispatcher, "get_current_device", lambda: context.device),
            (devices._runtime, "ensure_context", contextlib.nullcontext),
            (devices._runtime, "get_or_create_context", lambda number=None: context),
            (numba_cuda, "select_device", select),
            (dispatcher._Kernel, "bind", lambda kernel: None),
            (codegen.CUDACodeLibrary, "get_cufunc", function),
            (dispatcher, "launch", launch),
            (cuda.core, "launch", launch),
            (torch.cuda, "current_stream", lambda device: stream),
            (fused, "_on_gpu", lambda tensor: True),
            (fused, "flat_works", lambda device, channels: True),
            (torch.Tensor, "get_device", lambda tensor: 0),
            (
                kernels_cuda.Launcher,
                "array",
                lambda self, t: numba_cuda.as_cuda_array(_Interface(t), sync=False),
            ),
        ):
            stack.enter_context(patch.object(owner, name, value))
        kernels_cuda._launcher.cache_clear()
        yield made
