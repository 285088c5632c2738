"""The device "meta" in a GPU's place: what a step launches, copies and waits for, without one.

torch refuses operations that mix devices, on "meta" as on a GPU. Nothing is computed there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.rendering import fused

ENGINE = str(Path(fused.__file__).parents[1])
META = torch.device("meta")
# Operations whose result, or its shape, the host has to know
ASKS = {
    "_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2",
    "unique_dim",
}  # fmt: skip
# Those that only look at memory in another way
VIEWS = {
    "view", "_unsafe_view", "transpose", "permute", "t", "expand", "slice", "select", "unsqueeze",
    "squeeze", "split", "detach", "alias", "as_strided", "unbind", "split_with_sizes", "lift_fresh",
    "empty", "new_empty", "empty_like", "_reshape_alias", "empty_strided", "new_empty_strided",
    "movedim", "unflatten", "diagonal",
}  # fmt: skip


@dataclass
class Counts:
    """By operation and the line of the engine that asked for it."""

    launches: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)  # through `sjc_engine.memory.upload`
    downloads: Counter[str] = field(default_factory=Counter)  # that nobody waits for
    waits: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in vars(self).values():
            counter.clear()


class CountingDevice(TorchDispatchMode):
    """Counts what is done on "meta" within."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        full = str(func).removeprefix("aten.")
        name = full.partition(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if tensor.is_meta]
        here = [tensor for tensor in tensors if not tensor.is_meta]
        to = kwargs.get("device")
        to = torch.device(to).type if to is not None else ""
        if not there and to != "meta":
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            return self._copy(func, args, kwargs, there, here, to)
        where = f"{full} {_line()}"
        # An index of the host's is copied to the device, which is waited for
        asks = name in ASKS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        if asks or (there and any(tensor.dim() for tensor in here)):
            self.counts.waits[where] += 1
            if name == "_local_scalar_dense":
                return 1.0 if there[0].dtype.is_floating_point else True
            if name == "nonzero":
                return torch.zeros(4, there[0].dim(), dtype=torch.long, device="meta")
        if name not in VIEWS:
            self.counts.launches[where] += 1
        return func(*args, **kwargs)

    def _copy(
        self, func: Any, args: Any, kwargs: Any, there: list[Tensor], here: list[Tensor], to: str
    ) -> Any:
        """A cast on the device, or a copy from or to it."""
        counts, where, first = self.counts, _line(), args[0]
        later = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
        if there and to == "cpu":
            (counts.downloads if later else counts.waits)[f"download {where}"] += 1
            return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if here and (to == "meta" or there):
            pinned = later and where.endswith(" upload")
            (counts.uploads if pinned else counts.waits)[f"upload {_line(pinned)}"] += 1
            return first if there else func(*args, **kwargs)
        counts.launches[where] += 1
        return func(*args, **kwargs)


class _CountingIndices(TorchFunctionMode):
    """Lists as indices, which torch makes tensors of, and copies them to a GPU, before it asks."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | tuple) for part in parts):
                self.counts.waits[f"list as index {_line()}"] += 1
        return func(*args, **(kwargs or {}))


def _line(outer: bool = False) -> str:
    """The engine's innermost line, with its function; outer: the one that called that."""
    frame = sys._getframe(1)
    while frame.f_back and not frame.f_code.co_filename.startswith(ENGINE):
        frame = frame.f_back
    if outer and frame.f_back:
        frame = frame.f_back
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"


class _March:
    """The fused renderer's place: its outputs depend on what it reads, and are not computed."""

    LAUNCHES = 3 + 4  # of kernels, forward and backward

    @staticmethod
    def apply(
        density: Tensor, color: Tensor, d_scale: Tensor, field: VoxelField, rays: Any, flat: bool
    ) -> tuple[Tensor, ...]:
        for tensor in (rays.origins, rays.directions, rays.near, rays.chord):
            assert tensor.is_meta
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous()
        n = len(rays)
        mixed = (density.sum() + color.sum()) * d_scale
        shapes = (n, field.channels), (n,), (n,), (n,), (n, rays.count)
        return tuple(color.new_zeros(shape) + mixed for shape in shapes)


@contextmanager
def counting_device() -> Iterator[Counts]:
    """Priors and scenes that are made within, on the device "meta", are counted."""
    with (
        patch.object(fused, "_March", _March),
        patch.object(fused, "device_unavailable_reason", lambda device, channels=3: ""),
        CountingDevice() as mode,
        _CountingIndices(mode.counts),
    ):
        yield mode.counts
