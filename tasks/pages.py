"""The generated halves of docs/tables.md and docs/manifests.md: ``python -m tasks.pages docs``."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

from sjc_engine.recipes import PARTS
from tasks.columns import FLAG, REAL, TEXT, TEXT_MAP, TEXTS, TIME, WHOLE, Column
from tasks.schemas import TABLES

MARK = "<!-- From here on: `python -m tasks.pages docs`. -->\n"

_TYPES: dict[pa.DataType, str] = {
    TEXT: "text",
    WHOLE: "int64",
    REAL: "float64",
    FLAG: "bool",
    TIME: "timestamp (µs, UTC)",
    TEXTS: "list of text",
    TEXT_MAP: "map of text to text",
}


def tables_page() -> str:
    """Every column of every table."""
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


def manifests_page() -> str:
    """Every recipe key with what it may be."""
    lines = ["| key | type | default of `paper` | values |", "|---|---|---|---|"]
    for part in PARTS.values():
        hints = get_type_hints(part)
        for key in fields(part):
            hint, low_high = hints[key.name], key.metadata.get("range")
            values = ", ".join(f"`{value}`" for value in get_args(hint))
            if low_high:
                values = f"{low_high[0]:,.10g} to {low_high[1]:,.10g}"
            kind = "choice" if get_origin(hint) is Literal else hint.__name__
            lines.append(f"| `{key.name}` | {kind} | `{key.default}` | {values} |")
    return "\n".join(lines) + "\n"


PAGES = {"tables.md": tables_page, "manifests.md": manifests_page}


def _cells(column: Column) -> list[str]:
    null = "" if column.required else ", may be null"
    better = column.better
    if column.type == FLAG and better:
        better = "true" if better == "higher" else "false"
    kind = _TYPES[column.type] + null
    return [f"`{column.name}`", kind, column.meaning, column.unit, column.range, better]


if __name__ == "__main__":
    for name, generate in PAGES.items():
        path = Path(sys.argv[1]) / name
        before = path.read_text("utf-8").partition(MARK)[0]
        path.write_text(f"{before}{MARK}\n{generate()}", "utf-8")
