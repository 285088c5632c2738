"""What people say of assets: read from a file, and kept as documents that never change."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.manifest.entries import Cells
from tasks.manifest.formats import Columns, ManifestError, shown
from tasks.manifest.locations import read_sources
from tasks.records import documents
from tasks.records.documents import Document
from tasks.store.interface import AlreadyCommitted, Store
from tasks.store.layout import annotations_key
from tasks.tables.read import query
from tasks.tables.write import record_annotations

COLUMNS = Columns(("asset_id", "key", "value"), ("who", "when"))
RATING, LABEL = "rating", "label"  # keys that the view `best_assets` knows
LOWEST, HIGHEST = 1, 5
AHEAD = timedelta(days=1)  # how far the clock of another machine may be


def read_annotations(store: Store, file: str | Path, who: str) -> list[Document]:
    """The rows of a file, or of a folder of them, in any format of manifests but plain text.

    who: the person of rows that name none. Raises `ManifestError` with every bad row: values must
    fit, and every asset must be in the tables of the store.
    """
    ids = query(store, "SELECT DISTINCT asset_id FROM assets")["asset_id"].to_pylist()
    known = set(ids)
    sources = read_sources(str(file))
    rows = []
    for records in sources:
        records.columns = COLUMNS
        for line, values in records:
            cells = Cells(values)
            rows.append(_row(cells, known, store.url, who))
            for error in cells.errors:
                records.add_problem(line, error.key, error.problem, error.fix)
    problems = [p for s in sources for p in sorted(s.problems, key=lambda p: p.line or 0)]
    if problems:
        raise ManifestError(problems)
    return rows


def save_annotations(store: Store, rows: Sequence[Document]) -> tuple[str, bool]:
    """Keeps rows in the store and its tables; the document's key, and whether it is new.

    The same rows are the same document. Rows without a time count from its first writing.
    """
    documents.check_usable(store)
    documents.mark_format(store)
    key = annotations_key(documents.annotations_digest(rows))
    is_new = True
    try:
        documents.write(store, key, {"made_at": documents.now(), "rows": list(rows)})
    except AlreadyCommitted:
        is_new = False
    record_annotations(store)
    return key, is_new


def _row(cells: Cells, known: Container[str], url: str, who: str) -> Document:
    """A row of a document, which means nothing if `cells` has errors."""
    asset_id = _needed(cells, "asset_id", "name an asset")
    if asset_id and asset_id not in known:
        problem = f"{shown(asset_id)!r} is not in {url}"
        cells.add_error("asset_id", problem, f"take ids from `sjc assets --store {url}`")
    key = _needed(cells, "key", f"write {RATING}, {LABEL} or another word")
    word = key.lower().removesuffix("s")
    if word in (RATING, LABEL) and key != word:
        cells.add_error("key", f"{key!r} is not {word!r}", f"write {word}, or another word")
    return {
        "asset_id": asset_id,
        "key": key,
        "value": _value(cells, key),
        "who": cells.text("who").strip() or who,
        "when": _when(cells),
    }


def _needed(cells: Cells, column: str, fix: str) -> str:
    if column not in cells.given:
        cells.add_error(column, "is blank", fix)
    return cells.text(column).strip()


def _value(cells: Cells, key: str) -> str | None:
    """None where it is blank, which takes back what the person said before."""
    value = cells.given.get("value")
    if value is None or key == LABEL:
        return ";".join(cells.texts("value")) or None
    if isinstance(value, bool):
        value = str(value).lower()
    if key != RATING:
        return str(value) if isinstance(value, str | int | float) else cells.text("value")
    try:
        stars = float(value)
        if LOWEST <= stars <= HIGHEST:
            return f"{stars:g}"
    except (TypeError, ValueError):
        pass
    fix = f"write a number from {LOWEST} to {HIGHEST}, or nothing to withdraw one"
    cells.add_error("value", f"{shown(str(value))!r} is not a rating", fix)
    return None


def _when(cells: Cells) -> str | None:
    """The time in UTC; without a zone it is taken for that."""
    text = cells.text("when").strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        cells.add_error("when", f"{shown(text)!r} is not a time", "write 2026-01-31T09:30:00Z")
        return None
    if moment > datetime.now(UTC) + AHEAD:
        cells.add_error("when", f"{shown(text)} is in the future", "write when it was said")
    return moment.isoformat(timespec="microseconds")
