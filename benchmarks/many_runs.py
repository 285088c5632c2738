"""Many runs at once on one store: is every asset made once, and what does it take?

    python benchmarks/many_runs.py [--runs 20] [--same 8] [--assets 6] [--store folder|moto|swift]
                                   [--json FILE]

--same runs are of one manifest, with --assets rows for each of them, and share the work by leases;
the others have a manifest of --assets rows each. Every run has its own scratch folder and an engine
on the CPU; Prefect's server is one for all. Exit code 1 if an asset is missing, was made twice, has
no row or two, or a run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from fleet import descendants
from report import Report
from soak_manifest import PROMPTS, SMALL
from soak_stores import open_place

from flows.prefect_server.environment import apply
from flows.prefect_server.server import HOST, free_port, healthy
from tasks.store import open_store
from tasks.tables.read import query

SJC = (sys.executable, "-c", "from flows.commands.main import sjc; sjc()")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--same", type=int, default=8, help="of one manifest")
    parser.add_argument("--assets", type=int, default=6, help="for each run")
    parser.add_argument("--store", choices=("folder", "moto", "swift"), default="folder")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    used = {name: getattr(settings, name) for name in ("runs", "same", "assets", "store")}
    report = Report("many_runs", used, ("prefect", "torch", "pyarrow"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_place(settings.store, folder) as place:
            manifests = [folder / f"m{k}.csv" for k in range(settings.runs - settings.same + 1)]
            sizes = [settings.same * settings.assets] + [settings.assets] * (len(manifests) - 1)
            first = 0
            for path, rows in zip(manifests, sizes, strict=True):
                write_manifest(path, range(first, first + rows))
                first += rows
            of_runs = manifests[:1] * (settings.same - 1) + manifests
            failed = run_all(report, of_runs, place.url, folder)
            check(report, place.url, of_runs, first, failed)
    report.write_json(settings.json)
    sys.exit(not report.all_reached)


def write_manifest(path: Path, seeds: range) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", *SMALL, "seed"])
        writer.writeheader()
        for seed in seeds:
            prompt = PROMPTS[seed % len(PROMPTS)]
            writer.writerow({"id": f"a{seed}", "prompt": prompt, **SMALL, "seed": seed})


def run_all(report: Report, manifests: list[Path], store: str, folder: Path) -> int:
    """Starts a run for each at the same moment; how many failed."""
    os.environ |= {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}
    apply()  # as `sjc ui` does
    environment = dict(os.environ)
    port = free_port()
    command = [sys.executable, "-P", "-m", "flows.prefect_server.server", "--port", str(port)]
    server = subprocess.Popen([*command, "--parent", str(os.getpid())], env=environment)
    environment["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
    while not healthy(environment["PREFECT_API_URL"]):
        time.sleep(0.1)
    peak = Peak(os.getpid())
    began = time.perf_counter()
    runs = []
    for number, manifest in enumerate(manifests):
        options = ("--store", store, "--scratch", str(folder / f"scratch{number}"), "--json")
        with (folder / f"run{number}.txt").open("wb") as said:
            words = [*SJC, "run", str(manifest), *options, "--devices", "cpu"]
            runs.append(subprocess.Popen(words, env=environment, stdout=said, stderr=said))
    codes = [run.wait() for run in runs]
    report.figure("all runs", time.perf_counter() - began, "s")
    report.figure("most memory at a time", peak.end() / 1e9, "GB")
    server.send_signal(signal.SIGTERM)
    server.wait()
    for number, code in enumerate(codes):
        if code:
            print(f"run {number} ended with {code}:")
            print((folder / f"run{number}.txt").read_text("utf-8", errors="replace")[-2000:])
    return sum(code != 0 for code in codes)


def check(report: Report, url: str, runs: list[Path], assets: int, failed: int) -> None:
    """Everything is there once, in the store and in the tables."""
    store = open_store(url)
    rows = query(
        store,
        "SELECT count(*) FILTER (status = 'ok') AS ok,"
        " count(DISTINCT asset_id) FILTER (status = 'ok') AS assets,"
        " (SELECT count(*) FROM attempts) AS attempts,"
        " (SELECT count(*) FROM runs WHERE ended_at IS NOT NULL) AS runs FROM assets",
    ).to_pylist()[0]
    verified = subprocess.run(
        [*SJC, "verify", "--store", url, "--json"], capture_output=True, text=True
    )
    problems = json.loads(verified.stdout)["findings"]
    for problem in problems:
        print(problem)
    for name, value, right in (
        ("runs that failed", failed, 0),
        ("runs in the tables", rows["runs"], len(runs)),
        ("assets", rows["assets"], assets),
        ("rows of finished assets", rows["ok"], assets),
        ("attempts", rows["attempts"], assets),
        ("problems that sjc verify finds", len(problems), 0),
    ):
        report.figure(name, value, "", f"== {right}")


class Peak:
    """The most memory of a process's descendants, where what several share counts once."""

    def __init__(self, pid: int) -> None:
        self._most, self._pid, self._over = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            with contextlib.suppress(OSError):  # one has ended meanwhile
                self._most = max(self._most, sum(map(proportional, descendants(self._pid))))

    def end(self) -> int:
        """Bytes."""
        self._over.set()
        self._thread.join()
        return self._most


def proportional(pid: int) -> int:
    """A process's bytes of memory, shared pages divided by those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
