"""Writing the five tables: plain Parquet parts, one per asset and attempt, sealed per run.

A part's name follows from what it holds, so writing it again replaces it. `seal_run` merges a
run's parts into `sealed-0001.parquet`, which names the files whose place it takes: until those are
deleted, readers leave them out, so that no row is seen twice and none is lost wherever a process
dies. A sealed file is never written again; the next one takes its place too.
Reading is in `tasks.table_reader`.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.commit import (
    asset_attempts,
    asset_manifest,
    attempt_number,
    read_document,
    run_ids,
)
from tasks.rows import asset_row, attempt_row, entry_rows, run_row, view_rows
from tasks.schemas import SCHEMAS, Row, to_arrow
from tasks.store import AlreadyCommitted, NotInStore, Store, StoredFile, bytes_digest, open_store
from tasks.table_reader import (
    FILES,
    HELD_PARTS,
    QueryError,
    TableError,
    is_sealed,
    query,
    read_part,
    read_table,
    sealed_name,
)

__all__ = [
    "SCHEMAS", "QueryError", "TableError", "query", "read_table", "rebuild_tables",
    "record_attempt", "record_run", "seal_run", "write_part",
]  # fmt: skip

# What tells a run's rows of a table apart.
ROW_KEYS = {
    "assets": ("asset_id",),
    "attempts": ("asset_id", "attempt"),
    "views": ("asset_id", "source", "view"),
    "entries": ("row_id",),
    "runs": ("manifest",),
}
RUN_TABLES, RUN_PART = ("entries", "runs"), "run"  # their only part of a run


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
    run_id, part = attempt["run_id"], _part(attempt)
    views = view_rows(store, attempt, manifest)
    if views:
        write_part(store, "views", run_id, part, views)
    write_part(store, "attempts", run_id, part, [attempt_row(attempt)])
    write_part(store, "assets", run_id, part, [asset_row(store, attempt, manifest)])


def record_run(store: Store, run: Mapping[str, Any]) -> None:
    """Write the rows of a run, ended or not: `entries` and `runs`."""
    for table, rows in zip(RUN_TABLES, (entry_rows(run), [run_row(run)]), strict=True):
        write_part(store, table, run["run_id"], RUN_PART, rows)


def seal_run(store: Store, run_id: str) -> None:
    """Merge each table's files of this run into one; safe to repeat after a crash."""
    for table in SCHEMAS:
        # Another process that seals this run at the same time does what is to be done.
        with contextlib.suppress(AlreadyCommitted, NotInStore):
            _seal(store, table, run_id)


def _seal(store: Store, table: str, run_id: str) -> None:
    keys = _keys(store, _folder(table, run_id))
    if len(keys) < 2:
        return
    with ThreadPoolExecutor(FILES) as pool:
        parts = list(pool.map(partial(read_part, store, table), keys))
    held = {name: sha256 for part in parts for name, sha256 in part.held.items()}
    # By name sealed files come last; here they come first, since later rows count.
    live = sorted(
        (part for part in parts if held.get(part.name) != part.sha256),
        key=lambda part: (not is_sealed(part.key), part.key),
    )
    if len(live) > 1:
        held |= {part.name: part.sha256 for part in parts}
        content = pa.concat_tables([part.content for part in live])
        _write_sealed(store, table, run_id, content, held, sealed_name(keys))
        live = []
    _delete(store, sorted({part.key for part in parts} - {part.key for part in live}))


def rebuild_tables(store: Store) -> None:
    """Make every table again from the JSON in the store; rows without JSON behind them go."""
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)  # by table and run
    asset_ids = sorted({key.split("/")[1] for key in store.list("assets/")})
    with ThreadPoolExecutor(FILES) as pool:
        manifests = pool.map(partial(asset_manifest, store), asset_ids)
        attempts = pool.map(partial(asset_attempts, store), asset_ids)
    for manifest, documents in zip(manifests, attempts, strict=True):
        for attempt in documents:
            if attempt["status"] == "running":
                continue
            run_id = attempt["run_id"]
            rows["assets", run_id].append(asset_row(store, attempt, manifest or {}))
            rows["attempts", run_id].append(attempt_row(attempt))
            rows["views", run_id] += view_rows(store, attempt, manifest or {})
    written = set()
    for (table, run_id), found in rows.items():
        if found:
            keys = _keys(store, _folder(table, run_id))
            held = {_name(key): bytes_digest(store.get_bytes(key)).sha256 for key in keys}
            content = to_arrow(table, run_id, found)
            name = sealed_name(keys)
            written.add(_write_sealed(store, table, run_id, content, held, name))
    for run_id in run_ids(store):
        run = read_document(store, f"runs/{run_id}.json")
        record_run(store, run)
        written |= {f"{_folder(table, run['run_id'])}{RUN_PART}.parquet" for table in RUN_TABLES}
    _delete(store, [key for key in _keys(store, "tables/") if key not in written])


def _write_sealed(
    store: Store, table: str, run_id: str, content: pa.Table, held: Mapping[str, str], name: str
) -> str:
    """Write `content` in the place of the files `held`; raises `AlreadyCommitted`.

    `name` follows from the listing that `held` is from: of two processes that merge the same
    files one finds the name taken.
    """
    content = _last_rows(table, content)
    metadata = {**content.schema.metadata, HELD_PARTS: json.dumps(held).encode()}
    key = _folder(table, run_id) + name
    store.put_bytes(key, _parquet(content.replace_schema_metadata(metadata)))
    return key


def _last_rows(table: str, content: pa.Table) -> pa.Table:
    """One row for each key of the table: the last one, and of assets that of the last attempt."""
    rows: Iterable[int] = range(content.num_rows)
    if table == "assets":
        attempts = content["attempt"].to_pylist()
        rows = sorted(rows, key=lambda row: attempt_number(attempts[row]))
    columns = [content[name].to_pylist() for name in ROW_KEYS[table]]
    last = {tuple(column[row] for column in columns): row for row in rows}
    return content.take(sorted(last.values()))


def _parquet(content: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _keys(store: Store, prefix: str) -> list[str]:
    return [key for key in store.list(prefix) if key.endswith(".parquet")]


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _delete(store: Store, keys: list[str]) -> None:
    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(store.delete, keys))


def _part(attempt: Mapping[str, Any]) -> str:
    return f"{attempt['asset_id']}-{attempt['attempt']}"


def _folder(table: str, run_id: str) -> str:
    return f"tables/{table}/run_id={run_id}/"


if __name__ == "__main__":
    rebuild_tables(open_store(sys.argv[1]))
