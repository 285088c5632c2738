"""`docs/tables.md`, written from the schemas: ``python -m tasks.table_page docs/tables.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from tasks.columns import FLAG, REAL, TEXT, TEXT_MAP, TEXTS, TIME, WHOLE, Column
from tasks.schemas import TABLES

MARK = "<!-- From here on: `python -m tasks.table_page docs/tables.md`. -->\n"

_TYPES: dict[pa.DataType, str] = {
    TEXT: "text",
    WHOLE: "int64",
    REAL: "float64",
    FLAG: "bool",
    TIME: "timestamp (µs, UTC)",
    TEXTS: "list of text",
    TEXT_MAP: "map of text to text",
}


def to_markdown() -> str:
    """The tables for people."""
    blocks = []
    for table, (purpose, columns) in TABLES.items():
        lines = [
            f"## `{table}`\n\n{purpose}\n",
            "| column | type | meaning | unit | range | better |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(_cells(column))} |" for column in columns]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _cells(column: Column) -> list[str]:
    null = "" if column.required else ", may be null"
    better = column.better
    if column.type == FLAG and better:
        better = "true" if better == "higher" else "false"
    kind = _TYPES[column.type] + null
    return [f"`{column.name}`", kind, column.meaning, column.unit, column.range, better]


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(
        page.read_text("utf-8").partition(MARK)[0] + MARK + "\n" + to_markdown(), "utf-8"
    )
