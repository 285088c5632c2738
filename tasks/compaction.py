"""Looking after a store's tables: every run sealed, every table one file."""

import contextlib
from collections.abc import Callable

from tasks.documents import check_usable, read_run, run_ids
from tasks.schemas import SCHEMAS
from tasks.sealing import compact_table, seal_run
from tasks.store import AlreadyCommitted, NotInStore, Store
from tasks.table_reader import part_keys
from tasks.tables import query, record_run


def compact_store(store: Store, tell: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Leaves one file of each table, but for rows that were written meanwhile; counts the files."""
    check_usable(store)
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
    unended = {run for run, is_open in known.items() if is_open}
    for run_id in sorted(set(run_ids(store)) - known.keys() | unended):
        with contextlib.suppress(NotInStore):
            run = read_run(store, run_id)
            if run["ended_at"] is not None or run_id not in known:
                record_run(store, run)
