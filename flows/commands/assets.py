"""`sjc assets`: what a store has, one row per asset."""

from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.progress.results import ASSET_COLUMNS, SECONDS, selection, where_errors


@command(
    'sjc assets --where "clip_r_precision >= 0.9 AND watertight"',
    "sjc assets --manifest prompts.csv --format csv",
)
def assets(
    store: options.Store = "./store",
    manifest: options.OfManifest = None,
    where: Annotated[
        str | None, typer.Option(help='Only assets for which this SQL holds: "clip_score > 25".')
    ] = None,
    format: options.Format = options.RowFormat.table,
) -> None:
    """List the assets of a store: one row each, its best outcome."""
    from tasks.store import open_store
    from tasks.tables.read import query

    chosen = selection(manifest, where)
    seconds = f", {SECONDS} AS seconds" if format == options.RowFormat.table else ""
    sql = f"SELECT *{seconds} FROM best_assets {chosen} ORDER BY started_at, asset_id"
    with where_errors():
        rows = query(open_store(store, writable=False), sql)
    show(rows, format, ASSET_COLUMNS)
