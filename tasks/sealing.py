"""Merging the files of a table: a run's parts into a sealed file, and everything into one.

A merged file is written first, under a new name, and names the files whose place it takes; then
those are deleted. Until they are, readers leave them out: no row is seen twice and none is lost,
wherever a process dies. A merged file is never written again; the next one takes its place too.
Of compacted files the one with the highest number has all that the others have.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.documents import set_document_aside
from tasks.row_keys import last_rows, row_keys
from tasks.schemas import COMPACTED_SCHEMAS, SCHEMAS
from tasks.store import AlreadyCommitted, Damaged, NotInStore, Store, bytes_digest
from tasks.table_reader import (
    FILES,
    HELD_PARTS,
    Part,
    home,
    is_compacted,
    is_in_place,
    is_merged,
    misplaced,
    next_number,
    older_compacted,
    part_keys,
    read_part,
    with_run,
)


def seal_run(store: Store, run_id: str) -> None:
    """Merge each table's files of this run into one; safe to repeat after a crash."""
    for table in SCHEMAS:
        # Another process that seals this run at the same time does what is to be done.
        with contextlib.suppress(AlreadyCommitted, NotInStore):
            _seal(store, table, run_id)


def _seal(store: Store, table: str, run_id: str) -> None:
    folder = f"tables/{table}/run_id={run_id}/"
    keys = [key for key in store.list(folder) if key.endswith(".parquet")]
    if len(keys) < 2:
        return
    parts = _read(store, table, keys)
    live = _live(parts)
    if len(live) > 1:
        # The name follows from the listing: of two processes that merge the same files one finds
        # it taken.
        content = last_rows(table, pa.concat_tables([part.content for part in live]))
        key = f"{folder}sealed-{next_number(keys)}.parquet"
        held = {k: s for part in parts for k, s in part.held.items()}
        _write_merged(store, key, content, held | {part.key: part.sha256 for part in parts})
        live = []
    _delete_unchanged(store, [part for part in parts if part not in live])


def compact_table(store: Store, table: str) -> bool:
    """Merge all files of a table into one; whether there was anything to do.

    Safe beside readers, writers and itself, and to repeat after a crash; raises `AlreadyCommitted`
    or `NotInStore` when another process was faster.
    """
    runs = part_keys(store, table)
    keys = [key for found in runs.values() for key in found]
    if len(keys) < 2:
        return False
    parts = _read(store, table, keys)
    run_of = {key: run for run, found in runs.items() for key in found}
    live = _live(parts)
    if len(live) > 1 or not is_compacted(live[0].key):
        old = [part.content for part in live if is_compacted(part.key)]
        new = [
            with_run(table, run_of[part.key], part.content)
            for part in live
            if not is_compacted(part.key)
        ]
        held = {part.key: part.sha256 for part in parts}
        _write_compacted(store, table, _merge(table, old, new), held, keys)
        live = []
    _delete_unchanged(store, [part for part in parts if part not in live])
    return True


def replace_table(store: Store, table: str, contents: Sequence[pa.Table]) -> None:
    """Put rows, with their `run_id`, in the place of all files of a table.

    Damaged and foreign files, and those with rows that the new ones lack, are set aside and not
    deleted. Raises
    `NewerStore`, and `StoreError` if one of the files cannot be read; then nothing is written.
    """
    keys = [key for key in store.list(f"tables/{table}/") if key.endswith(".parquet")]
    with ThreadPoolExecutor(FILES) as pool:
        found = dict(zip(keys, pool.map(partial(_part_or_damage, store, table), keys), strict=True))
    held = {key: part.sha256 for key, part in found.items() if isinstance(part, Part)}
    rows = last_rows(table, pa.concat_tables([SCHEMAS[table].empty_table(), *contents]))
    if contents:
        _write_compacted(store, table, rows, held, keys)
    known = row_keys(table, rows)
    for key, part in found.items():
        if isinstance(part, Damaged):
            set_document_aside(store, key, str(part))
        elif table != "views" and not row_keys(table, _whole(table, part)) <= known:
            set_document_aside(store, key, "no document is behind some of its rows")
            del held[key]
    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(store.delete, held))


def _whole(table: str, part: Part) -> pa.Table:
    """A file's rows with their run."""
    found = re.search("/run_id=([^/]+)/", part.key)
    return with_run(table, found[1] if found else None, part.content)


def _part_or_damage(store: Store, table: str, key: str) -> Part | Damaged:
    try:
        return read_part(store, table, key) if is_in_place(key) else misplaced(store, key)
    except Damaged as error:
        return error


def _merge(table: str, old: list[pa.Table], new: list[pa.Table]) -> pa.Table:
    """Compacted rows and those of other files, which go before them; few runs have both."""
    newer = pa.concat_tables([SCHEMAS[table].empty_table(), *new])
    older = pa.concat_tables([SCHEMAS[table].empty_table(), *old])
    both = pc.is_in(older["run_id"], newer["run_id"].combine_chunks())
    mixed = last_rows(table, pa.concat_tables([older.filter(both), newer]))
    return pa.concat_tables([older.filter(pc.invert(both)), mixed])


def _read(store: Store, table: str, keys: Iterable[str]) -> list[Part]:
    with ThreadPoolExecutor(FILES) as pool:
        return list(pool.map(partial(read_part, store, table), keys))


def _live(parts: Sequence[Part]) -> list[Part]:
    """The files whose rows no other one has, merged ones first, since later rows count."""
    held = {key: sha256 for part in parts for key, sha256 in part.held.items()}
    outdated = set(older_compacted(part.key for part in parts))
    return sorted(
        (p for p in parts if held.get(p.key) != p.sha256 and p.key not in outdated),
        key=lambda part: (not is_compacted(part.key), not is_merged(part.key), part.key),
    )


def _write_compacted(
    store: Store, table: str, content: pa.Table, held: Mapping[str, str], keys: Iterable[str]
) -> None:
    """Write rows of many runs as the next compacted file; raises `AlreadyCommitted`."""
    folder = f"tables/{table}/compacted/"
    key = f"{folder}{next_number(key for key in keys if is_compacted(key))}.parquet"
    _write_merged(store, key, content.sort_by("run_id").cast(COMPACTED_SCHEMAS[table]), held)
    # A name is free again when later files have taken its place. Whoever was that slow undoes it.
    if key in older_compacted(store.list(folder)):
        store.delete(key)
        raise AlreadyCommitted(
            f"{store.uri(key)} came too late: another process has written its successor."
        )


def _write_merged(store: Store, key: str, content: pa.Table, held: Mapping[str, str]) -> None:
    """Write `content` in the place of the files `held`; raises `AlreadyCommitted`."""
    names = {name.removeprefix(home(key)): sha256 for name, sha256 in held.items()}
    metadata = {**content.schema.metadata, HELD_PARTS: json.dumps(names).encode()}
    stored = store.put_bytes(key, parquet(content.replace_schema_metadata(metadata)))
    # Some servers let two writers succeed; only the one whose file is there may delete others.
    if bytes_digest(store.get_bytes(key)) != stored:
        raise AlreadyCommitted(f"{store.uri(key)} was written by another process too.")


def parquet(content: pa.Table) -> bytes:
    """A table's file: compressed, with checksums."""
    sink = io.BytesIO()
    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _delete_unchanged(store: Store, parts: Iterable[Part]) -> None:
    """Delete files that still are what was read: a part may be replaced, and a name come again."""

    def remove(part: Part) -> None:
        with contextlib.suppress(NotInStore):
            if bytes_digest(store.get_bytes(part.key)).sha256 == part.sha256:
                store.delete(part.key)

    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(remove, parts))
