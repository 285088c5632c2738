"""`sjc curate` of many assets to WebDataset on the local disk.

    python benchmarks/curate.py [--assets 10000] [--folder DIR] [--format webdataset] [--json FILE]

Makes a store of made-up assets (four seeds a prompt; a mesh of 0.6 MB and a preview of 0.2 MB of
random bytes, which no file system can squeeze), then runs the command. It needs twice the data's
size on the disk of --folder, and removes everything. Printed: the bytes of the files over the
time of the whole command, from the interpreter's start until all is on the disk, and its CPU
seconds; and the same of `cp -r` for comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from report import Report

from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from sjc_engine.toybox.captions import NOUNS
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.projection import asset_row
from tasks.tables.schemas import to_arrow

RUN = "20260101T000000-000000"
SIZES = {"mesh.glb": 600_000, "preview.png": 200_000}
THINGS = sorted(NOUNS)[:12]
COLOURS = "red green blue yellow white black orange purple brown pink gray golden".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--format", default="webdataset")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    used = {"assets": settings.assets, "format": settings.format, "folder": settings.folder}
    report = Report("curate", used, ("pyarrow", "webdataset"))
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        need = 2.1 * settings.assets * sum(SIZES.values())
        free = shutil.disk_usage(folder).free
        if free < need:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free, and this needs {need / 1e9:.0f} GB")
        began = time.perf_counter()
        fill(open_store(folder / "store"), settings.assets)
        report.figure("store made in", time.perf_counter() - began, "s")
        size = settings.assets * sum(SIZES.values())
        told(
            report,
            "cp -r",
            size,
            "cp",
            "-r",
            str(folder / "store" / "assets"),
            str(folder / "copy"),
        )
        shutil.rmtree(folder / "copy")
        sjc = str(Path(sys.executable).with_name("sjc"))
        out = folder / "dataset"
        told(
            report, f"sjc curate --format {settings.format}", size, sjc, "curate", "--where",
            "clip_score >= 0", "-o", str(out), "--format", settings.format,
            "--store", str(folder / "store"), "--quiet",
        )  # fmt: skip
        document = json.loads((out / "manifest.json").read_text())
        assert document["assets"] == settings.assets
        assert document["bytes"] >= size
    report.write_json(settings.json)


def told(report: Report, name: str, size: int, *command: str) -> None:
    """Runs a command until its files are on the disk; reports how fast, and on how much CPU."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    os.sync()
    seconds, after = time.perf_counter() - began, os.times()
    cpu = sum(after[k] - before[k] for k in (2, 3))  # of children, user and system
    report.figure(f"{name}, {size / 1e9:.2f} GB", size / 1e6 / seconds, "MB/s")
    report.figure(f"{name}, time", seconds, "s")
    report.figure(f"{name}, CPU", cpu, "s")


def fill(store: Store, assets: int) -> None:
    """One asset by the pipeline's own functions, and the others after its pattern.

    They would write and sync a hundred thousand files one by one.
    """
    noise = np.random.default_rng(0).bytes(max(SIZES.values()) + assets)
    spec = _spec(0)
    attempt = start_attempt(store, spec, RUN, prior_coverage=1.0)["attempt"]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in SIZES}
        for name, size in SIZES.items():
            files[name].write_bytes(noise[:size])
        manifest = commit_asset(
            store, spec.asset_id, attempt, files, spec, _report(0), {"optimize": 40.0}, {}
        )
    ended = finish_attempt(
        store, spec.asset_id, attempt, "ok", device="cpu", first_step=0, last_step=300
    )
    rows = [asset_row(store, ended, manifest)]
    for number in range(1, assets):
        other = _spec(number)
        parts = {name: noise[number : number + size] for name, size in SIZES.items()}
        folder_of = Path(store.uri(f"assets/{other.asset_id}"))
        (folder_of / attempt).mkdir(parents=True)
        found = {}
        for name, data in parts.items():
            (folder_of / attempt / name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            found[f"{attempt}/{name}"] = {"bytes": len(data), "sha256": digest}
        about = {
            **manifest, "spec": other.to_json(), "files": found, "report": _report(number)
        }  # fmt: skip
        (folder_of / "manifest.json").write_text(json.dumps(about, indent=1, sort_keys=True))
        document = {
            **ended, "asset_id": other.asset_id, "field_id": other.field_id,
            "spec": other.to_json(),
        }  # fmt: skip
        rows.append(asset_row(store, document, about))
    table = io.BytesIO()
    pq.write_table(to_arrow("assets", RUN, rows), table, compression="zstd")
    store.put_bytes(f"tables/assets/run_id={RUN}/000001-benchmark.parquet", table.getvalue())


def _spec(number: int) -> AssetSpec:
    thing = number // 4
    prompt = (
        f"a photo of a {COLOURS[thing % 12]} {THINGS[thing // 12 % 12]} beside a "
        f"{COLOURS[thing // 144 % 12]} {THINGS[thing // 1728 % 12]}"
    )
    return replace(BASE, prompt=prompt, seed=number % 4)


def _report(number: int) -> dict[str, Any]:
    chance = np.random.default_rng(number)
    shares = (
        "clip_r_precision", "geometry_r_precision", "janus_score", "field_mesh_iou",
    )  # fmt: skip
    return {
        "clip_score": float(np.clip(chance.normal(60, 8), 0, 100)),
        **{name: float(chance.random()) for name in shares},
        "faces": int(chance.integers(5_000, 20_000)),
        "components": int(chance.integers(1, 4)),
    }


BASE = AssetSpec("", "", None, 0, "toybox", "r", Recipe.for_prior("toybox"))


if __name__ == "__main__":
    main()
