"""The tables, a projection of the store's JSON to Parquet: schemas, writing, reading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.tables.read import QueryError, query, read_table
    from tasks.tables.schemas import SCHEMAS
    from tasks.tables.write import rebuild_tables

__all__ = ["SCHEMAS", "QueryError", "query", "read_table", "rebuild_tables"]

_HOMES = {"SCHEMAS": "schemas", "rebuild_tables": "write"}  # the others are in `read`

if not TYPE_CHECKING:  # which would take every name for one of these

    def __getattr__(name: str) -> Any:
        """Imports what users import at its first use: it takes pyarrow and DuckDB along."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'read')}")
        return getattr(home, name)
