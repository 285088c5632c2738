"""What every benchmark has: the machine, interleaved rounds, figures beside targets, JSON.

report = Report("renderer", {"rays": 4096, "rounds": 7})      prints the machine and settings
times = interleaved({"ours": ours, "oracle": oracle}, rounds=7)
report.figure("oracle / ours", ratio(times, "oracle", "ours"), "x", ">= 2.5")
report.write_json(path)                                         the same, for a program
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

Figure = Callable[..., bool]  # `Report.figure`
PACKAGES = ("torch", "numpy", "numba", "numba-cuda", "diffusers")


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What a figure depends on: CPU, cores, GPU, threads, versions, load, and the code's commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    about: dict[str, Any] = {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    for name in packages:
        try:
            about[name] = version(name)
        except PackageNotFoundError:
            about[name] = None
    if torch := sys.modules.get("torch"):
        about["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            about["gpu"], about["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        about["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        about["commit"] = None
    return about


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every work in every round; a round runs each once, and starts with another.

    What disturbs the machine for a while disturbs all alike: compare with `ratio`. A GPU's queue is
    empty at both ends of each time. `time.process_time` as the clock leaves out waiting for a core.
    """
    for _ in range(warmup):
        for work in works.values():
            work()
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(works[name], clock))
    return times


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds by this clock, until the GPU has done too."""
    _wait_for_gpu()
    began = clock()
    work()
    _wait_for_gpu()
    return clock() - began


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """The median over rounds of one work's time over another's in the same round."""
    return median(a / b for a, b in zip(times[over], times[under], strict=True))


def _wait_for_gpu() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Report:
    """Prints what was measured as it comes, and keeps it for a JSON file.

    name: of the benchmark. settings: what it ran with. packages: whose versions matter.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], packages: Sequence[str] = PACKAGES
    ) -> None:
        self.name, self.settings = name, dict(settings)
        self.machine = machine(packages)
        self.figures: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        for facts in (self.machine, self.settings):
            print(in_words(facts), flush=True)
        print()

    def figure(self, name: str, value: float, unit: str = "", target: str = "") -> bool:
        """Prints a figure beside its target, such as `<= 1.15`; whether it is reached."""
        right = not target or reached(value, target)
        self.figures[name] = {"value": value, "unit": unit, "target": target or None}
        if target:
            self.figures[name]["reached"] = right
        verdict = "" if right else "  MISSED"
        print(f"{name:50} {value:10.4g} {unit:8} {target:8}{verdict}".rstrip(), flush=True)
        return right

    def part(self, name: str, about: str) -> Figure:
        """Prints a heading; `figure` of a part of the benchmark, whose name begins theirs."""
        print(f"\n{name}: {about}", flush=True)
        return lambda figure, *more: self.figure(f"{name}: {figure}", *more)

    @property
    def all_reached(self) -> bool:
        return all(figure.get("reached", True) for figure in self.figures.values())

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prints rows of the same keys, numbers to four digits."""
        self.tables[name] = [dict(row) for row in rows]
        cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{name}")
        for line in cells:
            print("  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)))
        print(flush=True)

    def write_json(self, path: Path | None) -> None:
        """Everything as one document; None writes nothing."""
        if path is None:
            return
        document = {
            "benchmark": self.name,
            "machine": self.machine | {"load_after": round(os.getloadavg()[0], 2)},
            "settings": self.settings,
            "figures": self.figures,
            "tables": self.tables,
        }
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", "utf-8")
        print(f"{path}", file=sys.stderr)


def in_words(facts: Mapping[str, Any]) -> str:
    """Facts on one line, without those that are not known."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def reached(value: float, target: str) -> bool:
    """Whether a figure keeps `< 6`, `<= 6`, `== 6` or `>= 6`."""
    sign, limit = target.split()
    bound = float(limit)
    kept = {"<": value < bound, "<=": value <= bound, "==": value == bound, ">=": value >= bound}
    return kept[sign]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
