"""The five tables, a projection of the store's JSON to Parquet: schemas, writing, reading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.tables.read import QueryError, of_files, query, read_table
    from tasks.tables.schemas import SCHEMAS
    from tasks.tables.write import compact_store, rebuild_tables

__all__ = [
    "SCHEMAS",
    "QueryError",
    "compact_store",
    "of_files",
    "query",
    "read_table",
    "rebuild_tables",
]

# Imported at first use: they take pyarrow and DuckDB along.
_HOMES = {
    "SCHEMAS": "schemas",
    "QueryError": "read",
    "compact_store": "write",
    "of_files": "read",
    "query": "read",
    "read_table": "read",
    "rebuild_tables": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
