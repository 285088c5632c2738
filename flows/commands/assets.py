"""`sjc assets`: what a store has, one row per asset."""

from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.progress.results import ASSET_COLUMNS, SECONDS, selected_assets


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

    names = f"*, {SECONDS} AS seconds" if format == options.RowFormat.table else "*"
    rows = selected_assets(open_store(store, writable=False), names, manifest, where)
    show(rows, format, ASSET_COLUMNS)
