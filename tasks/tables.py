"""Writing the five tables: plain Parquet parts, one per asset and attempt.

A part's name follows from what it holds, so writing it again replaces it. `tasks.sealing` merges
parts, and reading is in `tasks.table_reader`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from tasks.attempts import asset_attempts
from tasks.documents import asset_manifest, read_run, run_ids
from tasks.rows import asset_row, attempt_row, entry_rows, run_row, view_rows
from tasks.schemas import SCHEMAS, Row, to_arrow
from tasks.sealing import parquet, replace_table, seal_run
from tasks.store import Store, StoredFile
from tasks.table_reader import (
    FILES,
    QueryError,
    of_files,
    query,
    read_table,
    with_run,
)

__all__ = [
    "SCHEMAS", "QueryError", "of_files", "query", "read_table", "rebuild_tables",
    "record_attempt", "record_run", "seal_run", "unrecorded_attempts", "write_part",
]  # fmt: skip


RUN_TABLES, RUN_PART = ("entries", "runs"), "run"  # their only part of a run


def write_part(store: Store, table: str, run_id: str, part: str, rows: Iterable[Row]) -> StoredFile:
    """Write rows as ``tables/{table}/run_id={run_id}/{part}.parquet``, in place of that part.

    Raises `RowError` for a row that is not exactly the table's. Not for a run that is sealed.
    """
    content = parquet(to_arrow(table, run_id, rows))
    key = f"tables/{table}/run_id={run_id}/{part}.parquet"
    return store.put_bytes(key, content, replace=True)


def record_attempt(store: Store, attempt: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write the rows of an ended attempt: `views`, `attempts`, then `assets`.

    `manifest` is the asset's commit marker, or {}. Recording the same attempt again is harmless.
    """
    run_id, part = attempt["run_id"], _part(attempt)
    views = view_rows(store, attempt, manifest)
    if views:
        write_part(store, "views", run_id, part, views)
    write_part(store, "attempts", run_id, part, [attempt_row(attempt)])
    write_part(store, "assets", run_id, part, [asset_row(store, attempt, manifest)])


def unrecorded_attempts(
    store: Store, finished: Iterable[str], unfinished: Iterable[str]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The ended attempts at these assets without rows, each with its asset's manifest or {}.

    Their process was killed between the last word in `attempt.json` and the rows. A finished
    asset with an `ok` row is not looked at: what came before was recorded before it was made.
    """
    finished, unfinished = set(finished), set(unfinished)
    if not finished | unfinished:
        return []
    rows = query(store, "SELECT asset_id, attempt, status FROM assets").to_pydict()
    known = set(zip(rows["asset_id"], rows["attempt"], strict=True))
    good = {k for k, s in zip(rows["asset_id"], rows["status"], strict=True) if s == "ok"}
    return [
        (attempt, asset_manifest(store, asset_id) or {})
        for asset_id in sorted(finished - good | unfinished)
        for attempt in asset_attempts(store, asset_id)
        if attempt["status"] != "running"
        and (asset_id in finished or (asset_id, attempt["attempt"]) not in known)
    ]


def record_run(store: Store, run: Mapping[str, Any]) -> None:
    """Write the rows of a run, ended or not: `entries` and `runs`."""
    for table, rows in zip(RUN_TABLES, (entry_rows(run), [run_row(run)]), strict=True):
        write_part(store, table, run["run_id"], RUN_PART, rows)


def rebuild_tables(store: Store) -> None:
    """Make every table again from the JSON in the store; rows without JSON behind them go."""
    for table, contents in projection(store).items():
        replace_table(store, table, contents)


def projection(store: Store) -> dict[str, list[pa.Table]]:
    """The rows of every table, one run after the other, as they follow from the store's JSON."""
    rows: dict[str, dict[str, list[Row]]] = {table: defaultdict(list) for table in SCHEMAS}
    asset_ids = sorted({key.split("/")[1] for key in store.list("assets/")})
    with ThreadPoolExecutor(FILES) as pool:
        manifests = pool.map(partial(asset_manifest, store), asset_ids)
        attempts = pool.map(partial(asset_attempts, store), asset_ids)
    for manifest, documents in zip(manifests, attempts, strict=True):
        for attempt in documents:
            if attempt["status"] == "running":
                continue
            run_id = attempt["run_id"]
            rows["assets"][run_id].append(asset_row(store, attempt, manifest or {}))
            rows["attempts"][run_id].append(attempt_row(attempt))
            rows["views"][run_id] += view_rows(store, attempt, manifest or {})
    for run_id in run_ids(store):
        run = read_run(store, run_id)
        rows["entries"][run_id] = entry_rows(run)
        rows["runs"][run_id] = [run_row(run)]
    return {
        table: [
            with_run(table, run_id, to_arrow(table, run_id, found))
            for run_id, found in sorted(runs.items())
        ]
        for table, runs in rows.items()
    }


def _part(attempt: Mapping[str, Any]) -> str:
    return f"{attempt['asset_id']}-{attempt['attempt']}"
