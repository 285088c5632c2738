"""What must hold when a soak test is over; each check returns its violations, a line each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from soak_ledger import Ledger
from soak_outside import FIRST_RUNS
from soak_processes import Ending, Process

from sjc_engine.worker.__main__ import PROGRESS_SECONDS
from sjc_engine.worker.checkpoint_timing import CHECKPOINT_SECONDS
from tasks.store.interface import Store
from tasks.tables.read import query
from tasks.tables.write import projection

_AGAIN = re.compile(r"resumes from step (\d+), (\d+) steps again")
_FINISHED = re.compile(r"^(\S+): (?:ok|reused) ?.*\(\d+/\d+ done", re.M)
USAGE = 2  # exit code


def check_manifest(rows: Iterable[str], assets: Iterable[Mapping[str, Any]]) -> list[str]:
    """The last run's own word on every row of the manifest."""
    status = {asset["asset"]: asset["status"] for asset in assets}
    found = {row: status.get(row, "not in the last run") for row in rows}
    return [f"row {row}: {word}" for row, word in found.items() if word != "ok"]


def check_reported(folder: Path, assets: Iterable[Mapping[str, Any]], ledger: Ledger) -> list[str]:
    """What a runner has said to be finished, even one that was killed right after, is there."""
    said = {
        name
        for log in folder.glob("*.err")
        for name in _FINISHED.findall(log.read_text("utf-8", errors="replace"))
    }
    ids = {str(asset["asset"]): str(asset["asset_id"]) for asset in assets}
    return [
        f"{name}: a runner said that it is finished, and no commit marker was ever seen"
        for name in sorted(said)
        if ids.get(name) not in ledger.assets
    ]


def check_rows(store: Store, ledger: Ledger) -> list[str]:
    """Every acknowledged asset has one row of success, and no attempt is there twice or open."""
    problems = []
    rows = query(store, "SELECT asset_id, count(*) AS n FROM assets WHERE status = 'ok' GROUP BY 1")
    counts = dict(zip(rows["asset_id"].to_pylist(), rows["n"].to_pylist(), strict=True))
    for asset_id in sorted(ledger.assets.keys() | counts.keys()):
        if asset_id not in ledger.assets:
            problems.append(f"asset {asset_id}: a row says ok, and it was never committed")
        elif counts.get(asset_id, 0) != 1:
            problems.append(f"asset {asset_id}: {counts.get(asset_id, 0)} rows of status ok")
    for sql, problem in {
        "SELECT asset_id || '/' || attempt AS k FROM attempts GROUP BY ALL HAVING count(*) > 1":
            "more than one row in table attempts",
        "SELECT asset_id || '/' || attempt AS k FROM attempts WHERE ended_at IS NULL": "open",
        "SELECT asset_id || ' in ' || run_id AS k FROM assets GROUP BY ALL HAVING count(*) > 1":
            "more than one row in table assets",
    }.items():  # fmt: skip
        problems += [f"attempt {key}: {problem}" for key in query(store, sql)["k"].to_pylist()]
    return problems


def check_attempts(ledger: Ledger, unasked: Container[str] = ()) -> list[str]:
    """Every attempt.json is closed, but of assets that no manifest asks for any more."""
    keys = [key for key in ledger.shelf.keys("assets/") if key.endswith("/attempt.json")]
    return [
        f"{key}: still running"
        for key in keys
        if key.split("/")[1] not in unasked
        and json.loads(ledger.shelf.read(key) or b"{}").get("status") == "running"
    ]


def check_tables(store: Store, damaged: set[str]) -> list[str]:
    """The tables are what follows from the JSON, but for the runs whose parts were deleted."""
    problems = []
    for table, wanted in projection(store).items():
        found = query(store, f"SELECT * FROM {table}")
        left, right = _rows(wanted), _rows(found)
        for row, where in ((left - right, "missing"), (right - left, "without JSON behind it")):
            problems += [
                f"table {table}: a row of run {run} is {where}: {text}"
                for (run, text), _ in sorted(row.items())
                if run not in damaged
            ]
    return problems


def _rows(table: pa.Table) -> Counter[tuple[str, str]]:
    """Rows with their runs; annotations are of none."""
    names = sorted(table.column_names)
    rows: list[dict[str, Any]] = table.select(names).to_pylist(maps_as_pydicts="strict")
    return Counter((row.get("run_id", ""), repr(row)) for row in rows)


def check_verified(out: Path, *, ended: bool) -> list[str]:
    """What `sjc verify` found that must never be, and what it found again after a repair.

    ended: whether it was left alone, and so has to say something.
    """
    try:
        said = json.loads(out.read_text("utf-8"))
    except ValueError:
        return [f"{out}: no result"] if ended else []
    problems = [f for f in said["findings"] if f["kind"] in ("asset", "run")]
    problems += said["left"] if ended else []
    return [f"sjc verify: {found['key']}: {found['problem']}" for found in problems]


def check_litter(ledger: Ledger, scratches: Iterable[Path]) -> list[str]:
    """No temporary file and no half upload is left after `sjc verify --repair`."""
    problems = [f"{name}: left in the store" for name in ledger.shelf.litter()]
    for scratch in scratches:
        files = (path for path in scratch.rglob("*") if path.is_file())
        problems += [f"{p}: left in the scratch folder" for p in files if p.name.startswith(".")]
    return problems


def check_endings(endings: Iterable[Ending]) -> list[str]:
    """A command may fail under faults, but neither refuse to start nor fall over."""
    problems = []
    for ending in endings:
        if ending.code == USAGE:
            problems.append(f"{ending.name}: refused: {ending.said[-300:]}")
        elif "Traceback (most recent call last)" in ending.said:
            problems.append(f"{ending.name}: exit {ending.code} with a traceback")
    return problems


def check_first_run(command: Process) -> list[str]:
    """One of two runs on a new PREFECT_HOME that nothing has struck but the store's server."""
    ending = command.ended()
    if ending is None or not command.name.startswith(FIRST_RUNS) or ending.code in (0, 3, 130):
        return []
    return [f"{ending.name}: exit {ending.code}: {ending.said[-300:]}"]


@dataclass(frozen=True)
class Waste:
    """Steps that were computed again, and how many may be."""

    steps: int
    resumed: int  # scenes that went on from a checkpoint
    rate: float  # steps a second at the fastest asset
    bound: int


def wasted_steps(store: Store, scratches: Iterable[Path], kills: int, scenes: int) -> Waste:
    """From the engines' logs, and the bound from table `attempts`.

    The last steps before a kill, up to PROGRESS_SECONDS of them, leave no trace.
    """
    logs = (path for scratch in scratches for path in (scratch / "logs").glob("engine-*.log"))
    again = [
        (int(step), int(steps))
        for log in logs
        for step, steps in _AGAIN.findall(log.read_text("utf-8", errors="replace"))
    ]
    rows = query(
        store,
        "SELECT max((t.last_step - t.first_step) / nullif(a.seconds_optimize, 0)) AS rate"
        " FROM attempts t JOIN assets a USING (asset_id, attempt, run_id)"
        " WHERE t.status = 'ok' AND t.first_step = 0",
    )
    rate = rows["rate"][0].as_py() or 0.0
    bound = int(kills * scenes * rate * (CHECKPOINT_SECONDS + PROGRESS_SECONDS))
    return Waste(sum(n for _, n in again), sum(step > 0 for step, _ in again), rate, bound)


def count_attempts(store: Store) -> dict[str, int]:
    """How many attempts ended how."""
    rows = query(store, "SELECT status, count(*) AS n FROM attempts GROUP BY 1 ORDER BY 1")
    return {row["status"]: row["n"] for row in rows.to_pylist()}
