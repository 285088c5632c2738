"""The GPUs that torch can use on this machine and, if there are none, why and what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Gpus:
    """How many there are; if none, though a driver or a CUDA build of torch is here: why."""

    count: int
    problem: str = ""
    fix: str = ""


@cache
def find_gpus() -> Gpus:
    """Starts CUDA, since only then torch says what is wrong. This takes none of a GPU's memory."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        return Gpus(0, *next(_explain(error)))
    return Gpus(torch.cuda.device_count())


def _explain(error: Exception) -> Iterator[tuple[str, str]]:
    """What torch's refusal to start CUDA means, the most specific first: problem, fix."""
    import torch

    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
            fix = "install a CUDA build of torch (https://pytorch.org/get-started/locally)"
            yield f"a GPU driver is here, but {build} is built for the CPU", fix
        yield "", ""
    if found := re.search(r"driver .* is too old \(found version (\d+)\)", str(error)):
        major, minor = int(found[1]) // 1000, int(found[1]) % 1000 // 10
        problem = f"the NVIDIA driver knows CUDA {major}.{minor}, too old for {build}"
        yield problem, f"update the driver, or install a torch that is built for CUDA {major}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    missing = "Found no NVIDIA driver" in str(error)
    hidden = "No CUDA GPUs are available" in str(error)
    if hidden and visible is not None:
        problem = f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all GPUs"
        yield problem, "unset it, or give it numbers that `nvidia-smi -L` lists"
    if (missing or hidden) and in_container():
        fix = "start it with `--gpus all` (Kubernetes: the limit nvidia.com/gpu)"
        yield f"this container has no GPU, though {build} could use one", fix
    if missing:
        yield f"{build} finds no NVIDIA driver", "install the driver, if this machine has a GPU"
    fix = "see whether `nvidia-smi` lists it; after an update of the driver, restart the machine"
    yield f"{build} cannot start CUDA: {str(error).splitlines()[0]}", fix


def in_container() -> bool:
    """Whether this is a container of Docker, Podman or Kubernetes."""
    marks = any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv"))
    return marks or "KUBERNETES_SERVICE_HOST" in os.environ
