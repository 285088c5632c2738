"""What the store's tables say: `sjc assets`, `sjc query`, and the end of `sjc run`."""

from typing import Any

from flows.commands.output import show
from flows.errors import UsageError
from tasks.manifest_sources import file_digests
from tasks.store import Store, open_store
from tasks.tables import QueryError, of_files, query

# What a person wants to see of an asset, and its heading.
ASSET_COLUMNS = {
    "asset_id": "asset",
    "status": "status",
    "prompt": "prompt",
    "seed": "seed",
    "seconds": "seconds",
    "clip_score": "CLIP",
    "clip_r_precision": "R-prec",
    "geometry_r_precision": "geo R-prec",
    "janus_score": "Janus",
    "field_mesh_iou": "IoU",
    "faces": "faces",
}
# The same of an asset in a run.
RESULT_COLUMNS = {
    "asset": "asset",
    "status": "status",
    "seconds": "seconds",
    "clip_score": "CLIP",
    "clip_r_precision": "R-prec",
    "geometry_r_precision": "geo R-prec",
    "field_mesh_iou": "IoU",
    "faces": "faces",
    "preview": "preview",
}
# Seconds of work, without the wait for a device.
SECONDS = "+".join(
    f"coalesce(seconds_{stage}, 0)" for stage in ("optimize", "extract", "evaluate", "publish")
)


def list_assets(store: str, manifest: str | None, where: str | None, format: str) -> None:
    """Prints one row per asset, its best outcome; every column but in a `table`."""
    chosen = selection(manifest, where)
    seconds = f", {SECONDS} AS seconds" if format == "table" else ""
    sql = f"SELECT *{seconds} FROM best_assets {chosen} ORDER BY started_at, asset_id"
    _show(store, sql, format, ASSET_COLUMNS)


def selection(manifest: str | None, where: str | None, *conditions: str) -> str:
    """The WHERE of a query over best_assets: what a manifest asks for, and other conditions.

    Raises ManifestError for a manifest that cannot be read.
    """
    every = [*conditions, f"({where})"] if where is not None else [*conditions]
    if manifest is not None:
        every.append(
            f"asset_id IN (SELECT asset_id FROM entries WHERE {of_files(file_digests(manifest))})"
        )
    return f"WHERE {' AND '.join(every)}" if every else ""


def results(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The assets of a run in the manifest's order, reused ones with the numbers they have."""
    sql = f"""
        SELECT e.row_id AS asset, a.asset_id, coalesce(a.status, 'interrupted') AS status,
               e.outcome, {SECONDS} AS seconds, a.clip_score, a.clip_r_precision,
               a.geometry_r_precision, a.janus_score, a.field_mesh_iou, a.faces,
               a.uri_mesh AS mesh, a.uri_preview AS preview, a.error_type, a.error
        FROM entries e LEFT JOIN best_assets a USING (asset_id)
        WHERE e.run_id = '{run_id}' AND e.outcome IS DISTINCT FROM 'duplicate'
        ORDER BY e.manifest, e.line, e.row_id"""
    rows: list[dict[str, Any]] = query(store, sql).to_pylist()
    return rows


def run_query(store: str, sql: str, format: str) -> None:
    """Prints the rows of a query."""
    _show(store, sql, format, None)


def _show(store: str, sql: str, format: str, columns: dict[str, str] | None) -> None:
    try:
        rows = query(open_store(store, writable=False), sql)
    except QueryError as error:
        raise UsageError(f"--where: {error.problem}" if columns else str(error)) from error
    show(rows, format, columns)
