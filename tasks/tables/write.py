"""Writing the tables: plain Parquet files, a projection of the store's JSON.

A file is never changed. Rows that belong together go into a new file, and then the files are
deleted that it replaces; until they are, readers leave the repeats out. So no row is ever missing
or there twice, whoever writes, compacts or repairs at the same time, and wherever a process dies.
Reading is in `tasks.tables.read`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.records import documents
from tasks.records.attempts import asset_attempts
from tasks.records.runs import new_run_id
from tasks.store.interface import Damaged, NotInStore, Store, StoreError
from tasks.tables import read as table_reader
from tasks.tables.projection import annotation_rows, ended_rows, rows_of_attempt, rows_of_run
from tasks.tables.read import last_rows, query
from tasks.tables.schemas import COMPACTED_SCHEMAS, ROW_KEYS, SCHEMAS, Row, Rows, to_arrow

Ended = tuple[Mapping[str, Any], Mapping[str, Any]]  # an attempt, and its asset's manifest or {}

PART = 300  # assets of a file
WRITE_SECONDS = 3.0  # between two writes of a file that grows
PACKED = 1000  # rows of a projection that are kept as dicts


class TableWriter:
    """Writes the rows of ended attempts while its block lasts, within seconds. Threads share it.

    The rows of a run go into its folder, as NUMBER-WRITER.parquet; each writer has a name that no
    other has. Such a file is replaced, under the next number, when there are more rows, until it
    has those of PART assets.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._name, self._number = store, new_run_id(), 0
        # By table and run: the rows of the file that still grows, by asset or attempt, and its key.
        self._rows: dict[tuple[str, str], dict[str, pa.Table]] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._changed: dict[tuple[str, str], None] = {}  # not written yet, in the order of rows
        self._lock = threading.RLock()  # around all of these
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="tables", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._news.set()
        # The error that ended the block comes first; the next run writes what is missing.
        with contextlib.suppress(StoreError) if kind else contextlib.nullcontext():
            self.write()

    def record(self, attempt: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Add the rows of an ended attempt. Recording the same attempt again is harmless.

        `manifest` is the asset's commit marker, or {}. Raises `RowError`.
        """
        run_id, asset_id = attempt["run_id"], attempt["asset_id"]
        rows = rows_of_attempt(self._store, attempt, manifest)
        content = {table: to_arrow(table, run_id, rows[table]) for table in rows if rows[table]}
        with self._lock:
            for table, found in content.items():
                key = asset_id if table == "assets" else f"{asset_id}/{attempt['attempt']}"
                self._rows.setdefault((table, run_id), {})[key] = found
                self._changed[table, run_id] = None
            self._news.set()
            if self._ended.is_set() or len(self._rows["assets", run_id]) >= PART:
                self.write()

    def write(self) -> None:
        """Write what is new by now; raises `StoreError`, and keeps what it could not write."""
        with self._lock:
            self._number += 1
            # `assets` comes last: whoever sees a row there may count on those in the others.
            for place in sorted(self._changed, key=lambda place: place[0] == "assets"):
                rows = self._rows[place]
                key = f"tables/{place[0]}/run_id={place[1]}/{self._number:06d}-{self._name}.parquet"
                self._store.put_bytes(key, parquet_bytes(pa.concat_tables(rows.values())))
                before, self._keys[place] = self._keys.get(place), key
                del self._changed[place]
                if len(rows) >= PART:
                    del self._rows[place], self._keys[place]
                if before:
                    self._store.delete(before)
            self._news.clear()

    def _keep_writing(self) -> None:
        while not self._ended.is_set():
            self._news.wait(WRITE_SECONDS)  # not for ever: the block's end may take its news
            with contextlib.suppress(StoreError):  # tried again, at last when the block ends
                self.write()
            self._ended.wait(WRITE_SECONDS)


def record_attempts(store: Store, ended: Iterable[Ended]) -> None:
    """Write the rows of ended attempts at once, as files that they share."""
    rows = TableWriter(store)
    for attempt, manifest in ended:
        rows.record(attempt, manifest)
    rows.write()


def row_finder(store: Store) -> Callable[[Mapping[str, Any]], bool]:
    """Whether an ended attempt has its rows, with its status, in the tables as they are now."""
    sql = (
        "SELECT asset_id, t.attempt, t.status FROM attempts t"
        " JOIN assets a USING (run_id, asset_id)"
        " WHERE a.attempt <> t.attempt OR a.status = t.status"  # `assets` is written last
    )
    known = set(zip(*query(store, sql).to_pydict().values(), strict=True))
    return lambda attempt: (attempt["asset_id"], attempt["attempt"], attempt["status"]) in known


def record_run(store: Store, run: Mapping[str, Any]) -> None:
    """Write the rows of a run, ended or not: `entries` and `runs`."""
    name = "ended" if run["ended_at"] else "begun"
    for table, rows in rows_of_run(run).items():
        folder = f"tables/{table}/run_id={run['run_id']}"
        content = parquet_bytes(to_arrow(table, run["run_id"], rows))
        store.put_bytes(f"{folder}/{name}.parquet", content, replace=True)  # the same rows again
        if run["ended_at"]:
            store.delete(f"{folder}/begun.parquet")


def record_unended_runs(store: Store) -> None:
    """Write the rows of runs that were killed between their JSON and these rows."""
    rows = query(store, "SELECT run_id, ended_at IS NOT NULL AS ended FROM runs").to_pylist()
    known = {row["run_id"]: row["ended"] for row in rows}
    for run_id in documents.run_ids(store):
        with contextlib.suppress(NotInStore):  # set aside meanwhile
            run = None if known.get(run_id) else documents.read_run(store, run_id)
            if run and (run["ended_at"] or run_id not in known):
                record_run(store, run)


def record_annotations(store: Store) -> None:
    """Write the rows of documents of annotations that the table does not name."""
    known = query(store, "SELECT DISTINCT document FROM annotations")["document"].to_pylist()
    if new := set(documents.annotation_digests(store)).difference(known):
        content = to_arrow("annotations", None, _annotation_rows(store, sorted(new)))
        _replace(store, "annotations", last_rows("annotations", content), ())


def _annotation_rows(store: Store, digests: Iterable[str]) -> list[Row]:
    with ThreadPoolExecutor(table_reader.FILES) as pool:
        found = pool.map(
            lambda digest: annotation_rows(documents.read_annotations(store, digest), digest),
            digests,
        )
        return [row for rows in found for row in rows]


def compact_store(store: Store, tell: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Leaves one file of each table, but for rows that were written meanwhile; counts the files.

    Safe beside readers, runs and itself, and to repeat after a crash.
    """
    documents.check_usable(store)
    documents.mark_format(store)
    record_unended_runs(store)
    record_annotations(store)
    counts = {}
    for table in SCHEMAS:
        files = table_reader.read_files(store, table, partial(table_reader.read_file, whole=True))
        if len(files) > 1:
            rows = pa.concat_tables(file.to_table() for file in files.values())
            _replace(store, table, last_rows(table, rows), files)
            tell(f"table {table}: compacted")
        counts[table] = len(table_reader.table_keys(store, table))
    return counts


def rebuild_tables(store: Store) -> None:
    """Make every table again from the JSON in the store; rows without JSON behind them go.

    Damaged and foreign files, and those with rows that the new ones lack, are set aside and not
    deleted. Raises `NewerStore`, and `StoreError` if one of the files cannot be read; then nothing
    is written. Runs may write meanwhile: a file that comes after those read here stays.
    """
    found = {table: table_reader.read_files(store, table, _rows_or_damage) for table in SCHEMAS}
    for table, rows in projection(store).items():
        known, aside = table_reader.row_keys(table, rows), {}
        for key, content in found[table].items():
            if isinstance(content, Damaged):
                aside[key] = str(content)
            elif table != "views" and not table_reader.row_keys(table, content) <= known:
                aside[key] = "no document is behind some of its rows"
        _replace(store, table, rows, found[table].keys() - aside)
        for key, why in aside.items():
            documents.set_document_aside(store, key, why)


def _rows_or_damage(store: Store, table: str, key: str) -> pa.Table | Damaged:
    try:
        return table_reader.read_file(store, table, key, whole=True).to_table()
    except Damaged as error:
        return error


class Projection:
    """The rows of every table as they follow from documents. Soon Arrow's: dicts are far larger."""

    def __init__(self) -> None:
        self._rows: Rows = {table: [] for table in SCHEMAS}
        self._parts: dict[str, list[pa.Table]] = {table: [] for table in SCHEMAS}

    def add(self, rows: Mapping[str, Iterable[Row]]) -> None:
        """Add rows of some tables; raises `RowError`."""
        for table, found in rows.items():
            self._rows[table] += found
            if len(self._rows[table]) >= PACKED:
                self._pack(table)

    def tables(self) -> dict[str, pa.Table]:
        """Every table, with the last of the rows that replace each other."""
        for table in SCHEMAS:
            self._pack(table)
        return {table: last_rows(table, pa.concat_tables(self._parts[table])) for table in SCHEMAS}

    def _pack(self, table: str) -> None:
        self._parts[table].append(to_arrow(table, None, self._rows[table]))
        self._rows[table].clear()


def projection(store: Store) -> dict[str, pa.Table]:
    """The rows of every table as they follow from the store's JSON."""
    made = Projection()

    def of_asset(asset_id: str) -> list[Rows]:
        manifest = documents.asset_manifest(store, asset_id)
        return ended_rows(store, asset_attempts(store, asset_id), manifest)

    for rows in documents.read_ahead(of_asset, documents.asset_ids(store)):
        for some in rows:
            made.add(some)
    for run_id in documents.run_ids(store):
        made.add(rows_of_run(documents.read_run(store, run_id)))
    made.add({"annotations": _annotation_rows(store, documents.annotation_digests(store))})
    return made.tables()


def _replace(store: Store, table: str, rows: pa.Table, keys: Iterable[str]) -> None:
    """Write rows of many runs, with all columns, and delete the files that they replace."""
    if rows.num_rows:
        content = rows.sort_by(ROW_KEYS[table][0]).cast(COMPACTED_SCHEMAS[table])
        store.put_bytes(f"tables/{table}/compacted/{new_run_id()}.parquet", parquet_bytes(content))
    with ThreadPoolExecutor(table_reader.FILES) as pool:
        list(pool.map(store.delete, keys))


def parquet_bytes(content: pa.Table) -> bytes:
    """A table's file: compressed, with checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()
