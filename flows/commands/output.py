"""What commands print: tables, as a person or another program wants them, and warnings."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flows.errors import UsageError
from flows.progress.number_formats import cell

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import JustifyMethod


def show(rows: pa.Table, format: str, columns: Mapping[str, str] | None = None) -> None:
    """Prints rows in a format of the command line; a table shows `columns` (name -> heading)."""
    from tasks.datasets.csv_text import plain, to_csv
    from tasks.tables.write import parquet_bytes

    match format:
        case "table":
            names = columns or {name: name for name in rows.column_names}
            print_table(rows.to_pylist(maps_as_pydicts="strict"), names)
        case "csv":
            print(to_csv(rows), end="")
        case "json":
            items = _finite(rows.to_pylist(maps_as_pydicts="strict"))
            print(json.dumps(items, default=plain, ensure_ascii=False, indent=1))
        case _:
            if sys.stdout.isatty():
                raise UsageError("--format parquet is binary; send it to a file: ... > FILE")
            sys.stdout.buffer.write(parquet_bytes(rows))


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


def print_table(rows: list[dict[str, Any]], columns: Mapping[str, str] | None = None) -> None:
    """A table for people: headings over columns of the rows, by default all under their names."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    columns = columns or {name: name for name in rows[0]}
    numeric = {name: any(isinstance(row[name], int | float) for row in rows) for name in columns}
    lines = [[cell(row[name]) for name in columns] for row in rows]
    # markup and emoji codes in a prompt are text
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        table = Table(header_style="bold", box=None, pad_edge=False)
        for name, heading in columns.items():
            justify: JustifyMethod = "right" if numeric[name] else "left"
            table.add_column(heading, justify=justify, overflow="fold")
        for line in lines:
            table.add_row(*line)
        return console.print(table)
    # Elsewhere a row is a line, however long; and rich would take seconds for ten thousand.
    lines.insert(0, list(columns.values()))
    for column, right in enumerate(numeric.values()):
        widest = max(cell_len(line[column]) for line in lines)
        for line in lines:
            space = " " * (widest - cell_len(line[column]))
            line[column] = space + line[column] if right else line[column] + space
    sys.stdout.writelines("  ".join(line).rstrip() + "\n" for line in lines)


def print_places(places: Mapping[str, str | None]) -> None:
    """Addresses under each other, those that there are."""
    for name, place in places.items():
        if place is not None:
            print(f"{name + ':':9}{place}")


def print_warnings(warnings: Iterable[str]) -> None:
    """One line each on stderr, so that stdout stays what another program reads."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
