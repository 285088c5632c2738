"""Which rows of a table are the same row, and which of them counts."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from tasks.layout import attempt_number

# What tells a run's rows of a table apart.
ROW_KEYS = {
    "assets": ("asset_id",),
    "attempts": ("asset_id", "attempt"),
    "views": ("asset_id", "source", "view"),
    "entries": ("row_id",),
    "runs": ("manifest",),
}


def row_keys(table: str, content: pa.Table) -> set[tuple[object, ...]]:
    """What tells the rows of a table with `run_id` from each other."""
    names = ("run_id", *ROW_KEYS[table])
    return set(zip(*(content[name].to_pylist() for name in names), strict=True))


def last_rows(table: str, content: pa.Table) -> pa.Table:
    """One row for each key of the table: the last one, and of assets that of the last attempt."""
    rows: Iterable[int] = range(content.num_rows)
    if table == "assets":
        attempts = content["attempt"].to_pylist()
        rows = sorted(rows, key=lambda row: attempt_number(attempts[row]))
    names = [name for name in ("run_id", *ROW_KEYS[table]) if name in content.column_names]
    columns = [content[name].to_pylist() for name in names]
    last = {tuple(column[row] for column in columns): row for row in rows}
    return content.take(pa.array(sorted(last.values()), pa.int64()))
