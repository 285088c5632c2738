"""Looking after a store's tables: every run sealed, every table one file."""

import contextlib
from collections.abc import Callable

from tasks.commit import read_document
from tasks.schemas import SCHEMAS
from tasks.sealing import compact_table, seal_run
from tasks.store import AlreadyCommitted, NotInStore, Store
from tasks.table_reader import part_keys
from tasks.tables import query, record_run


def compact_store(store: Store, tell: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Leaves one file of each table, but for rows that were written meanwhile; counts the files."""
    record_unended_runs(store)
    for table in SCHEMAS:
        for run, keys in part_keys(store, table).items():
            if run is not None and len(keys) > 1:
                tell(f"sealing run {run}")
                seal_run(store, run)
    counts = {}
    for table in SCHEMAS:
        # Another process that compacts at the same time does what is to be done.
        with contextlib.suppress(AlreadyCommitted, NotInStore):
            if compact_table(store, table):
                tell(f"table {table}: compacted")
        counts[table] = sum(map(len, part_keys(store, table).values()))
    return counts


def record_unended_runs(store: Store) -> None:
    """Writes the rows of runs that were killed between their JSON and these rows."""
    rows = query(store, "SELECT run_id, ended_at IS NULL AS unended FROM runs").to_pylist()
    known = {row["run_id"]: row["unended"] for row in rows}
    documents = (key for key in store.list("runs/") if key.endswith(".json"))
    found = {key.removeprefix("runs/").removesuffix(".json") for key in documents}
    for run_id in sorted(found - known.keys() | {run for run, unended in known.items() if unended}):
        with contextlib.suppress(NotInStore):
            run = read_document(store, f"runs/{run_id}.json")
            if run["ended_at"] is not None or run_id not in known:
                record_run(store, run)
