"""What `sjc doctor` finds of CPU, memory and GPUs, and how it says so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from flows.progress.number_formats import size_text

GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB  # an engine takes up to 1 GB, Prefect's server and the run as much again


class Check(NamedTuple):
    """What a check found: one line."""

    check: str
    status: str  # ok, warning (some uses will not work) or problem (no run will)
    detail: str
    fix: str = ""  # what to do, unless it is ok


Results = Iterator[Check]


def devices() -> Results:
    """torch and the GPUs that it can use."""
    import torch

    from tasks.devices.gpus import find_gpus

    gpus = find_gpus()
    build = f"{torch.__version__}, CUDA {torch.version.cuda}"
    if gpus.problem:
        yield Check("torch", "warning", f"{gpus.problem}: engines run on the CPU", gpus.fix)
    elif gpus.count == 0:
        detail = f"{torch.__version__}, no GPU: engines run on the CPU; --devices cpu,cpu makes two"
        yield Check("torch", "ok", detail)
    else:
        yield Check("torch", "ok", f"{build}, {gpus.count} GPU{'s' if gpus.count > 1 else ''}")
    for name in (f"cuda:{k}" for k in range(gpus.count)):
        try:
            kind = torch.cuda.get_device_properties(name).name
            free, total = torch.cuda.mem_get_info(name)
        except RuntimeError as error:
            fix = "leave it out with --devices; see whether `nvidia-smi` lists it, or restart"
            yield Check(name, "problem", f"does not work: {str(error).splitlines()[0]}", fix)
        else:
            yield Check(name, "ok", f"{kind}, {size_text(free)} of {size_text(total)} free")


def renderer() -> Results:
    """Whether the renderer's kernels work: on every GPU or, without any, on the CPU."""
    import torch

    from sjc_engine.memory import out_of_memory
    from sjc_engine.rendering.fused import device_unavailable_reason
    from tasks.devices.gpus import find_gpus

    for device in [f"cuda:{k}" for k in range(find_gpus().count)] or ["cpu"]:
        try:  # colours, and latents of four channels, have kernels of their own
            reasons = [device_unavailable_reason(torch.device(device), n) for n in (3, 4)]
        except Exception as error:
            if not out_of_memory(error):
                raise
            detail = f"no memory on {device} for a try: {error}".splitlines()[0]
            yield Check("renderer", "warning", detail, "end what else uses it, and look again")
            continue
        if problem := next(filter(None, reasons), ""):
            fix = "pip install numba" if device == "cpu" else _cuda_kernels_fix()
            detail = f"plain torch on {device}, which is slower: {problem}"
            yield Check("renderer", "warning", detail, fix)
        else:
            yield Check("renderer", "ok", f"fused kernels for {device}, compiled by Numba")


def _cuda_kernels_fix() -> str:
    """What brings Numba the CUDA libraries that torch and the driver are made for."""
    from importlib import metadata

    import torch

    wanted = str(torch.version.cuda).partition(".")[0]
    fix = f'pip install --upgrade "sjc-foundry[{"cuda12" if wanted == "12" else "cuda"}]"'
    with contextlib.suppress(metadata.PackageNotFoundError):
        found = metadata.version("cuda-bindings").partition(".")[0]
        if found != wanted:
            return f"{fix}: torch is built for CUDA {wanted}, and numba-cuda for CUDA {found}"
    return fix


def machine() -> Results:
    """CPU and memory."""
    from sjc_engine.memory import free_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS") or "not set"
    yield Check("cpu", "ok", f"{cores} cores, OMP_NUM_THREADS: {threads}")
    free = free_memory()
    detail = "not known on this system" if free is None else f"{size_text(free)} free"
    little = free is not None and free < LITTLE_MEMORY
    fix = "close other programs, or use one engine (--devices cpu)" if little else ""
    yield Check("memory", "warning" if little else "ok", detail, fix)
