"""Whether devices ever wait: a manifest through `sjc run`, and how long its engines were at work.

    python benchmarks/overlap.py [--prompts 40] [--steps 120] [--devices cpu] [--store URL]
                                 [--set key=value ...] [--json FILE]

Assets are drafts of the embedded prior's own prompts with small meshes and pictures, so that the
optimisation takes at least three times what comes after it. All figures come from the rows' own
timings (table `assets`):

optimisation / rest  seconds_optimize over seconds_extract + _evaluate + _publish, all assets'
busy                 seconds_optimize of all assets over the devices' time, which is that from the
                     first asset's start (its engine has not loaded a thing) to the last one's end
busy, between        the same time without its ends: from when the first engine took a scene to when
                     the last optimisation ended
hand-over            seconds from the end of one optimisation on a device to the start of the next
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from report import Report

from tasks.store import open_store
from tasks.tables.read import query

MANIFEST = Path(__file__).parents[1] / "manifests" / "toybox.csv"
SMALL = {
    "mesh_resolution": "32",
    "max_faces": "2000",
    "texture_size": "128",
    "evaluation_size": "48",
    "turntable_frames": "4",
    "turntable_size": "48",
}


def write_manifest(path: Path, prompts: int) -> None:
    """Prompts of the embedded prior, and again with other seeds when there are more."""
    with MANIFEST.open(newline="") as file:
        known = [row["prompt"] for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "seed"])
        rows.writerows([known[k % len(known)], k // len(known)] for k in range(prompts))


def seconds(row: dict[str, Any], *stages: str) -> float:
    return sum(row[f"seconds_{stage}"] for stage in stages)


def after(row: dict[str, Any]) -> float:
    return seconds(row, "extract", "evaluate", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--scenes-per-device", default="auto")
    parser.add_argument("--store", help="default: a temporary folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    changes = SMALL | {"steps": str(settings.steps)}
    changes |= dict(pair.split("=", 1) for pair in settings.set)
    names = ("prompts", "devices", "scenes_per_device")
    used = {name: getattr(settings, name) for name in names} | changes
    report = Report("overlap", used, ("torch", "prefect"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "manifest.csv", settings.prompts)
        store = settings.store or str(folder / "store")
        command = [str(Path(sys.executable).with_name("sjc")), "run", str(folder / "manifest.csv")]
        command += ["--recipe", "draft", "--store", store, "--scratch", str(folder / "scratch")]
        command += ["--devices", settings.devices, "--quiet"]
        command += ["--scenes-per-device", settings.scenes_per_device]
        for key, value in changes.items():
            command += ["--set", f"{key}={value}"]
        home = {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | home
        ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        if ended.returncode:
            sys.exit(f"sjc run ended with {ended.returncode}")
        sql = "SELECT * FROM assets WHERE status = 'ok'"
        rows = query(open_store(store, writable=False), sql).to_pylist()
    measure(rows, len(settings.devices.split(",")), report)
    report.write_json(settings.json)


def measure(rows: list[dict[str, Any]], devices: int, report: Report) -> None:
    moment = {row["asset_id"]: (_time(row["started_at"]), _time(row["ended_at"])) for row in rows}
    # When the device took the scene, and when the optimisation had ended, at the latest.
    spans = [
        (
            moment[row["asset_id"]][0] + row["seconds_queue"],
            moment[row["asset_id"]][1] - after(row),
        )
        for row in rows
    ]
    busy = sum(row["seconds_optimize"] for row in rows)
    whole = max(end for _, end in moment.values()) - min(start for start, _ in moment.values())
    between = max(end for _, end in spans) - min(start for start, _ in spans)
    starts = sorted(start for start, _ in spans)
    report.figure("assets", len(rows))
    report.figure("optimisation, median", median(r["seconds_optimize"] for r in rows), "s")
    report.figure("rest, median", median(after(row) for row in rows), "s")
    report.figure("optimisation / rest", busy / sum(after(row) for row in rows), "x", ">= 3")
    report.figure("first start to last end", whole, "s")
    report.figure("busy", 100 * busy / devices / whole, "%", ">= 95")
    report.figure("busy, between", 100 * busy / devices / between, "%", ">= 95")
    if devices == 1:
        ordered = sorted(rows, key=lambda row: spans[rows.index(row)][0])
        gaps = [
            later - earlier - row["seconds_optimize"]
            for earlier, later, row in zip(starts[:-1], starts[1:], ordered[:-1], strict=True)
        ]
        report.figure("hand-over, median", 1000 * median(gaps), "ms")
        report.figure("hand-over, longest", 1000 * max(gaps), "ms")


def _time(moment: datetime) -> float:
    return moment.timestamp()


if __name__ == "__main__":
    main()
