"""`sjc check` of a long manifest, as CSV, JSON lines and Parquet: seconds and memory.

    python benchmarks/manifest.py [--rows 300000] [--rounds 1]

Each check is a process of its own. CPU seconds say what it costs, wall seconds what one waits on
this machine as busy as it is; memory is the largest resident set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 300_000  # the most of a manifest
WANTED_SECONDS, WANTED_MB = 60, 1000
COLORS = ("red", "green", "blue", "golden", "wooden", "tiny", "huge", "old")
NOUNS = ("duck", "mug", "car", "house", "robot", "teapot", "castle", "fish", "pig", "tree")
BATCH = 10_000
_SJC = "from flows.commands.main import main; main()"


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows with an id, a seed, a setting, tags and meta: all different assets."""
    for k in range(count):
        color, noun = COLORS[k % len(COLORS)], NOUNS[k // len(COLORS) % len(NOUNS)]
        yield {
            "id": f"asset-{k:07d}",
            "prompt": f"a DSLR photo of a {color} {noun}",
            "seed": k,
            "guidance_scale": (10.0, 15.5, 20.0)[k % 3],
            "tags": "web;batch",
            "meta.source": f"catalogue, page {k % 97}",
        }


def write_csv(path: Path, count: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(next(rows(1))))
        writer.writeheader()
        writer.writerows(rows(count))


def write_jsonl(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_parquet(path: Path, count: int) -> None:
    made = rows(count)
    with pq.ParquetWriter(path, pa.Table.from_pylist([next(rows(1))]).schema) as writer:
        while batch := list(islice(made, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch), row_group_size=BATCH)


def check(path: Path, count: int) -> tuple[float, float, float]:
    """Wall and CPU seconds of one check, and its memory in MB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _SJC, "check", str(path)],
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        said.seek(0)
        text = said.read().decode()
    if process.returncode or f"{count} entries, {count} assets, no errors" not in text:
        raise SystemExit(f"the check of {path.name} said {text!r}, code {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    count = arguments.rows
    print(f"{count:,} rows; Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{'':10}{'file':>10}{'wall':>10}{'CPU':>10}{'memory':>10}")
    for name, write in (("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"long.{name}")
            write(path, count)
            size = path.stat().st_size / 1e6
            runs = [check(path, count) for _ in range(arguments.rounds)]
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:10}{size:>7.0f} MB{wall:>8.1f} s{cpu:>8.1f} s{memory:>7.0f} MB", flush=True)
    print(f"wanted of the CSV: at most {WANTED_SECONDS} s and {WANTED_MB} MB for {ROWS:,} rows")


if __name__ == "__main__":
    main()
