"""How values are written for people: numbers in the cells of tables, and sizes."""

from __future__ import annotations

from typing import Any


def cell(value: Any) -> str:
    """A value as a person reads it: three digits, yes or no, and - for nothing."""
    from tasks.datasets.csv_text import plain

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return plain(value)


def size_text(size: float) -> str:
    """Bytes as a person reads them, such as 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
