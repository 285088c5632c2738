"""What becomes of the renderer's kernels on GPUs, as JSON, where there is no GPU.

    .venv/ptx/bin/python tests/support/compiled_kernels.py     (PYTHONPATH: the project)

kernels: of each kernel, number of channels and GPU: registers, bytes of stack, spilled bytes, and
instructions of its PTX. launches: whether flat launches hand over the bytes that Numba's do.
milliseconds: the CPU's for the launches of a step, forward and backward, both ways. compilations:
those that Numba's cache has not spared. With `--launches` the kernels are left out.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cuda.core._kernel_arg_handler import ParamHolder
from mocked_cuda import Driver, mocked_driver
from numba import cuda

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.rendering import fused, kernels_cuda

GPUS = ((8, 0), (9, 0), (12, 0))
COUNT = 173  # samples of a ray, at the paper's setting
BYTES = {int: 8, bool: 1}  # of parameters; ctypes and NumPy know their own


def work(channels: int) -> Callable[[bool], None]:
    """A step's rendering, forward and backward: flat or by Numba."""
    space = "latent" if channels == 4 else "rgb"
    field = VoxelField(8, channels, space=space, generator=torch.Generator())  # type: ignore[arg-type]
    line, one = torch.ones(64, 3), torch.ones(64)
    rays = fused.CutRays(-line, line, one, one, one, 1.0, 0.01, COUNT, 1.0, one)

    def render(flat: bool) -> None:
        parts = fused.march_voxels(field, rays, flat=flat)
        torch.stack([part.sum() for part in parts[:4]]).sum().backward()

    return render


def size_of(parameter: Any) -> int:
    if isinstance(parameter, ctypes._SimpleCData):
        return ctypes.sizeof(parameter)
    return BYTES.get(type(parameter)) or parameter.nbytes


def sent(launches: list[Any]) -> list[Any]:
    """Launches with the bytes of their parameters but for addresses, which differ by the step."""
    found = []
    for name, how, parameters in launches:
        holder = ParamHolder(parameters)
        table = ctypes.cast(holder.ptr, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.string_at(table[k], size_of(p)) for k, p in enumerate(parameters)]
        addresses = [type(p) is int and p > 1 << 32 for p in parameters]
        found.append([name, how, [a or v.hex() for a, v in zip(addresses, values, strict=True)]])
    return found


def launches(driver: Driver, render: Callable[[bool], None]) -> dict[str, Any]:
    seen = {}
    for flat in (False, True):
        render(flat)
        driver.launches.clear()
        render(flat)
        seen[flat] = sent(driver.launches)
    return {
        "kernels": len(seen[True]),
        "parameters": sum(len(parameters) for *_, parameters in seen[True]),
        "same": seen[False] == seen[True],
        "stream": {how[0] for _, how, _ in seen[True]} == {driver.STREAM},
        "streams made": len(driver.streams),
        "contexts pushed": driver.contexts_pushed,
    }


def milliseconds(render: Callable[[bool], None], flat: bool, rounds: int = 50) -> float:
    """The CPU's time for one step's launches, from tensors to the driver.

    The least of each call's, summed: others that use the machine interrupt some of them.
    """
    launcher = kernels_cuda.FlatLauncher if flat else kernels_cuda.Launcher
    spent: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    array, call = launcher.array, launcher.__call__
    launcher.array, launcher.__call__ = timed(array), timed(call)  # type: ignore[method-assign]
    try:
        steps = []
        for _ in range(rounds):
            spent.clear()
            render(flat)
            steps.append(list(spent))
    finally:
        launcher.array, launcher.__call__ = array, call  # type: ignore[method-assign]
    return 1e3 * sum(map(min, zip(*steps, strict=True)))


def compiled(name: str, kernel: Any, types: Any, gpu: tuple[int, int]) -> dict[str, Any]:
    """What NVVM and ptxas make of a kernel."""
    ptx, _ = cuda.compile_ptx(kernel.py_func, types, cc=gpu)
    [tool] = [p for folder in sys.path for p in Path(folder).glob("nvidia/*/bin/ptxas")]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = f"-arch=sm_{gpu[0]}{gpu[1]}"
        command = [str(tool), "-v", arch, "-o", "/dev/null", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        assert found, said
        return int(found[1])

    return {
        "kernel": name,
        "gpu": f"sm_{gpu[0]}{gpu[1]}",
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "local": ptx.count(".local"),
        "calls": len(re.findall(r"\bcall\b", ptx)),
        "float64": len(re.findall(r"\.f64\b", ptx)),
        "atomics": len(re.findall(r"\b(?:atom|red)\.[\w.:]*add\.f32", ptx)),
        "other atomics": len(re.findall(r"\b(?:atom|red)\.(?![\w.:]*add\.f32)", ptx)),
    }


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {"kernels": [], "launches": {}, "milliseconds": {}}
    kernels = {name: k for name, k in vars(kernels_cuda).items() if hasattr(k, "py_func")}
    with mocked_driver() as driver:
        for channels in (3, 4):
            render = work(channels)
            report["launches"][channels] = launches(driver, render)
            kinds = {"numba": False, "flat": True}
            report["milliseconds"][channels] = {
                name: milliseconds(render, flat) for name, flat in kinds.items()
            }
        report["compilations"] = sum(sum(k._cache_misses.values()) for k in kernels.values())
        for gpu in GPUS if "--launches" not in sys.argv else ():
            driver.compute_capability = gpu
            for name, kernel in kernels.items():
                for types in kernel.overloads:
                    report["kernels"].append(compiled(name, kernel, types, gpu))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
