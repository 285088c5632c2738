"""Writes the generated parts of docs/: `python scripts/docs_tables.py`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

from sjc_engine.recipe_presets import PRESETS
from sjc_engine.recipes import PARTS
from tasks.tables.columns import (
    FLAG,
    REAL,
    REALS,
    TEXT,
    TEXT_MAP,
    TEXTS,
    TIME,
    WHOLE,
    WHOLES,
    Column,
)
from tasks.tables.schemas import RATINGS, TABLES

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARK = "<!-- From here on: `python scripts/docs_tables.py`. -->\n"

# By its first key, the heading of a group of recipe keys.
GROUPS = {
    "steps": "Score (equations 14 to 16)",
    "sigma_schedule": (
        "Noise levels: random within the range, falling from its top to its bottom, or fixed"
    ),
    "optimizer": "Optimiser",
    "field": "Field",
    "render_size": "Camera and renderer",
    "distill_views": "From latents to RGB, at the end",
    "emptiness_weight": "Regularisers",
    "image_elevation": "The input image, for priors that take one: its camera and its losses",
}

_TYPES: dict[pa.DataType, str] = {
    TEXT: "text",
    WHOLE: "int64",
    REAL: "float64",
    FLAG: "bool",
    TIME: "timestamp (µs, UTC)",
    TEXTS: "list of text",
    WHOLES: "list of int32",
    REALS: "list of float32",
    TEXT_MAP: "map of text to text",
}


_BEST_ASSETS = (
    "A view: one row per asset, its best outcome. It has all columns of `assets`, and what people"
    " say of it ([annotations.md](annotations.md))."
)


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
        if table == "assets":
            lines = ["## `best_assets`\n", f"{_BEST_ASSETS}\n", *lines[1:3]]
            lines += [f"| {' | '.join(_cells(column))} |" for column in RATINGS]
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def recipes_page() -> str:
    """Every recipe key with what it may be and does, and every preset with what it changes."""
    blocks = []
    for part in PARTS.values():
        hints = get_type_hints(part)
        lines: list[str] = []
        for key in fields(part):
            hint = hints[key.name]
            if key.name in GROUPS or not lines:
                heading = GROUPS.get(key.name) or (part.__doc__ or "").split("\n")[0]
                lines += [f"\n## {heading.rstrip('.')}\n", _KEYS, "|---|---|---|---|---|"]
            values = ", ".join(f"`{value}`" for value in get_args(hint))
            if low_high := key.metadata.get("range"):
                values = f"{low_high[0]:,.10g} to {low_high[1]:,.10g}"
            kind = "choice" if get_origin(hint) is Literal else hint.__name__
            cells = (f"`{key.name}`", kind, f"`{key.default}`", values, key.metadata["help"])
            lines.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(lines).strip())
    blocks.append(f"## Presets\n\n{_presets()}")
    return "\n\n".join(blocks) + "\n"


def _presets() -> str:
    """A table for each family of priors; the first preset is the default."""
    blocks = []
    for family, presets in PRESETS.items():
        lines = [f"### {FAMILY_NAMES[family]}\n", "| preset | what it changes |", "|---|---|"]
        for name, changes in presets.items():
            said = ", ".join(
                f"`{key}` {value:g}"
                if type(value) in (int, float)
                else f"`{key}` {str(value).lower()}"
                for key, value in changes.items()
            )
            lines.append(f"| `{name}` | {said or 'nothing'} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


_KEYS = "| key | type | default | values | what |"
FAMILY_NAMES = {
    "toybox": "`toybox`, and small pixel models like it",
    "stable_diffusion": "Stable Diffusion",
    "deepfloyd": "DeepFloyd IF",
    "unconditional": "DDPM and VE models",
    "toybox_unconditional": "`toybox-duck`",
    "zero123": "Zero-1-to-3",
    "stable_zero123": "Stable Zero123",
    "mvdream": "MVDream",
}
PAGES = {"tables.md": tables_page, "recipes.md": recipes_page}


def _cells(column: Column) -> list[str]:
    null = "" if column.required else ", may be null"
    better = column.better
    if column.type == FLAG and better:
        better = "true" if better == "higher" else "false"
    kind = _TYPES[column.type] + null
    return [f"`{column.name}`", kind, column.meaning, column.unit, column.range, better]


if __name__ == "__main__":
    for name, generate in PAGES.items():
        path = DOCS / name
        before = path.read_text("utf-8").partition(MARK)[0]
        path.write_text(f"{before}{MARK}\n{generate()}", "utf-8")
