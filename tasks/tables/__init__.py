"""The five tables, a projection of the store's JSON to Parquet: schemas, writing, reading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.tables.read import query, read_table

__all__ = ["query", "read_table"]


def __getattr__(name: str) -> Any:
    """Imports what users import at its first use: it takes pyarrow and DuckDB along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.read"), name)
