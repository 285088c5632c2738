"""Writing the five tables: plain Parquet parts, one per asset and attempt, sealed per run.

A part's name follows from what it holds, so writing it again replaces it. `seal_run` merges a
run's parts into `sealed.parquet`, which names the parts that it holds: until those are deleted,
readers leave them out, so that no row is seen twice and none is lost wherever a process dies.
Reading is in `tasks.table_reader`.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.commit import asset_attempts, asset_manifest, attempt_number, read_document
from tasks.rows import asset_row, attempt_row, entry_rows, run_row, view_rows
from tasks.schemas import FILE_SCHEMAS, SCHEMAS, Row, to_arrow
from tasks.store import Store, StoredFile
from tasks.table_reader import (
    HELD_PARTS,
    SEALED,
    QueryError,
    TableError,
    held_parts,
    query,
    read_part,
    read_table,
)

__all__ = [
    "SCHEMAS", "QueryError", "TableError", "query", "read_table", "rebuild_tables",
    "record_attempt", "record_run", "seal_run", "write_part",
]  # fmt: skip

RUN_PART = "run"  # the only part of a run in `entries` and `runs`


def write_part(store: Store, table: str, run_id: str, part: str, rows: Iterable[Row]) -> StoredFile:
    """Write rows as ``tables/{table}/run_id={run_id}/{part}.parquet``, in place of that part.

    Raises `RowError` for a row that is not exactly the table's. Not for a run that is sealed.
    """
    content = _parquet(to_arrow(table, run_id, rows))
    return store.put_bytes(f"{_folder(table, run_id)}{part}.parquet", content, replace=True)


def record_attempt(store: Store, attempt: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write the rows of an ended attempt: `views`, `attempts`, then `assets`.

    `manifest` is the asset's commit marker, or {}. Recording the same attempt again is harmless.
    """
    run_id, part = attempt["run_id"], f"{attempt['asset_id']}-{attempt['attempt']}"
    views = view_rows(store, attempt, manifest)
    if views:
        write_part(store, "views", run_id, part, views)
    write_part(store, "attempts", run_id, part, [attempt_row(attempt)])
    write_part(store, "assets", run_id, part, [asset_row(store, attempt, manifest)])


def record_run(store: Store, run: Mapping[str, Any]) -> None:
    """Write the rows of a run, ended or not: `entries` and `runs`."""
    write_part(store, "entries", run["run_id"], RUN_PART, entry_rows(run))
    write_part(store, "runs", run["run_id"], RUN_PART, [run_row(run)])


def seal_run(store: Store, run_id: str) -> None:
    """Merge each table's parts of this run into one file; safe to repeat after a crash."""
    for table in SCHEMAS:
        keys = list(store.list(_folder(table, run_id)))
        sealed = _folder(table, run_id) + SEALED
        if sealed not in keys and len(keys) < 2:
            continue
        merged = [read_part(store, table, sealed)] if sealed in keys else []
        held = held_parts(merged[0].schema) if merged else []
        parts = [key for key in keys if key != sealed]
        names = {key: key.rpartition("/")[2] for key in parts}
        fresh = [key for key in parts if names[key] not in held]
        if fresh:
            merged += [read_part(store, table, key) for key in fresh]
            held = sorted({*held, *(names[key] for key in fresh)})
            plain = FILE_SCHEMAS[table].metadata
            content = pa.concat_tables([part.replace_schema_metadata(plain) for part in merged])
            _write_sealed(store, table, run_id, content, held)
        for key in parts:
            store.delete(key)


def rebuild_tables(store: Store) -> None:
    """Make every table again from the JSON in the store; rows without JSON behind them go."""
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    held: dict[str, list[str]] = defaultdict(list)
    folders = {key.split("/")[1] for key in store.list("assets/")}
    for asset_id in sorted(folders):
        manifest = asset_manifest(store, asset_id) or {}
        for attempt in asset_attempts(store, asset_id):
            if attempt["status"] == "running":
                continue
            run_id = attempt["run_id"]
            held[run_id].append(f"{asset_id}-{attempt['attempt']}.parquet")
            rows["assets", run_id].append(asset_row(store, attempt, manifest))
            rows["attempts", run_id].append(attempt_row(attempt))
            rows["views", run_id] += view_rows(store, attempt, manifest)
    for key in store.list("runs/"):
        run = read_document(store, key)
        record_run(store, run)
    for (table, run_id), found in rows.items():
        if found:
            _write_sealed(store, table, run_id, to_arrow(table, run_id, found), held[run_id])
    runs = {key.removeprefix("runs/").removesuffix(".json") for key in store.list("runs/")}
    for table in SCHEMAS:
        for key in list(store.list(f"tables/{table}/")):
            run_id, _, name = key.removeprefix(f"tables/{table}/run_id=").partition("/")
            if table in ("entries", "runs"):
                wanted = run_id in runs and name == f"{RUN_PART}.parquet"
            else:
                wanted = bool(rows.get((table, run_id))) and name == SEALED
            if not wanted:
                store.delete(key)


def _write_sealed(
    store: Store, table: str, run_id: str, content: pa.Table, held: list[str]
) -> None:
    if table == "assets":
        content = _last_attempts(content)
    metadata = {**content.schema.metadata, HELD_PARTS: json.dumps(held).encode()}
    data = _parquet(content.replace_schema_metadata(metadata))
    store.put_bytes(_folder(table, run_id) + SEALED, data, replace=True)


def _last_attempts(content: pa.Table) -> pa.Table:
    """One row per asset: a run's outcome is that of its last attempt."""
    last: dict[str, tuple[int, int]] = {}  # asset_id -> (attempt, row)
    pairs = zip(content["asset_id"].to_pylist(), content["attempt"].to_pylist(), strict=True)
    for row, (asset_id, attempt) in enumerate(pairs):
        last[asset_id] = max(last.get(asset_id, (0, 0)), (attempt_number(attempt), row))
    return content.take(sorted(row for _, row in last.values()))


def _parquet(content: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _folder(table: str, run_id: str) -> str:
    return f"tables/{table}/run_id={run_id}/"
