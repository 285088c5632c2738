"""`sjc assets`: what a store has, one row per asset."""

from typing import Annotated

import typer

from flows.commands.app import app, examples
from flows.commands.options import Format, FormatOption, OfManifestOption, StoreOption
from flows.commands.output import show
from flows.errors import UsageError, reported
from flows.progress.results import ASSET_COLUMNS, SECONDS, selection


@app.command(
    epilog=examples(
        'sjc assets --where "clip_r_precision >= 0.9 AND watertight"',
        "sjc assets --manifest prompts.csv --format csv",
    ),
)
def assets(
    store: StoreOption = "./store",
    manifest: OfManifestOption = None,
    where: Annotated[
        str | None, typer.Option(help='Only assets for which this SQL holds: "clip_score > 25".')
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """List the assets of a store: one row each, its best outcome."""
    with reported():
        from tasks.store import open_store
        from tasks.tables import QueryError, query

        chosen = selection(manifest, where)
        seconds = f", {SECONDS} AS seconds" if format == Format.table else ""
        sql = f"SELECT *{seconds} FROM best_assets {chosen} ORDER BY started_at, asset_id"
        try:
            rows = query(open_store(store, writable=False), sql)
        except QueryError as error:
            raise UsageError(f"--where: {error.problem}") from error
        show(rows, format, ASSET_COLUMNS)
