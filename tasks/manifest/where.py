"""Which entries of a manifest an SQL condition picks, and at most how many."""

from __future__ import annotations

from sjc_engine.errors import UsageError
from tasks.manifest.resolve import Entry


def select(entries: list[Entry], where: str | None, limit: int | None) -> list[Entry]:
    """The entries that `where` (SQL over their columns) lets through, at most `limit` of them."""
    if where is not None:
        entries = [entries[n] for n in _matching(entries, where)]
        if not entries:
            raise UsageError(f"--where {where!r}: no entry of the manifest matches")
    return entries[:limit]


def _matching(entries: list[Entry], where: str) -> list[int]:
    """Which entries `where` lets through; UsageError, with the columns, for SQL that is wrong."""
    import duckdb
    import pyarrow as pa

    texts = ("id", "asset_id", "recipe", "prompt", "negative_prompt", "image", "prior")
    schema = pa.schema(
        {
            **dict.fromkeys(("number", "line", "seed"), pa.int64()),
            "tags": pa.list_(pa.string()),
            "meta": pa.map_(pa.string(), pa.string()),
            **dict.fromkeys(texts, pa.string()),
        }
    )
    rows = [
        {
            **vars(entry.spec),
            "number": number,
            "line": entry.line,
            "id": entry.row_id,
            "tags": entry.tags,
            "meta": list(entry.meta.items()),
            "asset_id": entry.spec.asset_id,
            "recipe": entry.spec.recipe.name,
        }
        for number, entry in enumerate(entries)
    ]
    with duckdb.connect() as connection:
        connection.register("entries", pa.Table.from_pylist(rows, schema))
        try:
            sql = f"SELECT number FROM entries WHERE ({where}) ORDER BY number"
            return [number for (number,) in connection.execute(sql).fetchall()]
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            columns = ", ".join(name for name in schema.names if name != "number")
            raise UsageError(f"--where: {first}; columns: {columns}") from error
