"""Reading the five tables, from a directory or S3: for pandas and for SQL."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tasks.manifest_sources import file_digests
from tasks.row_keys import last_rows
from tasks.schemas import COMPACTED_SCHEMAS, FILE_SCHEMAS, SCHEMA_VERSION, SCHEMAS
from tasks.store import (
    Damaged,
    NewerStore,
    NotInStore,
    Store,
    StoreError,
    bytes_digest,
    open_store,
    read_checked,
)

if TYPE_CHECKING:
    import pandas as pd

# Metadata of a merged file: the files whose rows it has, as a JSON object of name and SHA-256. A
# sealed file names files of its folder; a compacted one files of the table, folder and all. A file
# that is there under such a name with other content was written later, and counts.
HELD_PARTS = b"sjc.parts"
# The part of a run in these tables, which has all its rows.
RUN_TABLES, RUN_PART = ("entries", "runs"), "run"

READS = 10  # while files vanish because another process seals their run
FILES = 16  # at a time

# A later failure must not hide an earlier success. Attempts at an asset are numbered: clocks of
# machines differ. The last two only make ties certain.
BEST_ASSETS = """
SELECT * FROM assets QUALIFY row_number() OVER (
    PARTITION BY asset_id
    ORDER BY (status = 'ok') DESC, try_cast(attempt[2:] AS INT) DESC, ended_at DESC, run_id DESC
) = 1
"""
_ORDER = {
    "assets": "started_at, asset_id",
    "views": "asset_id, run_id, source, view",
    "entries": "run_id, line, row_id",
    "attempts": "started_at, asset_id, attempt",
    "runs": "started_at, run_id",
}
_OF_MANIFEST = {
    "assets": "asset_id IN (SELECT asset_id FROM entries WHERE {entries})",
    "entries": "{entries}",
    "runs": "run_id IN (SELECT run_id FROM entries WHERE {entries})",
}
_MERGED = re.compile(r".*/(?:sealed-|compacted/)(\d+)\.parquet")
_COMPACTED = re.compile(r"tables/\w+/compacted/\d+\.parquet")
_PART = re.compile(r"tables/\w+/run_id=([^/]+)/([^/]+\.parquet)")
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


class _Vanished(Exception):
    """A file went away between its listing and its reading."""


class QueryError(ValueError):
    """The SQL is wrong, or returns no rows at all."""

    @property
    def problem(self) -> str:
        """The message without a piece of the SQL, which is mostly ours where it is a condition."""
        return str(self).partition("\n\nLINE ")[0]


def read_table(
    store: Store | str | Path,
    name: str,
    manifest: str | Path | None = None,
    *,
    where: str | None = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A table as pandas; `assets` has one row per asset, its best outcome.

    store: a directory or s3:// URL. manifest: a file, a folder or s3:// address; only what its
    entries, as its files are now, ever asked for. where: SQL over the rows, "clip_score > 25".
    columns: only these, in this order; the others are not decoded. Whole numbers and flags have
    pandas' nullable types, times are UTC. An empty store gives an empty table with all columns.
    Raises `QueryError` for a wrong name or SQL, `ManifestError` for a manifest that cannot be
    read, `Damaged` for a damaged file, and `StoreError` for one that could not be read.
    """
    if name not in SCHEMAS:
        raise QueryError(f"there is no table {name!r}; use one of {', '.join(SCHEMAS)}")
    if isinstance(store, str | Path):
        store = open_store(store, writable=False)
    unknown = set(columns or ()) - set(SCHEMAS[name].names)
    if unknown:
        raise QueryError(f"table {name} has no column {', '.join(sorted(unknown))}")
    chosen = ", ".join(columns) if columns else "*"
    sql = f"SELECT {chosen} FROM {'best_assets' if name == 'assets' else name}"
    # on a line of its own: `where` may end in a comment
    conditions = [f"({where}\n)"] if where else []
    if manifest is not None:
        chosen_rows = _OF_MANIFEST.get(name, _OF_MANIFEST["assets"])
        conditions.append(chosen_rows.format(entries=of_files(file_digests(manifest))))
    if conditions:
        sql += f" WHERE {' AND '.join(conditions)}"
    return to_pandas(_execute(store, f"{sql} ORDER BY {_ORDER[name]}"))


def query(store: Store, sql: str) -> pa.Table:
    """The rows of an SQL query (DuckDB) over the five tables and the view `best_assets`.

    Here `assets` has one row per asset and run. Raises `QueryError` for wrong SQL, `Damaged` for a
    damaged file, and `StoreError` for one that could not be read.
    """
    return _execute(store, sql)


def of_files(digests: Sequence[str]) -> str:
    """SQL: rows of table `entries` that stood in manifest files with these SHA-256."""
    return f"manifest_sha256 IN ({', '.join(map(repr, digests))})"


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """pandas with nullable integers and flags, so that one null does not make them floats."""
    import pandas as pd  # a third of the start of a command that may not need it

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get, maps_as_pydicts="strict")


def part_keys(store: Store, table: str) -> dict[str | None, list[str]]:
    """The files of a table by run, in order, and the compacted ones under None.

    Raises `Damaged` for a file in a wrong place.
    """
    runs: dict[str | None, list[str]] = {}
    for key in store.list(f"tables/{table}/"):
        found = _PART.fullmatch(key)
        if found or is_compacted(key):
            runs.setdefault(found[1] if found else None, []).append(key)
        elif key.endswith(".parquet"):
            raise misplaced(store, key)
    return runs


def is_in_place(key: str) -> bool:
    """Whether a file of this name belongs into a table."""
    return _PART.fullmatch(key) is not None or is_compacted(key)


def misplaced(store: Store, key: str) -> Damaged:
    problem = f"{key} is not in a run's folder"
    return Damaged(f"{store.uri(key)} is not in a run's folder; move it out of the store.", problem)


@dataclass(frozen=True)
class Part:
    """One file of a table, whole. `held`: the files in whose place it stands, key and SHA-256."""

    key: str
    sha256: str
    content: pa.Table  # without run_id, unless it is a compacted file
    held: dict[str, str]

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


def read_part(store: Store, table: str, key: str) -> Part:
    """Read one file; raises `Damaged`, and `NotInStore` if it is gone."""

    def decode(data: bytes) -> tuple[str, pa.Table, dict[str, str]]:
        with _as_value_error():
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            content = file.read()
        return bytes_digest(data).sha256, content, _held(key, content.schema)

    sha256, content, held = read_checked(store, key, decode)
    _check_schema(store, key, table, content.schema)
    schema = SCHEMAS[table] if is_compacted(key) else FILE_SCHEMAS[table]
    return Part(key, sha256, _up_to_date(schema, content), held)


def _up_to_date(schema: pa.Schema, content: pa.Table) -> pa.Table:
    """A file's rows under today's columns; those that it is too old to have are null."""
    columns = [
        content[field.name].cast(field.type)
        if field.name in content.column_names
        else pa.nulls(content.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def is_merged(key: str) -> bool:
    """Whether a file of a table is a sealed or a compacted one."""
    return _MERGED.fullmatch(key) is not None


def is_compacted(key: str) -> bool:
    """Whether a file of a table has the rows of many runs."""
    return _COMPACTED.fullmatch(key) is not None


def older_compacted(keys: Iterable[str]) -> list[str]:
    """The compacted files among these of which a later one has everything."""
    return sorted(filter(is_compacted, keys), key=lambda key: (len(key), key))[:-1]


def next_number(keys: Iterable[str]) -> str:
    """The number in the name of the next merged file of a folder with these files."""
    numbers = [int(found[1]) for found in map(_MERGED.fullmatch, keys) if found]
    return f"{max(numbers, default=0) + 1:04d}"


def home(key: str) -> str:
    """What the names in a merged file's metadata are relative to: a prefix of keys."""
    folder = f"{key.rpartition('/')[0]}/"
    return folder.removesuffix("compacted/") if is_compacted(key) else folder


def _held(key: str, schema: pa.Schema) -> dict[str, str]:
    """The files in whose place a merged one stands; `ValueError` if its metadata is damaged."""
    names = json.loads((schema.metadata or {}).get(HELD_PARTS, b"{}"))
    if not isinstance(names, dict):
        raise ValueError("sjc.parts: not an object")
    return {home(key) + name: sha256 for name, sha256 in names.items()}


def _check_schema(store: Store, key: str, table: str, schema: pa.Schema) -> None:
    """Raises `Damaged` unless `schema` is that of the table's files, today's or an earlier one.

    Versions only ever add columns that may be null. A later one raises `NewerStore`.
    """
    where = store.uri(key)
    found = (schema.metadata or {}).get(b"sjc.version", str(SCHEMA_VERSION).encode()).decode()
    if not found.isdecimal() or int(found) > SCHEMA_VERSION:
        raise NewerStore(
            f"{where} has schema version {found} and this program reads up to {SCHEMA_VERSION}; "
            "use a newer sjc."
        )
    today = (COMPACTED_SCHEMAS if is_compacted(key) else FILE_SCHEMAS)[table]
    if int(found) < SCHEMA_VERSION:
        today = pa.schema([f for f in today if f.name in schema.names or not f.nullable])
    if not schema.equals(today, check_metadata=False):
        problem = f"is not a file of table {table}: its columns are others"
        raise Damaged(f"{where} {problem}; move it out of the store.", problem)


@dataclass(frozen=True)
class _Merged:
    """A merged file, whole in memory; its columns are decoded when a query needs them."""

    key: str
    run: str | None  # None for a compacted file
    sha256: str
    fragment: ds.ParquetFileFragment
    held: dict[str, str]


def _dataset(store: Store, table: str) -> tuple[ds.Dataset, list[_Merged]]:
    """A table as a dataset, and the merged files in it. Raises `_Vanished` if a file does so.

    Every file is fetched whole, by the store's own client.
    """
    runs = part_keys(store, table)
    keys = [(run, key) for run, found in runs.items() for key in found]
    with ThreadPoolExecutor(FILES) as pool:
        read_merged = partial(_read_merged, store, table)
        merged = list(pool.map(read_merged, [pair for pair in keys if is_merged(pair[1])]))
        held = {key: sha256 for file in merged for key, sha256 in file.held.items()}
        live = [pair for pair in keys if not is_merged(pair[1])]
        parts = list(pool.map(lambda pair: (pair[0], _live_part(store, table, pair[1])), live))
    # A file that was moved during a listing of many pages may be missing from it, and so may the
    # file that it went to; but that one was there before the file went.
    prefix = f"tables/{table}/" if parts else f"tables/{table}/compacted/"
    if set(filter(is_merged, store.list(prefix))) - {file.key for file in merged}:
        raise _Vanished
    outdated = older_compacted(file.key for file in merged)
    merged = [f for f in merged if held.get(f.key) != f.sha256 and f.key not in outdated]
    contents = [
        (run, with_run(table, run, part.content))
        for run, part in parts
        if held.get(part.key) != part.sha256
    ]
    try:
        return _without_repeats(table, merged, contents)
    except (pa.ArrowInvalid, OSError):
        _check_files(store, table, [file.key for file in merged])
        raise


def _check_files(store: Store, table: str, keys: Iterable[str]) -> None:
    """Decodes all of these files; raises `Damaged` for the first that cannot be."""
    for key in keys:
        with contextlib.suppress(NotInStore):
            read_part(store, table, key)


def _without_repeats(
    table: str, merged: list[_Merged], contents: list[tuple[str | None, pa.Table]]
) -> tuple[ds.Dataset, list[_Merged]]:
    """Merged files and the rows of parts as one dataset.

    A run that goes on while it is compacted, or that was sealed and compacted at the same moment,
    has rows in several merged files, and some of them twice. That is rare, and read at once.
    """
    schema = SCHEMAS[table]

    def read(file: _Merged, which: ds.Expression | None = None) -> pa.Table:
        return file.fragment.to_table(schema=schema, filter=which)

    compacted = [file for file in merged if file.run is None]
    sealed = Counter(file.run for file in merged if file.run is not None)
    own: set[str | None] = {*sealed, *(run for run, _ in contents)}
    repeated: set[str | None] = {run for run, count in sealed.items() if count > 1}
    for file in compacted if own else []:
        known = file.fragment.to_table(schema=schema, columns=["run_id"])["run_id"]
        repeated |= own.intersection(known.unique().to_pylist())
    rows = [content for run, content in contents if run not in repeated]
    if repeated:
        theirs = ds.field("run_id").isin(list(repeated))
        sources = [read(file, theirs) for file in compacted]
        sources += [read(file) for file in merged if file.run in repeated]
        sources += [content for run, content in contents if run in repeated]
        rows += [read(file, ~theirs) for file in compacted]
        rows.append(last_rows(table, pa.concat_tables(sources)))
        merged = [f for f in merged if f.run is not None and f.run not in repeated]
    memory = ds.dataset(pa.concat_tables([schema.empty_table(), *rows]))
    if not merged:
        return memory, []
    lazy = ds.FileSystemDataset([file.fragment for file in merged], schema, _FORMAT)
    return ds.UnionDataset(schema, [lazy, memory]), merged


def _read_merged(store: Store, table: str, run_and_key: tuple[str | None, str]) -> _Merged:
    run, key = run_and_key
    partition = None if run is None else ds.field("run_id") == run

    def open_file(data: bytes) -> _Merged:
        buffer = pa.py_buffer(data)
        fragment = _FORMAT.make_fragment(buffer, partition_expression=partition)
        with _as_value_error():
            held = _held(key, fragment.physical_schema)
        return _Merged(key, run, bytes_digest(data).sha256, fragment, held)

    try:
        merged = read_checked(store, key, open_file)
    except NotInStore as error:
        raise _Vanished from error
    _check_schema(store, key, table, merged.fragment.physical_schema)
    return merged


def _live_part(store: Store, table: str, key: str) -> Part:
    try:
        return read_part(store, table, key)
    except NotInStore as error:
        raise _Vanished from error


def with_run(table: str, run: str | None, content: pa.Table) -> pa.Table:
    """A file's rows with the column that its folder stands for."""
    if run is None:
        return content
    schema = SCHEMAS[table]
    position = schema.get_field_index("run_id")
    runs = pa.array([run] * content.num_rows, pa.string())
    whole = content.add_column(position, schema.field(position), runs)
    return whole.replace_schema_metadata(schema.metadata)


def _execute(store: Store, sql: str) -> pa.Table:
    """Run `sql` in a fresh DuckDB, again if files vanish because their run is being sealed."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    tables = [
        name for name in SCHEMAS if name in words or (name == "assets" and "best_assets" in words)
    ]
    for _ in range(READS):
        merged: dict[str, list[str]] = {}
        try:
            datasets = {}
            for name in tables:
                datasets[name], files = _dataset(store, name)
                merged[name] = [file.key for file in files]
            return _run_sql(datasets, sql)
        except _Vanished:
            continue
        except (RuntimeError, duckdb.InterruptException) as error:
            if "interrupted" in str(error).lower():  # DuckDB has taken Ctrl-C for itself
                raise KeyboardInterrupt from error
            raise
        except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
            raise QueryError(str(error)) from error
        except (MemoryError, duckdb.OutOfMemoryException) as error:
            raise MemoryError(str(error)) from error
        except duckdb.IOException as error:  # of its temporary files: no table is one of its own
            raise StoreError(f"Cannot query {store.url}: {error}; check TMPDIR's disk.") from error
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            for name, keys in merged.items():
                _check_files(store, name, keys)
            raise QueryError(str(error)) from error
    raise StoreError(f"The tables in {store.url} change all the time; try again later.")


def _run_sql(datasets: dict[str, ds.Dataset], sql: str) -> pa.Table:
    with duckdb.connect() as connection:
        # SQL must see the tables and never a Python variable of that name.
        connection.execute(
            "SET TimeZone = 'UTC'; SET python_enable_replacements = false;"
            "SET autoinstall_known_extensions = false"
        )
        for name, dataset in datasets.items():
            connection.register(name, dataset)
        if "assets" in datasets:
            connection.execute(f"CREATE TEMP VIEW best_assets AS {BEST_ASSETS}")
        relation = connection.sql(sql)
        if relation is None:
            raise QueryError("this SQL returns no rows; write a SELECT")
        return relation.to_arrow_table()


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Arrow's errors about a file's content, in one line; others say nothing about it."""
    try:
        yield
    except (pa.ArrowMemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
