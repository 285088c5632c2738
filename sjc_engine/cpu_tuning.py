"""What makes a CPU fast at this work and has to be asked of the C library and the processor."""

from __future__ import annotations

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed for the next step: half a GB at its heap's end.

    A step of the renderer frees tens of MB and wants as much again. glibc gives them back to the
    system, which then hands out and clears page after page: up to a third of a step's time. An
    environment that says what glibc is to do is obeyed; other C libraries are left alone.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc, or not even POSIX
        return
    # Blocks of which size come from the system and go back to it; older versions take 32 MB at most
    if any(mallopt(_M_MMAP_THRESHOLD, size << 20) for size in (128, 32)):
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def flush_subnormals() -> None:
    """Rounds this thread's numbers below 1e-38 to zero, from now on: fused kernels and steps do.

    A processor takes a hundred times as long for them. The empty space of a finished field is full
    of them, and so are an optimiser's moments where no ray comes: up to two thirds of the
    renderer's time. What they add to a field is below 1e-36.
    """
    torch.set_flush_denormal(True)
