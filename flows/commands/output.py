"""Arrow tables on stdout, as a person or another program wants them."""

import io
import json
import math
import sys
from collections.abc import Mapping
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from flows.errors import UsageError
from tasks.csv_text import plain, to_csv

PIPE_WIDTH = 240  # characters of a table line that nobody's window limits


def show(rows: pa.Table, format: str, columns: Mapping[str, str] | None = None) -> None:
    """Prints rows in a format of the command line; a table shows `columns` (name -> heading)."""
    rows = rows.rename_columns(_distinct(rows.column_names))
    match format:
        case "table":
            names = dict(columns or {name: name for name in rows.column_names})
            print_table(names, rows.to_pylist(maps_as_pydicts="strict"))
        case "csv":
            print(to_csv(rows), end="")
        case "json":
            items = _finite(rows.to_pylist(maps_as_pydicts="strict"))
            print(json.dumps(items, default=plain, ensure_ascii=False, indent=1))
        case _:
            if sys.stdout.isatty():
                raise UsageError("--format parquet is binary; send it to a file: ... > FILE")
            data = io.BytesIO()  # Parquet writers seek, and a pipe does not
            pq.write_table(rows, data, compression="zstd", write_page_checksum=True)
            sys.stdout.buffer.write(data.getvalue())


def _distinct(names: list[str]) -> list[str]:
    """Column names with numbers behind repeated ones, as a join gives them; none gets lost."""
    found: list[str] = []
    for name in names:
        others = (f"{name}_{number}" for number in count(1))
        found.append(
            name if name not in found else next(n for n in others if n not in {*names, *found})
        )
    return found


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_finite(item) for item in value]
        case dict():
            return {key: _finite(item) for key, item in value.items()}
    return value


def print_table(columns: Mapping[str, str], rows: list[dict[str, Any]]) -> None:
    """A table for people: headings over the named columns of the rows."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name, heading in columns.items():
        numeric = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # markup and emoji codes in a prompt are text
        table.add_row(*(cell(row[name]) for name in columns))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


def cell(value: Any) -> str:
    """A value as a person reads it: three digits, yes or no, and - for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return plain(value)
