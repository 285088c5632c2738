"""Rows as CSV that a spreadsheet may open: it runs nothing that stands in them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # how cells begin that a spreadsheet runs


def to_csv(rows: pa.Table) -> str:
    """CSV with a header. Text that a spreadsheet would run as a formula gets a quote in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_cell(name) for name in rows.column_names])
    for row in rows.to_pylist(maps_as_pydicts="strict"):
        writer.writerow([_cell(row[name]) for name in rows.column_names])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=plain, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(FORMULAS):
        return f"'{value}"
    return plain(value) if hasattr(value, "isoformat") else value


def plain(value: Any) -> str:
    """A value as text, times in ISO 8601."""
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
