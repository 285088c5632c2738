"""Reading the tables, from a folder or S3: for pandas and for SQL.

A table is the rows of all its files. A row may be in several of them: writers and `sjc compact`
write rows into a new file before they delete the old one. `last_rows` says which one counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from tasks.manifest.locations import file_digests
from tasks.store import open_store
from tasks.store.interface import NewerStore, NotInStore, Store, StoreError, read_checked
from tasks.tables.best_assets import BEST_ASSETS
from tasks.tables.schemas import (
    COUNTS_FIRST,
    RATINGS,
    ROW_KEYS,
    SCHEMA_VERSION,
    SCHEMAS,
    is_file_schema,
)

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Connection = duckdb.DuckDBPyConnection

READS = 10  # of a table whose files are replaced meanwhile
FILES = 16  # at a time
_ORDER = {
    "assets": "started_at, asset_id",
    "views": "asset_id, run_id, source, view",
    "entries": "run_id, line, row_id",
    "attempts": "started_at, asset_id, attempt",
    "history": "asset_id, attempt, run_id",
    "runs": "started_at, run_id",
    "annotations": "made_at, asset_id, key, who",
}
_OF_MANIFEST = {
    "assets": "asset_id IN (SELECT asset_id FROM entries WHERE {entries})",
    "entries": "{entries}",
    "runs": "run_id IN (SELECT run_id FROM entries WHERE {entries})",
}
_PLACE = re.compile(r"tables/\w+/(?:compacted|run_id=([^/]+))/[^/]+\.parquet")
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


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
    """A table as pandas; `assets` has one row per asset, its best outcome, and people's ratings.

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
    known = {*SCHEMAS[name].names, *(c.name for c in RATINGS if name == "assets")}
    unknown = set(columns or ()) - known
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
    return to_pandas(query(store, f"{sql} ORDER BY {_ORDER[name]}"))


def query(store: Store, sql: str) -> pa.Table:
    """The rows of an SQL query (DuckDB) over the tables and the view `best_assets`.

    Here `assets` has one row per asset and run. Raises `QueryError` for wrong SQL, `Damaged` for a
    damaged file, and `StoreError` for one that could not be read.
    """
    words = set(re.findall(r"\w+", sql.lower()))
    if "best_assets" in words:
        words |= {"assets", "annotations"}
    files = {name: read_files(store, name, read_file) for name in SCHEMAS if name in words}
    with _query_errors(store, files), connect() as connection:
        for name, found in files.items():
            connection.register(name, _dataset(name, found))
        if "best_assets" in words:
            connection.execute(f"CREATE TEMP VIEW best_assets AS {BEST_ASSETS}")
        return _run_sql(connection, sql)


def of_files(digests: Sequence[str]) -> str:
    """SQL: rows of table `entries` that stood in manifest files with these SHA-256."""
    return f"manifest_sha256 IN ({', '.join(map(repr, digests))})"


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """pandas with nullable integers and flags, so that one null does not make them floats."""
    import pandas as pd  # a third of the start of a command that may not need it

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get, maps_as_pydicts="strict")


# --- files ------------------------------------------------------------------------------------


def table_keys(store: Store, folder: str) -> list[str]:
    """The files of a table, or of a folder of one."""
    return [key for key in store.list(f"tables/{folder}/") if key.endswith(".parquet")]


def read_files(store: Store, table: str, read: Callable[[Store, str, str], T]) -> dict[str, T]:
    """All files of a table by key, each as `read(store, table, key)` returns it.

    Between them they have every row. Raises what `read` raises, but for `NotInStore`: a file that
    is gone was replaced after it was listed, so the table is listed again.
    """
    known: dict[str, T] = {}
    for _ in range(READS):
        keys = table_keys(store, table)
        new = [key for key in keys if key not in known]
        with ThreadPoolExecutor(FILES) as pool, contextlib.suppress(NotInStore):
            known.update(zip(new, pool.map(partial(read, store, table), new), strict=True))
            # A listing of many pages can miss both a run's file, deleted by then, and the compacted
            # one that has its rows since. That one was there before the other was deleted.
            if known.keys() >= set(table_keys(store, f"{table}/compacted")):
                return {key: known[key] for key in keys}
    raise StoreError(f"The tables in {store.url} change all the time", "try again later")


def read_file(store: Store, table: str, key: str, *, whole: bool = False) -> ds.Dataset:
    """A file's rows with their `run_id`, under today's columns: null where the file has none.

    The file is fetched at once, and its columns are decoded when they are needed; with `whole` at
    once too, so that everything that is wrong with it is `Damaged`. Raises `NewerStore`, and
    `NotInStore`.
    """
    place = _PLACE.fullmatch(key)

    def parse(data: bytes) -> ds.Dataset:
        if place is None:
            raise ValueError("it is not in a run's folder")
        [run] = place.groups()  # None of a compacted file, which has rows of many
        partition = ds.field("run_id") == run if run else None
        try:
            fragment = _FORMAT.make_fragment(pa.py_buffer(data), partition_expression=partition)
            version = _version(store.uri(key), fragment.physical_schema)
            if not is_file_schema(table, fragment.physical_schema, version, compacted=not run):
                raise ValueError(f"its columns are not those of table {table}")
            rows = ds.FileSystemDataset([fragment], SCHEMAS[table], _FORMAT)
            return ds.dataset(rows.to_table()) if whole else rows
        except (pa.ArrowMemoryError, pa.ArrowCancelled):  # say nothing about the file
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error).partition("\n")[0]) from error

    return read_checked(store, key, parse)


def _version(where: str, schema: pa.Schema) -> int:
    """Of the columns of a file; raises `NewerStore`."""
    found = (schema.metadata or {}).get(b"sjc.version", str(SCHEMA_VERSION).encode()).decode()
    if not found.isdecimal() or int(found) > SCHEMA_VERSION:
        raise NewerStore(
            f"{where} has schema version {found} and this program reads up to {SCHEMA_VERSION}",
            "use a newer sjc",
        )
    return int(found)


# --- rows -------------------------------------------------------------------------------------


def connect() -> Connection:
    """A connection whose tables nobody else sees, and which leaves nothing behind."""
    return _database(os.getpid()).cursor().begin()


@cache
def _database(process: int) -> Connection:
    """One for each process, since a fork lacks its threads: to open one takes 20 ms."""
    return duckdb.connect()


def last_rows(table: str, rows: pa.Table) -> pa.Table:
    """One row for each key: the one that counts, and of equal ones the last."""
    if not _repeated(rows.select(ROW_KEYS[table])):  # as mostly: SQL takes ten times as long
        return rows
    keys = ", ".join(ROW_KEYS[table])
    order = ", ".join((*COUNTS_FIRST[table], "number DESC"))
    numbered = rows.append_column("number", pa.array(range(rows.num_rows), pa.int64()))
    with connect() as connection:
        connection.register("numbered", numbered)
        counts = connection.sql(
            f"SELECT row_number() OVER (PARTITION BY {keys} ORDER BY {order}) = 1 AS counts"
            " FROM numbered ORDER BY number"
        ).to_arrow_table()["counts"]
    return rows.filter(counts)


def row_keys(table: str, rows: pa.Table) -> set[tuple[object, ...]]:
    """What tells the rows of a table from each other."""
    return set(zip(*(rows[name].to_pylist() for name in ROW_KEYS[table]), strict=True))


def _dataset(table: str, files: Mapping[str, ds.Dataset]) -> ds.Dataset:
    """Files as one table without repeats, which are of a run, or an asset, in several files.

    Only the columns that a query needs are decoded, but all of them if some rows are repeated.
    """
    nothing = ds.dataset(SCHEMAS[table].empty_table())
    rows = ds.UnionDataset(SCHEMAS[table], [*files.values(), nothing])
    if len(files) < 2:
        return rows
    first = ROW_KEYS[table][0]
    found = (file.to_table([first])[first].unique() for file in files.values())
    counts = Counter(value for values in found for value in values)
    if max(counts.values(), default=0) > 1 and _repeated(rows.to_table(list(ROW_KEYS[table]))):
        return ds.dataset(last_rows(table, rows.to_table()))
    return rows


def _repeated(keys: pa.Table) -> bool:
    return bool(keys.group_by(keys.column_names).aggregate([]).num_rows < keys.num_rows)


def _run_sql(connection: Connection, sql: str) -> pa.Table:
    # SQL must see the tables and never a Python variable of that name.
    connection.execute(
        "SET TimeZone = 'UTC'; SET python_enable_replacements = false;"
        "SET autoinstall_known_extensions = false"
    )
    relation = connection.sql(sql)
    if relation is None:
        raise QueryError("this SQL returns no rows; write a SELECT")
    return relation.project("*").to_arrow_table()  # with distinct names, also of a join


@contextlib.contextmanager
def _query_errors(store: Store, files: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """What went wrong in a query: an interrupt, the SQL, this machine, or one of the files."""
    try:
        yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if "interrupted" in str(error).lower():  # DuckDB has taken Ctrl-C for itself
            raise KeyboardInterrupt from error
        raise
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
        raise QueryError(str(error)) from error
    except (MemoryError, duckdb.OutOfMemoryException) as error:
        raise MemoryError(str(error)) from error
    except duckdb.IOException as error:  # of its temporary files: no table is one of its own
        raise StoreError(f"Cannot query {store.url}: {error}", "check TMPDIR's disk") from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        for table, found in files.items():
            for key in found:
                with contextlib.suppress(NotInStore):
                    read_file(store, table, key, whole=True)
        raise QueryError(str(error)) from error
