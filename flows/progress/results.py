"""The assets of a run as the store's tables have them: which, in which columns, in which form.

Whatever is slow to import is imported within the functions: commands need the columns alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flows.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from prefect.states import State

    from tasks.store.interface import Store

# Headings of columns that are not called by their names.
HEADINGS = {
    "asset_id": "asset", "clip_score": "CLIP", "clip_r_precision": "R-prec",
    "geometry_r_precision": "geo R-prec", "janus_score": "Janus", "field_mesh_iou": "IoU",
}  # fmt: skip


def columns(names: str) -> dict[str, str]:
    """Columns by their names, with blanks between, and their headings."""
    return {name: HEADINGS.get(name, name) for name in names.split()}


# What a person wants to see of an asset, and of an asset in a run.
ASSET_COLUMNS = columns(
    "asset_id status prompt seed seconds clip_score clip_r_precision geometry_r_precision"
    " janus_score field_mesh_iou faces"
)
RESULT_COLUMNS = columns(
    "asset status seconds clip_score clip_r_precision geometry_r_precision field_mesh_iou faces"
    " preview"
)
# Seconds of work, without the wait for a device.
SECONDS = "+".join(
    f"coalesce(seconds_{stage}, 0)" for stage in ("optimize", "extract", "evaluate", "publish")
)


@contextlib.contextmanager
def where_errors() -> Iterator[None]:
    """SQL that is wrong is a UsageError about --where."""
    from tasks.tables.read import QueryError

    try:
        yield
    except QueryError as error:
        raise UsageError(f"--where: {error.problem}") from error


def selected_assets(
    store: Store, names: str, manifest: str | None, where: str | None, *conditions: str
) -> pa.Table:
    """Columns of best_assets, the oldest asset first: what a manifest asks for, under conditions.

    Raises ManifestError for a manifest that cannot be read, and UsageError for a wrong `where`.
    """
    from tasks.manifest.locations import file_digests
    from tasks.tables.read import of_files, query

    every = ["true", *conditions, *([f"({where})"] if where is not None else [])]
    if manifest is not None:
        files = of_files(file_digests(manifest))
        every.append(f"asset_id IN (SELECT asset_id FROM entries WHERE {files})")
    sql = f"SELECT {names} FROM best_assets WHERE {' AND '.join(every)}"
    with where_errors():
        return query(store, f"{sql} ORDER BY started_at, asset_id")


def results(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The assets of a run in the manifest's order, reused ones with the numbers they have."""
    from tasks.tables.read import query

    sql = f"""
        SELECT e.row_id AS asset, e.asset_id, e.outcome,
               coalesce(a.status, if(e.outcome = 'pruned', 'pruned', 'interrupted')) AS status,
               {SECONDS} AS seconds, a.clip_score, a.clip_r_precision,
               a.geometry_r_precision, a.janus_score, a.field_mesh_iou, a.faces,
               a.uri_mesh AS mesh, a.uri_preview AS preview, a.error_type, a.error
        FROM entries e LEFT JOIN best_assets a USING (asset_id)
        WHERE e.run_id = '{run_id}' AND e.outcome IS DISTINCT FROM 'duplicate'
        ORDER BY e.manifest, e.line, e.row_id"""
    rows: list[dict[str, Any]] = query(store, sql).to_pylist()
    return rows


def final_state(counts: Mapping[str, int], good: int, data: dict[str, Any]) -> State[Any]:
    """The state of a flow that made something of everything: good if all is, failed if nothing is.

    counts: how many of each outcome, in the order of the message. data: the state's result.
    """
    from prefect.states import Completed, Failed

    message = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if not good:
        return Failed(message=message)
    name = "Completed" if good == sum(counts.values()) else "CompletedWithErrors"
    return Completed(name=name, message=message, data=data)
