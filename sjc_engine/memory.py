"""Memory: what is free, what a scene takes on a GPU, and how its want and a GPU's end look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# A network call for more is hardly faster per scene, and a run of few prompts ends later.
MOST_SCENES = 8
SHARE = 0.9  # of what is free: the rest is for fragments, and for scenes that take more

# What allocators say whose errors have no class of their own: torch on the CPU, C++, cuBLAS and
# cuDNN, the CUDA runtime and its driver.
_MESSAGES = (
    "can't allocate memory",
    "std::bad_alloc",
    "_ALLOC_FAILED",
    "out of memory",
    "OUT_OF_MEMORY",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    import torch  # not at the top: who hands out scenes reads a constant here, and computes nothing

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return not isinstance(error, OSError) and any(text in str(error) for text in _MESSAGES)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device. A GPU gets it from pinned memory: from any other the copy waits."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def device_failed(error: BaseException) -> bool:
    """Whether a GPU refuses to work, whatever it is asked; "CUDA error: out of memory" aside."""
    return "CUDA error" in str(error)


def free_memory() -> int | None:
    """Bytes of RAM that new processes can have, a container's limit included; None: not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return free


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: of this process (CPU) or this device (CUDA)."""
    if device.type == "cuda":
        from torch import cuda

        return cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@dataclass(frozen=True)
class Capacity:
    """How many scenes a device has memory for."""

    each: int  # bytes that a scene adds
    free: int  # bytes for scenes, none on board

    @property
    def scenes(self) -> int:
        """From 1, which has to be tried, to MOST_SCENES."""
        return max(1, min(MOST_SCENES, int(SHARE * self.free) // max(self.each, 1)))

    def __str__(self) -> str:
        each, free = self.each / 1e9, self.free / 1e9
        limit = f", {MOST_SCENES} at most" if self.scenes == MOST_SCENES else ""
        return f"{self.scenes} (a scene takes {each:.2f} GB of {free:.1f} GB free{limit})"


class MemoryProbe:
    """Measures what scenes add to a CUDA device, from before the first to a whole step of all."""

    def __init__(self, device: torch.device) -> None:
        from torch import cuda

        self.device, self._cuda = device, cuda
        self.before = cuda.memory_allocated(device)
        cuda.reset_peak_memory_stats(device)

    def capacity(self, scenes: int) -> Capacity:
        """Now that so many scenes, and no others, have done steps."""
        each = (self._cuda.max_memory_allocated(self.device) - self.before) // scenes
        # What the allocator keeps for itself can be had again.
        kept = self._cuda.memory_reserved(self.device) - self.before
        return Capacity(each, self._cuda.mem_get_info(self.device)[0] + kept)
