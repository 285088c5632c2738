"""What commands cost over a store of many assets: seconds, memory, and how both grow.

    python benchmarks/large_store.py [--assets 50000 200000] [--keep FOLDER] [--json FILE]

Makes a store with a folder of small files for each asset, all finished in one run, whose tables are
then made from the JSON as `sjc verify --repair` makes them. Each command is a process of its own.
The last columns say how its CPU seconds and memory grow when the assets do: what is linear, with a
fixed part, grows by less than they.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from report import Report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from task_samples import make_run

from sjc_engine.priors.sources import find_prior
from tasks.manifest.resolve import read_entries
from tasks.records.documents import asset_manifest, write_json
from tasks.records.runs import start_run
from tasks.store import open_store
from tasks.store.interface import Store, bytes_digest
from tasks.store.layout import attempt_key, marker_key, run_key

SJC = [sys.executable, "-c", "from flows.commands.main import sjc; sjc()"]
COMMANDS = {
    "verify --repair": ["verify", "--repair", "--yes", "--quiet", "--older", "0"],
    "run --dry-run": ["run", "{manifest}", "--recipe", "draft", "--dry-run"],
    "query: count": ["query", "SELECT status, count(*) FROM assets GROUP BY ALL"],
    "query: best of a prompt": [
        "query", "SELECT prompt, arg_max(asset_id, clip_score) FROM best_assets"
        " GROUP BY ALL ORDER BY 1 LIMIT 5",
    ],
    "assets --where": ["assets", "--where", "prompt LIKE '%duck number 17%'"],
    "assets --format parquet": ["assets", "--format", "parquet"],
    "compact": ["compact", "--quiet"],
    "verify": ["verify", "--quiet"],
    "gallery": ["gallery", "-o", "{gallery}", "--quiet"],
}  # fmt: skip
TARGETS = {"run --dry-run": "<= 20", "query: count": "<= 2", "query: best of a prompt": "<= 2"}
NAMES = ("mesh.glb", "preview.png", "thumbnail.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the stores here")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    report = Report("large_store", {"assets": arguments.assets}, ("duckdb", "pyarrow"))
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.assets:
            folder = (arguments.keep or Path(temporary)) / str(count)
            if not folder.exists():
                fill(folder, count)
            figures[count] = {name: cost(words, folder) for name, words in COMMANDS.items()}
            about = f"{count:,} assets"
            report.table(about, [{"command": n, **f} for n, f in figures[count].items()])
    first, last = min(figures), max(figures)
    growth = [
        {"command": name, **{key: figures[last][name][key] / figures[first][name][key]
                             for key in ("CPU s", "MB")}}
        for name in COMMANDS
    ]  # fmt: skip
    report.table(f"growth with {last / first:g} times the assets", growth)
    for name, target in TARGETS.items():
        report.figure(f"{name}, {last:,} assets", figures[last][name]["wall s"], "s", target)
    report.write_json(arguments.json)


def fill(folder: Path, count: int) -> None:
    """A store of so many finished assets, and the manifest of its run."""
    began = time.monotonic()
    folder.mkdir(parents=True)
    store = open_store(folder / "store")
    (folder / "list.csv").write_text("id,prompt\n" + "".join(f"a{k},{p}\n" for k, p in rows(count)))
    manifest, plan = read_entries(
        folder / "list.csv", recipe="draft", prior_revision=lambda prior: find_prior(prior).revision
    )
    with tempfile.TemporaryDirectory() as some:
        sample = open_store(Path(some, "store"))
        make_run(sample, Path(some), "sample", "x,a duck,,\n")
        key = next(key for key in sample.list("assets/") if key.endswith("/manifest.json"))
        asset_id = key.split("/")[1]
        marker = asset_manifest(sample, asset_id)
        attempt = json.loads(sample.get_bytes(attempt_key(asset_id, "a01")))
    assert marker is not None
    contents = {name: name.encode() for name in NAMES}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {name: bytes_digest(content) for name, content in contents.items()}
    files = {
        f"a01/{name}": {"bytes": file.bytes, "sha256": file.sha256}
        for name, file in digests.items()
    }
    for entry in plan.entries:
        of = {"spec": entry.spec.to_json(), "asset_id": entry.spec.asset_id}
        of |= {"field_id": entry.spec.field_id, "run_id": "large"}
        place = folder / "store" / f"assets/{entry.spec.asset_id}"
        (place / "a01").mkdir(parents=True)
        for name in NAMES:  # links, of which a file takes 60,000
            source = folder / name
            if source.stat().st_nlink > 60_000:
                source.unlink()
                source.write_bytes(contents[name])
            (place / "a01" / name).hardlink_to(source)
        write(store, attempt_key(entry.spec.asset_id, "a01"), attempt | of)
        write(store, marker_key(entry.spec.asset_id), marker | {"spec": of["spec"], "files": files})
    run = start_run(store, "large", "list.csv", manifest.sha256, plan.entries, {"limit": None})
    ended = {"ended_at": datetime.now(UTC).isoformat()}
    run["entries"] = [entry | {"outcome": "computed"} for entry in run["entries"]]
    write(store, run_key("large"), run | ended)
    print(f"made {count:,} assets in {time.monotonic() - began:.0f} s", flush=True)


def rows(count: int) -> Iterator[tuple[int, str]]:
    for k in range(count):
        yield k, f"a {('yellow', 'green', 'wooden')[k % 3]} duck number {k}"


def write(store: Store, key: str, document: dict[str, Any]) -> None:
    """Without the waiting for the disk that a store does for each file."""
    Path(store.uri(key)).write_bytes(write_json(document))


def cost(words: list[str], folder: Path) -> dict[str, float]:
    """Seconds and memory of a command; ends the benchmark if it fails."""
    places = {"manifest": folder / "list.csv", "gallery": folder / "gallery"}
    command = [*SJC, *(word.format(**places) for word in words), "--store", str(folder / "store")]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        said.seek(0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{words} ended with {code}: {said.read()[-2000:].decode()}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall s": wall, "CPU s": cpu, "MB": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
