"""What an acceptance run says: a line for each figure, whatever goes wrong with the others."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("sjc-foundry", "torch", "diffusers", "numpy", "numba", "numba-cuda")
SECONDS = 420.0  # after which no check is begun: the run is to end within eight minutes


@dataclass(frozen=True)
class Line:
    """A figure, and whether it is as it should be. Without a value it could not be had."""

    name: str
    value: float | None = None
    unit: str = ""
    most: float | None = None  # that the value may be
    note: str = ""
    more: Mapping[str, float] = field(default_factory=dict)  # figures by their units
    error: str = ""  # why there is no value, where there should be one

    @property
    def passed(self) -> bool:
        """False for an error, and for a value above its bound or not a number."""
        if self.most is None or self.value is None:
            return not self.error
        return self.value <= self.most

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


Check = Callable[[], Iterable[Line]]


def run(
    checks: Mapping[str, Check], on_start: Callable[[str], None], seconds: float = SECONDS
) -> Iterator[Line]:
    """The lines of all checks, each as soon as it is known.

    A check that raises is a failed line, and so is each warning of the engine's.
    on_start: hears the name of a check before it begins.
    """
    end = time.monotonic() + seconds
    with _warnings() as warnings:
        for name, check in checks.items():
            if time.monotonic() > end:
                yield Line(name, error=f"not measured: {seconds:.0f} s are over")
                continue
            on_start(name)
            try:
                yield from check()
            except Exception as error:  # whatever is broken here is what the user wants to hear of
                yield Line(name, error=_described(error))
            for text in warnings:
                yield Line(f"{name}: warning", error=text)
            warnings.clear()


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the engine warns of meanwhile: where it takes another way than it was asked to."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sjc_engine")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _described(error: Exception) -> str:
    """The error's first line, and where in this engine it came from."""
    engine = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if engine in Path(frame.filename).parents]
    place = f" ({Path(ours[-1].filename).relative_to(engine)}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {error}".splitlines()[0] + place


def document(size: str, device: torch.device, lines: Sequence[Line]) -> dict[str, Any]:
    """What ran where, and its lines, as JSON."""
    found: dict[str, Any] = {"platform": platform.platform(), "python": platform.python_version()}
    found["cores"], found["cuda"] = os.cpu_count(), torch.version.cuda
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"], found["gpu_memory_bytes"] = properties.name, properties.total_memory
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
    return {
        "passed": all(line.passed for line in lines),
        "size": size,
        "device": str(device),
        "machine": found,
        "lines": [line.to_json() for line in lines],
    }
